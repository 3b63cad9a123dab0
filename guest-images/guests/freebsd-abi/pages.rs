//! Physical pages: `dump_avail`, the allocators, and `vm_page_dump`, the live set of pages that a minidump has besides
//! those that the kernel's tables map. Physical addresses.
//!
//! Like FreeBSD's start-up, which takes pages for the start of the other CPUs out of the map, four pages at 1 MiB are
//! in no range: the boot tables lie there.

use core::ops::Range;

use crate::flavour;
use crate::global::Global;
use crate::handover::{self, Handover};
use crate::variables::{dump_avail, vm_page_dump};

pub const PAGE: u64 = 4096;
pub const LARGE: u64 = 2 << 20;
pub const GIB: u64 = 1 << 30;
pub const DMAP: u64 = 0xffff_f800_0000_0000;
/// Taken out of the memory map.
const BOOT_TABLES: Range<u64> = 0x10_0000..0x10_4000;
/// The boot tables' entry for the second GiB: a window to the GiB that holds the last page of RAM.
const WINDOW_ENTRY: u64 = BOOT_TABLES.start + 0x1000 + 8;
const WINDOW: u64 = GIB;
/// Present, writable, user, 2 MiB.
const LARGE_PAGE: u64 = 0x87;
const TABLE: u64 = 0x7;
/// Pages that the kernel takes before it has an allocator; mapped at KERNBASE like its image.
const EARLY_PAGES: u64 = 64;

#[repr(align(4096))]
struct Directory(Global<[u64; 512]>);
static WINDOW_DIRECTORY: Directory = Directory(Global::new([0; 512]));
static WINDOW_BASE: Global<u64> = Global::new(0);
static NEXT_EARLY: Global<u64> = Global::new(0);
static EARLY_END: Global<u64> = Global::new(0);
static NEXT: Global<u64> = Global::new(0);
/// End of the memory that is still free at its top.
static TOP: Global<u64> = Global::new(0);

/// Makes `dump_avail`, `vm_page_dump` and the allocators.
pub fn init(handover: &Handover) {
    let ranges = make_dump_avail();
    NEXT_EARLY.write(handover.first_free);
    let early_end = (handover.first_free + EARLY_PAGES * PAGE).next_multiple_of(LARGE);
    EARLY_END.write(early_end);
    NEXT.write(early_end);
    let top = dump_avail.at(2 * ranges - 1);
    TOP.write(top);
    open_window((top - 1) & !(GIB - 1));
    make_bitmap();
}

/// End of what is mapped at KERNBASE: image and early pages, in whole 2 MiB.
pub fn kernel_end() -> u64 {
    EARLY_END.read()
}

/// First address behind all RAM.
pub fn memory_end() -> u64 {
    ranges().map(|range| range.end).max().unwrap_or(0)
}

/// The ranges of `dump_avail`.
pub fn ranges() -> impl Iterator<Item = Range<u64>> {
    (0..64).map(|i| dump_avail.at(2 * i)..dump_avail.at(2 * i + 1)).take_while(|range| range.end != 0)
}

/// A zeroed page among the kernel's own, which KERNBASE maps.
pub fn early() -> u64 {
    let page = NEXT_EARLY.read();
    assert!(page + PAGE <= EARLY_END.read(), "too few early pages");
    NEXT_EARLY.write(page + PAGE);
    zeroed(page, 1)
}

/// A zeroed page in no set: for page tables, for mappings, for a user process, or not to be dumped.
pub fn plain() -> u64 {
    plain_run(1, PAGE)
}

/// `count` of them in a row, aligned. Every so often a page is left free between them, so that the sets have holes.
pub fn plain_run(count: u64, align: u64) -> u64 {
    let hole = if (NEXT.read() / PAGE).is_multiple_of(5) { PAGE } else { 0 };
    let start = (NEXT.read() + hole).next_multiple_of(align);
    let end = start + count * PAGE;
    let room = ranges().find(|range| range.contains(&start)).expect("free memory is in a range").end;
    assert!(end <= room.min(TOP.read()), "the guest has too little memory");
    NEXT.write(end);
    zeroed(start, count)
}

/// A zeroed page as `uma_small_alloc` gives it: reached by the direct map alone, and in `vm_page_dump`.
pub fn direct() -> u64 {
    direct_run(1)
}

/// `count` of them in a row.
pub fn direct_run(count: u64) -> u64 {
    let start = plain_run(count, PAGE);
    (0..count).for_each(|i| add(start + i * PAGE));
    start
}

/// `count` zeroed pages from the end of RAM, in `vm_page_dump`.
pub fn from_top(count: u64) -> u64 {
    let start = TOP.read() - count * PAGE;
    assert!(start >= WINDOW_BASE.read(), "the last GiB has too little memory");
    TOP.write(start);
    (0..count).for_each(|i| add(start + i * PAGE));
    zeroed(start, count)
}

/// Where ring 3 sees an address, either in the first GiB or in that of the last page of RAM.
pub fn at(address: u64) -> *mut u64 {
    if address < GIB {
        return address as *mut u64;
    }
    let offset = address - WINDOW_BASE.read();
    assert!(offset < GIB, "no window to {address:#x}");
    (WINDOW + offset) as *mut u64
}

/// Where ring 3 sees an address of the direct map.
pub fn at_direct(address: u64) -> *mut u64 {
    at(address - DMAP)
}

/// Bit of a page in `vm_page_dump`, as `vm_page_dump_index` counts them.
pub fn bit(address: u64) -> Option<u64> {
    if flavour::IS_12 {
        return Some(address / PAGE);
    }
    let mut base = 0;
    for range in ranges() {
        if range.contains(&address) {
            return Some(base + (address - range.start) / PAGE);
        }
        base += range.end.div_ceil(PAGE) - range.start / PAGE;
    }
    None
}

/// Bits of `vm_page_dump`.
pub fn bits() -> u64 {
    match flavour::IS_12 {
        true => memory_end().div_ceil(PAGE),
        false => ranges().map(|range| range.end.div_ceil(PAGE) - range.start / PAGE).sum(),
    }
}

/// FreeBSD's `dump_add_page`.
fn add(page: u64) {
    let bit = bit(page).expect("only pages of dump_avail are allocated");
    let word = at_direct(vm_page_dump.read() + bit / 64 * 8);
    // SAFETY: inside the bitmap, which is this module's.
    unsafe { *word |= 1 << (bit % 64) };
}

/// Fills `dump_avail`; the number of ranges.
fn make_dump_avail() -> usize {
    let mut count = 0;
    let mut push = |start: u64, end: u64| {
        if start < end {
            dump_avail.set(2 * count, start);
            dump_avail.set(2 * count + 1, end);
            count += 1;
        }
    };
    for range in handover::ram() {
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end & !(PAGE - 1));
        if range.contains(&BOOT_TABLES.start) {
            push(start, BOOT_TABLES.start);
            push(BOOT_TABLES.end, end);
        } else {
            push(start, end);
        }
    }
    count
}

/// Takes the pages of `vm_page_dump` and adds them to it.
fn make_bitmap() {
    let bytes = bits().div_ceil(64) * 8;
    #[cfg(flavour = "12")]
    crate::variables::vm_page_dump_size.write(bytes.next_multiple_of(PAGE) as u32);
    #[cfg(not(flavour = "12"))]
    crate::variables::vm_page_dump_pages.write(bits());
    let count = bytes.div_ceil(PAGE);
    let start = plain_run(count, PAGE);
    vm_page_dump.write(DMAP + start);
    (0..count).for_each(|i| add(start + i * PAGE));
}

fn open_window(base: u64) {
    WINDOW_BASE.write(base);
    for i in 0..512 {
        WINDOW_DIRECTORY.0.set(i, base + i as u64 * LARGE | LARGE_PAGE);
    }
    let directory = WINDOW_DIRECTORY.0.address() - handover::KERNBASE;
    // SAFETY: the boot tables' entry of the second GiB, which is not present until now.
    unsafe { (WINDOW_ENTRY as *mut u64).write_volatile(directory | TABLE) };
}

fn zeroed(page: u64, count: u64) -> u64 {
    // SAFETY: RAM that the allocators give out once.
    unsafe { at(page).write_bytes(0, (count * PAGE / 8) as usize) };
    page
}
