//! Dumps as files, named as netdumpd names them:
//!
//! | file | meaning |
//! |---|---|
//! | `info.HOST.N` | what is known of the dump; its making claims the number N |
//! | `vmcore.HOST.N` | the core; `vmcore_encrypted.HOST.N` when it is, `.gz` or `.zst` behind when compressed |
//! | `key.HOST.N` | the key block of an encrypted dump |
//! | `bounds.HOST` | the number to try next |
//! | `vmcore.HOST.last`, `info.HOST.last` | links to the last complete dump |
//!
//! While a dump is being received its core and key are named `*.partial`; of a dump that stopped early, or
//! of a compressed or encrypted one with gaps, they stay, named `*.incomplete`. Only the owner may read the files. No
//! link in the directory is ever followed.

mod directory;
mod dump;
mod files;
mod writeback;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use directory::Directory;
pub use dump::DiskDump;
use files::Files;
use writeback::WriteBack;

use super::info::InfoText;
use super::names::HostNames;
use super::path::{DumpPath, PathRefusal};
use super::store::{DumpStore, NewDump, StoreError};

/// Numbers tried from the one in `bounds.HOST` on, then from 0 on.
const INDEX_TRIES: u32 = 1024;
/// Most bytes of a `bounds.HOST` that are read.
const MAX_BOUNDS: u64 = 32;
/// Only the owner reads and writes.
const PRIVATE: u32 = 0o600;

/// A directory of dumps.
#[derive(Debug)]
pub struct DiskStore {
    root: Directory,
    names: HostNames,
    /// Started with the first dump.
    write_back: Option<WriteBack>,
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
}

impl DiskStore {
    /// Opens a directory, which must exist and be writable.
    pub fn open(directory: &Path, names: HostNames) -> Result<Self, StoreError> {
        let path = directory.to_owned();
        let root = Directory::open(directory)
            .map_err(|source| StoreError::Directory { path: path.clone(), source })?;
        root.is_writable().map_err(|source| StoreError::NotWritable { path, source })?;
        Ok(Self { root, names, write_back: None })
    }

    /// As [`Self::open`]; makes the directory where it is missing.
    pub fn create(directory: &Path, names: HostNames) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory)
            .map_err(|source| StoreError::Directory { path: directory.to_owned(), source })?;
        Self::open(directory, names)
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
        let first = next_index(&directory, &host);
        for index in (first..first.saturating_add(INDEX_TRIES)).chain(0..INDEX_TRIES) {
            match directory.create_new(&format!("info.{host}.{index}"), PRIVATE) {
                Ok(info) => {
                    if is_taken(&directory, &host, index) {
                        let _ = directory.remove(&format!("info.{host}.{index}"));
                        continue;
                    }
                    // Only a hint for the next search.
                    let _ = write_bounds(&directory, &host, index.saturating_add(1));
                    let address = *request.peer.ip();
                    let text = InfoText { host: host.clone(), address, notes: note.into_iter().collect() };
                    let files = Files::make(directory, info, host, index, &text)?;
                    self.write_back = self.write_back.take().or_else(WriteBack::start);
                    return Ok(DiskDump::new(files, text, self.write_back.clone()));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => {
                    let path = directory.path_of(&format!("info.{host}.{index}"));
                    return Err(StoreError::File { doing: "making", path, source });
                }
            }
        }
        Err(StoreError::NoFreeIndex { host, directory: directory.path().to_owned() })
    }
}

/// Whether files of a dump with this number are left although its info file is gone.
fn is_taken(directory: &Directory, host: &str, index: u32) -> bool {
    ["vmcore", "vmcore_encrypted", "key", "info"].iter().any(|kind| {
        let suffixes: &[&str] = match *kind {
            "info" => &[".partial"],
            _ => &["", ".gz", ".zst", ".partial", ".incomplete"],
        };
        suffixes.iter().any(|suffix| directory.holds(&format!("{kind}.{host}.{index}{suffix}")))
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
