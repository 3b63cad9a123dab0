//! A stopped Linux/x86-64 kernel in guest memory: what it knows of itself, and what that tells.
//!
//! Nothing is needed but the guest's memory: a kernel keeps the names of its symbols, the layout of its structures and
//! the tables that unwind its stacks with it, and VMCOREINFO, a page of text for the tools that read its dumps, tells
//! where to begin. The memory is hostile: every table, list, string and walk is bounded, and what cannot be read is
//! missing, not an error.
//!
//! Reference: Linux `Documentation/admin-guide/kdump/vmcoreinfo.rst`, `kernel/`, `arch/x86/mm`, `scripts/kallsyms.c`;
//! readers: crash, makedumpfile, libkdumpfile, drgn.

mod backtrace;
pub mod btf;
pub mod card;
pub mod early;
#[cfg(test)]
pub(crate) mod fake;
pub mod filter;
pub mod image;
pub mod kallsyms;
pub mod kernel;
pub mod layout;
pub mod log;
pub mod memory;
mod modules;
mod orc;
pub mod panic_state;
pub mod place;
mod recent_log;
mod search;
mod tasks;
pub mod vmcoreinfo;

pub use card::CrashCard;
pub use kernel::Kernel;
pub use layout::LinuxLayout;
pub use memory::LinuxMemory;
pub use vmcoreinfo::Vmcoreinfo;
