//! Virtio 1.2 (OASIS, split rings only): devices, and the transports by which a guest's driver reaches them.
//!
//! A device ([`VirtioDevice`]) knows its features, its configuration space and its queues, and nothing of registers.
//! A transport ([`mmio`]) decodes registers and leaves negotiation, status and queue set-up to [`transport`], which
//! is the same for all of them. All fields in memory and registers are little-endian.

pub mod blk;
pub mod chain;
#[cfg(test)]
pub(crate) mod contract;
pub mod driver;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod rings;
pub mod rng;
mod server;
pub mod transport;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;

/// Features of the rings themselves: `virtio-queue` provides them to every device.
pub const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A device, whatever the transport that a driver finds it by.
pub trait VirtioDevice: Send + fmt::Debug {
    /// What kind of device it is (virtio 1.2, section 5: 1 is a network card).
    fn device_type(&self) -> u32;

    /// The feature bits of this kind that it offers, without those of the rings.
    fn features(&self) -> u64;

    /// Most entries of each queue, powers of two. The count of queues is the length.
    fn queue_sizes(&self) -> &'static [u16];

    /// Fills `data` with configuration space from `offset` on. It comes zeroed, and what lies beyond the end stays so.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Starts serving the queues; the driver has set DRIVER_OK. From here to [`reset`](Self::reset) the device may
    /// use guest memory at any time.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver has put buffers into that queue. Called between activation and reset only.
    fn notify(&mut self, queue: u16);

    /// Takes over the eventfd by which a queue's notifications are to come, as KVM writes it without a return to the VMM;
    /// whether it does. Where it does not, and where KVM has no room for it, [`notify`](Self::notify) is called.
    fn take_doorbell(&mut self, _queue: u16, _bell: &Arc<EventFd>) -> bool {
        false
    }

    /// Stops serving: when this returns the device does not touch guest memory any more.
    fn reset(&mut self);
}

/// The virtio devices of a machine.
#[derive(Debug, Clone, Default)]
pub struct VirtioDevices(Vec<Arc<Mutex<dyn VirtioDevice>>>);

impl VirtioDevices {
    /// One more.
    pub fn push(&mut self, device: Arc<Mutex<dyn VirtioDevice>>) {
        self.0.push(device);
    }

    /// Stops all of them: when this returns none touches guest memory any more, nor what is behind it on the host. Only
    /// a driver can start them again.
    pub fn stop(&self) {
        for device in &self.0 {
            device.lock().unwrap_or_else(PoisonError::into_inner).reset();
        }
    }
}

/// What a device is given to serve a driver.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory as the driver's addresses mean it.
    pub memory: GuestMemory,
    /// One for each of [`VirtioDevice::queue_sizes`]. Those that are not ready the driver does not use.
    pub queues: Vec<Queue>,
    /// The feature bits that both sides agreed on.
    pub features: u64,
    /// How to reach the driver.
    pub notifier: Arc<Notifier>,
}

/// Why a device could not be started.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// No thread to serve the queues.
    #[error("starting a thread for the device's queues")]
    Thread(#[source] io::Error),
    /// No eventfd to wake that thread.
    #[error("creating an eventfd for the device's queues")]
    EventFd(#[source] io::Error),
}

/// How a transport interrupts its driver.
pub trait Interrupt: Send + Sync + fmt::Debug {
    /// The device has used buffers of a queue.
    fn used(&self, queue: u16);

    /// Configuration or status has changed.
    fn config_changed(&self);
}

/// What a device tells its driver unasked.
#[derive(Debug)]
pub struct Notifier {
    interrupt: Arc<dyn Interrupt>,
    needs_reset: AtomicBool,
}

impl Notifier {
    /// A notifier that reaches the driver by `interrupt`.
    pub fn new(interrupt: Arc<dyn Interrupt>) -> Self {
        Self { interrupt, needs_reset: AtomicBool::new(false) }
    }

    /// The device has used buffers of a queue, and the driver wants to know.
    pub fn used(&self, queue: u16) {
        self.interrupt.used(queue);
    }

    /// The driver's rings make no sense: nothing works until it resets the device (DEVICE_NEEDS_RESET).
    pub fn give_up(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.interrupt.config_changed();
    }

    fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    fn clear(&self) {
        self.needs_reset.store(false, Ordering::Release);
    }
}
