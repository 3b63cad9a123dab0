//! What is particular to the x86-64 machine that the guest sees.

pub mod cpuid;
pub mod layout;
pub mod regs;
