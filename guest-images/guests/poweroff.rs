//! Powers the machine off, as after an orderly shutdown.
//!
//! Environment, besides what every guest takes:
//! - `text`: a line to print first.
//!
//! Memory: no pattern unless `fill` asks for it.
#![no_std]
#![no_main]

use rt::{kenv, memory, power, println, time};

rt::guest!("poweroff", run);

fn run() -> ! {
    memory::fill(0);
    println!("{}", kenv::text("text", "powering off"));
    time::wait_as_told();
    power::off()
}
