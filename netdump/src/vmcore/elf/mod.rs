//! The ELF core: ELF64, `ET_CORE`, x86-64, little-endian.
//!
//! ```text
//! 0                header, 64 bytes
//! 64               program headers, 56 bytes each: one PT_NOTE, one PT_LOAD for each RAM range
//!                  notes (see `notes`), zeros up to a page boundary
//! page boundary    the RAM ranges, one behind the other
//! ```
//!
//! Each PT_LOAD has `p_paddr = p_vaddr` = the guest-physical address. Program headers directly behind the header are
//! what makedumpfile needs: it never looks at `e_phoff`.
//!
//! Of a guest that runs Linux, `p_vaddr` is the address in the kernel's direct map of memory, and one more PT_LOAD,
//! which comes first, shows the kernel's image where the kernel has it: the same bytes of the file once more. With the
//! note VMCOREINFO that makes a core that crash, drgn, libkdumpfile and makedumpfile open without being told anything;
//! it is laid out as the kernel's own `/proc/vmcore`.

mod read;

use super::core_file::CoreFile;
use super::image::DumpImage;
use super::memory::MemoryRange;
use super::notes;
use super::open::{Core, OpenError};
use super::paging::PAGE_SIZE;
use super::{DumpFormat, PlanError, PlannedCore, StoppedGuest, check_ranges};
use crate::linux::LinuxLayout;
use crate::linux::layout::MappedImage;
pub use read::ElfError;

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const HEADER_LEN: u16 = 64;
const PROGRAM_HEADER_LEN: u16 = 56;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const READ_WRITE_EXECUTE: u32 = 7;
/// 0xffff program headers would mean that their number stands elsewhere.
const MAX_PROGRAM_HEADERS: usize = 0xfffe;

/// The format "elf".
#[derive(Debug)]
pub struct Elf;

impl DumpFormat for Elf {
    fn name(&self) -> &'static str {
        "elf"
    }

    /// Every guest's: the last resort.
    fn suits(&self, _guest: &StoppedGuest<'_, '_>) -> bool {
        true
    }

    fn plan<'m>(&self, guest: &StoppedGuest<'m, '_>) -> Result<PlannedCore<'m>, PlanError> {
        let memory = guest.memory;
        let ranges = memory.ranges();
        check_ranges(ranges)?;
        let linux = LinuxLayout::of(guest);
        let image = linux.as_ref().and_then(|layout| layout.image);
        let direct_map = linux.as_ref().and_then(|layout| layout.direct_map).unwrap_or(0);
        let more = 1 + usize::from(image.is_some());
        let headers = u16::try_from(ranges.len() + more)
            .ok()
            .filter(|&count| usize::from(count) <= MAX_PROGRAM_HEADERS)
            .ok_or(PlanError::TooManyRanges { count: ranges.len(), most: MAX_PROGRAM_HEADERS - more })?;
        let notes = notes::emit(memory.cpus(), guest.notes, linux.as_ref().map(|layout| &layout.info));
        let notes_at = u64::from(HEADER_LEN) + u64::from(PROGRAM_HEADER_LEN) * u64::from(headers);
        let notes_end = notes_at + notes.len() as u64;
        let data_at = notes_end.next_multiple_of(PAGE_SIZE);

        let mut head = header(headers);
        let notes_range = MemoryRange { start: 0, len: notes.len() as u64 };
        put_program_header(&mut head, PT_NOTE, notes_at, 0, notes_range);
        if let Some(MappedImage { virtual_start, physical }) = image {
            let offset = data_at + bytes_before(ranges, physical.start);
            put_program_header(&mut head, PT_LOAD, offset, virtual_start, physical);
        }
        let mut offset = data_at;
        for range in ranges {
            put_program_header(&mut head, PT_LOAD, offset, direct_map.wrapping_add(range.start), *range);
            offset += range.len;
        }

        let mut image = DumpImage::new(memory);
        image.push_bytes(head);
        image.push_bytes(notes);
        image.push_zeros(data_at - notes_end);
        for range in ranges {
            image.push_guest(*range);
        }
        let remarks = linux.and_then(|layout| layout.remark()).into_iter().collect();
        Ok(PlannedCore { image, format: self.name(), remarks })
    }

    fn recognise(&self, head: &[u8]) -> bool {
        head.starts_with(MAGIC)
    }

    fn open(&self, file: CoreFile) -> Result<Core, OpenError> {
        read::open(file).map_err(OpenError::Elf)
    }
}

fn header(program_headers: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(usize::from(HEADER_LEN));
    out.extend_from_slice(MAGIC);
    // Class, byte order, version, System V ABI.
    out.extend([CLASS_64, LITTLE_ENDIAN, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(ET_CORE.to_le_bytes());
    out.extend(EM_X86_64.to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    // Entry point, offsets of program and section headers, flags.
    out.extend([0, u64::from(HEADER_LEN), 0].iter().flat_map(|word| word.to_le_bytes()));
    out.extend(0_u32.to_le_bytes());
    for half in [HEADER_LEN, PROGRAM_HEADER_LEN, program_headers, 0, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    out
}

/// Bytes of RAM before `address`, which is in RAM.
fn bytes_before(ranges: &[MemoryRange], address: u64) -> u64 {
    let below = ranges.iter().take_while(|range| range.start <= address);
    below.map(|range| range.end().min(address) - range.start).sum()
}

/// Notes have no address and lie on 4 bytes; memory may be used in any way. Its alignment is 0, as the kernel's own
/// `/proc/vmcore` has it: where the first PT_LOAD has one, crash takes the file for a netdump of 2003 and does not look for
/// VMCOREINFO's `KERNELOFFSET` (its `netdump.c`, `is_netdump`).
fn put_program_header(out: &mut Vec<u8>, kind: u32, offset: u64, virtual_start: u64, range: MemoryRange) {
    let (flags, memory_len, alignment) = match kind {
        PT_LOAD => (READ_WRITE_EXECUTE, range.len, 0),
        _ => (0, 0, 4),
    };
    out.extend(kind.to_le_bytes());
    out.extend(flags.to_le_bytes());
    let words = [offset, virtual_start, range.start, range.len, memory_len, alignment];
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}
