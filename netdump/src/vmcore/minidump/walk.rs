//! The kernel's page tables, as a minidump needs them: which pages the kernel's addresses map, and the page directories.
//!
//! The tables are hostile. Each table is gone through once, however many entries point at it, and the number of tables
//! is bounded by a budget that an honest kernel of the guest's size does not reach.

use std::collections::HashSet;

use super::super::memory::{MemoryRange, PhysicalMemory};
use super::super::paging::PAGE_SIZE;
use super::page_set::{PageNumbers, PageSetBuilder};

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const ENTRIES: usize = 512;
/// What one page of the page map describes.
const GIGABYTE: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
/// From the first kernel address to the end of all: 2 TiB.
const MAX_DIRECTORIES: u64 = 2048;
/// Page tables that are gone through in any guest: they map 32 GiB.
const FREE_TABLES: u64 = 1 << 14;
/// How many pages of RAM allow for one more. A table maps 512; kernel memory may lie scattered in addresses.
const PAGES_FOR_A_TABLE: u64 = 32;

type Table = [u64; ENTRIES];

/// One page of the page map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Directory {
    /// Nothing is mapped.
    Absent,
    /// The page directory at this address.
    At(u64),
    /// A page of 1 GiB: the entry of it.
    LargePage(u64),
}

impl Directory {
    /// The page directory that stands for a page of 1 GiB: pages of 2 MiB with the same flags.
    pub(super) fn of_large_page(entry: u64) -> Vec<u8> {
        (0..ENTRIES as u64).flat_map(|index| entry.wrapping_add(index * LARGE_PAGE).to_le_bytes()).collect()
    }
}

/// What the walk found.
#[derive(Debug)]
pub(super) struct Walked {
    /// The page map, a page for each GiB.
    pub(super) directories: Vec<Directory>,
    /// Tables that are not in RAM or cannot be read.
    pub(super) unreadable: u64,
    /// Whether the budget ended before the tables.
    pub(super) cut: bool,
}

/// Goes through the tables below the PML4 at `root`, from `start` to `end`, and adds to `pages` the page tables and
/// all that is mapped. Which pages a dump may hold is not asked here.
pub(super) fn walk(
    memory: &dyn PhysicalMemory,
    root: u64,
    (start, end): (u64, u64),
    pages: &mut PageSetBuilder,
) -> Walked {
    let ram = memory.ranges();
    let mut walk = Walk {
        memory,
        pages,
        directories: HashSet::new(),
        tables: PageSetBuilder::new(of_ram(ram)),
        tables_left: FREE_TABLES
            + ram.iter().map(|range| range.len / PAGE_SIZE).sum::<u64>() / PAGES_FOR_A_TABLE,
        found: Walked { directories: Vec::new(), unreadable: 0, cut: false },
    };
    let count = end.saturating_sub(start).div_ceil(GIGABYTE).min(MAX_DIRECTORIES);
    let root = walk.table(root);
    let mut upper: Option<(u64, Option<Box<Table>>)> = None;
    for index in 0..count {
        let address = start + index * GIGABYTE;
        let entry = root.as_ref().map_or(0, |root| root[slot(address, 39)]);
        let frame = entry & FRAME;
        if entry & PRESENT == 0 {
            walk.found.directories.push(Directory::Absent);
            continue;
        }
        if upper.as_ref().is_none_or(|(known, _)| *known != frame) {
            upper = Some((frame, walk.table(frame)));
        }
        let entry =
            upper.as_ref().and_then(|(_, table)| table.as_ref()).map_or(0, |table| table[slot(address, 30)]);
        let directory = walk.directory(entry);
        walk.found.directories.push(directory);
    }
    walk.found
}

/// Numbers for all pages of RAM.
fn of_ram(ram: &[MemoryRange]) -> PageNumbers {
    let ranges: Vec<_> = ram.iter().map(|range| range.start..range.end()).collect();
    PageNumbers::of_ranges(&ranges).expect("RAM ranges were checked")
}

struct Walk<'a> {
    memory: &'a dyn PhysicalMemory,
    pages: &'a mut PageSetBuilder,
    /// Page directories that were gone through.
    directories: HashSet<u64>,
    /// Page tables that were gone through.
    tables: PageSetBuilder,
    tables_left: u64,
    found: Walked,
}

impl Walk<'_> {
    fn directory(&mut self, entry: u64) -> Directory {
        if entry & PRESENT == 0 {
            return Directory::Absent;
        }
        if entry & LARGE != 0 {
            let frame = entry & FRAME & !(GIGABYTE - 1);
            self.pages.insert_range(frame..frame + GIGABYTE);
            return Directory::LargePage(entry);
        }
        let frame = entry & FRAME;
        if self.directories.insert(frame) {
            let table = self.table(frame);
            table.iter().flat_map(|table| table.iter()).for_each(|&entry| self.directory_entry(entry));
        }
        Directory::At(frame)
    }

    fn directory_entry(&mut self, entry: u64) {
        if entry & PRESENT == 0 {
            return;
        }
        if entry & LARGE != 0 {
            let frame = entry & FRAME & !(LARGE_PAGE - 1);
            self.pages.insert_range(frame..frame + LARGE_PAGE);
            return;
        }
        let frame = entry & FRAME;
        self.pages.insert(frame);
        if self.is_new_table(frame) {
            let table = self.table(frame);
            for entry in table.iter().flat_map(|table| table.iter()).filter(|&entry| entry & PRESENT != 0) {
                self.pages.insert(entry & FRAME);
            }
        }
    }

    /// Whether a page table is to be gone through.
    fn is_new_table(&mut self, address: u64) -> bool {
        if self.tables.contains(address) {
            return false;
        }
        self.tables.insert(address);
        let may = self.tables_left > 0;
        self.found.cut |= !may;
        self.tables_left = self.tables_left.saturating_sub(1);
        may
    }

    fn table(&mut self, address: u64) -> Option<Box<Table>> {
        let mut bytes = [0; 8 * ENTRIES];
        if self.memory.read(address, &mut bytes).is_err() {
            self.found.unreadable += 1;
            return None;
        }
        let mut table = Box::new([0; ENTRIES]);
        for (entry, bytes) in table.iter_mut().zip(bytes.as_chunks().0) {
            *entry = u64::from_le_bytes(*bytes);
        }
        Some(table)
    }
}

/// The entry of a table for an address; `shift` tells the level.
fn slot(address: u64, shift: u32) -> usize {
    usize::try_from(address >> shift & 511).expect("nine bits")
}
