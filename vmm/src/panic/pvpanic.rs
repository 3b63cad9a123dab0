//! The pvpanic device (QEMU `docs/specs/pvpanic.rst`): one byte, on its ISA port, and as a PCI device where there is a bus.
//! A guest may have a driver for either or both; what it says by one is not repeated by the other.
//!
//! Read: the events that are understood. Write: bit 0 the guest panicked, bit 1 it panicked and its own crash kernel
//! takes over, bit 2 it shut down in an orderly way. Bits are looked at one by one: a guest may set several at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{PanicSource, Places};
use crate::bus::{AfterWrite, BusDevice, BusError};
use crate::devices::pci::PciFunction;
use crate::devices::pci::config::{ConfigSpace, Identity};
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
        "the guest's pvpanic driver writes to port 0x505 or to the PCI device 1b36:0011"
    }

    fn arm(&'static self, places: &mut Places<'_>) -> Result<(), BusError> {
        let device = Device {
            events: places.events.clone(),
            ignore_crashloaded: places.options.ignore_crashloaded,
            left_to_guest: false,
        };
        let device = Arc::new(Mutex::new(device));
        if let Some(bus) = &mut places.pci {
            // A full bus is not possible: sources come before all other devices.
            let _ = bus.insert(NAME, Arc::new(Mutex::new(Function::new(device.clone()))));
        }
        places.ports.insert(NAME, layout::PVPANIC.into(), 1, device)
    }
}

#[derive(Debug)]
struct Device {
    events: EventSender,
    ignore_crashloaded: bool,
    /// The guest has said that its crash kernel takes over; saying it again is no news.
    left_to_guest: bool,
}

/// QEMU's number for it; class 0x0880 is another system peripheral.
const IDENTITY: Identity =
    Identity { vendor: 0x1b36, device: 0x0011, subsystem: (0x1af4, 0x1100), class: 0x08_8000, revision: 1 };
/// Bytes of its BAR, of which the first is the device's.
const BAR_LEN: u32 = 0x1000;

/// The device on the PCI bus.
struct Function {
    config: ConfigSpace,
    device: Arc<Mutex<Device>>,
}

impl Function {
    fn new(device: Arc<Mutex<Device>>) -> Self {
        Self { config: ConfigSpace::new(&IDENTITY), device }
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for Function {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_len(&self) -> u32 {
        BAR_LEN
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == 0 {
            self.device().read(0, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> AfterWrite {
        match data.first() {
            Some(&bits) if offset == 0 => self.device().write(0, &[bits]),
            _ => AfterWrite::Run,
        }
    }
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
    fn the_pci_device_is_the_same_as_the_port() {
        let (events, queue) = events::channel().unwrap();
        let shared = Arc::new(Mutex::new(device(events, false)));
        let mut function = Function::new(shared.clone());
        assert_eq!((function.config.field(0), function.config.field(8)), (0x0011_1b36, 0x0880_0001));
        let mut data = [0xff; 4];
        function.read(0, &mut data);
        assert_eq!(data, [3, 0, 0, 0]);
        function.read(1, &mut data);
        assert_eq!(data, [0; 4]);
        // Only the first byte is the device's.
        assert_eq!(function.write(1, &[1]), AfterWrite::Run);
        assert_eq!(function.write(0, &[CRASHLOADED, PANICKED]), AfterWrite::Run);
        assert!(matches!(queue.next(), Some(MachineEvent::CrashLoaded { .. })));
        assert_eq!(shared.lock().unwrap().write(0, &[CRASHLOADED]), AfterWrite::Run);
        assert!(queue.next().is_none(), "said once, whichever way");
        assert_eq!(function.write(0, &[PANICKED]), AfterWrite::Park);
        assert!(matches!(queue.next(), Some(MachineEvent::Panic(_))));
    }

    #[test]
    fn reading_tells_the_supported_events() {
        let (events, _queue) = events::channel().unwrap();
        let mut data = [0xff; 4];
        device(events, false).read(0, &mut data);
        assert_eq!(data, [3, 0, 0, 0]);
    }
}
