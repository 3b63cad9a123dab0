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
use super::lookup::{MOST_TARGET, Tree};
use super::{DirEntry, FileKind, FileSystem, FileSystemType, FsError, MOST_ENTRIES, Metadata};

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

impl Tree for Ufs {
    type File = Inode;

    fn root(&self) -> Result<Inode, FsError> {
        self.inode(ROOT)
    }

    fn child(&self, directory: &Inode, name: &[u8], path: &str) -> Result<Inode, FsError> {
        let found = self.directory(directory, path)?.find(name)?;
        self.inode(found.ok_or_else(|| FsError::NotFound { path: path.to_owned() })?)
    }

    fn target(&self, file: &Inode) -> Result<Option<Vec<u8>>, FsError> {
        if file.kind != FileKind::Link {
            return Ok(None);
        }
        if file.len > MOST_TARGET {
            return Err(file.damaged(format!("a symbolic link of {} bytes", file.len)));
        }
        file.content(self).map(Some)
    }
}

impl Ufs {
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

/// Something on the disk that contradicts itself.
fn damaged(place: impl Into<String>, problem: impl Into<String>) -> FsError {
    FsError::Damaged { kind: "ufs", place: place.into(), problem: problem.into() }
}

#[cfg(test)]
mod tests;
