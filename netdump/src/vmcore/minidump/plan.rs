//! Plans the minidump of a stopped guest as its kernel would write it: `minidumpsys` from outside.
//!
//! The pages are those whose bits the kernel set in `vm_page_dump` (what it uses through the direct map only) and those
//! that its addresses map, page tables included; of both the ones that `dump_avail` and the direct map hold and that
//! are RAM.
//!
//! One choice of the kernel's is not made here: it leaves out pages with the flag `PG_NODUMP` (memory allocated with
//! `M_NODUMP`). The flag lies in `struct vm_page`, whose layout no symbol tells. Such pages are in the core if a kernel
//! address maps them. Readers do not mind.

use std::ops::Range;

use super::super::image::DumpImage;
use super::super::kernel_memory::KernelMemory;
use super::super::memory::{MemoryRange, PhysicalMemory};
use super::super::paging::PAGE_SIZE;
use super::super::virtual_memory::left_in_page;
use super::super::{DumpFormat, PlanError, PlannedCore, StoppedGuest, check_ranges};
use super::MinidumpFormat;
use super::header::{Header, Version};
use super::kernel::{self, Layout, Numbering};
use super::page_set::{NumberingError, PageNumbers, PageSetBuilder};
use super::walk::{Directory, walk};
use crate::freebsd::{self, contexts, dump_avail};

/// Most pages that a bitmap is made for: those of 16 TiB.
const MAX_PAGES: u64 = 1 << 32;

/// Plans the core of a guest whose kernel's symbols are known.
pub(super) fn plan<'m>(guest: &StoppedGuest<'m, '_>) -> Result<PlannedCore<'m>, PlanError> {
    let memory = guest.memory;
    check_memory(memory.ranges())?;
    let symbols = guest.symbols.filter(|symbols| freebsd::is_freebsd(symbols)).ok_or(PlanError::NoSymbols)?;
    let kernel = freebsd::kernel_memory(memory, symbols);
    let layout = Layout::read(&kernel)?;
    let root = kernel::tables(&kernel)?;
    let mut remarks = Vec::new();

    let mut contexts = contexts::missing(&kernel, guest.notes.panic_cpu);
    remarks.append(&mut contexts.remarks);
    let available = Available::of(&kernel, root, &mut remarks);
    let (mut pages, numbering) = available.start_set(&kernel, &mut remarks);
    let end = kernel::end_of_kernel_addresses(&kernel, &mut remarks);
    let walked = walk(memory, root, (layout.kernel_base, end), &mut pages);
    if walked.unreadable > 0 {
        remarks.push(format!("{} of the kernel's page tables cannot be read", walked.unreadable));
    }
    if walked.cut {
        remarks.push(
            "the kernel has more page tables than its memory can use: not all were followed".to_owned(),
        );
    }
    contexts.patches.iter().for_each(|patch| pages.insert(patch.address));
    available.keep_only(&mut pages);
    let pages = pages.finish();

    let mut image = DumpImage::new(memory);
    let messages = kernel::message_buffer(&kernel);
    if messages.is_none() {
        remarks.push("the kernel's message buffer cannot be found: the core has none".to_owned());
    }
    let list = if numbering == Numbering::Ranges { available.array() } else { Vec::new() };
    let header = Header {
        version: if numbering == Numbering::Ranges { Version::Three } else { Version::Two },
        message_buffer_len: messages.map_or(0, |(_, len)| len),
        dump_avail_len: section_len(list.len() as u64),
        bitmap_len: section_len(pages.numbers().bitmap_len()),
        page_map_len: section_len(walked.directories.len() as u64 * PAGE_SIZE),
        kernel_base: layout.kernel_base,
        direct_map_start: layout.direct_map_start,
        direct_map_end: layout.direct_map_end,
    };
    image.push_bytes(header.emit());
    if let Some((address, len)) = messages {
        push_virtual(&mut image, &kernel, address, u64::from(len).next_multiple_of(PAGE_SIZE));
    }
    image.push_bytes(list);
    image.push_bytes(pages.bitmap());
    walked.directories.iter().for_each(|directory| push_directory(&mut image, &available, *directory));
    image.push_pages(pages);
    contexts.patches.iter().for_each(|patch| image.patch(patch.address, &patch.bytes));
    Ok(PlannedCore { image, format: MinidumpFormat.name(), remarks })
}

/// Refuses memory whose bitmap the header could not describe.
fn check_memory(ram: &[MemoryRange]) -> Result<(), PlanError> {
    check_ranges(ram)?;
    let ranges: Vec<_> = ram.iter().map(|range| range.start..range.end()).collect();
    let numbers = PageNumbers::of_ranges(&ranges).map_err(|NumberingError::Range { start, end }| {
        PlanError::Range { start, len: end.wrapping_sub(start) }
    })?;
    let highest = ram.last().map_or(0, MemoryRange::end) / PAGE_SIZE;
    match highest.max(numbers.bits()) {
        0..=MAX_PAGES => Ok(()),
        pages => Err(PlanError::TooMuchMemory { pages }),
    }
}

/// The memory that may be in the dump.
struct Available {
    /// As the kernel lists it. Parts of it may not be RAM.
    ranges: Vec<Range<u64>>,
    /// Whether it is the kernel's list, which the kernel's bitmap goes with.
    is_kernels: bool,
    ram: Vec<MemoryRange>,
    /// Where the direct map ends.
    limit: u64,
}

impl Available {
    fn of(kernel: &KernelMemory<'_>, root: u64, remarks: &mut Vec<String>) -> Self {
        let ram = kernel.physical().ranges().to_vec();
        let limit = kernel::direct_map_limit(kernel, root, remarks);
        match dump_avail::dump_avail(kernel) {
            Ok(ranges) => Self { ranges, is_kernels: true, ram, limit },
            Err(error) => {
                remarks.push(format!("{error}: the core may hold all RAM"));
                let ranges = ram.iter().map(|range| range.start..range.end()).collect();
                Self { ranges, is_kernels: false, ram, limit }
            }
        }
    }

    /// The pages that the kernel itself chose; every page when that is not known. With how they are numbered.
    fn start_set(&self, kernel: &KernelMemory<'_>, remarks: &mut Vec<String>) -> (PageSetBuilder, Numbering) {
        let numbering = Numbering::of(kernel);
        let numbers = numbering.pages(kernel, &self.ranges, &self.ram);
        let bitmap = if self.is_kernels {
            numbering
                .bitmap(kernel, &numbers)
                .map_err(|why| remarks.push(format!("{why}: the core holds every page")))
        } else {
            Err(())
        };
        let mut pages = PageSetBuilder::new(numbers);
        match bitmap {
            Ok(bitmap) => pages.insert_bitmap(&bitmap),
            Err(()) => pages.insert_range(0..u64::MAX),
        }
        (pages, numbering)
    }

    /// Removes the pages that may not be in the dump.
    fn keep_only(&self, pages: &mut PageSetBuilder) {
        let mut end = 0;
        for range in dump_avail::in_ram(&self.ranges, &self.ram) {
            pages.remove_range(end..range.start);
            end = range.end();
        }
        pages.remove_range(end.min(self.limit)..u64::MAX);
    }

    /// Whether the page at `address` may be in the dump.
    fn holds(&self, address: u64) -> bool {
        let in_ram = self.ram.iter().any(|range| range.start <= address && address < range.end());
        in_ram && address < self.limit && self.ranges.iter().any(|range| range.contains(&address))
    }

    /// dump_avail as the file has it: pairs, ended by a pair of zeros, in whole pages.
    fn array(&self) -> Vec<u8> {
        let pairs = self.ranges.iter().flat_map(|range| [range.start, range.end]).chain([0, 0]);
        let mut bytes: Vec<u8> = pairs.flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        bytes
    }
}

/// The page of the page map that stands for a directory.
fn push_directory(image: &mut DumpImage<'_>, available: &Available, directory: Directory) {
    match directory {
        Directory::At(address) if available.holds(address) => {
            image.push_guest(MemoryRange { start: address, len: PAGE_SIZE });
        }
        Directory::At(_) | Directory::Absent => image.push_zeros(PAGE_SIZE),
        Directory::LargePage(entry) => image.push_bytes(Directory::of_large_page(entry)),
    }
}

/// Appends `len` bytes of kernel memory; zeros where nothing is mapped.
fn push_virtual(image: &mut DumpImage<'_>, kernel: &KernelMemory<'_>, address: u64, len: u64) {
    let memory = kernel.physical();
    let mut at = address;
    let mut left = len;
    while left > 0 {
        let len = left.min(left_in_page(at) as u64);
        let ram = kernel.translate(at).filter(|&physical| is_ram(memory, physical));
        match ram {
            Some(start) => image.push_guest(MemoryRange { start, len }),
            None => image.push_zeros(len),
        }
        at = at.wrapping_add(len);
        left -= len;
    }
}

fn is_ram(memory: &dyn PhysicalMemory, address: u64) -> bool {
    memory.ranges().iter().any(|range| range.start <= address && address < range.end())
}

/// A section's length as the header says it.
fn section_len(bytes: u64) -> u32 {
    u32::try_from(bytes).expect("a bit for each of some 2^33 pages, a page for each GiB of 2 TiB")
}
