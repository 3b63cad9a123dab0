//! The sleep control register of hardware-reduced ACPI (ACPI specification 4.8.3.7): bits 2 to 4 the sleep type, bit 5
//! enters it. Type 5 is soft-off here; no other state exists.

use crate::bus::{AfterWrite, BusDevice};
use crate::events::{EventSender, MachineEvent};

/// One port.
pub const LEN: u64 = 1;
/// The sleep type that means soft-off; ACPI tables must say the same in their \_S5 package.
pub const S5: u8 = 5;
const SLP_EN: u8 = 1 << 5;

/// The register.
#[derive(Debug)]
pub struct SleepControl {
    events: EventSender,
}

impl SleepControl {
    /// A register that reports to `events` when the guest switches itself off.
    pub fn new(events: EventSender) -> Self {
        Self { events }
    }
}

impl BusDevice for SleepControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> AfterWrite {
        let off = |byte: &u8| byte & SLP_EN != 0 && (byte >> 2) & 0b111 == S5;
        if !data.iter().any(off) {
            return AfterWrite::Run;
        }
        self.events.send(MachineEvent::PowerOff);
        AfterWrite::Park
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events;

    #[test]
    fn only_soft_off_switches_off() {
        let (sender, queue) = events::channel().unwrap();
        let mut register = SleepControl::new(sender);
        for other in [0x00, 0x14, 0x20, 0x30] {
            assert_eq!(register.write(0, &[other]), AfterWrite::Run, "{other:#x}");
        }
        assert!(queue.next().is_none());
        assert_eq!(register.write(0, &[0x34]), AfterWrite::Park);
        assert!(matches!(queue.next(), Some(MachineEvent::PowerOff)));
    }
}
