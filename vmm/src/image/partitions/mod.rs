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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    /// Made by `sgdisk` and `sfdisk`: disks of 1 MiB.
    const GPT: &[u8] = include_bytes!("fixtures/gpt.gz");
    const MBR: &[u8] = include_bytes!("fixtures/mbr.gz");
    const LAST: usize = (1 << 20) - 512;

    fn disk(packed: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn table(bytes: Vec<u8>) -> Option<Table> {
        read(&Blocks::new(Arc::new(bytes)), || false)
    }

    fn told(table: &Table) -> Vec<String> {
        let partitions = table.partitions.iter();
        partitions.map(|p| format!("{} {} {}+{}", p.place, p.kind, p.start / 512, p.len / 512)).collect()
    }

    const IN_GPT: [&str; 3] = [
        "partition 1 freebsd-boot 64+64",
        "partition 2 freebsd-ufs 128+896",
        "partition 5 Linux data 1024+512",
    ];

    #[test]
    fn a_gpt_is_read_as_sgdisk_made_it() {
        let table = table(disk(GPT)).unwrap();
        assert_eq!((table.scheme, told(&table)), ("GPT", IN_GPT.map(str::to_owned).to_vec()));
        assert_eq!(table.uuid.as_deref(), Some("11111111-2222-3333-4444-555555555555"));
        let root = &table.partitions[1];
        assert_eq!((root.name.as_str(), root.attributes), ("rootfs", 1 << 59));
        assert_eq!(root.uuid.as_deref(), Some("aaaaaaaa-0000-0000-0000-000000000002"));
        assert_eq!(root.place.on_freebsd("vtbd0"), "vtbd0p2");
        assert_eq!(root.place.on_linux("vda").unwrap(), "vda2");
        assert_eq!(root.place.on_linux("nvme0n1").unwrap(), "nvme0n1p2");
        assert!(table.remarks.is_empty());
    }

    #[test]
    fn a_damaged_gpt_is_read_from_its_backup_and_two_damaged_ones_are_none() {
        // The signature, the header, an entry.
        for at in [512, 512 + 70, 1024 + 33] {
            let mut bytes = disk(GPT);
            bytes[at] ^= 1;
            let found = table(bytes.clone()).unwrap();
            assert_eq!(told(&found), IN_GPT, "{at}");
            assert!(found.remarks[0].ends_with("its backup is read"), "{:?}", found.remarks);
            bytes[LAST + 20] ^= 1;
            assert!(table(bytes).is_none(), "{at}: the MBR that protects a GPT is no table");
        }
    }

    #[test]
    fn a_gpt_may_not_have_absurd_counts() {
        for (at, value) in [(80, u32::MAX), (84, u32::MAX), (84, 0), (84, 136), (12, 1 << 31), (12, 91)] {
            let mut bytes = disk(GPT);
            bytes[LAST..].fill(0);
            bytes[512 + at..512 + at + 4].copy_from_slice(&value.to_le_bytes());
            reseal(&mut bytes);
            assert!(table(bytes).is_none(), "{at} {value}");
        }
    }

    #[test]
    fn an_entry_that_leaves_the_disk_is_left_out_and_told() {
        for (first, last) in [(100, 2048), (100, u64::MAX), (u64::MAX, u64::MAX), (200, 100)] {
            let mut bytes = disk(GPT);
            bytes[1024 + 128 + 32..][..8].copy_from_slice(&u64::to_le_bytes(first));
            bytes[1024 + 128 + 40..][..8].copy_from_slice(&u64::to_le_bytes(last));
            reseal(&mut bytes);
            let table = table(bytes).unwrap();
            assert_eq!(told(&table), [IN_GPT[0], IN_GPT[2]]);
            assert_eq!(table.remarks, ["partition 2 is left out: it leaves the disk"]);
        }
    }

    /// Makes the first header's checksums right.
    fn reseal(bytes: &mut [u8]) {
        let table = crc32fast::hash(&bytes[1024..1024 + 128 * 128]).to_le_bytes();
        bytes[512 + 88..][..4].copy_from_slice(&table);
        bytes[512 + 16..][..4].fill(0);
        let header = crc32fast::hash(&bytes[512..512 + 92]).to_le_bytes();
        bytes[512 + 16..][..4].copy_from_slice(&header);
    }

    #[test]
    fn an_mbr_is_read_as_sfdisk_made_it_with_its_extended_partitions() {
        let table = table(disk(MBR)).unwrap();
        let expected = [
            "partition 1 FreeBSD 64+64",
            "partition 2 Linux 128+128",
            "partition 5 Linux 320+128",
            "partition 6 Linux swap 512+128",
        ];
        assert_eq!((table.scheme, told(&table)), ("MBR", expected.map(str::to_owned).to_vec()));
        assert_eq!(table.partitions[2].uuid.as_deref(), Some("1234abcd-05"));
        assert_eq!(table.partitions[0].attributes, 0x80);
        assert_eq!(table.partitions[0].place.on_freebsd("vtbd0"), "vtbd0s1");
        assert!(read(&Blocks::new(Arc::new(disk(MBR))), || true).is_none(), "a file system's boot sector");
    }

    #[test]
    fn a_chain_of_extended_partitions_that_bites_its_tail_ends() {
        let mut bytes = disk(MBR);
        // The second entry of the second link: back to the first.
        let link = (0..2048).rev().find(|n| *n > 256 && bytes[n * 512 + 510..][..2] == [0x55, 0xaa]).unwrap();
        let next = [0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        bytes[link * 512 + 446 + 16..][..16].copy_from_slice(&next);
        let table = table(bytes).unwrap();
        assert_eq!(table.remarks, ["the chain of extended partitions does not end"]);
        assert_eq!(table.partitions.len(), 4);
    }

    #[test]
    fn the_label_in_a_freebsd_slice_divides_it() {
        let mut bytes = disk(MBR);
        // As bsdlabel(8) writes it: a of 32 sectors at 0, c the whole, d of swap behind a; d's end is the slice's.
        let label = &mut bytes[65 * 512..][..512];
        label[..4].copy_from_slice(&0x8256_4557_u32.to_le_bytes());
        label[132..136].copy_from_slice(&0x8256_4557_u32.to_le_bytes());
        label[138] = 8;
        for (index, size, offset, kind) in
            [(0, 32_u32, 0_u32, 7), (2, 64, 0, 0), (3, 32, 32, 1), (4, 33, 32, 7)]
        {
            let entry = &mut label[148 + 16 * index..][..16];
            entry[..4].copy_from_slice(&size.to_le_bytes());
            entry[4..8].copy_from_slice(&offset.to_le_bytes());
            entry[12] = kind;
        }
        let sum = label[..148 + 8 * 16].chunks_exact(2).fold([0, 0], |sum, w| [sum[0] ^ w[0], sum[1] ^ w[1]]);
        label[136..138].copy_from_slice(&sum);
        let found = table(bytes.clone()).unwrap();
        let inner = ["partition 1a freebsd-ufs 64+32", "partition 1d freebsd-swap 96+32"];
        assert_eq!(told(&found)[..2], inner);
        assert_eq!(found.partitions[0].place.on_freebsd("vtbd0"), "vtbd0s1a");
        bytes[65 * 512 + 150] ^= 1;
        assert_eq!(told(&table(bytes).unwrap())[0], "partition 1 FreeBSD 64+64", "its checksum is wrong");
    }

    #[test]
    fn disks_of_any_length_are_cut_short_without_harm() {
        for len in (0..1200).chain([2048, 17 << 10, 600 << 10]) {
            for packed in [GPT, MBR] {
                let mut bytes = disk(packed);
                bytes.truncate(len);
                for partition in table(bytes).map(|table| table.partitions).unwrap_or_default() {
                    assert!(partition.start + partition.len <= len as u64);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_a_table_says_its_partitions_are_on_the_disk(
            damage in prop::collection::vec((0..2048_usize, any::<u8>()), 1..8), is_gpt: bool
        ) {
            let mut bytes = disk(if is_gpt { GPT } else { MBR });
            for (at, byte) in damage {
                bytes[at] = byte;
            }
            if is_gpt {
                reseal(&mut bytes);
            }
            let len = bytes.len() as u64;
            for partition in table(bytes).map(|table| table.partitions).unwrap_or_default() {
                prop_assert!(partition.start.checked_add(partition.len).is_some_and(|end| end <= len));
            }
        }
    }
}
