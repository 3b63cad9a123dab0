//! Panics: signals pvpanic with known registers, a panic text, a kernel environment and a message buffer in memory.
//!
//! Environment: what every guest takes.
//!
//! Memory: the pattern in the first 32 MiB (or `fill`) from 16 MiB up; `fill_map` says where. `panicstr` points at the
//! text, `msgbufp` at all that was printed, `md_envp` and `kern_envp` at the environment.
#![no_std]
#![no_main]

use rt::{memory, pvpanic};

rt::guest!("panic", run);

fn run() -> ! {
    memory::fill(rt::DEFAULT_FILL);
    pvpanic::signal_from_kenv("the guest was told to panic")
}
