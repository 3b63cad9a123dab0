//! The PC's partition table: four primary entries in the first sector, and a chain of extended ones. Addresses and
//! lengths are in sectors of 512 bytes, 32-bit little-endian.

use super::{Kind, MOST_PARTITIONS, Partition, Place, SECTOR, Table, bsdlabel};
use crate::image::blocks::Blocks;

const SIGNATURE: [u8; 2] = [0x55, 0xaa];
const SECTOR_LEN: usize = 512;
const ENTRIES: usize = 446;
const ENTRY_LEN: usize = 16;
/// Where the disk's identity is, which `root=PARTUUID=` uses (Linux `block/partitions/msdos.c`).
const DISK_SIGNATURE: usize = 440;
/// Types of a partition that is a chain of others: with CHS addresses, with LBA ones, and Linux's own.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The entry that protects a GPT.
const PROTECTIVE: u8 = 0xee;
/// A FreeBSD slice, which has a label of its own.
pub(super) const FREEBSD: u8 = 0xa5;

/// A table's entry, as it says.
#[derive(Clone, Copy)]
struct Entry {
    flag: u8,
    kind: u8,
    first: u64,
    count: u64,
}

impl Entry {
    fn read(bytes: &[u8]) -> Self {
        let word = |at: usize| {
            u64::from(u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
        };
        Self { flag: bytes[0], kind: bytes[4], first: word(8), count: word(12) }
    }

    fn is_extended(self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    fn is_used(self) -> bool {
        self.kind != 0 && self.count != 0
    }
}

/// Reads the table of a disk; `None` when there is none, or only the one that protects a GPT.
pub(super) fn read(disk: &Blocks) -> Option<Table> {
    let (sector, entries) = entries(disk, 0)?;
    // A boot sector that has the signature and code where a table has its entries is none.
    let is_table = entries.iter().all(|entry| entry.flag & 0x7f == 0)
        && entries.iter().any(|entry| entry.is_used())
        && entries.iter().all(|entry| entry.kind != PROTECTIVE);
    if !is_table {
        return None;
    }
    let id = &sector[DISK_SIGNATURE..DISK_SIGNATURE + 4];
    let id = u32::from_le_bytes([id[0], id[1], id[2], id[3]]);
    let mut reader = Reader { disk, id, partitions: Vec::new(), remarks: Vec::new() };
    for (number, entry) in (1..).zip(entries) {
        if entry.is_used() && !entry.is_extended() {
            reader.add(number, entry, 0);
        }
    }
    if let Some(extended) = entries.into_iter().find(|entry| entry.is_used() && entry.is_extended()) {
        reader.chain(extended.first);
    }
    let uuid = Some(format!("{id:08x}"));
    Some(Table { scheme: "MBR", uuid, partitions: reader.partitions, remarks: reader.remarks })
}

fn entries(disk: &Blocks, at: u64) -> Option<([u8; SECTOR_LEN], [Entry; 4])> {
    let sector: [u8; SECTOR_LEN] = disk.array(at.checked_mul(SECTOR)?).ok()?;
    if !sector.ends_with(&SIGNATURE) {
        return None;
    }
    let entry = |number: usize| Entry::read(&sector[ENTRIES + number * ENTRY_LEN..]);
    Some((sector, [entry(0), entry(1), entry(2), entry(3)]))
}

struct Reader<'a> {
    disk: &'a Blocks,
    id: u32,
    partitions: Vec<Partition>,
    remarks: Vec<String>,
}

impl Reader<'_> {
    /// Adds an entry's partition, whose address counts from sector `base`, and those of its label.
    fn add(&mut self, number: u32, entry: Entry, base: u64) {
        // 32-bit sectors: nothing overflows.
        let (start, len) = ((base + entry.first) * SECTOR, entry.count * SECTOR);
        if entry.first == 0 || start + len > self.disk.length() {
            self.remarks.push(format!("partition {number} is left out: it leaves the disk"));
            return;
        }
        let partition = Partition {
            place: Place::Mbr(number),
            start,
            len,
            kind: Kind::Mbr(entry.kind),
            name: String::new(),
            uuid: Some(format!("{:08x}-{number:02x}", self.id)),
            attributes: entry.flag.into(),
        };
        let labelled =
            if entry.kind == FREEBSD { bsdlabel::read(self.disk, number, start, len) } else { None };
        match labelled {
            Some(inner) => self.partitions.extend(inner),
            None => self.partitions.push(partition),
        }
    }

    /// Follows the chain of extended partitions from sector `first` on: each link has a partition, counted from the link,
    /// and the next link, counted from the first.
    fn chain(&mut self, first: u64) {
        let (mut link, mut number) = (first, 5);
        let mut seen = Vec::new();
        loop {
            if seen.contains(&link) || seen.len() > MOST_PARTITIONS {
                self.remarks.push("the chain of extended partitions does not end".to_owned());
                return;
            }
            seen.push(link);
            let Some((_, entries)) = entries(self.disk, link) else {
                self.remarks.push(format!("the extended partition at sector {link} cannot be read"));
                return;
            };
            let [logical, next, ..] = entries;
            if logical.is_used() && !logical.is_extended() {
                self.add(number, logical, link);
                number += 1;
            }
            if !(next.is_used() && next.is_extended()) {
                return;
            }
            link = first + next.first;
        }
    }
}

pub(super) fn kind_name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        0x01 | 0x04 | 0x06 | 0x0b | 0x0c | 0x0e => "FAT",
        0x07 => "NTFS or exFAT",
        0x82 => "Linux swap",
        0x83 => "Linux",
        0x8e => "Linux LVM",
        FREEBSD => "FreeBSD",
        0xa6 => "OpenBSD",
        0xa9 => "NetBSD",
        0xef => "EFI system",
        _ => return None,
    })
}
