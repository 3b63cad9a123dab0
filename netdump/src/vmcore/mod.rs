//! What a core is, to write and to read.
//!
//! Writing: a [`PhysicalMemory`] (a stopped guest, a core file, a fake) is planned by a [`DumpFormat`] into a
//! [`DumpImage`], a list of extents from which headers, length and data all come. Reading: [`open`] gives the core as a
//! [`PhysicalMemory`] again.

mod core_file;
pub mod cpu;
pub mod elf;
pub mod image;
pub mod info;
pub mod inspect;
pub mod kdh;
pub mod memory;
pub mod notes;
mod open;
pub mod paging;
pub mod symbols;
pub mod verify;

pub use core_file::CoreFile;
pub use cpu::{Activity, CpuState, Registers};
pub use image::DumpImage;
pub use info::InfoFile;
pub use inspect::{Inspection, inspect};
pub use kdh::KernelDumpHeader;
pub use memory::{MemoryError, MemoryRange, PhysicalMemory};
pub use notes::CoreNotes;
pub use open::{Core, OpenError, Piece, PieceContent, open};
pub use symbols::{KernelSymbols, SymbolsError};
pub use verify::{Verdict, verify};

/// One format of core files.
pub trait DumpFormat: Sync + std::fmt::Debug {
    /// Its name on command lines and in reports.
    fn name(&self) -> &'static str;

    /// Lists what the core of `memory` consists of. Reads no memory of the guest.
    fn plan<'m>(&self, memory: &'m dyn PhysicalMemory, notes: &CoreNotes)
    -> Result<DumpImage<'m>, PlanError>;

    /// Whether a file that begins with these bytes is of this format. Up to 4096 are given.
    fn recognise(&self, head: &[u8]) -> bool;

    /// Opens a file that was recognised.
    fn open(&self, file: CoreFile) -> Result<Core, OpenError>;
}

/// All formats, the default first.
pub static ALL: &[&dyn DumpFormat] = &[&elf::Elf];

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
    /// A range that is empty, not on page boundaries, out of order, or wraps around.
    #[error("RAM range {start:#x} + {len:#x} is empty, out of order or not on page boundaries")]
    Range {
        /// Guest-physical start.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
}
