//! Changes `net.dump.path` in its dynamic kernel environment, then panics: the dump must land where it says last.
//!
//! Environment, besides what every guest takes:
//! - `new_path`: the new value (default `changed-at-run-time`).
//! - `set`: another `NAME=VALUE`, or just `NAME` for an empty value, to set as well.
//!
//! Memory: the pattern in the first 32 MiB (or `fill`) from 16 MiB up. `dynamic_kenv` is 1 and `kenvp` points at the
//! array of strings; the static blocks at `md_envp` and `kern_envp` are zeroed, as in FreeBSD.
#![no_std]
#![no_main]

use rt::{kenv, memory, println, pvpanic};

rt::guest!("kenv-change", run);

const PATH: &str = "net.dump.path";

fn run() -> ! {
    memory::fill(rt::DEFAULT_FILL);
    kenv::make_dynamic();
    println!("{PATH} was {}", kenv::value(PATH).unwrap_or("not set"));
    kenv::set(PATH, kenv::value("new_path").unwrap_or("changed-at-run-time"));
    println!("{PATH} is {}", kenv::value(PATH).unwrap_or("not set"));
    if let Some(other) = kenv::value("set") {
        let (name, value) = other.split_once('=').unwrap_or((other, ""));
        kenv::set(name, value);
    }
    pvpanic::signal_from_kenv("the environment has changed")
}
