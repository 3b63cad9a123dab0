//! Dumps as files, named as netdumpd names them:
//!
//! | file | meaning |
//! |---|---|
//! | `info.HOST.N` | what is known of the dump; its making claims the number N |
//! | `vmcore.HOST.N` | the core; `vmcore_encrypted.HOST.N` when it is, `.gz` or `.zst` behind when compressed |
//! | `key.HOST.N` | the key block of an encrypted dump |
//! | `manifest.HOST.N.json` | what is known of a dump that has ended, for machines, with the hashes of its core |
//! | `bounds.HOST` | the number to try next |
//! | `vmcore.HOST.last`, `info.HOST.last`, `manifest.HOST.last.json` | links to the last complete dump |
//! | `journal.HOST.N` | what the next receiver has to know if this one dies; gone when the manifest is there |
//!
//! While a dump is being received its core and key are named `*.partial`; of a dump that stopped early, or
//! of a compressed or encrypted one with gaps, they stay, named `*.incomplete`. Only the owner may read the files. No
//! link in the directory is ever followed.

mod budget;
mod directory;
mod dump;
mod files;
mod journal;
mod proof;
mod recovery;
mod tree;
mod writeback;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use budget::Budget;
use directory::Directory;
pub use dump::DiskDump;
use dump::Origin;
use files::Files;
use journal::{Head, Journal};
use proof::Prover;
pub use proof::{Proof, Proven};
pub use recovery::Leftover;
use writeback::WriteBack;

use super::info::InfoText;
use super::names::HostNames;
use super::path::{DumpPath, PathRefusal};
use super::store::{DumpStore, NewDump, Restored, StoreError, StoreLimits};

/// Numbers tried from the one in `bounds.HOST` on, then from 0 on.
const INDEX_TRIES: u32 = 1024;
/// Most bytes of a `bounds.HOST` that are read.
const MAX_BOUNDS: u64 = 32;
/// Only the owner reads and writes.
const PRIVATE: u32 = 0o600;

/// A directory of dumps. When it is dropped it waits for the proofs of dumps that have ended.
#[derive(Debug)]
pub struct DiskStore {
    root: Directory,
    names: HostNames,
    shared: Arc<Shared>,
    /// Dumps of a dead receiver that can go on.
    unfinished: Vec<Restored<DiskDump>>,
}

/// What the dumps of a store have in common.
#[derive(Debug, Default)]
struct Shared {
    budget: Budget,
    prover: Prover,
    write_back: WriteBack,
}

/// Where a dump has been put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDump {
    /// The core.
    pub core: PathBuf,
    /// The info file.
    pub info: PathBuf,
    /// The key block, of an encrypted dump.
    pub key: Option<PathBuf>,
    /// Whether the dump is whole and on stable storage.
    pub complete: bool,
    /// What becomes of its manifest.
    pub proof: Proof,
}

impl DiskStore {
    /// Opens a directory, which must exist and be writable.
    pub fn open(directory: &Path, names: HostNames) -> Result<Self, StoreError> {
        let path = directory.to_owned();
        let root = Directory::open(directory)
            .map_err(|source| StoreError::Directory { path: path.clone(), source })?;
        root.is_writable().map_err(|source| StoreError::NotWritable { path, source })?;
        Ok(Self { root, names, shared: Arc::default(), unfinished: Vec::new() })
    }

    /// As [`Self::open`]; makes the directory where it is missing.
    pub fn create(directory: &Path, names: HostNames) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory)
            .map_err(|source| StoreError::Directory { path: directory.to_owned(), source })?;
        Self::open(directory, names)
    }

    /// The same store with limits. Dumps that have begun keep those that they began with.
    pub fn with_limits(mut self, limits: StoreLimits) -> Self {
        self.shared = Arc::new(Shared { budget: Budget::new(limits), ..Shared::default() });
        self
    }

    /// The directory that a dump asks for, else this store's own; and what is to be said of it.
    fn directory_for(
        &self,
        path: &Result<Option<DumpPath>, PathRefusal>,
    ) -> io::Result<(Directory, Option<String>)> {
        let below = match path {
            Ok(None) => return Ok((self.root.again()?, None)),
            Ok(Some(path)) => {
                let name = path.as_path().display().to_string();
                let opened = self.root.open_below(path.as_path());
                let writable = opened.and_then(|below| below.is_writable().map(|()| below));
                writable.map_err(|error| format!("path '{name}' was not used: {error}"))
            }
            Err(refusal) => Err(format!("the path asked for was not used: {refusal}")),
        };
        match below {
            Ok(below) => Ok((below, None)),
            Err(note) => Ok((self.root.again()?, Some(note))),
        }
    }
}

impl DumpStore for DiskStore {
    type Dump = DiskDump;
    type Stored = StoredDump;

    fn create(&mut self, request: &NewDump) -> Result<DiskDump, StoreError> {
        let host = self.names.name_of(*request.peer.ip());
        let (directory, note) = self
            .directory_for(&request.path)
            .map_err(|source| StoreError::Directory { path: self.root.path().to_owned(), source })?;
        self.shared.budget.admit_dump(&self.root, &directory)?;
        let (index, info) = claim(&directory, &host)?;
        let began = SystemTime::now();
        let path = request.path.as_ref().ok().filter(|_| note.is_none()).and_then(Option::as_ref);
        let path = path.and_then(|path| path.as_path().to_str()).map(str::to_owned);
        let text = InfoText { host, address: *request.peer.ip(), notes: note.into_iter().collect() };
        let head = Head {
            boot: journal::boot_id().unwrap_or_default(),
            dump_id: request.dump_id,
            peer: request.peer,
            local: request.local,
            path: path.clone(),
            host: text.host.clone(),
            index,
            began: began.duration_since(UNIX_EPOCH).map_or(0, millis),
            notes: text.notes.clone(),
        };
        let files = Files::make(directory, info, text.host.clone(), index, &text)?;
        let journal = Journal::begin(&files.directory, &head).map_err(|source| {
            files.remove();
            files.failed("making", "journal", "")(source)
        })?;
        let shared = Arc::clone(&self.shared);
        Ok(DiskDump::new(files, text, journal, Origin { path, began }, shared))
    }

    fn unfinished(&mut self) -> Vec<Restored<DiskDump>> {
        std::mem::take(&mut self.unfinished)
    }
}

/// Claims the next free number of a client, by making its info file.
fn claim(directory: &Directory, host: &str) -> Result<(u32, File), StoreError> {
    let first = next_index(directory, host);
    for index in (first..first.saturating_add(INDEX_TRIES)).chain(0..INDEX_TRIES) {
        let name = format!("info.{host}.{index}");
        match directory.create_new(&name, PRIVATE) {
            Ok(_) if is_taken(directory, host, index) => {
                let _ = directory.remove(&name);
            }
            Ok(info) => {
                // Only a hint for the next search.
                let _ = write_bounds(directory, host, index.saturating_add(1));
                return Ok((index, info));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                return Err(StoreError::File { doing: "making", path: directory.path_of(&name), source });
            }
        }
    }
    Err(StoreError::NoFreeIndex { host: host.to_owned(), directory: directory.path().to_owned() })
}

fn millis(since: Duration) -> u64 {
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Whether files of a dump with this number are left although its info file is gone.
fn is_taken(directory: &Directory, host: &str, index: u32) -> bool {
    let suffixes = |kind| -> &[&str] {
        match kind {
            "info" => &[".partial"],
            "journal" => &[""],
            "manifest" => &[".json", ".json.partial"],
            _ => &["", ".gz", ".zst", ".partial", ".incomplete"],
        }
    };
    ["vmcore", "vmcore_encrypted", "key", "info", "journal", "manifest"].iter().any(|kind| {
        suffixes(kind).iter().any(|suffix| directory.holds(&format!("{kind}.{host}.{index}{suffix}")))
    })
}

fn next_index(directory: &Directory, host: &str) -> u32 {
    let mut text = String::new();
    let read = directory
        .open_file(&format!("bounds.{host}"))
        .and_then(|file| file.take(MAX_BOUNDS).read_to_string(&mut text));
    read.ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0)
}

fn write_bounds(directory: &Directory, host: &str, next: u32) -> io::Result<()> {
    let (name, aside) = (format!("bounds.{host}"), format!(".bounds.{host}.new"));
    directory.remove(&aside)?;
    directory.create_new(&aside, PRIVATE)?.write_all(format!("{next}\n").as_bytes())?;
    directory.rename(&aside, &name)
}

#[cfg(test)]
mod tests;
