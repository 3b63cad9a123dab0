//! The kernel beneath every guest: entry, memory, console, kernel environment, devices. A guest is a file in the folder
//! above that calls [`guest!`] with its name and its main function.
//!
//! Everything runs in ring 3 with interrupts off (see `entry.s`), at addresses that equal physical ones. Only the first
//! CPU prints, sets variables or allocates; the others run what `smp` gives them.
//!
//! Parameters that every guest takes from its kernel environment, which is the VMM's command line cut up as FreeBSD's
//! PVH entry does it: `seed` (of the pattern), `fill` (bytes of pattern: `0`, `4096`, `32M`, `1G` or `all`),
//! `hostname`, `text` (of the panic; `_` stands for a space), `after` (milliseconds to wait before the deed).
#![no_std]

#[path = "../../src/contract.rs"]
mod contract;

pub mod console;
pub mod cpu;
pub mod global;
pub mod kenv;
mod libc;
pub mod memory;
pub mod msgbuf;
pub mod pci;
pub mod port;
pub mod power;
pub mod pvpanic;
pub mod runtime;
pub mod smp;
pub mod start_info;
pub mod symbols;
pub mod time;
pub mod trap;
pub mod virtio;
pub mod virtio_mmio;
pub mod virtio_net;
pub mod virtio_pci;
pub mod wedge;

pub use contract::*;

/// Names the guest and its main function, and defines the symbols that carry the name.
#[macro_export]
macro_rules! guest {
    ($name:literal, $main:path) => {
        /// FreeBSD's `version`: what system this is, with a line end.
        #[unsafe(no_mangle)]
        #[allow(non_upper_case_globals)]
        pub static version: [u8; $crate::version_text!($name).len()] =
            $crate::symbols::bytes($crate::version_text!($name));

        /// FreeBSD's `kern_ident`: which kernel this is.
        #[unsafe(no_mangle)]
        #[allow(non_upper_case_globals)]
        pub static kern_ident: [u8; concat!($name, "\0").len()] =
            $crate::symbols::bytes(concat!($name, "\0"));

        /// Where the first CPU goes when memory, console and environment are ready.
        #[unsafe(no_mangle)]
        extern "C" fn guest_main() -> ! {
            $main()
        }
    };
}
