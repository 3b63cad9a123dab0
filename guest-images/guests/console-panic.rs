//! Panics on the console only: prints what a FreeBSD or a Linux kernel prints, and signals nothing.
//!
//! Environment, besides what every guest takes:
//! - `style`: `freebsd` (default, `panic: TEXT`) or `linux` (`Kernel panic - not syncing: TEXT`).
//! - `before`: text in front of it on the same line (`_` stands for a space).
//! - `piece`, `gap`: bytes of the line printed at a time, and milliseconds between the pieces.
//! - `newline=no`: the line is never ended and nothing follows.
//! - `decoy=yes`: lines that are nearly a panic come first.
//! - `then`: `halt` (default), `spin`, `reset`, `poweroff`.
//!
//! Memory: the pattern in the first 32 MiB (or `fill`) from 16 MiB up; `panicstr` points at the text, and the message
//! buffer ends with what was printed.
#![no_std]
#![no_main]

use rt::console::print;
use rt::cpu::{self, RegisterImage};
use rt::power::{self, Reset};
use rt::{kenv, memory, symbols, time};

rt::guest!("console-panic", run);

#[derive(Clone, Copy)]
struct Style {
    announcement: &'static str,
    text: &'static str,
    trailer: &'static str,
}

const FREEBSD: Style = Style {
    announcement: "panic: ",
    text: "page fault",
    trailer: "cpuid = 0\ntime = 1\nKDB: stack backtrace:\n",
};

const LINUX: Style = Style {
    announcement: "Kernel panic - not syncing: ",
    text: "Attempted to kill init! exitcode=0x0000000b",
    trailer: "CPU: 0 PID: 1 Comm: init Not tainted\nCall Trace:\n <TASK>\n",
};

/// None of these is a panic.
const DECOYS: &str =
    "don't panic\npanic\n: not on one line\npanicky: no\nKernel panic - not\n syncing: cut in two\n";

#[derive(Clone, Copy)]
enum Then {
    Halt,
    Spin,
    Reset,
    PowerOff,
}

fn run() -> ! {
    memory::fill(rt::DEFAULT_FILL);
    time::wait_as_told();
    let style = kenv::choice("style", &[("freebsd", FREEBSD), ("linux", LINUX)]);
    let text = kenv::text("text", style.text);
    symbols::set_panic_text(format_args!("{text}"));
    if kenv::value("decoy") == Some("yes") {
        print(DECOYS);
    }
    let ending = kenv::value("newline") != Some("no");
    for part in [kenv::text("before", ""), style.announcement, text] {
        print_in_pieces(part);
    }
    if ending {
        print("\n");
        print(style.trailer);
    }
    match kenv::choice(
        "then",
        &[("halt", Then::Halt), ("spin", Then::Spin), ("reset", Then::Reset), ("poweroff", Then::PowerOff)],
    ) {
        Then::Halt => cpu::halt(),
        Then::Spin => cpu::busy_spin(&RegisterImage::known(0)),
        Then::Reset => power::reset(Reset::I8042),
        Then::PowerOff => power::off(),
    }
}

fn print_in_pieces(text: &str) {
    let piece = kenv::number("piece", text.len() as u64).max(1) as usize;
    let gap = kenv::number("gap", 0);
    let mut rest = text;
    while !rest.is_empty() {
        let (first, others) = rest.split_at(rest.floor_char_boundary(piece).max(1));
        print(first);
        rest = others;
        time::wait(gap);
    }
}
