//! Exceptions, and the way to ring 0. The stubs are in `entry.s`.

use crate::global::Global;
use crate::pvpanic;

const VECTORS: usize = 32;
/// INT3, which ring 3 may use.
const BREAKPOINT: usize = 3;
pub(crate) const IDT_SIZE: usize = VECTORS * 16;
/// Selector of the ring-0 code segment in `entry.s`.
const CODE64: u64 = 0x18;
/// Present interrupt gates, for the CPU alone and for ring 3 as well.
const EXCEPTION_GATE: u64 = 0x8e;
const RING_3_GATE: u64 = 0xee;

#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
static idt: Global<[[u64; 2]; VECTORS]> = Global::new([[0; 2]; VECTORS]);

/// What `entry.s` notes: vector, error code, RIP, CR2.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
static trap_report: Global<[u64; 4]> = Global::new([0; 4]);

unsafe extern "C" {
    static trap_stubs: u8;
    fn enter_ring_0();
}

/// Fills the IDT, which every CPU shares.
pub(crate) fn install() {
    let stubs = (&raw const trap_stubs) as u64;
    for vector in 0..VECTORS {
        idt.set(vector, gate(stubs + 16 * vector as u64, EXCEPTION_GATE));
    }
    idt.set(BREAKPOINT, gate(enter_ring_0 as *const () as u64, RING_3_GATE));
}

fn gate(handler: u64, kind: u64) -> [u64; 2] {
    let (low, middle, high) = (handler & 0xffff, (handler >> 16) & 0xffff, handler >> 32);
    [low | (CODE64 << 16) | (kind << 40) | (middle << 48), high]
}

/// Where `entry.s` goes on after an exception, in ring 3.
#[unsafe(no_mangle)]
extern "C" fn report_trap() -> ! {
    let [vector, error, rip, cr2] = trap_report.read();
    pvpanic::signal(format_args!("exception {vector} (error {error:#x}) at {rip:#x}, CR2 {cr2:#x}"))
}
