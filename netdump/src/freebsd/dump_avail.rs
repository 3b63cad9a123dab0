//! `dump_avail`: the physical memory that a FreeBSD kernel would put into a dump.
//!
//! An array of pairs of physical addresses (start, end), ended by an end of 0 (`sys/vm/vm_phys.h`,
//! `sys/kern/subr_physmem.c`, `sys/amd64/amd64/machdep.c`).

use std::ops::Range;

use thiserror::Error;

use crate::vmcore::MemoryRange;
use crate::vmcore::VirtualMemory;
use crate::vmcore::kernel_memory::KernelMemory;
use crate::vmcore::minidump::page_set::{NumberingError, PageNumbers};
use crate::vmcore::paging::PAGE_SIZE;

/// Most pairs that the array holds beside its end (`PHYS_AVAIL_ENTRIES`).
pub const MAX_PAIRS: usize = 63;
/// Most pages beyond twice the guest's own that are taken for an honest mistake: 4 GiB of address space.
const SPARE_PAGES: u64 = 1 << 20;

/// Why the kernel's own list of its memory is not used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DumpAvailError {
    /// No such symbol, or it cannot be read.
    #[error("the kernel's dump_avail cannot be read")]
    Unreadable,
    /// It ends with its first pair, as before the kernel fills it.
    #[error("the kernel's dump_avail is empty")]
    Empty,
    /// It has no end.
    #[error("the kernel's dump_avail has no end among its first {MAX_PAIRS} pairs")]
    Endless,
    /// A pair that is no range of pages in ascending order.
    #[error("the kernel's dump_avail is damaged: {0}")]
    Damaged(NumberingError),
    /// Much more memory than the guest has.
    #[error("the kernel's dump_avail claims {pages} pages of a guest of {ram}")]
    TooMuch {
        /// Pages in its ranges.
        pages: u64,
        /// Pages of RAM.
        ram: u64,
    },
}

/// The ranges, ascending, on page boundaries and without overlap. Parts of them may not be RAM.
pub fn dump_avail(kernel: &KernelMemory<'_>) -> Result<Vec<Range<u64>>, DumpAvailError> {
    let array = kernel.symbols().address("dump_avail").ok_or(DumpAvailError::Unreadable)?;
    let mut ranges = Vec::new();
    for pair in 0..=MAX_PAIRS as u64 {
        let word = |index: u64| kernel.read_u64(array.checked_add(16 * pair + 8 * index)?);
        let (Some(start), Some(end)) = (word(0), word(1)) else { return Err(DumpAvailError::Unreadable) };
        if end == 0 {
            return check(ranges, kernel.physical().ranges());
        }
        ranges.push(start..end);
    }
    Err(DumpAvailError::Endless)
}

fn check(ranges: Vec<Range<u64>>, ram: &[MemoryRange]) -> Result<Vec<Range<u64>>, DumpAvailError> {
    if ranges.is_empty() {
        return Err(DumpAvailError::Empty);
    }
    let on_pages =
        |range: &&Range<u64>| range.start.is_multiple_of(PAGE_SIZE) && range.end.is_multiple_of(PAGE_SIZE);
    if let Some(range) = ranges.iter().find(|range| !on_pages(range)) {
        let (start, end) = (range.start, range.end);
        return Err(DumpAvailError::Damaged(NumberingError::Range { start, end }));
    }
    let pages = PageNumbers::of_ranges(&ranges).map_err(DumpAvailError::Damaged)?.bits();
    let ram = ram.iter().map(|range| range.len / PAGE_SIZE).sum();
    if pages > SPARE_PAGES.saturating_add(2 * ram) {
        return Err(DumpAvailError::TooMuch { pages, ram });
    }
    Ok(ranges)
}

/// The parts of `ranges` that are RAM, ascending.
pub fn in_ram(ranges: &[Range<u64>], ram: &[MemoryRange]) -> Vec<MemoryRange> {
    let mut parts = Vec::new();
    for range in ranges {
        let from = ram.partition_point(|ram| ram.end() <= range.start);
        for ram in ram[from..].iter().take_while(|ram| ram.start < range.end) {
            let start = range.start.max(ram.start);
            parts.push(MemoryRange { start, len: range.end.min(ram.end()) - start });
        }
    }
    parts
}
