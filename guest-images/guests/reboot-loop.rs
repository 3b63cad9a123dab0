//! Prints a line and resets the machine, each time it starts.
//!
//! Environment, besides what every guest takes:
//! - `how`: `i8042` (default), `cf9` or `triple` (a triple fault).
//!
//! Memory: no pattern unless `fill` asks for it.
#![no_std]
#![no_main]

use rt::{kenv, memory, power, println, time};

rt::guest!("reboot-loop", run);

fn run() -> ! {
    memory::fill(0);
    println!("started, about to reset");
    time::wait_as_told();
    power::reset(kenv::choice("how", &power::RESETS))
}
