//! Directories: chunks of 512 bytes that no entry crosses (`struct direct`): inode u32, length of the entry u16, type u8,
//! length of the name u8, name.

use super::super::{FileKind, FsError};
use super::Ufs;
use super::inode::Inode;
use super::superblock::u32_at;

/// `DIRBLKSIZ`.
const CHUNK: usize = 512;
const HEADER: usize = 8;
/// Largest directory that is read: some 100 000 names. FreeBSD's largest ones below /boot have a thousand.
const MOST: u64 = 4 << 20;

/// A directory's content.
pub(super) struct Directory<'a> {
    inode: &'a Inode,
    bytes: Vec<u8>,
}

/// A name in it.
pub(super) struct Entry<'a> {
    pub(super) inode: u32,
    pub(super) name: &'a [u8],
    pub(super) kind: FileKind,
}

impl<'a> Directory<'a> {
    /// Reads it.
    pub(super) fn read(ufs: &Ufs, inode: &'a Inode) -> Result<Self, FsError> {
        if inode.len > MOST {
            let problem = format!("a directory of {} bytes, at most {MOST} are read", inode.len);
            return Err(inode.damaged(problem));
        }
        Ok(Self { inode, bytes: inode.content(ufs)? })
    }

    /// The inode of a name.
    pub(super) fn find(&self, name: &[u8]) -> Result<Option<u32>, FsError> {
        let mut found = None;
        self.each(|entry| {
            found = (entry.name == name).then_some(entry.inode);
            Ok(found.is_some())
        })?;
        Ok(found)
    }

    /// Shows every entry until `look` says that it is done.
    pub(super) fn each(
        &self,
        mut look: impl FnMut(Entry<'_>) -> Result<bool, FsError>,
    ) -> Result<(), FsError> {
        for (number, chunk) in self.bytes.chunks(CHUNK).enumerate() {
            let mut rest = chunk;
            while !rest.is_empty() {
                let (entry, behind) = split(rest).ok_or_else(|| {
                    let at = number * CHUNK + chunk.len() - rest.len();
                    self.inode.damaged(format!("its entry at byte {at} leaves its 512 bytes"))
                })?;
                rest = behind;
                if entry.inode != 0 && look(entry)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The first entry, and what is behind it; `None` when it does not fit.
fn split(bytes: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    let header = bytes.get(..HEADER)?;
    let len = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let (entry, behind) = bytes.split_at_checked(len)?;
    let name = entry.get(HEADER..)?.get(..usize::from(header[7]))?;
    let kind = match header[6] {
        4 => FileKind::Directory,
        8 => FileKind::File,
        10 => FileKind::Link,
        _ => FileKind::Other,
    };
    Some((Entry { inode: u32_at(header, 0), name, kind }, behind))
}
