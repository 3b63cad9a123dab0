//! The pvpanic device: one port; a read gives the events that it knows, a write signals.

use core::fmt;

use crate::contract::{self, PVPANIC_PORT, Register};
use crate::cpu::{self, RegisterImage};
use crate::{kenv, port, println, symbols, time};

/// The guest has panicked.
pub const PANICKED: u8 = 1 << 0;
/// The guest has panicked and saves its memory itself.
pub const CRASHLOADED: u8 = 1 << 1;

/// Panics: sets `panicstr`, signals PANICKED with known registers (`signalling_register` of the first CPU), spins.
pub fn signal(text: fmt::Arguments<'_>) -> ! {
    announce(text);
    signal_from(0, PANICKED)
}

/// Sets `panicstr` and prints the text, in a line that no console watcher takes for a kernel's panic.
pub fn announce(text: fmt::Arguments<'_>) {
    symbols::set_panic_text(text);
    println!("telling pvpanic \"{text}\"");
}

/// Panics as [`signal`] does, with the environment's `text` or else `default`, after the environment's `after`.
pub fn signal_from_kenv(default: &'static str) -> ! {
    let text = kenv::text("text", default);
    time::wait_as_told();
    signal(format_args!("{text}"))
}

/// Writes `event` on CPU `cpu` with its known registers, then spins.
pub fn signal_from(cpu: u32, event: u8) -> ! {
    let image =
        [Register::Rax, Register::Rdx].into_iter().fold(RegisterImage::known(cpu), |image, register| {
            image.with(register, contract::signalling_register(cpu, register, event))
        });
    cpu::signal_and_spin(&image)
}

/// Writes `event` and goes on.
pub fn write(event: u8) {
    port::write_u8(PVPANIC_PORT, event);
}
