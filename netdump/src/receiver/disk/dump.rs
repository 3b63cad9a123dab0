//! One dump on disk while it is received.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::StoredDump;
use super::files::Files;
use super::writeback::{Unflushed, WriteBack};
use crate::receiver::info::InfoText;
use crate::receiver::store::{Commit, OpenDump, StoreError};
use crate::receiver::summary::{DumpSummary, Ending, HeaderSeen};

/// One dump on disk.
#[derive(Debug)]
pub struct DiskDump {
    files: Arc<Files>,
    text: InfoText,
    write_back: Option<WriteBack>,
    unflushed: Unflushed,
    /// The commit under way. It has a thread of its own: fsync of a large core takes longer than the other clients'
    /// patience.
    commit: Option<JoinHandle<Result<StoredDump, StoreError>>>,
}

impl DiskDump {
    /// A dump of which nothing came.
    pub(super) fn new(files: Files, text: InfoText, write_back: Option<WriteBack>) -> Self {
        Self { files: Arc::new(files), text, write_back, unflushed: Unflushed::default(), commit: None }
    }
}

impl OpenDump for DiskDump {
    type Stored = StoredDump;

    fn write_at(&mut self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), StoreError> {
        self.files.write_core(offset, pieces)?;
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let range = offset..offset + len as u64;
        self.unflushed.add(&range, self.files.core(), self.write_back.as_ref());
        Ok(())
    }

    fn key_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.files.write_key(offset, bytes)
    }

    fn header(&mut self, header: &HeaderSeen) -> Result<(), StoreError> {
        self.files.write_info(&self.text.receiving(header))
    }

    fn commit(&mut self, summary: &DumpSummary) -> Result<Commit<StoredDump>, StoreError> {
        let Some(running) = self.commit.take() else {
            let (files, text, summary) = (Arc::clone(&self.files), self.text.clone(), summary.clone());
            let thread = std::thread::Builder::new().name("netdump-commit".into());
            let started = thread.spawn(move || files.commit(text, &summary));
            self.commit =
                Some(started.map_err(|source| self.files.failed("committing", "vmcore", "")(source))?);
            return Ok(Commit::Pending);
        };
        if !running.is_finished() {
            self.commit = Some(running);
            return Ok(Commit::Pending);
        }
        let panicked = || self.files.failed("committing", "vmcore", "")(io::Error::other("a panic"));
        running.join().unwrap_or_else(|_| Err(panicked())).map(Commit::Done)
    }

    fn abandon(&mut self, summary: &DumpSummary, ending: &Ending) -> Result<StoredDump, StoreError> {
        self.files.abandon(&self.text.ended(summary, ending), &summary.header)
    }

    fn discard(&mut self) {
        self.files.remove();
    }
}
