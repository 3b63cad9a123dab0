//! Ways out of a running machine.

use crate::cpu::{self, RegisterImage};
use crate::port;

/// ACPI sleep control register of a hardware-reduced machine; 0x34 is SLP_EN with sleep type 5.
const SLEEP_CONTROL: u16 = 0x600;
const POWER_OFF: u8 = 0x34;
/// i8042 command port; 0xfe pulses the reset line.
const I8042: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;
/// Reset control register; 2 chooses a full reset, 6 does it.
const RESET_CONTROL: u16 = 0xcf9;

/// Powers the machine off.
pub fn off() -> ! {
    port::write_u8(SLEEP_CONTROL, POWER_OFF);
    cpu::halt()
}

/// How to reset.
#[derive(Clone, Copy)]
pub enum Reset {
    /// By the keyboard controller.
    I8042,
    /// By port 0xcf9.
    ResetControl,
    /// By a triple fault.
    TripleFault,
}

/// The names of the ways, the first of them the default.
pub const RESETS: [(&str, Reset); 3] =
    [("i8042", Reset::I8042), ("cf9", Reset::ResetControl), ("triple", Reset::TripleFault)];

/// Resets the machine.
pub fn reset(how: Reset) -> ! {
    match how {
        Reset::I8042 => port::write_u8(I8042, PULSE_RESET),
        Reset::ResetControl => {
            port::write_u8(RESET_CONTROL, 0x02);
            port::write_u8(RESET_CONTROL, 0x06);
        }
        Reset::TripleFault => cpu::triple_fault(&RegisterImage::known(0)),
    }
    cpu::halt()
}
