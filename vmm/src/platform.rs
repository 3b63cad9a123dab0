//! The machine while it is being built: buses, and the devices that every machine has.

use std::sync::{Arc, Mutex};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::{Bus, BusDevice, BusError};
use crate::console::Console;
use crate::devices::serial::{self, Line, SerialPort};
use crate::devices::{i8042, reset, rtc, sleep};
use crate::events::EventSender;
use crate::memory::GuestMemory;
use crate::nic::Nic;
use crate::vm::{VmBuilder, VmError};
use crate::x86_64::firmware::{Hardware, VirtioMmio};
use crate::x86_64::layout;

/// Why the machine could not be built.
#[derive(Debug, Error)]
pub enum PlatformError {
    /// Two devices want one address.
    #[error("placing a device")]
    Bus(#[from] BusError),
    /// An interrupt could not be connected.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// No eventfd for it.
    #[error("creating an interrupt line")]
    Line(#[source] std::io::Error),
}

/// A machine that is being built.
pub(crate) struct Platform {
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    pub(crate) vm: VmBuilder,
    pub(crate) events: EventSender,
    /// The virtio-mmio devices so far.
    pub(crate) virtio_mmio: Vec<VirtioMmio>,
}

impl Platform {
    /// The devices that every machine has.
    pub(crate) fn add_devices(&mut self, console: Console) -> Result<Arc<Mutex<SerialPort>>, PlatformError> {
        let line = Line(Arc::new(self.interrupt(layout::COM1_IRQ)?));
        let serial = Arc::new(Mutex::new(SerialPort::new(line, console)));
        self.ports.insert("com1", layout::COM1.into(), serial::LEN, serial.clone())?;
        let events = &self.events.clone();
        self.add_port("i8042", layout::I8042, i8042::LEN, i8042::I8042::new(events.clone()))?;
        self.add_port("reset", layout::RESET_CONTROL, reset::LEN, reset::ResetControl::new(events.clone()))?;
        self.add_port("sleep", layout::SLEEP_CONTROL, sleep::LEN, sleep::SleepControl::new(events.clone()))?;
        self.add_port("rtc", layout::RTC, rtc::LEN, rtc::Rtc::new())?;
        Ok(serial)
    }

    fn add_port(
        &mut self,
        name: &'static str,
        base: u16,
        len: u64,
        device: impl BusDevice + 'static,
    ) -> Result<(), BusError> {
        self.ports.insert(name, base.into(), len, Arc::new(Mutex::new(device)))
    }

    /// The guest's network card, as a virtio-mmio device.
    pub(crate) fn add_nic(&mut self, nic: &mut Nic, memory: &GuestMemory) -> Result<(), PlatformError> {
        let place = VirtioMmio { base: layout::VIRTIO_MMIO, irq: layout::VIRTIO_MMIO_IRQ };
        let device = nic.plug(memory.clone(), self.interrupt(place.irq)?);
        self.mmio.insert("virtio-net", place.base.into(), layout::VIRTIO_MMIO_LEN.into(), device)?;
        self.virtio_mmio.push(place);
        Ok(())
    }

    /// What firmware says of the machine as it is by now.
    pub(crate) fn hardware(&self, cpus: u8) -> Hardware {
        Hardware {
            cpus,
            virtio_mmio: self.virtio_mmio.clone(),
            pvpanic: self.ports.claims(layout::PVPANIC.into()),
        }
    }

    fn interrupt(&self, irq: u8) -> Result<EventFd, PlatformError> {
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(PlatformError::Line)?;
        self.vm.connect_irq(&line, irq.into())?;
        Ok(line)
    }
}
