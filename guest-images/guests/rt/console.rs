//! The console: a 16550 at port 0x3f8, and a copy of everything in the message buffer.

use core::fmt;

use crate::{msgbuf, port};

/// First port of the UART.
pub const UART: u16 = 0x3f8;
const FIFO_CONTROL: u16 = UART + 2;
const LINE_CONTROL: u16 = UART + 3;
/// Port of the line status register.
pub const LINE_STATUS: u16 = UART + 5;
/// FIFO on, both cleared.
const FIFO_ON: u8 = 0x07;
/// Eight data bits, no parity, one stop bit.
const EIGHT_BITS: u8 = 0x03;
/// The transmitter holds nothing more to send.
const TRANSMITTER_EMPTY: u8 = 0x20;
/// Bytes that an empty transmitter takes at once; so the status is read once for so many.
const FIFO_SIZE: usize = 16;
/// Reads of the status before a byte is sent regardless.
const PATIENCE: u32 = 10_000;

/// Sets the UART and the message buffer up.
pub(crate) fn init() {
    msgbuf::init();
    port::write_u8(LINE_CONTROL, EIGHT_BITS);
    port::write_u8(FIFO_CONTROL, FIFO_ON);
}

/// Prints a text as it is.
pub fn print(text: &str) {
    for part in text.as_bytes().chunks(FIFO_SIZE) {
        let _ready = (0..PATIENCE).any(|_| port::read_u8(LINE_STATUS) & TRANSMITTER_EMPTY != 0);
        for &byte in part {
            port::write_u8(UART, byte);
            msgbuf::push(byte);
        }
    }
}

/// Prints with formatting; use the macros.
pub fn print_formatted(text: fmt::Arguments<'_>) {
    struct Console;
    impl fmt::Write for Console {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            print(part);
            Ok(())
        }
    }
    let _ = fmt::write(&mut Console, text);
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print_formatted(format_args!($($argument)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => { $crate::console::print_formatted(format_args!("{}\n", format_args!($($argument)*))) };
}
