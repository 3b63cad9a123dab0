//! A stopped FreeBSD/amd64 kernel in guest memory: where its variables and structures are, and what they hold.
//!
//! All of it is found by the kernel's own symbols, so a kernel without symbols is not known here. The guest's memory
//! is hostile: every list, string and walk is bounded, and what cannot be read is missing, not an error.
//!
//! Reference: FreeBSD `sys/kern`, `sys/amd64/amd64`, `sys/amd64/include`; readers: libkvm, libfbsdvmcore.

pub mod backtrace;
pub mod contexts;
pub mod dump_avail;
pub mod layout;
pub mod msgbuf;
pub mod panic_state;
pub mod pcb;
pub mod pcpu;
pub mod tables;
pub mod threads;

use crate::vmcore::VirtualMemory;
use crate::vmcore::kernel_memory::KernelMemory;
use crate::vmcore::{KernelSymbols, PhysicalMemory};

/// Any of these makes a kernel FreeBSD's, or one that keeps its conventions.
const TELLING_SYMBOLS: [&str; 5] = ["kenvp", "dynamic_kenv", "md_envp", "kern_envp", "proc_off_p_pid"];

/// What a kernel needs to dump itself as FreeBSD/amd64 does: any of these tells that it can.
const DUMPING_SYMBOLS: [&str; 3] = ["dump_avail", "vm_page_dump", "KPML4phys"];

/// Whether a kernel with these symbols is FreeBSD's, or keeps its conventions.
pub fn is_freebsd(symbols: &KernelSymbols) -> bool {
    TELLING_SYMBOLS.iter().any(|name| symbols.address(name).is_some())
}

/// Whether it also dumps itself in FreeBSD's formats: so people expect these of a dump from outside.
pub fn dumps_as_freebsd(symbols: &KernelSymbols) -> bool {
    is_freebsd(symbols) && DUMPING_SYMBOLS.iter().any(|name| symbols.address(name).is_some())
}

/// The kernel's memory, by way of its own page tables, then of whatever a stopped CPU uses.
pub fn kernel_memory<'m>(memory: &'m dyn PhysicalMemory, symbols: &'m KernelSymbols) -> KernelMemory<'m> {
    match tables::find(memory, symbols) {
        Some(found) => KernelMemory::new(memory, symbols, Some(found.root)).with_image_moved_by(found.moved),
        None => KernelMemory::new(memory, symbols, None),
    }
}

/// Whether the kernel of this file is the one that ran in `memory`, by the text that names its build; `None` where the
/// file has no such text, or the memory cannot be read.
pub fn ran_in(memory: &dyn PhysicalMemory, symbols: &KernelSymbols) -> Option<bool> {
    let text = symbols.version_text()?;
    let mut found = vec![0; text.len() + 1];
    kernel_memory(memory, symbols).read(symbols.address("version")?, &mut found)?;
    Some(found.strip_suffix(&[0]) == Some(text))
}
