//! Panics by pvpanic with every variable that a host reads by name holding nonsense: the dump must not mind.
//!
//! Environment, besides what every guest takes (but for `text`):
//! - `nonsense`: `wild` (default): all pointers lead to where there is no RAM. `edge`: they lead to the last byte of RAM,
//!   which is not zero. `endless`: the environment has more strings than an array may hold, and they and the panic text
//!   go on for a mebibyte; the message buffer claims 4 GiB. `circle`: the pointers lead to pointers to themselves.
//!
//! Memory: the pattern in the first 32 MiB (or `fill`) from 16 MiB up, with `edge` but for the very last byte of RAM,
//! which is `x`. `dynamic_kenv` is 1.
#![no_std]
#![no_main]

use rt::global::Global;
use rt::kenv::{dynamic_kenv, kenvp, kern_envp, md_envp};
use rt::msgbuf::msgbufp;
use rt::pvpanic::{self, PANICKED};
use rt::symbols::panicstr;
use rt::{kenv, memory, println, time};

rt::guest!("bad-symbols", run);

#[derive(Clone, Copy)]
enum Nonsense {
    Wild,
    Edge,
    Endless,
    Circle,
}

/// In the hole below 4 GiB.
const HOLE: u64 = 0xcff0_0000;
const MIB: usize = 1 << 20;
/// More than FreeBSD's KENV_SIZE of 512.
const POINTERS: usize = 1024;

static ENDLESS: Global<[u8; MIB]> = Global::new([0; MIB]);
static ARRAY: Global<[u64; POINTERS]> = Global::new([0; POINTERS]);
/// As a message buffer: its text, then magic and size.
static MESSAGE_BUFFER: Global<[u64; 9]> = Global::new([0; 9]);

fn run() -> ! {
    memory::fill(rt::DEFAULT_FILL);
    println!("spoiling what a host would read");
    time::wait_as_told();
    let choices = [
        ("wild", Nonsense::Wild),
        ("edge", Nonsense::Edge),
        ("endless", Nonsense::Endless),
        ("circle", Nonsense::Circle),
    ];
    match kenv::choice("nonsense", &choices) {
        Nonsense::Wild => point_at(HOLE),
        Nonsense::Edge => point_at(spoiled_end_of_ram()),
        Nonsense::Endless => make_endless(),
        Nonsense::Circle => {
            for i in 0..POINTERS {
                ARRAY.set(i, ARRAY.address());
            }
            point_at(ARRAY.address());
        }
    }
    dynamic_kenv.write(1);
    pvpanic::signal_from(0, PANICKED)
}

fn point_at(address: u64) {
    for pointer in [&kenvp, &md_envp, &kern_envp, &panicstr, &msgbufp] {
        pointer.write(address);
    }
}

/// Address of the last byte of RAM, which no string can end with any more.
fn spoiled_end_of_ram() -> u64 {
    let last = memory::ram().map(|range| range.end).max().unwrap_or(HOLE) - 1;
    // SAFETY: RAM that nothing but the pattern lies in.
    unsafe { (last as *mut u8).write_volatile(b'x') };
    last
}

fn make_endless() {
    for i in 0..MIB {
        ENDLESS.set(i, if i % 64 == 1 { b'=' } else { b'a' });
    }
    for i in 0..POINTERS {
        ARRAY.set(i, ENDLESS.address());
    }
    point_at(ENDLESS.address());
    kenvp.write(ARRAY.address());
    for (i, word) in [ENDLESS.address(), 0xffff_ffff_0006_3062, u64::MAX].into_iter().enumerate() {
        MESSAGE_BUFFER.set(i, word);
    }
    msgbufp.write(MESSAGE_BUFFER.address());
}
