//! Exceptions, the way to ring 0, and the end of a guest that has a bug.

use core::panic::PanicInfo;

use crate::contract::PVPANIC_PORT;
use crate::variables::{self, idt, trap_report};
use crate::{port, println};

/// NMI: another CPU has panicked.
const NMI: usize = 2;
/// INT3, which ring 3 may use.
const BREAKPOINT: usize = 3;
/// Selector of the ring-0 code segment in `entry.s`.
const CODE64: u64 = 0x18;
/// Present interrupt gates, for the CPU alone and for ring 3 as well.
const EXCEPTION_GATE: u64 = 0x8e;
const RING_3_GATE: u64 = 0xee;

/// Fills the IDT, which every CPU shares.
pub fn install() {
    let stubs = (&raw const variables::trap_stubs) as u64;
    for vector in 0..32 {
        idt.set(vector, gate(stubs + 16 * vector as u64, EXCEPTION_GATE));
    }
    idt.set(NMI, gate(variables::nmi_calltrap as *const () as u64, EXCEPTION_GATE));
    idt.set(BREAKPOINT, gate(variables::enter_ring_0 as *const () as u64, RING_3_GATE));
}

fn gate(handler: u64, kind: u64) -> [u64; 2] {
    let (low, middle, high) = (handler & 0xffff, (handler >> 16) & 0xffff, handler >> 32);
    [low | (CODE64 << 16) | (kind << 40) | (middle << 48), high]
}

/// Where `entry.s` goes on after an exception, in ring 3.
#[unsafe(no_mangle)]
extern "C" fn report_trap() -> ! {
    let [vector, error, rip, cr2] = trap_report.read();
    println!("exception {vector} (error {error:#x}) at {rip:#x}, CR2 {cr2:#x}");
    give_up()
}

/// A bug in the guest or nonsense in its environment: said on the console, and told to pvpanic so that it is seen at
/// once and not waited for.
#[panic_handler]
fn on_panic(info: &PanicInfo<'_>) -> ! {
    println!("freebsd-abi gives up: {info}");
    give_up()
}

fn give_up() -> ! {
    port::write_u8(PVPANIC_PORT, 1);
    loop {
        core::hint::spin_loop();
    }
}
