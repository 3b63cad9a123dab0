//! Hangs with interrupts off and says nothing more: what an operator's signal or a timeout is for.
//!
//! Environment, besides what every guest takes:
//! - `mode`: `spin` (default) or `halt`.
//!
//! Memory: the pattern in the first 32 MiB (or `fill`) from 16 MiB up; `panicstr` is null.
//!
//! Registers: spinning, `known_register(0, ..)` and `known_xmm(0, ..)`, RIP in `busy_spin`; halted, RIP behind the HLT in
//! `halt`.
#![no_std]
#![no_main]

use rt::cpu::{self, RegisterImage};
use rt::{kenv, memory, println};

rt::guest!("hang", run);

#[derive(Clone, Copy)]
enum Mode {
    Spin,
    Halt,
}

fn run() -> ! {
    memory::fill(rt::DEFAULT_FILL);
    println!("hanging");
    match kenv::choice("mode", &[("spin", Mode::Spin), ("halt", Mode::Halt)]) {
        Mode::Spin => cpu::busy_spin(&RegisterImage::known(0)),
        Mode::Halt => cpu::halt(),
    }
}
