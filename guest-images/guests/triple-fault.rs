//! Dies of a triple fault: an invalid instruction with an empty interrupt table, as a kernel that resets itself so.
//!
//! Environment: what every guest takes, but for `text`.
//!
//! Memory: the pattern in the first 32 MiB (or `fill`) from 16 MiB up. `panicstr` is null: such a guest has no last
//! words.
//!
//! Registers: where the host does not reset them, `known_register(0, ..)` and `known_xmm(0, ..)`, and RIP at the UD2 in
//! `triple_fault`.
#![no_std]
#![no_main]

use rt::power::{self, Reset};
use rt::{memory, println, time};

rt::guest!("triple-fault", run);

fn run() -> ! {
    memory::fill(rt::DEFAULT_FILL);
    time::wait_as_told();
    println!("about to fault three times");
    power::reset(Reset::TripleFault)
}
