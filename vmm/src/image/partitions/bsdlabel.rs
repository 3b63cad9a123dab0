//! The label that divides a FreeBSD slice (freebsd-src `sys/sys/disklabel.h`), in the slice's second sector,
//! little-endian.

use super::{Kind, Partition, Place, SECTOR};
use crate::image::blocks::Blocks;

const MAGIC: u32 = 0x8256_4557;
const LABEL_LEN: usize = 404;
const ENTRIES: usize = 148;
const ENTRY_LEN: usize = 16;
/// Most partitions of a label (`MAXPARTITIONS` is 8, later labels have 20 in their sector).
const MOST: usize = 16;
/// The letter `c` is the whole slice.
const RAW: usize = 2;

/// Partitions of the slice that begins at byte `start`; `None` when it has no sound label.
pub(super) fn read(disk: &Blocks, number: u32, start: u64, len: u64) -> Option<Vec<Partition>> {
    let label: [u8; LABEL_LEN] = disk.array(start.checked_add(SECTOR)?).ok()?;
    let word = |at: usize| Some(u32::from_le_bytes(*label.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(u16::from_le_bytes(*label.get(at..)?.first_chunk()?));
    if word(0)? != MAGIC || word(132)? != MAGIC {
        return None;
    }
    let count = usize::from(half(138)?).min(MOST);
    // The XOR of all 16-bit words up to the last entry is zero.
    let summed = label.get(..ENTRIES + count * ENTRY_LEN)?;
    let sum = summed.chunks_exact(2).fold(0, |sum, word| sum ^ u16::from_le_bytes([word[0], word[1]]));
    if sum != 0 {
        return None;
    }
    let entry = |index: usize| {
        let at = ENTRIES + index * ENTRY_LEN;
        Some((u64::from(word(at)?), u64::from(word(at + 4)?), *label.get(at + 12)?))
    };
    // Offsets count from the slice, or, as old labels have it, from the disk: the raw entry's own tells which.
    let base = entry(RAW).map_or(0, |(_, offset, _)| offset);
    let used = (0..count).filter(|&index| index != RAW).filter_map(|index| {
        let (size, offset, kind) = entry(index)?;
        let inside = offset.checked_sub(base)? * SECTOR;
        let letter = char::from(b'a' + u8::try_from(index).ok()?);
        let bytes = size * SECTOR;
        let fits = size > 0 && inside.checked_add(bytes)? <= len;
        fits.then(|| Partition {
            place: Place::Bsd(number, letter),
            start: start + inside,
            len: bytes,
            kind: Kind::Bsd(kind),
            name: String::new(),
            uuid: None,
            attributes: 0,
        })
    });
    let partitions: Vec<_> = used.collect();
    (!partitions.is_empty()).then_some(partitions)
}

/// `FS_*` of `disklabel.h`.
pub(super) fn kind_name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        1 => "freebsd-swap",
        7 => "freebsd-ufs",
        14 => "freebsd-vinum",
        27 => "freebsd-zfs",
        _ => return None,
    })
}
