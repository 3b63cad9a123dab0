//! The guest's own idea of its minidump, for tests: which pages are in it, found as the kernel's `minidumpsys` does
//! (`sys/amd64/amd64/minidump_machdep.c`): `vm_page_dump`, then a walk of the kernel's tables, then a filter. The result
//! is a bitmap like `vm_page_dump` at the address in `oracle_bitmap`, with its number of bits set in `oracle_pages`.

use crate::flavour;
use crate::handover::KERNBASE;
use crate::pages::{self, DMAP, GIB, LARGE, PAGE};
use crate::paging::{FRAME, VM_MIN_KERNEL_ADDRESS, entry, index};
use crate::variables::{
    KPML4phys, dmaplimit, kernel_vm_end, nkpt, oracle_bitmap, oracle_pages, vm_page_dump,
};

const VALID: u64 = 1;
const LARGE_BIT: u64 = 1 << 7;
const GIGANTIC_FRAME: u64 = 0x000f_ffff_c000_0000;
const LARGE_FRAME: u64 = 0x000f_ffff_ffe0_0000;

/// Writes it. Nothing may be allocated or mapped afterwards.
pub fn write() {
    let bytes = pages::bits().div_ceil(64) * 8;
    let bitmap = Bitmap { at: pages::direct_run(bytes.div_ceil(PAGE)), words: bytes / 8 };
    for word in 0..bitmap.words {
        // SAFETY: both bitmaps have so many words.
        let live = unsafe { pages::at_direct(vm_page_dump.read() + word * 8).read() };
        bitmap.set(word, live);
    }
    walk(&bitmap);
    oracle_bitmap.write(DMAP + bitmap.at);
    oracle_pages.write(bitmap.filter());
}

struct Bitmap {
    at: u64,
    words: u64,
}

impl Bitmap {
    fn word(&self, index: u64) -> u64 {
        // SAFETY: `place` checks.
        unsafe { self.place(index).read() }
    }

    fn set(&self, index: u64, value: u64) {
        // SAFETY: `place` checks.
        unsafe { self.place(index).write(value) }
    }

    fn place(&self, index: u64) -> *mut u64 {
        assert!(index < self.words, "word {index} of {}", self.words);
        pages::at(self.at + index * 8)
    }

    fn add(&self, page: u64) {
        if !is_dumpable(page) {
            return;
        }
        let Some(bit) = pages::bit(page) else { return };
        self.set(bit / 64, self.word(bit / 64) | 1 << (bit % 64));
    }

    fn add_run(&self, start: u64, length: u64) {
        (start..start + length).step_by(PAGE as usize).for_each(|page| self.add(page));
    }

    /// Clears the bits of what is not dumpable; the number that is left. Only a bitmap that counts from address 0 can
    /// have such bits.
    fn filter(&self) -> u64 {
        if flavour::IS_12 {
            let pages = (0..self.words * 64).map(|bit| bit * PAGE);
            pages.filter(|&page| !is_dumpable(page)).for_each(|page| self.remove(page));
        }
        (0..self.words).map(|index| u64::from(self.word(index).count_ones())).sum()
    }

    fn remove(&self, page: u64) {
        let bit = page / PAGE;
        self.set(bit / 64, self.word(bit / 64) & !(1 << (bit % 64)));
    }
}

/// In the direct map, and in memory that may be dumped.
fn is_dumpable(page: u64) -> bool {
    page < dmaplimit.read() && pages::ranges().any(|range| range.contains(&page))
}

fn walk(bitmap: &Bitmap) {
    let end = kernel_vm_end.read().max(KERNBASE + u64::from(nkpt.read()) * LARGE);
    let mut va = VM_MIN_KERNEL_ADDRESS;
    while va < end {
        let pointers = entry(KPML4phys.read(), index(va, 39));
        let pointer = if pointers & VALID == 0 { 0 } else { entry(pointers & FRAME, index(va, 30)) };
        if pointer & VALID != 0 {
            match pointer & LARGE_BIT {
                0 => walk_directory(bitmap, pointer & FRAME),
                _ => bitmap.add_run(pointer & GIGANTIC_FRAME, GIB),
            }
        }
        va += GIB;
    }
}

fn walk_directory(bitmap: &Bitmap, directory: u64) {
    for i in 0..512 {
        let table = entry(directory, i);
        match (table & VALID, table & LARGE_BIT) {
            (0, _) => {}
            (_, 0) => {
                bitmap.add(table & FRAME);
                let pages = (0..512).map(|j| entry(table & FRAME, j)).filter(|page| page & VALID != 0);
                pages.for_each(|page| bitmap.add(page & FRAME));
            }
            _ => bitmap.add_run(table & LARGE_FRAME, LARGE),
        }
    }
}
