//! A stopped Linux/x86-64 kernel in guest memory: what it knows of itself, and what that tells.
//!
//! Nothing is needed but the guest's memory: a kernel keeps the names of its symbols, the layout of its structures and
//! the tables that unwind its stacks with it, and VMCOREINFO, a page of text for the tools that read its dumps, tells
//! where to begin. The memory is hostile: every table, list, string and walk is bounded, and what cannot be read is
//! missing, not an error.
//!
//! Reference: Linux `Documentation/admin-guide/kdump/vmcoreinfo.rst`, `kernel/`, `arch/x86/mm`, `scripts/kallsyms.c`;
//! readers: crash, makedumpfile, libkdumpfile, drgn.

pub mod filter;
pub mod image;
pub mod kallsyms;
pub mod layout;
pub mod memory;
mod search;
pub mod vmcoreinfo;

pub use layout::LinuxLayout;
pub use memory::LinuxMemory;
pub use vmcoreinfo::Vmcoreinfo;
