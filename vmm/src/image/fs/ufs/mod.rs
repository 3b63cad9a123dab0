//! UFS2 and UFS1, FreeBSD's own file systems, little-endian (freebsd-src `sys/ufs/ffs/fs.h`, `sys/ufs/ufs/dinode.h`,
//! `sys/ufs/ufs/dir.h`). Addresses on disk count fragments of `fsize` bytes.
//!
//! Files are found from the root directory, inode 2, by what the disk says now: journals are not replayed, which does
//! not matter for what was written long before the last shutdown, as a kernel was.

mod directory;
mod inode;
mod superblock;

use self::directory::Directory;
use self::inode::{Inode, ROOT};
use self::superblock::Superblock;
use super::super::blocks::Blocks;
use super::{DirEntry, FileKind, FileSystem, FileSystemType, FsError, MOST_ENTRIES, MOST_LINKS, Metadata};

/// Longest path, and longest target of a symbolic link, in bytes (`MAXPATHLEN`).
const MOST_PATH: u64 = 1024;
/// Most names that a lookup walks, links included.
const MOST_NAMES: usize = 256;

/// The type.
#[derive(Debug)]
pub(super) struct Type;

impl FileSystemType for Type {
    fn name(&self) -> &'static str {
        "ufs"
    }

    fn recognises(&self, blocks: &Blocks) -> bool {
        superblock::find(blocks).is_some()
    }

    fn open(&self, blocks: Blocks) -> Result<Box<dyn FileSystem>, FsError> {
        let superblock = Superblock::read(&blocks)?;
        Ok(Box::new(Ufs { blocks, superblock }))
    }
}

/// An open file system.
#[derive(Debug)]
struct Ufs {
    blocks: Blocks,
    superblock: Superblock,
}

impl FileSystem for Ufs {
    fn kind(&self) -> &'static str {
        "ufs"
    }

    fn uuid(&self) -> Option<String> {
        self.superblock.id.map(|[first, second]| format!("{first:08x}{second:08x}"))
    }

    fn label(&self) -> Option<String> {
        self.superblock.label.clone()
    }

    fn metadata(&self, path: &str) -> Result<Metadata, FsError> {
        let inode = self.lookup(path)?;
        Ok(Metadata { kind: inode.kind, len: inode.len, modified: Some(inode.modified) })
    }

    fn read(&self, path: &str, most: u64) -> Result<Vec<u8>, FsError> {
        let inode = self.lookup(path)?;
        if inode.kind != FileKind::File {
            return Err(FsError::Kind { path: path.to_owned(), wanted: "regular file" });
        }
        if inode.len > most {
            return Err(FsError::Large { path: path.to_owned(), len: inode.len, most });
        }
        inode.content(self)
    }

    fn list(&self, path: &str) -> Result<Vec<DirEntry>, FsError> {
        let inode = self.lookup(path)?;
        let mut entries = Vec::new();
        self.directory(&inode, path)?.each(|entry| {
            if matches!(entry.name, b"." | b"..") {
                return Ok(false);
            }
            if entries.len() == MOST_ENTRIES {
                let most = MOST_ENTRIES as u64;
                return Err(FsError::TooMany { place: path.to_owned(), what: "entries", most });
            }
            let name = String::from_utf8_lossy(entry.name).into_owned();
            entries.push(DirEntry { name, kind: entry.kind });
            Ok(false)
        })?;
        Ok(entries)
    }
}

impl Ufs {
    /// What is at a path. Names still to be walked are on a stack, the next one last; a link puts its target's there.
    fn lookup(&self, path: &str) -> Result<Inode, FsError> {
        let mut names = split(path.as_bytes());
        // The directories from the root to here, for `..`: the disk's own entries could lead astray.
        let mut parents = Vec::new();
        let mut here = self.inode(ROOT)?;
        let (mut links, mut walked) = (0, 0);
        while let Some(name) = names.pop() {
            walked += 1;
            if walked > MOST_NAMES {
                return Err(FsError::TooMany {
                    place: path.to_owned(),
                    what: "names",
                    most: MOST_NAMES as u64,
                });
            }
            if name == b".." {
                here = parents.pop().unwrap_or(here);
                continue;
            }
            let next = self.directory(&here, path)?.find(&name)?;
            let next = next.ok_or_else(|| FsError::NotFound { path: path.to_owned() })?;
            let next = self.inode(next)?;
            if next.kind != FileKind::Link {
                parents.push(std::mem::replace(&mut here, next));
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return Err(FsError::Links { path: path.to_owned() });
            }
            if next.len > MOST_PATH {
                return Err(next.damaged(format!("a symbolic link of {} bytes", next.len)));
            }
            let target = next.content(self)?;
            if target.starts_with(b"/") {
                here = self.inode(ROOT)?;
                parents.clear();
            }
            names.extend(split(&target));
        }
        Ok(here)
    }

    fn inode(&self, number: u32) -> Result<Inode, FsError> {
        Inode::read(self, number)
    }

    fn directory<'a>(&self, inode: &'a Inode, path: &str) -> Result<Directory<'a>, FsError> {
        if inode.kind != FileKind::Directory {
            // A path that leads through a file leads to nothing.
            return Err(FsError::Kind { path: path.to_owned(), wanted: "directory" });
        }
        Directory::read(self, inode)
    }
}

/// The names of a path, last one first.
fn split(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&byte| byte == b'/');
    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
    let mut names: Vec<_> = parts.map(<[u8]>::to_vec).collect();
    names.reverse();
    names
}

/// Something on the disk that contradicts itself.
fn damaged(place: impl Into<String>, problem: impl Into<String>) -> FsError {
    FsError::Damaged { kind: "ufs", place: place.into(), problem: problem.into() }
}

#[cfg(test)]
mod tests;
