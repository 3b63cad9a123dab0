//! GUID partition table (UEFI 2.10, section 5.3), little-endian. Where the first table is damaged, the backup at the
//! disk's end is read.

use super::{Guid, Kind, MOST_PARTITIONS, Partition, Place, Table};
use crate::image::blocks::Blocks;

/// Sector sizes of disks: 512 bytes, and 4096 on disks that have no smaller ones.
const SECTOR_SIZES: [u64; 2] = [512, 4096];
const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Length of the fields that the specification defines.
const HEADER_LEN: usize = 92;
/// Largest header that is believed: it lies in one sector.
const MOST_HEADER: usize = 4096;
const ENTRY_LEN: usize = 128;
/// Most entries of a table: Linux's tools make 128, more exist for many partitions.
const MOST_ENTRIES: usize = 1024;
/// Bytes of a partition's name, in UTF-16.
const NAME_LEN: usize = 72;

/// Types that people know (UEFI 2.10, table 5.7; freebsd-src `sys/sys/disk/gpt.h`; the Discoverable Partitions
/// Specification).
const KINDS: [(&str, &str); 17] = [
    ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI system"),
    ("21686148-6449-6e6f-744e-656564454649", "BIOS boot"),
    ("024dee41-33e7-11d3-9d69-0008c781f39f", "MBR"),
    ("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "Microsoft basic data"),
    ("83bd6b9d-7f41-11dc-be0b-001560b84f0f", "freebsd-boot"),
    ("516e7cb4-6ecf-11d6-8ff8-00022d09712b", "freebsd"),
    ("516e7cb5-6ecf-11d6-8ff8-00022d09712b", "freebsd-swap"),
    ("516e7cb6-6ecf-11d6-8ff8-00022d09712b", "freebsd-ufs"),
    ("516e7cb8-6ecf-11d6-8ff8-00022d09712b", "freebsd-vinum"),
    ("516e7cba-6ecf-11d6-8ff8-00022d09712b", "freebsd-zfs"),
    ("0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux data"),
    ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "Linux root (x86-64)"),
    ("bc13c2ff-59e6-4262-a352-b275fd6f7172", "Linux extended boot"),
    ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap"),
    ("e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM"),
    ("ca7d7ccb-63ed-4c53-861c-1742536059cc", "Linux LUKS"),
    ("933ac7e1-2eb4-4f13-b844-0e14e2aef915", "Linux home"),
];

/// What a header says, checked.
struct Header {
    guid: Guid,
    backup: u64,
    entries: u64,
    count: usize,
    entry_len: usize,
    table_crc: u32,
}

/// Reads the table of a disk; `None` when there is none, neither at its start nor at its end.
pub(super) fn read(disk: &Blocks) -> Option<Table> {
    SECTOR_SIZES.iter().find_map(|&sector| {
        let last = (disk.length() / sector).checked_sub(1)?;
        match read_at(disk, sector, 1) {
            Ok(table) => Some(table),
            Err(problem) => {
                let named = header(disk, sector, 1).ok().map(|header| header.backup);
                let backups = [Some(last), named.filter(|&at| at != last && at > 1)];
                let mut table =
                    backups.into_iter().flatten().find_map(|at| read_at(disk, sector, at).ok())?;
                table.remarks.push(format!("the first GPT is damaged ({problem}): its backup is read"));
                Some(table)
            }
        }
    })
}

fn read_at(disk: &Blocks, sector: u64, at: u64) -> Result<Table, &'static str> {
    let header = header(disk, sector, at)?;
    let start = header.entries.checked_mul(sector).ok_or("its entries are far behind the disk's end")?;
    let bytes =
        disk.bytes(start, header.count * header.entry_len).map_err(|_| "its entries cannot be read")?;
    if crc32fast::hash(&bytes) != header.table_crc {
        return Err("the checksum of its entries is wrong");
    }
    let mut table = Table {
        scheme: "GPT",
        uuid: Some(header.guid.to_string()),
        partitions: Vec::new(),
        remarks: Vec::new(),
    };
    for (number, entry) in (1..).zip(bytes.chunks_exact(header.entry_len)) {
        let Some(entry) = entry.first_chunk::<ENTRY_LEN>().filter(|entry| entry[..16] != [0; 16]) else {
            continue;
        };
        if table.partitions.len() == MOST_PARTITIONS {
            table.remarks.push(format!("only the first {MOST_PARTITIONS} partitions are looked at"));
            break;
        }
        match partition(entry, number, sector, disk.length()) {
            Some(partition) => table.partitions.push(partition),
            None => table.remarks.push(format!("partition {number} is left out: it leaves the disk")),
        }
    }
    Ok(table)
}

fn header(disk: &Blocks, sector: u64, at: u64) -> Result<Header, &'static str> {
    let unreadable = "it cannot be read";
    let start = at.checked_mul(sector).ok_or(unreadable)?;
    let fixed: [u8; HEADER_LEN] = disk.array(start).map_err(|_| unreadable)?;
    if !fixed.starts_with(SIGNATURE) {
        return Err("it has no signature");
    }
    let len = usize::try_from(u32_at(&fixed, 12)).map_err(|_| unreadable)?;
    if !(HEADER_LEN..=MOST_HEADER).contains(&len) {
        return Err("its header has an odd length");
    }
    let mut whole = disk.bytes(start, len).map_err(|_| unreadable)?;
    // The checksum is over the header with the checksum's own field zero.
    whole[16..20].fill(0);
    if crc32fast::hash(&whole) != u32_at(&fixed, 16) {
        return Err("the checksum of its header is wrong");
    }
    if u64_at(&fixed, 24) != at {
        return Err("its header belongs elsewhere");
    }
    let size = |at| usize::try_from(u32_at(&fixed, at)).unwrap_or(usize::MAX);
    let (count, entry_len) = (size(80), size(84));
    if count > MOST_ENTRIES || !(ENTRY_LEN..=1024).contains(&entry_len) || !entry_len.is_power_of_two() {
        return Err("it has entries of an odd number or length");
    }
    Ok(Header {
        guid: guid_at(&fixed, 56),
        backup: u64_at(&fixed, 32),
        entries: u64_at(&fixed, 72),
        count,
        entry_len,
        table_crc: u32_at(&fixed, 88),
    })
}

/// What an entry says; `None` if it leaves the disk.
fn partition(entry: &[u8; ENTRY_LEN], number: u32, sector: u64, disk: u64) -> Option<Partition> {
    let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
    let start = first.checked_mul(sector)?;
    let end = last.checked_add(1)?.checked_mul(sector)?;
    if start >= end || end > disk {
        return None;
    }
    let units = entry[56..56 + NAME_LEN].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units = units.take_while(|&unit| unit != 0).collect::<Vec<_>>();
    Some(Partition {
        place: Place::Gpt(number),
        start,
        len: end - start,
        kind: Kind::Gpt(guid_at(entry, 0)),
        name: String::from_utf16_lossy(&units),
        uuid: Some(guid_at(entry, 16).to_string()),
        attributes: u64_at(entry, 48),
    })
}

pub(super) fn kind_name(guid: Guid) -> Option<&'static str> {
    let text = guid.to_string();
    KINDS.iter().find(|(known, _)| *known == text).map(|(_, name)| *name)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn guid_at(bytes: &[u8], at: usize) -> Guid {
    Guid(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let field = bytes.get(at..).and_then(|behind| behind.first_chunk());
    *field.expect("fields lie in the header or entry whose length is fixed")
}
