//! The keyboard controller, without a keyboard. Kernels want its reset line (command 0xfe at port 0x64), and a controller
//! that answers when they look for it: Linux waits two seconds for one that is silent (`drivers/input/serio/i8042.c`).

use vm_superio::{I8042Device, Trigger};

use crate::bus::{AfterWrite, BusDevice};
use crate::events::{EventSender, MachineEvent};

/// Ports 0x60 to 0x64.
pub const LEN: u64 = 5;
/// Offsets of the data port, and of the command and status port.
const DATA: u64 = 0;
const COMMAND: u64 = 4;
/// Commands: read the command byte, write it, test the controller, test the keyboard's interface, pulse the reset line.
const READ_COMMAND_BYTE: u8 = 0x20;
const WRITE_COMMAND_BYTE: u8 = 0x60;
const TEST_CONTROLLER: u8 = 0xaa;
const TEST_KEYBOARD: u8 = 0xab;
const RESET_CPU: u8 = 0xfe;
/// Their good outcomes.
const CONTROLLER_WORKS: u8 = 0x55;
const KEYBOARD_WORKS: u8 = 0;
/// Status: there is something to be read at the data port.
const OUTPUT_FULL: u8 = 1;
/// The command byte as a BIOS leaves it: system flag, no key lock, scan codes translated.
const COMMAND_BYTE: u8 = 1 << 2 | 1 << 3 | 1 << 6;

/// The controller.
#[derive(Debug)]
pub struct I8042 {
    device: I8042Device<ResetLine>,
    command_byte: u8,
    /// Whether the next byte for the data port is the command byte.
    takes_command_byte: bool,
    answer: Option<u8>,
}

impl I8042 {
    /// A controller whose reset line reports to `events`.
    pub fn new(events: EventSender) -> Self {
        Self {
            device: I8042Device::new(ResetLine(events)),
            command_byte: COMMAND_BYTE,
            takes_command_byte: false,
            answer: None,
        }
    }

    fn command(&mut self, command: u8) {
        self.takes_command_byte = command == WRITE_COMMAND_BYTE;
        self.answer = match command {
            READ_COMMAND_BYTE => Some(self.command_byte),
            TEST_CONTROLLER => Some(CONTROLLER_WORKS),
            TEST_KEYBOARD => Some(KEYBOARD_WORKS),
            _ => None,
        };
    }
}

#[derive(Debug)]
struct ResetLine(EventSender);

impl Trigger for ResetLine {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.send(MachineEvent::Reset("i8042"));
        Ok(())
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = match offset {
                DATA => self.answer.take().unwrap_or(0),
                COMMAND => self.answer.map_or(0, |_| OUTPUT_FULL),
                _ => 0,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> AfterWrite {
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        for &byte in data {
            match offset {
                COMMAND => self.command(byte),
                DATA if std::mem::take(&mut self.takes_command_byte) => self.command_byte = byte,
                // What is for a keyboard gets no answer, as there is none.
                _ => {}
            }
            let Ok(()) = self.device.write(register, byte);
        }
        if offset == COMMAND && data.contains(&RESET_CPU) { AfterWrite::Park } else { AfterWrite::Run }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events;

    #[test]
    fn only_the_reset_command_resets() {
        let (sender, queue) = events::channel().unwrap();
        let mut device = I8042::new(sender);
        assert_eq!(device.write(0, &[RESET_CPU]), AfterWrite::Run);
        assert_eq!(device.write(COMMAND, &[0x20]), AfterWrite::Run);
        assert!(queue.next().is_none());
        assert_eq!(device.write(COMMAND, &[RESET_CPU]), AfterWrite::Park);
        assert!(matches!(queue.next(), Some(MachineEvent::Reset("i8042"))));
    }

    #[test]
    fn an_idle_controller_has_an_empty_status() {
        // Linux waits for the input buffer to be empty before it resets: all ones would cost it a second a try.
        let (sender, _queue) = events::channel().unwrap();
        let mut status = [0xff];
        I8042::new(sender).read(COMMAND, &mut status);
        assert_eq!(status, [0]);
    }

    #[test]
    fn a_controller_that_is_looked_for_answers() {
        let (sender, _queue) = events::channel().unwrap();
        let mut device = I8042::new(sender);
        let mut ask = |command: u8, value: Option<u8>| {
            assert_eq!(device.write(COMMAND, &[command]), AfterWrite::Run);
            if let Some(value) = value {
                assert_eq!(device.write(DATA, &[value]), AfterWrite::Run);
            }
            let (mut status, mut data) = ([0], [0]);
            device.read(COMMAND, &mut status);
            device.read(DATA, &mut data);
            (status[0], data[0])
        };
        assert_eq!(ask(READ_COMMAND_BYTE, None), (1, 0x4c));
        assert_eq!(ask(WRITE_COMMAND_BYTE, Some(0x45)), (0, 0));
        assert_eq!(ask(READ_COMMAND_BYTE, None), (1, 0x45));
        assert_eq!(ask(0xad, Some(0x12)), (0, 0), "a byte that no command waits for");
        assert_eq!(ask(READ_COMMAND_BYTE, None), (1, 0x45));
        assert_eq!((ask(TEST_CONTROLLER, None), ask(TEST_KEYBOARD, None)), ((1, 0x55), (1, 0)));
    }
}
