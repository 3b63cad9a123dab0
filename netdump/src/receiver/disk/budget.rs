//! What a store allows itself ([`StoreLimits`]): kept account of by all its dumps together.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::statvfs::fstatvfs;

use super::directory::Directory;
use super::tree;
use crate::receiver::store::{StoreError, StoreLimits};

/// Bytes that a dump stores before it asks again how much is free.
const ASK_AFTER: u64 = 4 << 20;

/// The account of a store.
#[derive(Debug, Default)]
pub(super) struct Budget {
    limits: StoreLimits,
    /// What the store's files take: counted when a dump begins, then what dumps have brought since.
    used: AtomicU64,
}

/// The account of one dump.
#[derive(Debug, Default)]
pub(super) struct Spending {
    /// Bytes stored since the free ones were asked for; `None` when they never were.
    since_asked: Option<u64>,
}

impl Budget {
    pub(super) fn new(limits: StoreLimits) -> Self {
        Self { limits, used: AtomicU64::new(0) }
    }

    /// Whether another dump may begin in `directory`. Looks at what is in `root`, so that room which somebody made
    /// counts.
    pub(super) fn admit_dump(&self, root: &Directory, directory: &Directory) -> Result<(), StoreError> {
        if self.limits.max_bytes_total.is_some() {
            self.used.store(tree::used(root), Ordering::Relaxed);
        }
        self.check_total(0)?;
        self.check_free(directory)
    }

    /// Whether a dump that will then have `bytes` may store `new` of them.
    pub(super) fn admit_bytes(
        &self,
        spending: &mut Spending,
        core: &File,
        bytes: u64,
        new: u64,
    ) -> Result<(), StoreError> {
        if let Some(limit) = self.limits.max_bytes_per_dump.filter(|&limit| bytes > limit) {
            return Err(StoreError::DumpTooLarge { limit });
        }
        self.check_total(new)?;
        self.used.fetch_add(new, Ordering::Relaxed);
        let since = spending.since_asked.map_or(ASK_AFTER, |since| since.saturating_add(new));
        spending.since_asked = Some(since % ASK_AFTER);
        if since >= ASK_AFTER { self.check_free(core) } else { Ok(()) }
    }

    fn check_total(&self, new: u64) -> Result<(), StoreError> {
        let used = self.used.load(Ordering::Relaxed);
        match self.limits.max_bytes_total {
            Some(limit) if used.saturating_add(new) > limit => Err(StoreError::TooMuchStored { limit, used }),
            _ => Ok(()),
        }
    }

    fn check_free(&self, on: &impl AsFd) -> Result<(), StoreError> {
        let Some(limit) = self.limits.min_free else { return Ok(()) };
        match free(on) {
            Ok(free) if free < limit => Err(StoreError::TooLittleFree { limit, free }),
            // A file system that does not tell has no limit.
            _ => Ok(()),
        }
    }
}

/// Bytes that this user may still store on the file system of a file or directory.
pub(super) fn free(on: &impl AsFd) -> io::Result<u64> {
    let stat = fstatvfs(on)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}
