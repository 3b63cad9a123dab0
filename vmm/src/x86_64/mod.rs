//! What is particular to the x86-64 machine that the guest sees.

pub mod acpi;
pub mod cpu_mask;
pub mod cpuid;
pub mod firmware;
pub mod layout;
pub mod mptable;
pub mod regs;
