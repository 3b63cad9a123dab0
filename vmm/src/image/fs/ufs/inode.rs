//! Inodes, and the blocks of their files: twelve addresses in the inode, the rest by one, two or three levels of
//! indirect blocks. Address 0 is a hole.

use super::super::{FileKind, FsError};
use super::superblock::{Version, u32_at, u64_at};
use super::{Ufs, damaged};

/// The root directory's inode.
pub(super) const ROOT: u32 = 2;
/// Addresses in the inode (`UFS_NDADDR`), and levels of indirect blocks (`UFS_NIADDR`).
const DIRECT: usize = 12;
const LEVELS: usize = 3;

/// An inode.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    number: u32,
    pub(super) kind: FileKind,
    /// Bytes of the file.
    pub(super) len: u64,
    /// Seconds since 1970.
    pub(super) modified: i64,
    /// Addresses in fragments: the direct ones, then those of the indirect blocks.
    addresses: [u64; DIRECT + LEVELS],
    /// The target of a link that is short enough for the inode.
    target: Option<Vec<u8>>,
}

impl Inode {
    /// Reads it.
    pub(super) fn read(ufs: &Ufs, number: u32) -> Result<Self, FsError> {
        let superblock = &ufs.superblock;
        if number < ROOT || u64::from(number) >= superblock.inodes {
            let problem = format!("there are inodes {ROOT} to {}", superblock.inodes - 1);
            return Err(damaged(format!("inode {number}"), problem));
        }
        let len = usize::try_from(superblock.inode_len()).expect("some hundred bytes");
        let bytes = ufs.blocks.bytes(superblock.inode_at(number), len);
        let bytes = bytes.map_err(|source| FsError::Read { place: format!("inode {number}"), source })?;
        let kind = match u16::from_le_bytes([bytes[0], bytes[1]]) & 0xf000 {
            0x4000 => FileKind::Directory,
            0x8000 => FileKind::File,
            0xa000 => FileKind::Link,
            0 => return Err(damaged(format!("inode {number}"), "a name leads to it, but it is free")),
            _ => FileKind::Other,
        };
        let (len, modified, at) = match superblock.version {
            // di_size, di_mtime, di_db (`struct ufs1_dinode`, `struct ufs2_dinode`).
            Version::One => (u64_at(&bytes, 8), i64::from(u32_at(&bytes, 24)), 40),
            Version::Two => (u64_at(&bytes, 16), u64_at(&bytes, 40).cast_signed(), 112),
        };
        let addresses = std::array::from_fn(|index| match superblock.version {
            Version::One => u64::from(u32_at(&bytes, at + index * 4)),
            Version::Two => u64_at(&bytes, at + index * 8),
        });
        let in_inode = kind == FileKind::Link && len < superblock.link_in_inode;
        let target = in_inode.then(|| usize::try_from(len).expect("less than the inode has"));
        let target = target.map(|len| bytes[at..at + len].to_vec());
        Ok(Self { number, kind, len, modified, addresses, target })
    }

    /// The whole file. The caller has looked at its length.
    pub(super) fn content(&self, ufs: &Ufs) -> Result<Vec<u8>, FsError> {
        if let Some(target) = &self.target {
            return Ok(target.clone());
        }
        let len = usize::try_from(self.len).map_err(|_| self.damaged("its length is absurd"))?;
        let block = usize::try_from(ufs.superblock.block).expect("at most 64 KiB");
        let mut content = vec![0; len];
        let mut map = Map::new(ufs, self);
        for (number, part) in (0..).zip(content.chunks_mut(block)) {
            let address = map.address(number)?;
            if address != 0 {
                ufs.read_fragments(address, part, || format!("block {number} of inode {}", self.number))?;
            }
        }
        Ok(content)
    }

    /// Something about it is wrong.
    pub(super) fn damaged(&self, problem: impl Into<String>) -> FsError {
        damaged(format!("inode {}", self.number), problem)
    }
}

impl Ufs {
    /// Fills `buf` from an address on.
    fn read_fragments(
        &self,
        address: u64,
        buf: &mut [u8],
        place: impl Fn() -> String,
    ) -> Result<(), FsError> {
        let at = address.checked_mul(u64::from(self.superblock.fragment));
        let at = at.ok_or_else(|| damaged(place(), format!("fragment {address:#x}")))?;
        self.blocks.read(at, buf).map_err(|source| FsError::Read { place: place(), source })
    }
}

/// Where the blocks of a file are. The indirect blocks on the way to the last one are kept, so that reading a file from
/// its start reads each of them once.
struct Map<'a> {
    ufs: &'a Ufs,
    inode: &'a Inode,
    /// For each level, the lowest first: an indirect block's address and content.
    tables: [Option<(u64, Vec<u8>)>; LEVELS],
}

impl<'a> Map<'a> {
    fn new(ufs: &'a Ufs, inode: &'a Inode) -> Self {
        Self { ufs, inode, tables: [const { None }; LEVELS] }
    }

    /// The address of a block; 0 for a hole.
    fn address(&mut self, number: u64) -> Result<u64, FsError> {
        if let Some(address) =
            usize::try_from(number).ok().and_then(|n| self.inode.addresses[..DIRECT].get(n))
        {
            return Ok(*address);
        }
        let per_table = self.ufs.superblock.addresses();
        let mut rest = number - DIRECT as u64;
        let mut covered = per_table;
        for level in 0..LEVELS {
            if rest < covered {
                return self.descend(level, rest, covered);
            }
            rest -= covered;
            covered = covered.saturating_mul(per_table);
        }
        Err(self.inode.damaged(format!("it is longer than {number} blocks, which no file can be")))
    }

    /// Follows the tree of height `top + 1`, which covers `covered` blocks, to its block `rest`.
    fn descend(&mut self, top: usize, mut rest: u64, mut covered: u64) -> Result<u64, FsError> {
        let mut address = self.inode.addresses[DIRECT + top];
        for level in (0..=top).rev() {
            if address == 0 {
                return Ok(0);
            }
            covered /= self.ufs.superblock.addresses();
            let entry = rest / covered;
            rest %= covered;
            address = self.entry(level, address, entry)?;
        }
        Ok(address)
    }

    fn entry(&mut self, level: usize, address: u64, entry: u64) -> Result<u64, FsError> {
        let superblock = &self.ufs.superblock;
        let cached = self.tables[level].take().filter(|(at, _)| *at == address);
        let (_, table) = match cached {
            Some(cached) => self.tables[level].insert(cached),
            None => {
                let mut table = vec![0; usize::try_from(superblock.block).expect("at most 64 KiB")];
                let place = || format!("an indirect block of inode {}", self.inode.number);
                self.ufs.read_fragments(address, &mut table, place)?;
                self.tables[level].insert((address, table))
            }
        };
        let at = usize::try_from(entry * superblock.address_len()).expect("it lies in a block");
        Ok(match superblock.version {
            Version::One => u64::from(u32_at(table, at)),
            Version::Two => u64_at(table, at),
        })
    }
}
