//! What a core is, to write and to read.
//!
//! Writing: a [`PhysicalMemory`] (a stopped guest, a core file, a fake) is planned by a format into an image, a list
//! of extents from which headers, length and data all come. Reading: the core is opened as a [`PhysicalMemory`] again.

pub mod cpu;
pub mod kdh;
pub mod memory;

pub use cpu::{CpuState, Registers};
pub use kdh::KernelDumpHeader;
pub use memory::{MemoryError, MemoryRange, PhysicalMemory};
