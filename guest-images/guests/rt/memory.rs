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
const LARGE: u64 = 2 << 20;
/// Present, writable, user; and with it a 2 MiB page.
const TABLE: u64 = 0x7;
const LARGE_PAGE: u64 = 0x87;
/// For devices: cache disabled.
const UNCACHED: u64 = 0x10;
/// GiB that holds the devices (entry.s maps the local APIC there).
const DEVICE_GIB: u64 = 3;

const MAX_RAM_RANGES: usize = 16;

static RAM: Global<[[u64; 2]; MAX_RAM_RANGES]> = Global::new([[0; 2]; MAX_RAM_RANGES]);

/// One page directory for each GiB; written before it is linked.
#[unsafe(link_section = ".bss.scratch.directories")]
static PAGE_DIRECTORIES: Directories = Directories(Global::new([0; 512 * DIRECTORIES]));

#[repr(align(4096))]
struct Directories(Global<[u64; 512 * DIRECTORIES]>);

unsafe extern "C" {
    /// The third level of the page tables, made by `entry.s`.
    static page_pointers: Global<[u64; 512]>;
    /// The directory of the device GiB, made by `entry.s`.
    static last_gib: Global<[u64; 512]>;
}

/// What was filled, for the host: magic "FILLMAP1", seed, number of ranges, then start and length of each.
#[repr(C)]
pub struct FillMap {
    magic: Global<u64>,
    seed: Global<u64>,
    count: Global<u64>,
    ranges: Global<[[u64; 2]; FILL_MAP_RANGES]>,
}

/// The one fill map.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static fill_map: FillMap = FillMap {
    magic: Global::new(0),
    seed: Global::new(0),
    count: Global::new(0),
    ranges: Global::new([[0; 2]; FILL_MAP_RANGES]),
};

/// Notes and maps all RAM of the start information.
pub(crate) fn init(start_info: &StartInfo) {
    for (i, range) in start_info.ram().take(MAX_RAM_RANGES).enumerate() {
        map(&range);
        RAM.set(i, [range.start, range.end.min(MAPPED)]);
    }
}

/// The ranges of RAM, as the VMM ordered them.
pub fn ram() -> impl Iterator<Item = Range<u64>> {
    (0..MAX_RAM_RANGES).map(|i| RAM.at(i)).take_while(|range| range[1] != 0).map(|[start, end]| start..end)
}

/// Maps the 2 MiB around a device's registers, uncached.
pub fn map_device(address: u64) {
    assert!(address / GIB == DEVICE_GIB, "a device at {address:#x}");
    let page = address & !(LARGE - 1);
    // SAFETY: `entry.s` defines the table, and only this function changes it from here on.
    unsafe { last_gib.set((page % GIB / LARGE) as usize, page | LARGE_PAGE | UNCACHED) };
}

/// Maps what `entry.s` has not mapped of `range`, a whole GiB at a time.
fn map(range: &Range<u64>) {
    for gib in range.start / GIB..range.end.min(MAPPED).div_ceil(GIB) {
        if gib == 0 || gib == DEVICE_GIB {
            continue;
        }
        let first = gib as usize * 512;
        for i in 0..512 {
            PAGE_DIRECTORIES.0.set(first + i, (gib * GIB + i as u64 * LARGE) | LARGE_PAGE);
        }
        let directory = PAGE_DIRECTORIES.0.address() + gib * PAGE;
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
    fill_map.count.write(0);
    fill_map.seed.write(seed);
    fill_map.magic.write(FILL_MAP_MAGIC);
    seed
}

fn fill_range(seed: u64, range: Range<u64>) {
    let length = range.end - range.start;
    // SAFETY: RAM above the image and above all boot structures that is ours alone, and mapped.
    let memory = unsafe { slice::from_raw_parts_mut(range.start as *mut u64, (length / 8) as usize) };
    for (word, address) in memory.iter_mut().zip((range.start..).step_by(8)) {
        *word = contract::pattern(seed, address);
    }
    let count = fill_map.count.read();
    fill_map.ranges.set(count as usize, [range.start, length]);
    fill_map.count.write(count + 1);
}
