//! File systems, read only, as far as a boot needs them. Each is a file and a line in [`ALL`].
//!
//! Everything on a disk is hostile: a reader bounds what it reads, follows and remembers, and says where it gave up.

mod ext4;
mod fat;
mod lookup;
#[cfg(test)]
pub(in crate::image) mod test_fs;
mod ufs;
mod unreadable;
mod worker;

use std::fmt;

use thiserror::Error;

use super::blocks::{Blocks, ReadBlocksError};

/// Most symbolic links that a lookup follows (`MAXSYMLINKS` of FreeBSD is 32, Linux follows 40).
pub const MOST_LINKS: usize = 32;
/// Most entries of a directory that are listed.
pub const MOST_ENTRIES: usize = 65_536;

/// Every type, in the order in which they are tried.
pub static ALL: &[&dyn FileSystemType] = &[&ufs::Type, &ext4::Ext, &fat::Fat];

/// A type of file system.
pub trait FileSystemType: Sync + fmt::Debug {
    /// Its name, such as `ext4`.
    fn name(&self) -> &'static str;

    /// Whether these bytes say that they are one.
    fn recognises(&self, blocks: &Blocks) -> bool;

    /// Opens one that was recognised. What nobody here can read is [`FsError::Unsupported`].
    fn open(&self, blocks: Blocks) -> Result<Box<dyn FileSystem>, FsError>;
}

/// An open file system. Paths are absolute, their parts separated by slashes; all but the last byte of a path's names
/// may be anything that is UTF-8.
pub trait FileSystem: Send + Sync + fmt::Debug {
    /// What it is, as a mount would name it: `ufs`, `ext4`, `vfat`.
    fn kind(&self) -> &'static str;

    /// Its identity as `/dev/disk/by-uuid` and `root=UUID=` spell it: lower-case groups, or FAT's `ABCD-1234`.
    fn uuid(&self) -> Option<String>;

    /// Its name, if it has one.
    fn label(&self) -> Option<String>;

    /// What is at `path`; links are followed, the last one too, up to [`MOST_LINKS`].
    fn metadata(&self, path: &str) -> Result<Metadata, FsError>;

    /// A file of at most `most` bytes.
    fn read(&self, path: &str, most: u64) -> Result<Vec<u8>, FsError>;

    /// What a directory has, without `.` and `..`, in no order; at most [`MOST_ENTRIES`].
    fn list(&self, path: &str) -> Result<Vec<DirEntry>, FsError>;
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Length in bytes.
    pub len: u64,
    /// When it was modified, in seconds since 1970, where that is recorded.
    pub modified: Option<i64>,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link (only in listings).
    Link,
    /// A device, a socket, ...
    Other,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name; bytes that are no UTF-8 are replaced, so that such a file can be seen but not opened.
    pub name: String,
    /// What it is, not following links.
    pub kind: FileKind,
}

/// Why a file system, or something in it, could not be read.
#[derive(Debug, Error)]
pub enum FsError {
    /// Nothing is there.
    #[error("there is no {path}")]
    NotFound {
        /// What was looked for.
        path: String,
    },
    /// Something else than what was wanted is there.
    #[error("{path} is no {wanted}")]
    Kind {
        /// Where.
        path: String,
        /// `directory` or `regular file`.
        wanted: &'static str,
    },
    /// It is larger than it may be.
    #[error("{path} has {len} bytes, at most {most} are read")]
    Large {
        /// Which file.
        path: String,
        /// Its length.
        len: u64,
        /// How many it may have.
        most: u64,
    },
    /// Links that lead to each other, or very many of them.
    #[error("{path} leads through more than {MOST_LINKS} symbolic links")]
    Links {
        /// Where it began.
        path: String,
    },
    /// More names, blocks or steps than anything sound has.
    #[error("{place} has more {what} than the {most} that are looked at")]
    TooMany {
        /// Of what.
        place: String,
        /// What there are too many of.
        what: &'static str,
        /// The limit.
        most: u64,
    },
    /// It contradicts itself.
    #[error("the {kind} file system is damaged: {place}: {problem}")]
    Damaged {
        /// Which type it is.
        kind: &'static str,
        /// Where, such as `inode 2`.
        place: String,
        /// What is wrong there.
        problem: String,
    },
    /// Recognised, but not readable here.
    #[error("{what} cannot be read here: {advice}")]
    Unsupported {
        /// What it is, such as `a ZFS pool`.
        what: &'static str,
        /// What to do in its place.
        advice: &'static str,
    },
    /// The disk cannot be read, or something points behind its end.
    #[error("reading {place}")]
    Read {
        /// What was being read, such as `the superblock` or a path.
        place: String,
        /// Why it failed.
        #[source]
        source: ReadBlocksError,
    },
}

/// The type of what is in `blocks`; `None` when nothing is known of it.
pub fn recognise(blocks: &Blocks) -> Option<&'static dyn FileSystemType> {
    ALL.iter().chain(unreadable::ALL).copied().find(|kind| kind.recognises(blocks))
}
