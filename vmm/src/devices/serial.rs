//! The first serial port: a 16550 (vm-superio) whose output is the guest's console.

use std::io;
use std::sync::Arc;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{AfterWrite, BusDevice};
use crate::console::{Console, Watch};

/// Ports that a 16550 occupies.
pub const LEN: u64 = 8;

/// An interrupt line, raised through an eventfd that KVM listens to.
#[derive(Debug, Clone)]
pub struct Line(pub Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.write(1)
    }
}

/// The serial port.
#[derive(Debug)]
pub struct SerialPort {
    uart: Serial<Line, NoEvents, Console>,
    console: Console,
}

impl SerialPort {
    /// A port that raises `line` and writes to `console`.
    pub fn new(line: Line, console: Console) -> Self {
        Self { uart: Serial::new(line, console.clone()), console }
    }

    /// How many bytes of input there is room for.
    pub fn input_room(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Gives the guest input; what does not fit is lost, as on a real line.
    pub fn input(&mut self, bytes: &[u8]) {
        // The failure is a full FIFO, or loopback mode in which the line is cut.
        let _ = self.uart.enqueue_raw_bytes(bytes);
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for byte in data {
            *byte = self.uart.read(register(offset));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> AfterWrite {
        for &byte in data {
            // The only failure is an interrupt that cannot be raised; the guest then polls.
            let _ = self.uart.write(register(offset), byte);
        }
        match self.console.take_alarm() {
            Watch::Quiet => AfterWrite::Run,
            Watch::Panic => AfterWrite::Park,
        }
    }
}

fn register(offset: u64) -> u8 {
    u8::try_from(offset).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn port() -> (SerialPort, Arc<EventFd>) {
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let console = Console::new(Box::new(io::sink()), Vec::new());
        (SerialPort::new(Line(line.clone()), console), line)
    }

    #[test]
    fn what_is_typed_is_read_by_the_guest_and_raises_its_interrupt() {
        let (mut port, line) = port();
        let received_data_available = [0x01];
        let _ = port.write(1, &received_data_available);
        port.input(b"ok");
        assert!(line.read().is_ok(), "the interrupt was raised");
        let mut byte = [0];
        let mut typed = Vec::new();
        for _ in 0..2 {
            port.read(5, &mut byte);
            assert_eq!(byte[0] & 1, 1, "line status: data ready");
            port.read(0, &mut byte);
            typed.push(byte[0]);
        }
        assert_eq!(typed, b"ok");
        port.read(5, &mut byte);
        assert_eq!(byte[0] & 1, 0);
    }

    #[test]
    fn input_beyond_the_fifo_is_dropped_and_room_is_told() {
        let (mut port, _line) = port();
        let room = port.input_room();
        port.input(&vec![b'x'; room]);
        assert_eq!(port.input_room(), 0);
        port.input(b"y");
        let mut byte = [0];
        port.read(0, &mut byte);
        assert_eq!((byte[0], port.input_room()), (b'x', 1));
    }
}
