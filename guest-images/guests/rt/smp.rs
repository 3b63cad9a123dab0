//! The other CPUs: started by INIT and SIPI to all, through a trampoline below 1 MiB, and given one function to run.

use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::{cpu, time};

/// Page of the trampoline: above what a VMM commonly uses for boot structures, below its command line.
const TRAMPOLINE: u64 = 0x1_0000;
/// Interrupt command register of the local APIC, low half; the commands go to all but the sender.
const INTERRUPT_COMMAND: u64 = 0xfee0_0300;
const INIT: u32 = 0x000c_4500;
const STARTUP: u32 = 0x000c_4600;

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
}

/// A bit for each CPU that has arrived in ring 3, but for the first.
static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// What they run: a `fn(u32) -> !`.
static WORK: AtomicUsize = AtomicUsize::new(0);

/// Starts the other CPUs, which run `work` with their number; waits until `wanted` CPUs run in all, at most `patience`
/// milliseconds. Returns a bit for each CPU that runs, the first among them.
pub fn start(wanted: u32, patience: u64, work: fn(u32) -> !) -> u32 {
    WORK.store(work as usize, Ordering::SeqCst);
    let start = &raw const trampoline_start;
    let length = (&raw const trampoline_end).addr() - start.addr();
    // SAFETY: the trampoline's bytes, to a page of low RAM that nothing else uses.
    unsafe { ptr::copy_nonoverlapping(start, TRAMPOLINE as *mut u8, length) };
    command(INIT);
    time::wait(1);
    command(STARTUP | (TRAMPOLINE >> 12) as u32);
    time::within(patience, || running().count_ones() >= wanted);
    running()
}

/// A bit for each CPU that runs.
pub fn running() -> u32 {
    ARRIVED.load(Ordering::SeqCst) | 1
}

fn command(value: u32) {
    // SAFETY: the register is mapped uncached by `entry.s`.
    unsafe { (INTERRUPT_COMMAND as *mut u32).write_volatile(value) }
}

/// Another CPU in ring 3, on its own stack. The number comes in the second argument.
#[unsafe(no_mangle)]
extern "C" fn join(_: u64, cpu: u32) -> ! {
    ARRIVED.fetch_or(1 << cpu, Ordering::SeqCst);
    match WORK.load(Ordering::SeqCst) {
        0 => cpu::halt(),
        work => {
            // SAFETY: `start` stored a function of this type before it started anyone.
            let work = unsafe { core::mem::transmute::<usize, fn(u32) -> !>(work) };
            work(cpu)
        }
    }
}
