//! Partition tables: GPT, MBR with its extended partitions, and BSD labels inside MBR slices.
//!
//! A table is read as far as it is sound: an entry that leaves the disk is dropped with a remark.

mod bsdlabel;
mod gpt;
mod mbr;

use std::fmt;

use super::blocks::Blocks;

/// Bytes of a sector where nothing says otherwise.
const SECTOR: u64 = 512;
/// Most partitions of a disk that are looked at.
pub const MOST_PARTITIONS: usize = 128;

/// How a disk is divided.
#[derive(Debug)]
pub struct Table {
    /// What it is: `GPT`, `MBR` or, when the disk is one file system, `none`.
    pub scheme: &'static str,
    /// Its identity: a GPT's GUID, or an MBR's 32-bit signature as `root=PARTUUID=` has it.
    pub uuid: Option<String>,
    /// What it is divided into, in the table's order.
    pub partitions: Vec<Partition>,
    /// What is odd about it.
    pub remarks: Vec<String>,
}

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Where in the tables it is.
    pub place: Place,
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is said to hold.
    pub kind: Kind,
    /// Its name (GPT).
    pub name: String,
    /// Its identity as `root=PARTUUID=` has it: a GPT's GUID, or an MBR's signature and number.
    pub uuid: Option<String>,
    /// Attributes (GPT), or 0x80 in the lowest byte for an active MBR partition.
    pub attributes: u64,
}

/// Where in the tables a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// Entry of a GPT, from 1.
    Gpt(u32),
    /// MBR partition: 1 to 4, extended ones from 5.
    Mbr(u32),
    /// A letter of the BSD label in an MBR partition.
    Bsd(u32, char),
}

/// What a partition is said to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A GPT's type.
    Gpt(Guid),
    /// An MBR's type.
    Mbr(u8),
    /// A BSD label's `fstype`.
    Bsd(u8),
}

/// A GUID as it is on disk, the first three groups little-endian.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

impl Place {
    /// The Linux name of the partition on a disk, such as `vda2`; BSD letters are numbered behind Linux's own, which is
    /// told to nobody here: `None`.
    pub fn on_linux(self, disk: &str) -> Option<String> {
        let separator = if disk.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        match self {
            Self::Gpt(number) | Self::Mbr(number) => Some(format!("{disk}{separator}{number}")),
            Self::Bsd(..) => None,
        }
    }

    /// The FreeBSD name of the partition on a disk, such as `vtbd0p2` or `vtbd0s1a`.
    pub fn on_freebsd(self, disk: &str) -> String {
        match self {
            Self::Gpt(number) => format!("{disk}p{number}"),
            Self::Mbr(number) => format!("{disk}s{number}"),
            Self::Bsd(number, letter) => format!("{disk}s{number}{letter}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gpt(number) | Self::Mbr(number) => write!(f, "partition {number}"),
            Self::Bsd(number, letter) => write!(f, "partition {number}{letter}"),
        }
    }
}

impl Kind {
    /// Its name, where it has one that people know.
    pub fn name(&self) -> Option<&'static str> {
        match self {
            Self::Gpt(guid) => gpt::kind_name(*guid),
            Self::Mbr(kind) => mbr::kind_name(*kind),
            Self::Bsd(kind) => bsdlabel::kind_name(*kind),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self) {
            (Some(name), _) => f.write_str(name),
            (None, Self::Gpt(guid)) => write!(f, "{guid}"),
            (None, Self::Mbr(kind) | Self::Bsd(kind)) => write!(f, "type {kind:#04x}"),
        }
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, e @ ..] = self.0;
        let first = u32::from_le_bytes([a0, a1, a2, a3]);
        let (second, third) = (u16::from_le_bytes([b0, b1]), u16::from_le_bytes([c0, c1]));
        write!(f, "{first:08x}-{second:04x}-{third:04x}-{d0:02x}{d1:02x}-")?;
        e.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads the partition table of a disk; `None` when it has none, as with a bare file system.
///
/// A GPT is sure, by its checksums. An MBR is not: a file system's boot sector (FAT has one) may look like it, so that
/// one is looked for first by `is_file_system`.
pub fn read(disk: &Blocks, is_file_system: impl FnOnce() -> bool) -> Option<Table> {
    gpt::read(disk).or_else(|| if is_file_system() { None } else { mbr::read(disk) })
}
