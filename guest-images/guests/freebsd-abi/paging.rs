//! The kernel's own tables (`sys/amd64/amd64/pmap.c`, 4 levels): image and early pages at KERNBASE, the direct map, a
//! recursive slot, and kernel virtual memory with leaves of every size. Nothing of them is a user's.
//!
//! From VM_MIN_KERNEL_ADDRESS, GiB by GiB: 0 has page tables (heap, stacks), a 2 MiB leaf and a device; 1 is not
//! there; 2 is one leaf; 3 has an empty directory. Another 512 GiB on is a lone page.

use crate::global::Global;
use crate::kenv;
use crate::pages::{self, DMAP, GIB, LARGE, PAGE};
use crate::variables::{KPML4phys, dmaplimit, kernel_vm_end, kernphys, lapic_address, nkpt};

pub const VM_MIN_KERNEL_ADDRESS: u64 = 0xffff_fe00_0000_0000;
/// Valid, writable, accessed, modified: of a table; of a page; of a large page, which is global; not executable.
pub const TABLE: u64 = 0x63;
pub const READ_WRITE: u64 = NO_EXECUTE | 0x163;
const LEAF: u64 = 0x1e3;
const NO_EXECUTE: u64 = 1 << 63;
const UNCACHED: u64 = 0x18;
/// What a user's entry has besides.
pub const USER: u64 = 0x4;
pub const FRAME: u64 = 0x000f_ffff_ffff_f000;

const RECURSIVE_SLOT: u64 = 256;
const DMAP_SLOT: u64 = 496;
const KERNEL_SLOTS: core::ops::RangeInclusive<u64> = 508..=511;

const HEAP: u64 = VM_MIN_KERNEL_ADDRESS;
const STACKS: u64 = VM_MIN_KERNEL_ADDRESS + LARGE;
const LARGE_LEAF: u64 = VM_MIN_KERNEL_ADDRESS + 2 * LARGE;
const DEVICES: u64 = VM_MIN_KERNEL_ADDRESS + 4 * LARGE;
const GIGANTIC_LEAF: u64 = VM_MIN_KERNEL_ADDRESS + 2 * GIB;
const EMPTY_DIRECTORY: u64 = VM_MIN_KERNEL_ADDRESS + 3 * GIB;
const LONE_PAGE: u64 = VM_MIN_KERNEL_ADDRESS + 512 * GIB;
const LAPIC: u64 = 0xfee0_0000;
/// Where an entry that is not valid lies, with an address in it that must not be followed.
const STALE: u64 = HEAP + 511 * PAGE;

static NEXT_HEAP: Global<u64> = Global::new(HEAP);
static NEXT_STACK: Global<u64> = Global::new(STACKS);

/// Memory that the kernel has mapped: its address there, and the physical one.
#[derive(Clone, Copy)]
pub struct Mapped {
    pub va: u64,
    pub pa: u64,
}

/// Builds the tables.
pub fn build(has_gib_pages: bool) {
    let root = pages::early();
    KPML4phys.write(root);
    set(root, RECURSIVE_SLOT, root | TABLE | NO_EXECUTE);
    for slot in KERNEL_SLOTS {
        set(root, slot, pages::early() | TABLE);
    }
    NEXT_HEAP.write(HEAP);
    NEXT_STACK.write(STACKS);
    map_image(entry(root, 511) & FRAME);
    map_everything(root, has_gib_pages);
    map_virtual(root);
    kernphys.write(LARGE);
}

/// KERNBASE: 2 MiB pages to the end of the early pages, then a page table with some pages and one with none.
fn map_image(pointers: u64) {
    let directory = pages::early();
    set(pointers, 510, directory | TABLE);
    set(pointers, 511, pages::early() | TABLE);
    let large = pages::kernel_end() / LARGE;
    (0..large).for_each(|i| set(directory, i, i * LARGE | LEAF));
    let table = pages::early();
    set(directory, large, table | TABLE);
    (0..3).for_each(|i| set(table, 7 * i, pages::plain() | READ_WRITE));
    set(directory, large + 1, pages::early() | TABLE);
    nkpt.write(large as u32 + 2);
}

/// The direct map, of 4 GiB at least.
fn map_everything(root: u64, has_gib_pages: bool) {
    let limit = pages::memory_end().next_multiple_of(GIB).max(4 * GIB);
    assert!(limit <= 512 * GIB, "more memory than one table of the direct map shows");
    dmaplimit.write(limit);
    let pointers = pages::early();
    set(root, DMAP_SLOT, pointers | TABLE | NO_EXECUTE);
    for gib in 0..limit / GIB {
        if has_gib_pages {
            set(pointers, gib, gib * GIB | LEAF | NO_EXECUTE);
            continue;
        }
        let directory = pages::plain();
        set(pointers, gib, directory | TABLE);
        (0..512).for_each(|i| set(directory, i, gib * GIB + i * LARGE | LEAF | NO_EXECUTE));
    }
}

/// What is mapped from VM_MIN_KERNEL_ADDRESS up, as far as it does not come later.
fn map_virtual(root: u64) {
    enter(root, LONE_PAGE, pages::plain(), READ_WRITE);
    enter(root, DEVICES, LAPIC, READ_WRITE | UNCACHED);
    lapic_address.write(DEVICES);
    enter(root, STALE, pages::plain(), READ_WRITE);
    let stale = leaf_table(root, STALE, TABLE);
    set(stale, index(STALE, 12), entry(stale, index(STALE, 12)) & !1);
    let pointers = entry(root, index(HEAP, 39)) & FRAME;
    let gib = kenv::number("abi.gigantic", 1);
    set(pointers, index(GIGANTIC_LEAF, 30), gib * GIB | LEAF | NO_EXECUTE);
    set(pointers, index(EMPTY_DIRECTORY, 30), pages::plain() | TABLE);
    kernel_vm_end.write(EMPTY_DIRECTORY + GIB);
}

/// The page directory that is empty.
pub fn empty_directory() -> Mapped {
    let pointers = entry(KPML4phys.read(), index(EMPTY_DIRECTORY, 39)) & FRAME;
    direct(entry(pointers, index(EMPTY_DIRECTORY, 30)) & FRAME)
}

/// 2 MiB behind one leaf; once.
pub fn large_leaf() -> Mapped {
    let pa = pages::plain_run(LARGE / PAGE, LARGE);
    let pointers = entry(KPML4phys.read(), index(LARGE_LEAF, 39)) & FRAME;
    let directory = entry(pointers, index(LARGE_LEAF, 30)) & FRAME;
    set(directory, index(LARGE_LEAF, 21), pa | LEAF | NO_EXECUTE);
    Mapped { va: LARGE_LEAF, pa }
}

/// A page of kernel virtual memory with a mapping of its own.
pub fn heap_page() -> Mapped {
    let va = NEXT_HEAP.read();
    NEXT_HEAP.write(va + PAGE);
    assert!(va < STALE, "the heap is full");
    let pa = pages::plain();
    enter(KPML4phys.read(), va, pa, READ_WRITE);
    Mapped { va, pa }
}

/// The pages of a kernel stack, behind one that is not there; the highest last.
pub fn stack() -> [Mapped; 4] {
    let start = NEXT_STACK.read() + PAGE;
    NEXT_STACK.write(start + 4 * PAGE);
    assert!(start + 4 * PAGE <= LARGE_LEAF, "no room for stacks");
    [0, 1, 2, 3].map(|i| {
        let mapped = Mapped { va: start + i * PAGE, pa: pages::plain() };
        enter(KPML4phys.read(), mapped.va, mapped.pa, READ_WRITE);
        mapped
    })
}

/// Tables of a process: the kernel's half is the kernel's.
pub fn process_root() -> u64 {
    let root = pages::plain();
    (256..512).for_each(|slot| set(root, slot, entry(KPML4phys.read(), slot)));
    set(root, RECURSIVE_SLOT, root | TABLE | NO_EXECUTE);
    root
}

/// Maps a page in the tables at `root`; tables that are missing are made.
pub fn enter(root: u64, va: u64, pa: u64, flags: u64) {
    let table = leaf_table(root, va, TABLE | flags & USER);
    set(table, index(va, 12), pa | flags);
}

/// Address of physical memory in the direct map.
pub fn direct(pa: u64) -> Mapped {
    Mapped { va: DMAP + pa, pa }
}

/// The page table that maps `va`.
fn leaf_table(root: u64, va: u64, flags: u64) -> u64 {
    [39, 30, 21].into_iter().fold(root, |table, shift| {
        let slot = index(va, shift);
        if entry(table, slot) == 0 {
            set(table, slot, pages::plain() | flags);
        }
        entry(table, slot) & FRAME
    })
}

pub fn index(va: u64, shift: u32) -> u64 {
    va >> shift & 511
}

pub fn entry(table: u64, index: u64) -> u64 {
    // SAFETY: a table that this module made.
    unsafe { pages::at(table + index * 8).read() }
}

fn set(table: u64, index: u64, value: u64) {
    // SAFETY: as for `entry`; no CPU uses these tables yet.
    unsafe { pages::at(table + index * 8).write(value) }
}
