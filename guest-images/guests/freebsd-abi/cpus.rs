//! The CPUs: started by INIT and SIPI, given their places, and launched into them.

use core::ptr;

use crate::variables::{
    self, all_cpus, cpus_arrived, enter_kernel, launch_now, mp_maxid, mp_ncpus, started_cpus,
};
use crate::{kenv, time};

/// Page of the trampoline: above what a VMM commonly uses for boot structures, below its command line.
const TRAMPOLINE: u64 = 0x1_0000;
/// Interrupt command register of the local APIC, low half; the commands go to all but the sender.
const INTERRUPT_COMMAND: u64 = 0xfee0_0300;
const INIT: u32 = 0x000c_4500;
const STARTUP: u32 = 0x000c_4600;
const PATIENCE_MS: u64 = 2000;

/// Which CPUs there are, and what becomes of them.
pub struct Cpus {
    /// A bit for each that runs.
    pub running: u64,
    /// The one that panics.
    pub panicking: u32,
    /// The one that is in user mode, if any.
    pub user: Option<u32>,
}

impl Cpus {
    /// Their numbers.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + use<> {
        let running = self.running;
        (0..64).filter(move |cpu| running & 1 << cpu != 0)
    }
}

/// Starts the others.
pub fn start() -> Cpus {
    let start = &raw const variables::trampoline_start;
    let length = (&raw const variables::trampoline_end).addr() - start.addr();
    // SAFETY: the trampoline's bytes, to a page of low RAM that nothing else uses.
    unsafe { ptr::copy_nonoverlapping(start.cast::<u8>(), TRAMPOLINE as *mut u8, length) };
    let wanted = kenv::number("abi.cpus", 1) as u32;
    if wanted > 1 {
        command(INIT);
        time::wait(1);
        command(STARTUP | (TRAMPOLINE >> 12) as u32);
        time::within(PATIENCE_MS, || (cpus_arrived.read() | 1).count_ones() >= wanted);
    }
    let running = cpus_arrived.read() | 1;
    all_cpus.write(running);
    started_cpus.write(running);
    mp_maxid.write(63 - running.leading_zeros());
    mp_ncpus.write(running.count_ones());
    let has = |cpu: u32| cpu < 64 && running & 1 << cpu != 0;
    let chosen = kenv::number("abi.cpu", 0) as u32;
    let panicking = if has(chosen) { chosen } else { 0 };
    let user = if panicking == 1 { 0 } else { 1 };
    let user = (kenv::is_yes("abi.user", false) && has(user)).then_some(user);
    Cpus { running, panicking, user }
}

/// Sends every CPU where its launch record says, this one last.
pub fn launch(cpus: &Cpus) -> ! {
    assert!(cpus.running == cpus_arrived.read() | 1, "a CPU came late");
    launch_now.write(1);
    enter_kernel(0)
}

fn command(value: u32) {
    // SAFETY: the boot tables map the register uncached.
    unsafe { (INTERRUPT_COMMAND as *mut u32).write_volatile(value) }
}
