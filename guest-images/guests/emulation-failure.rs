//! Jumps to where there is no memory, which KVM gives up on: it cannot emulate an instruction that it cannot fetch. In
//! ring 0, since in ring 3 KVM would give the guest an exception instead.
//!
//! Environment: what every guest takes, but for `text`.
//!
//! Memory: the pattern in the first 32 MiB (or `fill`) from 16 MiB up; `panicstr` is null.
//!
//! Registers: RIP is `NOWHERE`, 0xcff00000.
#![no_std]
#![no_main]

use rt::{cpu, memory, println, time};

rt::guest!("emulation-failure", run);

/// In the hole below 4 GiB, where no device is either.
const NOWHERE: u64 = 0xcff0_0000;

fn run() -> ! {
    memory::fill(rt::DEFAULT_FILL);
    time::wait_as_told();
    memory::map_device(NOWHERE);
    println!("about to jump to {NOWHERE:#x}");
    // SAFETY: there is nothing, and the machine is meant to end there.
    unsafe { cpu::jump_in_ring_0(NOWHERE) }
}
