//! What the panic is to do: the environment's wishes become orders to kernel.s, with every text ready, since some KVM
//! hosts cannot format in ring 0.

use core::fmt::{self, Write as _};

use crate::cpus::Cpus;
use crate::freebsd::{PANIC_FORMAT, PANIC_TEXT, TIME_SECOND};
use crate::global::Global;
use crate::variables::{
    order_after, order_debugger, order_delay, order_dump, order_dump_time, order_final, order_message,
    order_others, order_quiet, order_save, order_stop, order_text,
};
use crate::{c_text, kenv, port, println, time};

/// What `panicstr` points at first.
pub static FORMAT: [u8; PANIC_FORMAT.len() + 1] = c_text(PANIC_FORMAT);

/// Port of the sleep control register.
const SLEEP_CONTROL: u16 = 0x600;

/// What the panic ends in; numbers that kernel.s knows.
#[derive(Clone, Copy, PartialEq)]
#[repr(u32)]
enum Final {
    Halt,
    Spin,
    Reset8042,
    ResetCf9,
    PowerOff,
    Triple,
    Pvpanic,
    Debugger,
    Dump,
    None,
}

const FINALS: [(&str, Final); 10] = [
    ("halt", Final::Halt),
    ("spin", Final::Spin),
    ("reset-8042", Final::Reset8042),
    ("reset-cf9", Final::ResetCf9),
    ("poweroff", Final::PowerOff),
    ("triple", Final::Triple),
    ("pvpanic", Final::Pvpanic),
    ("ddb", Final::Debugger),
    ("dump", Final::Dump),
    ("none", Final::None),
];

/// The kernel's own dumper.
#[derive(Clone, Copy, PartialEq)]
enum Dumper {
    None,
    Works,
    Idle,
}

/// Whether there is to be a panic at all.
pub fn is_ordered() -> bool {
    kenv::choice("abi.panic", &FINALS) != Final::None
}

/// Gives the orders.
pub fn order(cpus: &Cpus) {
    let how = kenv::choice("abi.panic", &FINALS);
    order_final.write(if how == Final::Dump { Final::Reset8042 } else { how } as u32);
    order_debugger.write((how == Final::Debugger).into());
    let dumper =
        kenv::choice("abi.dumper", &[("no", Dumper::None), ("yes", Dumper::Works), ("idle", Dumper::Idle)]);
    let dumps = how == Final::Dump || dumper == Dumper::Works;
    order_dump.write(dumps.into());
    order_save.write((dumps || kenv::is_yes("abi.savectx", false)).into());
    order_quiet.write(kenv::choice("abi.console", &[("loud", 0), ("quiet", 1)]));
    let others = cpus.running & !(1 << cpus.panicking);
    order_others.write(others.count_ones());
    let stoppable = cpus.user.map_or(others, |user| others & !(1 << user));
    order_stop.write(if kenv::is_yes("abi.stop", true) { stoppable } else { 0 });
    order_after.write(ticks(kenv::number("abi.after", 0)));
    order_delay.write(ticks(kenv::number("abi.delay", 0)));
    if dumps {
        order_dump_time.write(ticks(kenv::number("abi.dump_ms", 100)));
    }
    if dumps || dumper == Dumper::Idle {
        configure_dumper();
    } else {
        no_dumper();
    }
    write_texts(cpus.panicking);
    if is_ordered() {
        println!("{} CPUs, CPU {} is to panic", cpus.running.count_ones(), cpus.panicking);
    } else {
        end_cleanly();
    }
}

/// Resets or switches off as a guest does that has not panicked, if told to.
fn end_cleanly() {
    match kenv::choice("abi.end", &[("stay", 0), ("reset-8042", 1), ("reset-cf9", 2), ("poweroff", 3)]) {
        1 => port::write_u8(0x64, 0xfe),
        2 => {
            port::write_u8(0xcf9, 0x02);
            port::write_u8(0xcf9, 0x06);
        }
        3 => port::write_u8(SLEEP_CONTROL, 0x34),
        _ => {}
    }
}

fn write_texts(cpu: u32) {
    let mut text = Writer { to: &order_text, end: 0 };
    match kenv::value("abi.text") {
        None => text.push(PANIC_TEXT),
        Some(chosen) => {
            text.push("abi: ");
            chosen.bytes().for_each(|byte| text.push_byte(if byte == b'_' { b' ' } else { byte }));
        }
    }
    let mut message = Writer { to: &order_message, end: 0 };
    message.push("panic: ");
    (0..text.end).for_each(|i| message.push_byte(order_text.at(i)));
    let _ = write!(message, "\ncpuid = {cpu}\ntime = {TIME_SECOND}\n");
}

/// Writes text to an order, as much as fits; what is behind it is zero.
struct Writer<const N: usize> {
    to: &'static Global<[u8; N]>,
    end: usize,
}

impl<const N: usize> Writer<N> {
    fn push(&mut self, text: &str) {
        text.bytes().for_each(|byte| self.push_byte(byte));
    }

    fn push_byte(&mut self, byte: u8) {
        if self.end + 1 < N {
            self.to.set(self.end, byte);
            self.end += 1;
        }
    }
}

impl<const N: usize> fmt::Write for Writer<N> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.push(part);
        Ok(())
    }
}

/// Ticks of the time-stamp counter in so many milliseconds. The host may take the CPU away meanwhile: the shortest of
/// several samples counts.
fn ticks(milliseconds: u64) -> u64 {
    const SAMPLES: u32 = 8;
    if milliseconds == 0 {
        return 0;
    }
    let sample = |_| {
        let before = read_counter();
        time::wait(1);
        read_counter() - before
    };
    (0..SAMPLES).map(sample).min().unwrap_or(0) * milliseconds
}

fn read_counter() -> u64 {
    // SAFETY: every x86-64 CPU has the counter, and ring 3 may read it unless CR4.TSD forbids.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Something non-empty, as `dumpon` leaves it.
#[cfg(flavour = "12")]
fn configure_dumper() {
    // The callback, a function of the kernel.
    crate::variables::dumper.write(crate::variables::fork_trampoline as *const () as u64);
}

#[cfg(flavour = "12")]
fn no_dumper() {}

/// A list with one element.
#[cfg(not(flavour = "12"))]
fn configure_dumper() {
    let element = crate::paging::direct(crate::pages::direct());
    crate::variables::dumper_configs.set(0, element.va);
    crate::variables::dumper_configs.set(1, element.va);
}

/// A `TAILQ` whose last link is its head.
#[cfg(not(flavour = "12"))]
fn no_dumper() {
    crate::variables::dumper_configs.set(1, crate::variables::dumper_configs.address());
}
