//! A stopped Linux/x86-64 kernel in guest memory: where it lies, how its addresses translate, and what it keeps there.
//!
//! Everything starts from VMCOREINFO, a page of text that the kernel keeps for the tools that read its dumps: with it
//! no symbols and no debug information are needed. The guest's memory is hostile: every list, string and walk is
//! bounded, and what cannot be read is missing, not an error.
//!
//! Reference: Linux `Documentation/admin-guide/kdump/vmcoreinfo.rst`, `kernel/crash_core.c`, `arch/x86/mm`; readers:
//! crash, makedumpfile, libkdumpfile, drgn.

pub mod image;
pub mod memory;
mod search;
pub mod vmcoreinfo;

pub use memory::LinuxMemory;
pub use vmcoreinfo::Vmcoreinfo;
