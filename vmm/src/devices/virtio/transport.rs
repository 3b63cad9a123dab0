//! What every virtio transport does for its device: feature negotiation, the status machine, queue set-up and reset
//! (virtio 1.2, sections 2.1, 2.2 and 3.1). Registers are the business of the transport's own file.
//!
//! The driver is hostile: it may write anything in any order. What is out of order is ignored; queues outside guest
//! memory are never handed to the device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{Activation, Notifier, RING_FEATURES, VirtioDevice};
use crate::memory::GuestMemory;

/// The bits of the status field that a driver sets.
const DRIVER_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED;

/// Where a driver wants a queue to be, as it was written.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueSetup {
    /// Number of entries.
    pub size: u32,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}

/// Two halves of a 64-bit field that is written as two registers.
#[derive(Debug, Clone, Copy)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

impl Half {
    /// Replaces this half of `field`.
    pub fn write(self, field: &mut u64, value: u32) {
        *field = match self {
            Self::Low => *field >> 32 << 32 | u64::from(value),
            Self::High => *field << 32 >> 32 | u64::from(value) << 32,
        };
    }

    /// This half of `field`.
    pub fn read(self, field: u64) -> u32 {
        let [a, b, c, d, e, f, g, h] = field.to_le_bytes();
        match self {
            Self::Low => u32::from_le_bytes([a, b, c, d]),
            Self::High => u32::from_le_bytes([e, f, g, h]),
        }
    }
}

#[derive(Debug)]
struct QueueSlot {
    max: u16,
    setup: QueueSetup,
    ready: bool,
}

/// One device and how far its driver has come.
#[derive(Debug)]
pub struct Transport {
    device: Arc<Mutex<dyn VirtioDevice>>,
    memory: GuestMemory,
    notifier: Arc<Notifier>,
    device_type: u32,
    offered: u64,
    accepted: u64,
    status: u32,
    queues: Vec<QueueSlot>,
    /// A driver can make a failing device start in a loop: the operator hears of it once.
    warned: bool,
}

impl Transport {
    /// A transport whose driver has not been seen yet.
    pub fn new(device: Arc<Mutex<dyn VirtioDevice>>, memory: GuestMemory, notifier: Arc<Notifier>) -> Self {
        let (device_type, offered, queues) = {
            let device = lock(&device);
            let slot = |&max: &u16| QueueSlot { max, setup: QueueSetup::default(), ready: false };
            let queues = device.queue_sizes().iter().map(slot).collect();
            (device.device_type(), device.features() | RING_FEATURES, queues)
        };
        Self { device, memory, notifier, device_type, offered, accepted: 0, status: 0, queues, warned: false }
    }

    /// The kind of device.
    pub fn device_type(&self) -> u32 {
        self.device_type
    }

    /// All feature bits that the driver may accept.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Takes half of the feature bits that the driver accepts. Once it has set FEATURES_OK they are settled, and at the
    /// latest when the device runs.
    pub fn accept(&mut self, half: Half, value: u32) {
        if self.status & (VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK) == 0 {
            half.write(&mut self.accepted, value);
        }
    }

    /// The status field.
    pub fn status(&self) -> u32 {
        let needs_reset = if self.notifier.needs_reset() { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 };
        self.status | needs_reset
    }

    /// Takes a write to the status field: zero resets, anything else sets bits as far as it is their turn.
    ///
    /// FEATURES_OK and DRIVER_OK stay clear until the driver has introduced itself, and when it accepted what was not
    /// offered or would not speak virtio 1. A driver may leave FEATURES_OK out, as FreeBSD's `virtio_mmio` does (seen in
    /// 14.0-CURRENT of July 2022: ACKNOWLEDGE, DRIVER, features with VERSION_1, queues, DRIVER_OK): it only asks whether
    /// the device agrees, and a device that does has nothing to hold against a driver that does not ask.
    pub fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let was = self.status;
        let mut now = was | value & DRIVER_BITS;
        let greeted = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
        let agreed = self.accepted & !self.offered == 0 && self.accepted & 1 << VIRTIO_F_VERSION_1 != 0;
        let may_run = now & greeted == greeted && agreed;
        if !may_run {
            now &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if !may_run || now & VIRTIO_CONFIG_S_FAILED != 0 {
            now &= !VIRTIO_CONFIG_S_DRIVER_OK | was;
        }
        self.status = now;
        if now & !was & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.activate();
        }
    }

    /// Most entries of a queue; `None` when the device has no such queue.
    pub fn queue_max(&self, queue: u32) -> Option<u16> {
        Some(self.slot(queue)?.max)
    }

    /// Whether a queue has been taken into use.
    pub fn queue_ready(&self, queue: u32) -> bool {
        self.slot(queue).is_some_and(|slot| slot.ready)
    }

    /// The feature bits that the driver accepts so far.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// A queue's set-up, to be looked at.
    pub fn queue(&self, queue: u32) -> Option<&QueueSetup> {
        self.slot(queue).map(|slot| &slot.setup)
    }

    /// A queue's set-up, as long as the driver may change it: not once it is ready or the device is running.
    pub fn queue_setup(&mut self, queue: u32) -> Option<&mut QueueSetup> {
        if self.running() {
            return None;
        }
        let slot = self.queues.get_mut(usize::try_from(queue).ok()?)?;
        (!slot.ready).then_some(&mut slot.setup)
    }

    /// Takes a queue into use, or out of it, before the device runs. A queue that cannot be where the driver put it
    /// stays out of use, and the device asks for a reset.
    pub fn set_queue_ready(&mut self, queue: u32, ready: bool) {
        if self.running() {
            return;
        }
        let Some(slot) = self.slot(queue) else { return };
        let possible = place(slot, &self.memory).is_some();
        if ready && !possible {
            self.notifier.give_up();
        }
        if let Some(slot) = usize::try_from(queue).ok().and_then(|queue| self.queues.get_mut(queue)) {
            slot.ready = ready && possible;
        }
    }

    /// The driver has put buffers into a queue.
    pub fn notify(&mut self, queue: u32) {
        if let Ok(queue) = u16::try_from(queue)
            && self.running()
            && self.queue_ready(queue.into())
        {
            lock(&self.device).notify(queue);
        }
    }

    /// Fills `data` from the device's configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        lock(&self.device).read_config(offset, data);
    }

    fn running(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0
    }

    fn slot(&self, queue: u32) -> Option<&QueueSlot> {
        self.queues.get(usize::try_from(queue).ok()?)
    }

    fn activate(&mut self) {
        let event_idx = self.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let queues = self.queues.iter().map(|slot| {
            let mut queue = slot.ready.then(|| place(slot, &self.memory)).flatten().unwrap_or_default();
            queue.set_event_idx(event_idx);
            queue
        });
        let activation = Activation {
            memory: self.memory.clone(),
            queues: queues.collect(),
            features: self.accepted,
            notifier: Arc::clone(&self.notifier),
        };
        let started = lock(&self.device).activate(activation);
        if let Err(error) = started {
            if !std::mem::replace(&mut self.warned, true) {
                let error = &error as &dyn std::error::Error;
                warn!(error, device_type = self.device_type, "a virtio device cannot start");
            }
            self.notifier.give_up();
        }
    }

    fn reset(&mut self) {
        lock(&self.device).reset();
        self.notifier.clear();
        self.status = 0;
        self.accepted = 0;
        for slot in &mut self.queues {
            slot.setup = QueueSetup::default();
            slot.ready = false;
        }
    }
}

/// The queue as it was set up, if it is possible: a size that was offered, addresses aligned and inside memory.
///
/// Checked here and not by [`QueueT::is_valid`], which logs each refusal as an error of ours.
fn place(slot: &QueueSlot, memory: &GuestMemory) -> Option<Queue> {
    let QueueSetup { size, descriptors, available, used } = slot.setup;
    let mut queue = Queue::new(slot.max).ok()?;
    queue.try_set_size(size.try_into().ok()?).ok()?;
    queue.try_set_desc_table_address(GuestAddress(descriptors)).ok()?;
    queue.try_set_avail_ring_address(GuestAddress(available)).ok()?;
    queue.try_set_used_ring_address(GuestAddress(used)).ok()?;
    queue.set_ready(true);
    let size = usize::from(queue.size());
    // Flags, index and event word of the rings have 2 bytes each (virtio 1.2, 2.7).
    let areas = [(descriptors, 16 * size), (available, 6 + 2 * size), (used, 6 + 8 * size)];
    let inside = areas.iter().all(|&(base, len)| memory.check_range(GuestAddress(base), len));
    // An available ring at address 0 is none to `virtio-queue`.
    (inside && available != 0).then_some(queue)
}

fn lock(device: &Mutex<dyn VirtioDevice>) -> MutexGuard<'_, dyn VirtioDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
