//! Panics: signals pvpanic with known registers, a panic text, a kernel environment and a message buffer in memory.
//!
//! Environment, besides what every guest takes:
//! - `event`: what is written to pvpanic, `panicked` (default), `crashloaded` or a number, whose bits may mean nothing.
//! - `then`: what follows where the event has no PANICKED bit, after `dump_ms` (default 100) milliseconds in which the
//!   guest is said to save its memory itself: `reset` (default), `poweroff` or `panicked`.
//!
//! Memory: the pattern in the first 32 MiB (or `fill`) from 16 MiB up; `fill_map` says where. `panicstr` points at the
//! text, `msgbufp` at all that was printed, `md_envp` and `kern_envp` at the environment, which is still static.
//!
//! Registers, when PANICKED is signalled: `signalling_register(0, ..)` and `known_xmm(0, ..)`; RIP is in
//! `signal_and_spin`, at its OUT or, that done, at the jump behind it.
#![no_std]
#![no_main]

use rt::power::{self, Reset};
use rt::pvpanic::{self, CRASHLOADED, PANICKED};
use rt::{kenv, memory, println, time};

rt::guest!("panic", run);

#[derive(Clone, Copy)]
enum Then {
    Reset,
    PowerOff,
    Panicked,
}

fn run() -> ! {
    memory::fill(rt::DEFAULT_FILL);
    let event = match kenv::value("event") {
        None | Some("panicked") => PANICKED,
        Some("crashloaded") => CRASHLOADED,
        Some(_) => kenv::number("event", 0) as u8,
    };
    pvpanic::announce(format_args!("{}", kenv::text("text", "the guest was told to panic")));
    time::wait_as_told();
    if event & PANICKED != 0 {
        pvpanic::signal_from(0, event);
    }
    pvpanic::write(event);
    time::wait(kenv::number("dump_ms", 100));
    println!("saved its memory itself");
    let choices = [("reset", Then::Reset), ("poweroff", Then::PowerOff), ("panicked", Then::Panicked)];
    match kenv::choice("then", &choices) {
        Then::Reset => power::reset(Reset::I8042),
        Then::PowerOff => power::off(),
        Then::Panicked => pvpanic::signal_from(0, PANICKED),
    }
}
