//! The machine while it is being built: buses, and the devices that every machine has.

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::{Bus, BusDevice, BusError};
use crate::config::Virtio;
use crate::console::Console;
use crate::devices::pci::{self, ConfigPorts, Ecam, PciBus, PciError};
use crate::devices::reset::{self, ResetControl};
use crate::devices::serial::{self, Line, SerialPort};
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::devices::virtio::pci::{PciTransport, vectors_of};
use crate::devices::virtio::{VirtioDevice, VirtioDevices};
use crate::devices::{i8042, rtc, sleep};
use crate::doorbell::{self, PciDoorbells};
use crate::events::EventSender;
use crate::memory::GuestMemory;
use crate::msi::MsiRoutes;
use crate::vm::{VmBuilder, VmError};
use crate::x86_64::firmware::{Hardware, VirtioMmio};
use crate::x86_64::layout;

/// Why the machine could not be built.
#[derive(Debug, Error)]
pub enum PlatformError {
    /// Two devices want one address.
    #[error("placing a device")]
    Bus(#[from] BusError),
    /// The PCI bus is full.
    #[error("placing a device")]
    Pci(#[from] PciError),
    /// An interrupt could not be connected.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// No eventfd for it.
    #[error("creating an interrupt line")]
    Line(#[source] std::io::Error),
    /// No interrupt is left for one more device.
    #[error("{name}: too many devices; the virtio-mmio transport has interrupts for {most}")]
    TooMany {
        /// The device.
        name: &'static str,
        /// How many there can be.
        most: usize,
    },
}

/// A machine that is being built.
pub(crate) struct Platform {
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    pub(crate) vm: VmBuilder,
    pub(crate) events: EventSender,
    /// The virtio-mmio devices so far.
    pub(crate) virtio_mmio: Vec<VirtioMmio>,
    /// All virtio devices so far.
    pub(crate) virtio: VirtioDevices,
    /// The PCI bus of a machine that has one.
    pub(crate) pci: Option<PciBus>,
    messages: Arc<MsiRoutes>,
}

impl Platform {
    /// A machine without devices.
    pub(crate) fn new(vm: VmBuilder, events: EventSender, transport: Virtio) -> Self {
        let pci = match transport {
            Virtio::Pci => Some(PciBus::new()),
            Virtio::Mmio => None,
        };
        let (ports, mmio, virtio_mmio, virtio) = Default::default();
        let messages = MsiRoutes::new(vm.kvm_vm().clone());
        Self { ports, mmio, vm, events, virtio_mmio, virtio, pci, messages }
    }

    /// The devices that every machine has.
    pub(crate) fn add_devices(&mut self, console: Console) -> Result<Arc<Mutex<SerialPort>>, PlatformError> {
        let line = Line(Arc::new(self.interrupt(layout::COM1_IRQ)?));
        let serial = Arc::new(Mutex::new(SerialPort::new(line, console)));
        self.ports.insert("com1", layout::COM1.into(), serial::LEN, serial.clone())?;
        let events = &self.events.clone();
        self.add_port("i8042", layout::I8042, i8042::LEN, i8042::I8042::new(events.clone()))?;
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

    /// A virtio device, behind the transport that this machine has.
    pub(crate) fn add_virtio(
        &mut self,
        name: &'static str,
        device: Arc<Mutex<dyn VirtioDevice>>,
        memory: &GuestMemory,
    ) -> Result<(), PlatformError> {
        self.virtio.push(device.clone());
        let bells = doorbell::offer(&mut *device.lock().unwrap_or_else(PoisonError::into_inner))?;
        if let Some(bus) = &mut self.pci {
            let vectors = vectors_of(&*device.lock().unwrap_or_else(PoisonError::into_inner));
            let doorbells = Box::new(PciDoorbells::new(self.vm.kvm_vm().clone(), bells));
            let lines = (0..vectors).map(|_| self.messages.line()).collect::<Result<_, _>>()?;
            let function = PciTransport::new(device, memory.clone(), lines).with_doorbells(doorbells);
            return Ok(bus.insert(name, Arc::new(Mutex::new(function)))?);
        }
        let (index, irqs) = (self.virtio_mmio.len(), &layout::VIRTIO_MMIO_IRQS);
        let irq = *irqs.get(index).ok_or(PlatformError::TooMany { name, most: irqs.len() })?;
        let base = (0..index).fold(layout::VIRTIO_MMIO, |base, _| base + layout::VIRTIO_MMIO_LEN);
        let transport = MmioTransport::new(device, memory.clone(), self.interrupt(irq)?);
        let registers = Arc::new(Mutex::new(transport));
        self.mmio.insert(name, base.into(), layout::VIRTIO_MMIO_LEN.into(), registers)?;
        doorbell::connect(self.vm.kvm_vm(), u64::from(base) + QUEUE_NOTIFY, &bells);
        self.virtio_mmio.push(VirtioMmio { base, irq });
        Ok(())
    }

    /// Connects the PCI bus, to which nothing can be added any more; what firmware says of the machine.
    pub(crate) fn finish(&mut self, cpus: u8) -> Result<Hardware, PlatformError> {
        let reset = ResetControl::new(self.events.clone());
        let bus = self.pci.take().map(Arc::new);
        let pci = bus.is_some();
        if let Some(bus) = bus {
            self.add_port("pci", layout::PCI_PORTS, pci::PORTS_LEN, ConfigPorts::new(bus.clone(), reset))?;
            let ecam = (layout::PCI_ECAM.into(), layout::PCI_ECAM_LEN.into());
            self.mmio.insert("pci configuration", ecam.0, ecam.1, Arc::new(Ecam(bus.clone())))?;
            let window = (layout::PCI_WINDOW.into(), layout::PCI_WINDOW_LEN.into());
            self.mmio.insert("pci window", window.0, window.1, Arc::new(pci::Window(bus)))?;
        } else {
            self.add_port("reset", layout::RESET_CONTROL, reset::LEN, reset)?;
        }
        let pvpanic = self.ports.claims(layout::PVPANIC.into());
        Ok(Hardware { cpus, virtio_mmio: self.virtio_mmio.clone(), pvpanic, pci })
    }

    fn interrupt(&self, irq: u8) -> Result<EventFd, PlatformError> {
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(PlatformError::Line)?;
        self.vm.connect_irq(&line, irq.into())?;
        Ok(line)
    }
}
