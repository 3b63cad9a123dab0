//! The reset control register at port 0xcf9 (Intel chipset data sheets, "Reset Control Register"): bit 1 chooses between
//! CPU and system reset, and bit 2 going from 0 to 1 does it.

use crate::bus::{AfterWrite, BusDevice};
use crate::events::{EventSender, MachineEvent};

/// One port.
pub const LEN: u64 = 1;
const RESET_CPU: u8 = 1 << 2;

/// The register.
#[derive(Debug)]
pub struct ResetControl {
    events: EventSender,
    value: u8,
}

impl ResetControl {
    /// A register that reports resets to `events`.
    pub fn new(events: EventSender) -> Self {
        Self { events, value: 0 }
    }
}

impl BusDevice for ResetControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.value);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> AfterWrite {
        let mut after = AfterWrite::Run;
        for &byte in data {
            if byte & !self.value & RESET_CPU != 0 {
                self.events.send(MachineEvent::Reset("port 0xcf9"));
                after = AfterWrite::Park;
            }
            // The trigger bit is not kept: it reads as 0 after the reset that it causes.
            self.value = byte & !RESET_CPU;
        }
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events;

    #[test]
    fn the_rising_trigger_bit_resets() {
        let (sender, queue) = events::channel().unwrap();
        let mut register = ResetControl::new(sender);
        assert_eq!(register.write(0, &[0x02]), AfterWrite::Run);
        assert!(queue.next().is_none());
        assert_eq!(register.write(0, &[0x06]), AfterWrite::Park);
        assert!(matches!(queue.next(), Some(MachineEvent::Reset(_))));
        let mut value = [0xff];
        register.read(0, &mut value);
        assert_eq!(value, [0x02]);
    }
}
