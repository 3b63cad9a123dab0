//! FreeBSD's full dump: all memory in `dump_avail`, behind ELF headers (`sys/kern/kern_dump.c`,
//! `sys/amd64/include/dump.h`; readers: libkvm, libfbsdvmcore).
//!
//! ```text
//! 0                ELF header, 64 bytes: ET_CORE, x86-64, OSABI 0xff, e_version 0
//! 64               a PT_LOAD for each range of memory, 56 bytes each: flags R, virtual = physical address
//!                  zeros up to a page boundary
//! page boundary    the ranges, one behind the other
//! ```
//!
//! There are no notes: a reader needs the kernel's symbols, and finds registers in the kernel's own variables. The
//! kernel itself dumps ten ranges at most; no reader has that limit.

use super::core_file::CoreFile;
use super::image::DumpImage;
use super::open::{Core, OpenError};
use super::paging::PAGE_SIZE;
use super::{DumpFormat, MemoryRange, PlanError, PlannedCore, StoppedGuest, check_ranges, elf};
use crate::freebsd::{self, contexts, dump_avail};

const HEADER_LEN: u16 = 64;
const PROGRAM_HEADER_LEN: u16 = 56;
/// The kernel names the size of the section headers that it does not have.
const SECTION_HEADER_LEN: u16 = 64;
/// Class 64-bit, little-endian, version 1, standalone (`ELFOSABI_STANDALONE`).
const IDENT: &[u8; 8] = b"\x7fELF\x02\x01\x01\xff";
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const READABLE: u32 = 4;
/// 0xffff program headers would mean that their number stands elsewhere.
const MAX_RANGES: usize = 0xfffe;

/// The format "full".
#[derive(Debug)]
pub struct Full;

impl DumpFormat for Full {
    fn name(&self) -> &'static str {
        "full"
    }

    fn suits(&self, guest: &StoppedGuest<'_, '_>) -> bool {
        guest.symbols.is_some_and(freebsd::dumps_as_freebsd)
    }

    fn plan<'m>(&self, guest: &StoppedGuest<'m, '_>) -> Result<PlannedCore<'m>, PlanError> {
        let memory = guest.memory;
        check_ranges(memory.ranges())?;
        let mut remarks = Vec::new();
        let ranges = ranges(guest, &mut remarks);
        let count = u16::try_from(ranges.len())
            .ok()
            .filter(|&count| usize::from(count) <= MAX_RANGES)
            .ok_or(PlanError::TooManyRanges { count: ranges.len(), most: MAX_RANGES })?;
        let head = headers(&ranges, count);
        let mut image = DumpImage::new(memory);
        image.push_bytes(head);
        for range in &ranges {
            image.push_guest(*range);
        }
        if let Some(symbols) = guest.symbols.filter(|symbols| freebsd::is_freebsd(symbols)) {
            let contexts = contexts::missing(&freebsd::kernel_memory(memory, symbols), guest.notes.panic_cpu);
            contexts.patches.iter().for_each(|patch| image.patch(patch.address, &patch.bytes));
            remarks.extend(contexts.remarks);
        }
        Ok(PlannedCore { image, format: self.name(), remarks })
    }

    fn recognise(&self, head: &[u8]) -> bool {
        head.starts_with(IDENT) && head.get(16..18) == Some(&ET_CORE.to_le_bytes())
    }

    fn open(&self, file: CoreFile) -> Result<Core, OpenError> {
        // The same headers and segments.
        elf::Elf.open(file)
    }
}

/// What the kernel would dump, as far as that is RAM.
fn ranges(guest: &StoppedGuest<'_, '_>, remarks: &mut Vec<String>) -> Vec<MemoryRange> {
    let ram = guest.memory.ranges();
    let Some(symbols) = guest.symbols.filter(|symbols| freebsd::is_freebsd(symbols)) else {
        return ram.to_vec();
    };
    match dump_avail::dump_avail(&freebsd::kernel_memory(guest.memory, symbols)) {
        Ok(ranges) => dump_avail::in_ram(&ranges, ram),
        Err(error) => {
            remarks.push(format!("{error}: the core holds all RAM"));
            ram.to_vec()
        }
    }
}

/// Everything before the memory, whole pages.
fn headers(ranges: &[MemoryRange], count: u16) -> Vec<u8> {
    let mut out = IDENT.to_vec();
    out.resize(16, 0);
    out.extend(ET_CORE.to_le_bytes());
    out.extend(EM_X86_64.to_le_bytes());
    // e_version: the kernel leaves it out.
    out.extend(0_u32.to_le_bytes());
    // Entry point, offsets of program and section headers, flags.
    out.extend([0, u64::from(HEADER_LEN), 0].iter().flat_map(|word| word.to_le_bytes()));
    out.extend(0_u32.to_le_bytes());
    for half in [HEADER_LEN, PROGRAM_HEADER_LEN, count, SECTION_HEADER_LEN, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    let end = u64::from(HEADER_LEN) + u64::from(PROGRAM_HEADER_LEN) * u64::from(count);
    let mut offset = end.next_multiple_of(PAGE_SIZE);
    let len = usize::try_from(offset).expect("65534 program headers have less than 4 MiB");
    for range in ranges {
        out.extend(PT_LOAD.to_le_bytes());
        out.extend(READABLE.to_le_bytes());
        let words = [offset, range.start, range.start, range.len, range.len, PAGE_SIZE];
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        offset += range.len;
    }
    out.resize(len, 0);
    out
}
