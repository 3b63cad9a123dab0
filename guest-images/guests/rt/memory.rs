//! RAM: what there is, its identity map, and the pattern that fills it.

use core::ops::Range;
use core::slice;

use crate::contract::{self, FILL_MAP_MAGIC, FILL_MAP_RANGES, PAGE};
use crate::global::Global;
use crate::{kenv, println, start_info::StartInfo};

/// The map reaches to here, and RAM above it is not used.
const MAPPED: u64 = DIRECTORIES as u64 * GIB;
const GIB: u64 = 1 << 30;
const DIRECTORIES: usize = 128;
/// Present, writable, user; and with it a 2 MiB page.
const TABLE: u64 = 0x7;
const LARGE_PAGE: u64 = 0x87;
/// For devices: cache disabled.
const UNCACHED: u64 = 0x10;
/// GiB that holds the devices (entry.s maps the local APIC there).
const DEVICE_GIB: u64 = 3;

const MAX_RAM_RANGES: usize = 16;

static RAM: Global<[(u64, u64); MAX_RAM_RANGES]> = Global::new([(0, 0); MAX_RAM_RANGES]);

/// One page directory for each GiB; written before it is linked.
#[unsafe(link_section = ".bss.scratch.directories")]
static PAGE_DIRECTORIES: Directories = Directories(Global::new([[0; 512]; DIRECTORIES]));

#[repr(align(4096))]
struct Directories(Global<[[u64; 512]; DIRECTORIES]>);

unsafe extern "C" {
    /// The third level of the page tables, made by `entry.s`.
    static page_pointers: Global<[u64; 512]>;
    /// The directory of the device GiB, made by `entry.s`.
    static last_gib: Global<[u64; 512]>;
}

/// What was filled, for the host: magic "FILLMAP1", seed, number of ranges, then start and length of each.
#[repr(C)]
pub struct FillMap {
    magic: u64,
    seed: u64,
    count: u64,
    ranges: [(u64, u64); FILL_MAP_RANGES],
}

/// The one fill map.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static fill_map: Global<FillMap> =
    Global::new(FillMap { magic: 0, seed: 0, count: 0, ranges: [(0, 0); FILL_MAP_RANGES] });

/// Notes and maps all RAM of the start information.
pub(crate) fn init(start_info: &StartInfo) {
    for (i, range) in start_info.ram().take(MAX_RAM_RANGES).enumerate() {
        map(&range);
        RAM.set(i, (range.start, range.end.min(MAPPED)));
    }
}

/// The ranges of RAM, as the VMM ordered them.
pub fn ram() -> impl Iterator<Item = Range<u64>> {
    (0..MAX_RAM_RANGES).map(|i| RAM.at(i)).take_while(|range| range.1 != 0).map(|(start, end)| start..end)
}

/// Maps the 2 MiB around a device's registers, uncached.
pub fn map_device(address: u64) {
    assert!(address / GIB == DEVICE_GIB, "a device at {address:#x}");
    let page = address & !(2 * 1024 * 1024 - 1);
    // SAFETY: `entry.s` defines the table, and only this function changes it from here on.
    unsafe { last_gib.set((page % GIB >> 21) as usize, page | LARGE_PAGE | UNCACHED) };
}

/// Maps what `entry.s` has not mapped of `range`, a whole GiB at a time.
fn map(range: &Range<u64>) {
    for gib in range.start / GIB..range.end.min(MAPPED).div_ceil(GIB) {
        if gib == 0 || gib == DEVICE_GIB {
            continue;
        }
        let directory = PAGE_DIRECTORIES.0.address() + gib * PAGE;
        for i in 0..512 {
            // SAFETY: inside the directory of this GiB, which nothing else writes.
            unsafe {
                (directory as *mut u64).add(i).write_volatile(gib * GIB + ((i as u64) << 21) | LARGE_PAGE)
            };
        }
        // SAFETY: `entry.s` defines the table; the entry was not present or held the same value.
        unsafe { page_pointers.set(gib as usize, directory | TABLE) };
    }
}

/// Fills the first pages of RAM from 16 MiB up with the pattern, as much as the environment's `fill` says, else
/// `default` bytes; publishes it in `fill_map`.
pub fn fill(default: u64) {
    let amount = kenv::size("fill", default);
    let seed = begin_fill();
    for range in contract::fill_ranges(ram(), amount) {
        println!("pattern {seed:#x} in {:#x}-{:#x}", range.start, range.end);
        fill_range(seed, range);
    }
}

/// Fills the sparse pages of `contract::sparse_pages`; publishes them in `fill_map`.
pub fn fill_sparse() {
    let seed = begin_fill();
    let mut pages = 0;
    for page in contract::sparse_pages(ram()) {
        fill_range(seed, page..page + PAGE);
        pages += 1;
    }
    println!("pattern {seed:#x} in {pages} pages");
}

fn begin_fill() -> u64 {
    let seed = kenv::number("seed", contract::DEFAULT_SEED);
    let map = fill_map.pointer();
    // SAFETY: the static's own fields; only the first CPU is here.
    unsafe {
        (&raw mut (*map).magic).write_volatile(FILL_MAP_MAGIC);
        (&raw mut (*map).seed).write_volatile(seed);
        (&raw mut (*map).count).write_volatile(0);
    }
    seed
}

fn fill_range(seed: u64, range: Range<u64>) {
    let words = (range.end - range.start) / 8;
    // SAFETY: RAM above the image and above all boot structures that is ours alone, and mapped.
    let memory = unsafe { slice::from_raw_parts_mut(range.start as *mut u64, words as usize) };
    for (word, address) in memory.iter_mut().zip((range.start..).step_by(8)) {
        *word = contract::pattern(seed, address);
    }
    let map = fill_map.pointer();
    // SAFETY: the static's own fields; the index is checked.
    unsafe {
        let count = (*map).count as usize;
        assert!(count < FILL_MAP_RANGES, "too many filled ranges");
        (&raw mut (*map).ranges[count]).write_volatile((range.start, range.end - range.start));
        (&raw mut (*map).count).write_volatile(count as u64 + 1);
    }
}
