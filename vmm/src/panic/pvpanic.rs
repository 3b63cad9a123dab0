//! The pvpanic device on its ISA port (QEMU `docs/specs/pvpanic.rst`): one byte.
//!
//! Read: the events that are understood. Write: bit 0 the guest panicked, bit 1 it panicked and its own crash kernel
//! takes over, bit 2 it shut down in an orderly way. Bits are looked at one by one: a guest may set several at once.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{PanicSource, Places};
use crate::bus::{AfterWrite, BusDevice, BusError};
use crate::events::{EventSender, MachineEvent, PanicEvent, current_vcpu};
use crate::x86_64::layout;

const NAME: &str = "pvpanic";
const PANICKED: u8 = 1 << 0;
const CRASHLOADED: u8 = 1 << 1;

/// The source.
#[derive(Debug)]
pub(super) struct Pvpanic;

impl PanicSource for Pvpanic {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "the guest's pvpanic driver writes to port 0x505"
    }

    fn arm(&'static self, places: &mut Places<'_>) -> Result<(), BusError> {
        let device = Device {
            events: places.events.clone(),
            ignore_crashloaded: places.options.ignore_crashloaded,
            left_to_guest: false,
        };
        places.ports.insert(NAME, layout::PVPANIC.into(), 1, Arc::new(Mutex::new(device)))
    }
}

#[derive(Debug)]
struct Device {
    events: EventSender,
    ignore_crashloaded: bool,
    /// The guest has said that its crash kernel takes over; saying it again is no news.
    left_to_guest: bool,
}

impl BusDevice for Device {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED | CRASHLOADED;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> AfterWrite {
        // A string instruction delivers several bytes at once; each is a write of its own.
        let bits = data.iter().fold(0, |all, byte| all | byte);
        let vcpu = current_vcpu();
        let left_to_guest = bits & CRASHLOADED != 0 && !self.ignore_crashloaded;
        if left_to_guest {
            if !std::mem::replace(&mut self.left_to_guest, true) {
                self.events.send(MachineEvent::CrashLoaded { vcpu });
            }
            AfterWrite::Run
        } else if bits & (PANICKED | CRASHLOADED) != 0 {
            self.events.send(MachineEvent::Panic(PanicEvent {
                source: NAME,
                vcpu,
                at: Instant::now(),
                text: None,
                detail: format!("the guest wrote {bits:#04x} to pvpanic's port"),
                survivable: true,
            }));
            AfterWrite::Park
        } else {
            AfterWrite::Run
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events;

    fn device(events: EventSender, ignore_crashloaded: bool) -> Device {
        Device { events, ignore_crashloaded, left_to_guest: false }
    }

    fn written(bytes: &[u8], ignore_crashloaded: bool) -> (AfterWrite, Option<MachineEvent>) {
        let (events, queue) = events::channel().unwrap();
        let after = device(events, ignore_crashloaded).write(0, bytes);
        (after, queue.next())
    }

    #[test]
    fn panicked_is_a_panic_whatever_other_bits_say() {
        for bits in [0x01, 0x05, 0x81, 0xfd] {
            let (after, event) = written(&[bits], false);
            assert!(matches!(event, Some(MachineEvent::Panic(_))), "{bits:#x}");
            assert_eq!(after, AfterWrite::Park);
        }
    }

    #[test]
    fn crashloaded_is_left_to_the_guest_even_beside_panicked() {
        for bits in [0x02, 0x03, 0x06] {
            let (after, event) = written(&[bits], false);
            assert!(matches!(event, Some(MachineEvent::CrashLoaded { .. })), "{bits:#x}");
            assert_eq!(after, AfterWrite::Run);
        }
    }

    #[test]
    fn a_guest_that_repeats_crashloaded_is_heard_once() {
        let (events, queue) = events::channel().unwrap();
        let mut device = device(events, false);
        for _ in 0..1000 {
            let _ = device.write(0, &[CRASHLOADED]);
        }
        assert!(queue.next().is_some() && queue.next().is_none());
    }

    #[test]
    fn crashloaded_is_a_panic_when_it_is_to_be_ignored() {
        assert!(matches!(written(&[0x02], true).1, Some(MachineEvent::Panic(_))));
    }

    #[test]
    fn other_bits_mean_nothing() {
        for bits in [0x00, 0x04, 0x80, 0xfc] {
            let (after, event) = written(&[bits], false);
            assert!(event.is_none() && after == AfterWrite::Run, "{bits:#x}");
        }
    }

    #[test]
    fn reading_tells_the_supported_events() {
        let (events, _queue) = events::channel().unwrap();
        let mut data = [0xff; 4];
        device(events, false).read(0, &mut data);
        assert_eq!(data, [3, 0, 0, 0]);
    }
}
