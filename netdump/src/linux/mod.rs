//! A stopped Linux kernel in guest memory: what it knows of itself, and what that tells.
//!
//! Nothing is needed but the guest's memory: a kernel keeps the names of its symbols, the layout of its structures and
//! the tables that unwind its stacks with it, and the note VMCOREINFO tells where to begin. The memory is hostile: every
//! table, list, string and walk is bounded, and what cannot be read is missing, not an error.
//!
//! Reference: Linux `kernel/`, `scripts/kallsyms.c`, `Documentation/admin-guide/kdump/vmcoreinfo.rst`.

pub mod kallsyms;
pub mod panic_state;
pub mod place;
mod recent_log;
