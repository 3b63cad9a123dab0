//! The superblock: sizes of everything (`struct fs`, 1376 bytes).

use super::super::super::blocks::Blocks;
use super::super::FsError;
use super::damaged;

/// Where it may be, in the order in which the kernel looks (`SBLOCKSEARCH`): UFS2, UFS1, floppies, piggybacked.
const PLACES: [u64; 4] = [65_536, 8_192, 0, 262_144];
/// The last place of a UFS1 superblock (`SBLOCK_UFS1`): behind it lies a copy that UFS1 may have there.
const LAST_UFS1: u64 = 8_192;
const LEN: usize = 1376;
const MAGIC_UFS1: u32 = 0x0001_1954;
const MAGIC_UFS2: u32 = 0x1954_0119;
/// What newfs writes until it is done.
const MAGIC_UNFINISHED: u32 = 0x1996_0408;
/// Smallest and largest block (`MINBSIZE`, `MAXBSIZE`), smallest fragment (a sector), most fragments of a block.
const BLOCK_MIN: u32 = 4096;
const BLOCK_MAX: u32 = 65_536;
const FRAGMENT_MIN: u32 = 512;
const FRAGMENTS_MAX: u32 = 8;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// What of it is used.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) version: Version,
    /// Bytes of a block.
    pub(super) block: u32,
    /// Bytes of a fragment.
    pub(super) fragment: u32,
    /// Inodes of a cylinder group.
    pub(super) inodes_per_group: u32,
    /// Inodes altogether.
    pub(super) inodes: u64,
    /// Longest target of a symbolic link that lies in its inode.
    pub(super) link_in_inode: u64,
    /// Its identity, as `/dev/ufsid` has it.
    pub(super) id: Option<[u32; 2]>,
    /// Its volume name, as `/dev/ufs` has it.
    pub(super) label: Option<String>,
    fragments_per_group: u32,
    /// Where a group's inodes begin, in fragments from the group's own start.
    inodes_at: u32,
    /// UFS1 of old disks: by how many fragments each group begins later than the last, within a cycle.
    offset: u32,
    offset_mask: u32,
}

/// Where the superblock is, and its magic number.
pub(super) fn find(blocks: &Blocks) -> Option<(u64, u32)> {
    PLACES.iter().find_map(|&place| {
        let bytes = blocks.bytes(place, LEN).ok()?;
        let magic = u32_at(&bytes, 1372);
        let is_here = match magic {
            MAGIC_UFS1 => place <= LAST_UFS1,
            MAGIC_UFS2 | MAGIC_UNFINISHED => u64_at(&bytes, 1000) == place,
            _ => false,
        };
        is_here.then_some((place, magic))
    })
}

impl Superblock {
    /// Reads and checks it.
    pub(super) fn read(blocks: &Blocks) -> Result<Self, FsError> {
        const PLACE: &str = "the superblock";
        let (at, magic) = find(blocks).ok_or_else(|| damaged(PLACE, "it is not there"))?;
        let read = blocks.bytes(at, LEN);
        let bytes = read.map_err(|source| FsError::Read { place: PLACE.to_owned(), source })?;
        let version = match magic {
            MAGIC_UFS1 => Version::One,
            MAGIC_UFS2 => Version::Two,
            _ => return Err(damaged(PLACE, "newfs did not finish")),
        };
        let field = |at| u32_at(&bytes, at);
        let (block, fragment) = (field(48), field(52));
        let (groups, inodes_per_group, fragments_per_group) = (field(44), field(184), field(188));
        let is_power = |value: u32, range: std::ops::RangeInclusive<u32>| {
            value.is_power_of_two() && range.contains(&value)
        };
        if !is_power(block, BLOCK_MIN..=BLOCK_MAX) {
            return Err(damaged(PLACE, format!("blocks of {block} bytes")));
        }
        if !is_power(fragment, FRAGMENT_MIN..=block) || block / fragment > FRAGMENTS_MAX {
            return Err(damaged(PLACE, format!("blocks of {block} bytes with fragments of {fragment}")));
        }
        if groups == 0 || inodes_per_group == 0 || fragments_per_group == 0 {
            let problem =
                format!("{groups} groups of {inodes_per_group} inodes and {fragments_per_group} fragments");
            return Err(damaged(PLACE, problem));
        }
        let in_inode = match version {
            Version::One => 60,
            Version::Two => 120,
        };
        let id = [field(144), field(148)];
        let (offset, offset_mask) = match version {
            Version::One => (field(24), field(28)),
            Version::Two => (0, u32::MAX),
        };
        Ok(Self {
            version,
            block,
            fragment,
            inodes_per_group,
            inodes: u64::from(groups) * u64::from(inodes_per_group),
            link_in_inode: u64::from(field(1320)).min(in_inode),
            id: Some(id).filter(|id| *id != [0; 2]),
            label: text(&bytes[680..712]),
            fragments_per_group,
            inodes_at: field(16),
            offset,
            offset_mask,
        })
    }

    /// Bytes of an inode on disk.
    pub(super) fn inode_len(&self) -> u32 {
        match self.version {
            Version::One => 128,
            Version::Two => 256,
        }
    }

    /// Addresses in an indirect block.
    pub(super) fn addresses(&self) -> u64 {
        u64::from(self.block) / self.address_len()
    }

    /// Bytes of an address.
    pub(super) fn address_len(&self) -> u64 {
        match self.version {
            Version::One => 4,
            Version::Two => 8,
        }
    }

    /// Where an inode of fewer than [`Self::inodes`] is, in bytes.
    pub(super) fn inode_at(&self, number: u32) -> u64 {
        let (group, index) = (number / self.inodes_per_group, number % self.inodes_per_group);
        let shift = u64::from(self.offset) * u64::from(group & !self.offset_mask);
        let start = u64::from(self.fragments_per_group) * u64::from(group) + u64::from(self.inodes_at);
        // The blocks of inodes follow each other.
        let fragments = start.saturating_add(shift);
        let bytes = fragments.saturating_mul(u64::from(self.fragment));
        bytes.saturating_add(u64::from(index) * u64::from(self.inode_len()))
    }
}

/// A name that ends at its first NUL.
fn text(bytes: &[u8]) -> Option<String> {
    let name = bytes.split(|&byte| byte == 0).next()?;
    let name = std::str::from_utf8(name).ok()?;
    let is_plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    is_plain.then(|| name.to_owned())
}

/// A little-endian field of a structure that is known to be as long.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The same for eight bytes.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
