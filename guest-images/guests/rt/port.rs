//! Port instructions. Ports below 0x1000 are open to ring 3 (see `entry.s`).

use core::arch::asm;

/// OUT of one byte.
pub fn write_u8(port: u16, value: u8) {
    // SAFETY: an OUT changes no memory that Rust knows of.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// IN of one byte.
pub fn read_u8(port: u16) -> u8 {
    let value;
    // SAFETY: an IN changes no memory that Rust knows of.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}
