//! What a core's own headers promise.

use super::super::inspect::{bytes_text, counted};
use super::super::memory::{MemoryRange, PhysicalMemory};
use super::super::minidump::read::Minidump;
use super::super::open::{Core, Piece, PieceContent};
use super::super::paging::PAGE_SIZE;
use super::super::unpack::Packed;
use super::{Finding, STRUCTURE, Verdict, counted_bytes};

pub(super) fn check_core(verdict: &mut Verdict, core: &Core) {
    if let Some(packed) = core.file().packed() {
        let Packed { method, stored, unpacked, damage } = packed;
        let text = format!("{} of {stored} bytes, {unpacked} unpacked", method.name());
        verdict.judge("packing", damage.as_ref().map_or(Ok(text), |damage| Err(damage.to_string())));
    }
    verdict.judge(STRUCTURE, structure(core));
    verdict.judge("length", length(core));
    if core.pieces().iter().any(|piece| piece.content == PieceContent::Notes) {
        verdict.judge("notes", notes(core));
    } else {
        verdict.add("notes", Finding::NotApplicable, "the core has none");
    }
}

/// The pieces lie in the file in the order of their headers, none on another; memory is in ascending order.
fn structure(core: &Core) -> Result<String, String> {
    let pieces = without_image(core.pieces());
    let mut before: Option<&Piece> = None;
    for piece in pieces.clone().filter(|piece| piece.len > 0) {
        if let Some(before) = before.filter(|before| piece.offset < before.end()) {
            return Err(format!(
                "{} at offset {:#x} begins before the end of {} at {:#x}",
                piece.content,
                piece.offset,
                before.content,
                before.end()
            ));
        }
        before = Some(piece);
    }
    let memory = pieces.filter_map(memory_of);
    let mut end = 0;
    for range in memory {
        if range.start < end {
            return Err(format!(
                "memory at {:#x} is listed behind memory that ends at {end:#x}",
                range.start
            ));
        }
        end = range.end();
    }
    let ranges = core.ranges();
    let total: u64 = ranges.iter().map(|range| range.len).sum();
    let memory = format!("{} of memory in {}", bytes_text(total), counted(ranges.len(), "range"));
    match core.minidump() {
        Some(minidump) => {
            minidump_structure(minidump).map(|pages| format!("{}, {pages} of {memory}", core.kind()))
        }
        None => Ok(format!("{}, {memory}", core.kind())),
    }
}

/// The pieces but for a kernel image that comes before all memory and shows bytes of it a second time, at the kernel's own
/// virtual addresses: /proc/vmcore has it so, and this project's cores of Linux guests.
fn without_image(pieces: &[Piece]) -> impl Iterator<Item = &Piece> + Clone {
    let image = pieces.iter().position(|piece| memory_of(piece).is_some());
    let image =
        image.filter(|&image| pieces[image + 1..].iter().any(|all| shows_a_part_of(&pieces[image], all)));
    pieces.iter().enumerate().filter(move |(number, _)| Some(*number) != image).map(|(_, piece)| piece)
}

/// Whether a piece of memory is a part of another's, out of the same bytes of the file.
fn shows_a_part_of(part: &Piece, all: &Piece) -> bool {
    let (Some(memory), Some(around)) = (memory_of(part), memory_of(all)) else { return false };
    let inside = around.start <= memory.start && memory.end() <= around.end();
    inside && part.offset.checked_sub(all.offset) == Some(memory.start - around.start)
}

fn memory_of(piece: &Piece) -> Option<MemoryRange> {
    match piece.content {
        PieceContent::Memory(range) => Some(range),
        _ => None,
    }
}

/// The bitmap names pages that exist.
fn minidump_structure(minidump: &Minidump) -> Result<String, String> {
    let (set, all) = (minidump.pages().len(), minidump.pages().numbers().bits());
    match minidump.stray_bits() {
        0 => Ok(format!("{set} of {all} pages")),
        stray => Err(format!("{stray} bits of the bitmap, behind the {all} that stand for pages, are set")),
    }
}

fn length(core: &Core) -> Result<String, String> {
    let (is, should) = (core.file().length(), core.expected_length());
    let lost = || {
        if let Some(minidump) = core.minidump() {
            let missing = minidump.pages().len() - minidump.pages_in(is);
            let first = core.address_at(is).map_or_else(String::new, |address| {
                format!(", the first of guest-physical {:#x}", address / PAGE_SIZE * PAGE_SIZE)
            });
            return format!("; {missing} of the {} pages are missing{first}", minidump.pages().len());
        }
        let first = core.pieces().iter().filter(|piece| piece.end() > is).min_by_key(|piece| piece.offset);
        first.map_or_else(String::new, |piece| format!("; the first that lacks bytes is {}", piece.content))
    };
    match is.cmp(&should) {
        std::cmp::Ordering::Equal => Ok(format!("{is} bytes, as the headers say")),
        std::cmp::Ordering::Less => Err(format!(
            "the file ends at offset {is:#x}, {} before the end at {should:#x}{}",
            counted_bytes(should - is),
            lost()
        )),
        std::cmp::Ordering::Greater => {
            Err(format!("{} too many, from offset {should:#x} on", counted_bytes(is - should)))
        }
    }
}

fn notes(core: &Core) -> Result<String, String> {
    match core.problems() {
        [] => Ok(format!("{} described", counted(core.cpus().len(), "CPU"))),
        [only] => Err(only.to_string()),
        [first, rest @ ..] => Err(format!("{first}, and {}", counted(rest.len(), "more problem"))),
    }
}
