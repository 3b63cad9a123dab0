//! The keyboard controller, of which kernels want one thing: its reset line (command 0xfe at port 0x64).

use vm_superio::{I8042Device, Trigger};

use crate::bus::{AfterWrite, BusDevice};
use crate::events::{EventSender, MachineEvent};

/// Ports 0x60 to 0x64.
pub const LEN: u64 = 5;
/// Offset of the command and status port.
const COMMAND: u64 = 4;
/// Pulse the reset line.
const RESET_CPU: u8 = 0xfe;

/// The controller.
#[derive(Debug)]
pub struct I8042 {
    device: I8042Device<ResetLine>,
}

impl I8042 {
    /// A controller whose reset line reports to `events`.
    pub fn new(events: EventSender) -> Self {
        Self { device: I8042Device::new(ResetLine(events)) }
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
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = self.device.read(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> AfterWrite {
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        for &byte in data {
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
}
