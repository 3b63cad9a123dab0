//! What a core is, to write and to read.
//!
//! Writing: a [`PhysicalMemory`] (a stopped guest, a core file, a fake) is planned by a [`DumpFormat`] into a
//! [`DumpImage`], a list of extents from which headers, length and data all come. Reading: [`open`] gives the core as a
//! [`PhysicalMemory`] again.

mod core_file;
pub mod cpu;
pub mod elf;
pub mod full;
pub mod image;
pub mod info;
pub mod inspect;
pub mod kdh;
pub mod kdump;
pub mod kernel_memory;
pub mod memory;
pub mod minidump;
pub mod notes;
mod open;
pub mod paging;
pub mod raw;
mod stopped;
mod storage;
pub mod symbols;
pub mod unpack;
pub mod verify;
pub mod virtual_memory;

pub use core_file::CoreFile;
pub use cpu::{Activity, CpuState, Registers};
pub use image::DumpImage;
pub use info::InfoFile;
pub use inspect::{InspectOptions, Inspection, inspect, inspect_with};
pub use kdh::KernelDumpHeader;
pub use kernel_memory::KernelMemory;
pub use memory::{Findings, Kept, KernelMap, MemoryError, MemoryRange, PhysicalMemory};
pub use notes::CoreNotes;
pub use open::{Core, OpenError, Piece, PieceContent, open, open_with};
pub use stopped::{AUTO, FormatChoice, PlannedCore, StoppedGuest};
pub use symbols::{CodePlace, KernelSymbols, SymbolsError};
pub use verify::{Verdict, verify, verify_with};
pub use virtual_memory::VirtualMemory;

use paging::PAGE_SIZE;

/// One format of core files.
pub trait DumpFormat: Sync + std::fmt::Debug {
    /// Its name on command lines and in reports.
    fn name(&self) -> &'static str;

    /// Whether this is a format that people expect of such a guest; the table's order says which they expect first.
    fn suits(&self, guest: &StoppedGuest<'_, '_>) -> bool;

    /// Lists what the core of `guest` consists of. Copies no more of its memory than the few pages that the format
    /// changes.
    fn plan<'m>(&self, guest: &StoppedGuest<'m, '_>) -> Result<PlannedCore<'m>, PlanError>;

    /// Whether a file that begins with these bytes is of this format. Up to 4096 are given.
    fn recognise(&self, head: &[u8]) -> bool;

    /// Opens a file that was recognised.
    fn open(&self, file: CoreFile) -> Result<Core, OpenError>;
}

/// All formats, in the order in which they are tried for a guest that they suit.
pub static ALL: &[&dyn DumpFormat] =
    &[&minidump::MinidumpFormat, &full::Full, &elf::Elf, &kdump::ZLIB, &kdump::ZSTD, &raw::Raw];

/// The format of this name.
pub fn format(name: &str) -> Option<&'static dyn DumpFormat> {
    ALL.iter().copied().find(|format| format.name() == name)
}

/// Why a core cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More ranges than the format's tables can list.
    #[error("the guest has {count} RAM ranges, the format has room for {most}")]
    TooManyRanges {
        /// RAM ranges of the guest.
        count: usize,
        /// The format's limit.
        most: usize,
    },
    /// A format whose content only the kernel's variables tell.
    #[error("a minidump needs the symbols of the guest's FreeBSD kernel: give an unstripped kernel file")]
    NoSymbols,
    /// `KPML4phys` is missing, not filled, or names no RAM.
    #[error("the kernel's page tables cannot be found by its symbol KPML4phys")]
    NoKernelTables,
    /// Tables that are not the kernel's: another kernel's symbols, or damage.
    #[error("the page tables at {root:#x}, which KPML4phys names, do not map the kernel's own variables")]
    NotKernelTables {
        /// Guest-physical address of the PML4.
        root: u64,
    },
    /// More memory than a header can describe the bitmap of.
    #[error("a guest of {pages} pages is too large for a minidump")]
    TooMuchMemory {
        /// Pages up to the end of RAM.
        pages: u64,
    },
    /// A kernel that keeps its memory elsewhere.
    #[error(
        "the kernel's address space (kva_layout) is not the one with 4-level page tables that is known here"
    )]
    UnknownLayout,
    /// A range that is empty, not on page boundaries, out of order, or beyond 52-bit addresses.
    #[error(
        "RAM range {start:#x} + {len:#x} is empty, out of order, not on page boundaries or beyond 52-bit addresses"
    )]
    Range {
        /// Guest-physical start.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// Physical addresses have 52 bits at most (Intel SDM volume 3, 4.1.4).
const MAX_ADDRESS: u64 = 1 << 52;

/// RAM ranges must be what [`PhysicalMemory`] promises: a core made from others could not be read.
fn check_ranges(ranges: &[MemoryRange]) -> Result<(), PlanError> {
    let mut end = 0;
    for range in ranges {
        let aligned = range.start.is_multiple_of(PAGE_SIZE) && range.len.is_multiple_of(PAGE_SIZE);
        let reach = range.start.checked_add(range.len).is_some_and(|end| end <= MAX_ADDRESS);
        if !aligned || range.len == 0 || range.start < end || !reach {
            return Err(PlanError::Range { start: range.start, len: range.len });
        }
        end = range.end();
    }
    Ok(())
}
