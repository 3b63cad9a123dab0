//! PCI configuration space through the ports 0xcf8 and 0xcfc (PCI Local Bus 3.0, section 3.2.2.3.2), bus 0.

use core::arch::asm;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
const SLOTS: u8 = 32;
const NOBODY: u32 = u32::MAX;
const STATUS: u8 = 0x06;
const HAS_CAPABILITIES: u32 = 1 << 4;
const CAPABILITIES: u8 = 0x34;

/// Whether the machine has a PCI bus: a host bridge is in slot 0.
pub fn is_there() -> bool {
    Function(0).read(0) != NOBODY
}

/// A function on bus 0, by its slot.
#[derive(Clone, Copy)]
pub struct Function(u8);

impl Function {
    /// The first with this vendor (low half) and device (high half).
    pub fn find(identity: u32) -> Option<Self> {
        (0..SLOTS).map(Self).find(|function| function.read(0) == identity)
    }

    /// The 32 bits at `offset`, a multiple of 4.
    pub fn read(self, offset: u8) -> u32 {
        self.choose(offset);
        read_port(DATA)
    }

    /// Sets them.
    pub fn write(self, offset: u8, value: u32) {
        self.choose(offset);
        write_port(DATA, value);
    }

    /// Where the capabilities with this number lie.
    pub fn capabilities(self, number: u8) -> impl Iterator<Item = u8> {
        let has = (self.read(STATUS & !3) >> 16) & HAS_CAPABILITIES != 0;
        let first = if has { self.read(CAPABILITIES) as u8 } else { 0 };
        let next = move |at: &u8| Some((self.read(*at) >> 8) as u8).filter(|&next| next != 0);
        core::iter::successors(Some(first).filter(|&first| first != 0), next)
            .filter(move |&at| self.read(at) as u8 == number)
    }

    fn choose(self, offset: u8) {
        write_port(ADDRESS, ENABLE | u32::from(self.0) << 11 | u32::from(offset & 0xfc));
    }
}

/// OUT of 32 bits.
fn write_port(port: u16, value: u32) {
    // SAFETY: an OUT changes no memory that Rust knows of.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

/// IN of 32 bits.
fn read_port(port: u16) -> u32 {
    let value;
    // SAFETY: an IN changes no memory that Rust knows of.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) }
    value
}
