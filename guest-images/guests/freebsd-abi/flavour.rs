//! What differs between the releases that the guest plays: sizes and bindings of symbols, and their values.

/// Bytes of a `struct pcb`; the same in all.
pub const PCB_SIZE: usize = 0x140;

#[cfg(flavour = "14")]
mod chosen {
    pub const OSRELDATE: u32 = 1_400_097;
    pub const RELEASE: &str = "14.0-ABI";
    pub const MAX_CPU: usize = 1024;
    /// A pointer, since mid 2022.
    pub const STOPPCBS_SIZE: usize = 8;
    /// `bool`.
    pub const FLAG_SIZE: usize = 1;
    pub const PRISON_SIZE: usize = 0x6f8;
}

#[cfg(flavour = "13")]
mod chosen {
    pub const OSRELDATE: u32 = 1_302_001;
    pub const RELEASE: &str = "13.2-ABI";
    pub const MAX_CPU: usize = 256;
    /// An array.
    pub const STOPPCBS_SIZE: usize = MAX_CPU * super::PCB_SIZE;
    pub const FLAG_SIZE: usize = 1;
    pub const PRISON_SIZE: usize = 0x5a8;
}

#[cfg(flavour = "12")]
mod chosen {
    pub const OSRELDATE: u32 = 1_204_000;
    pub const RELEASE: &str = "12.4-ABI";
    pub const MAX_CPU: usize = 256;
    pub const STOPPCBS_SIZE: usize = MAX_CPU * super::PCB_SIZE;
    /// `int`.
    pub const FLAG_SIZE: usize = 4;
    pub const PRISON_SIZE: usize = 0x588;
}

pub use chosen::*;

/// Whether this is the 12 flavour: a bitmap from address 0 with its size in bytes, `zombproc`, one dumper.
pub const IS_12: bool = cfg!(flavour = "12");
/// Bytes of a `cpuset_t`.
pub const CPUSET_SIZE: usize = MAX_CPU / 8;
/// Where the host name lies in `struct prison`, from its end.
pub const HOST_NAME_FROM_END: usize = 608;
