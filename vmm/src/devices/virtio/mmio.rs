//! Virtio over MMIO, version 2 (virtio 1.2, section 4.2): 256 bytes of registers, then configuration space.
//!
//! Registers are 32 bits wide, little-endian and accessed whole; any other access to them reads as zero and changes
//! nothing. Configuration space takes every width.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_mmio as reg;
use vmm_sys_util::eventfd::EventFd;

use super::transport::{Half, QueueSetup, Transport};
use super::{Interrupt, Notifier, VirtioDevice};
use crate::bus::{AfterWrite, BusDevice};
use crate::memory::GuestMemory;

/// Bytes of address space that the transport takes.
pub const MMIO_LEN: u64 = 0x200;

/// "virt"
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// The specification leaves vendors to choose; no driver acts on it.
const VENDOR: u32 = u32::from_le_bytes(*b"vmm\0");
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

/// The registers of one device.
#[derive(Debug)]
pub struct MmioTransport {
    transport: Transport,
    interrupt: Arc<MmioInterrupt>,
    offered_half: Option<Half>,
    accepted_half: Option<Half>,
    queue: u32,
}

impl MmioTransport {
    /// Registers for `device`, whose driver's addresses mean `memory` and which is interrupted by writes to
    /// `interrupt`, an edge each.
    pub fn new(device: Arc<Mutex<dyn VirtioDevice>>, memory: GuestMemory, interrupt: EventFd) -> Self {
        let interrupt = Arc::new(MmioInterrupt { status: AtomicU32::new(0), event: interrupt });
        let notifier = Arc::new(Notifier::new(Box::new(Arc::clone(&interrupt))));
        Self {
            transport: Transport::new(device, memory, notifier),
            interrupt,
            offered_half: Some(Half::Low),
            accepted_half: Some(Half::Low),
            queue: 0,
        }
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.transport.device_type(),
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => {
                self.offered_half.map_or(0, |half| half.read(self.transport.offered()))
            }
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => self.transport.queue_max(self.queue).map_or(0, u32::from),
            reg::VIRTIO_MMIO_QUEUE_READY => u32::from(self.transport.queue_ready(self.queue)),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status.load(Ordering::Acquire),
            reg::VIRTIO_MMIO_STATUS => self.transport.status(),
            // No shared memory regions: their length and base read as all ones (4.2.2.1).
            reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            // Configuration never changes, so its generation does not either.
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.offered_half = half(value),
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.accepted_half = half(value),
            reg::VIRTIO_MMIO_DRIVER_FEATURES => {
                if let Some(half) = self.accepted_half {
                    self.transport.accept(half, value);
                }
            }
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue = value,
            reg::VIRTIO_MMIO_QUEUE_NUM => self.set_up(|queue| queue.size = value),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => {
                self.set_up(|queue| Half::Low.write(&mut queue.descriptors, value))
            }
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                self.set_up(|queue| Half::High.write(&mut queue.descriptors, value))
            }
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => {
                self.set_up(|queue| Half::Low.write(&mut queue.available, value))
            }
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                self.set_up(|queue| Half::High.write(&mut queue.available, value))
            }
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => self.set_up(|queue| Half::Low.write(&mut queue.used, value)),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => self.set_up(|queue| Half::High.write(&mut queue.used, value)),
            reg::VIRTIO_MMIO_QUEUE_READY => self.transport.set_queue_ready(self.queue, value & 1 == 1),
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.transport.notify(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::AcqRel);
            }
            reg::VIRTIO_MMIO_STATUS => {
                self.transport.set_status(value);
                if value == 0 {
                    // The device is quiet by now, so no interrupt of before can be raised any more.
                    self.interrupt.status.store(0, Ordering::Release);
                    (self.queue, self.offered_half, self.accepted_half) =
                        (0, Some(Half::Low), Some(Half::Low));
                }
            }
            _ => {}
        }
    }

    fn set_up(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        if let Some(setup) = self.transport.queue_setup(self.queue) {
            change(setup);
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (register(offset), <&mut [u8; 4]>::try_from(&mut *data)) {
            (Some(register), Ok(data)) => *data = self.read_register(register).to_le_bytes(),
            _ if offset >= CONFIG => self.transport.read_config(offset - CONFIG, data),
            _ => data.fill(0),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> AfterWrite {
        if let (Some(register), Ok(data)) = (register(offset), data.try_into()) {
            self.write_register(register, u32::from_le_bytes(data));
        }
        AfterWrite::Run
    }
}

/// The register at `offset`; `None` when that is inside one or behind them all.
fn register(offset: u64) -> Option<u32> {
    (offset < CONFIG && offset.is_multiple_of(4)).then(|| u32::try_from(offset).ok()).flatten()
}

/// Which half of the feature bits a selector means; there are no more than 64.
fn half(selector: u32) -> Option<Half> {
    match selector {
        0 => Some(Half::Low),
        1 => Some(Half::High),
        _ => None,
    }
}

#[derive(Debug)]
struct MmioInterrupt {
    status: AtomicU32,
    event: EventFd,
}

impl MmioInterrupt {
    fn raise(&self, cause: u32) {
        self.status.fetch_or(cause, Ordering::AcqRel);
        // Fails only when 2^64 - 1 edges have gathered: the next reader sees one anyway.
        let _ = self.event.write(1);
    }
}

impl Interrupt for Arc<MmioInterrupt> {
    fn used(&self, _queue: u16) {
        self.raise(reg::VIRTIO_MMIO_INT_VRING);
    }

    fn config_changed(&self) {
        self.raise(reg::VIRTIO_MMIO_INT_CONFIG);
    }
}
