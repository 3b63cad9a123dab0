//! A network card (virtio 1.2, section 5.1) with a host tap behind it: two queues, no control queue.
//!
//! Offered beside the rings' own features: CSUM (the driver may leave the checksum of a packet to the device), MAC,
//! and MTU, so that a guest behind a tap with another MTU than 1500 sends what fits. Buffers are not mergeable: each
//! frame lies in one chain.

pub mod header;
pub mod port;
mod sniff;
mod worker;

use std::net::Ipv4Addr;
use std::sync::Arc;

use netdump::wire::MacAddr;
use tracing::debug;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU};

use self::header::Checksums;
use self::port::{Counts, Port, Seen};
use self::worker::Worker;
use super::{ActivateError, Activation, VirtioDevice};
use crate::sys::tap::Tap;

/// Index of the queue whose buffers take frames for the driver.
pub const RX: u16 = 0;
/// Index of the queue whose buffers hold frames of the driver.
pub const TX: u16 = 1;
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// Length of configuration space up to the MTU field.
const CONFIG_LEN: usize = 12;

/// The network card.
///
/// The tap outlives it: a device made anew for a guest that was reset takes the same tap, so that a bridge never
/// loses the port.
#[derive(Debug)]
pub struct Net {
    tap: Arc<Tap>,
    mac: MacAddr,
    mtu: Option<u16>,
    seen: Arc<Seen>,
    worker: Option<Worker>,
}

impl Net {
    /// A card with address `mac`. Its MTU is what the tap's is now.
    pub fn new(tap: Arc<Tap>, mac: MacAddr) -> Self {
        let mtu = tap.interface().ok().flatten().and_then(|interface| u16::try_from(interface.mtu).ok());
        Self { tap, mac, mtu, seen: Arc::default(), worker: None }
    }

    /// The tap behind it.
    pub fn tap(&self) -> &Arc<Tap> {
        &self.tap
    }

    /// The card's address.
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// The IPv4 address that the guest last sent from: source of a packet, or sender in ARP.
    pub fn last_ipv4(&self) -> Option<Ipv4Addr> {
        self.seen.ipv4()
    }

    /// What became of the frames so far.
    pub fn counts(&self) -> Counts {
        self.seen.counts()
    }

    /// Stops moving frames: when this returns the device neither reads nor writes guest memory, nor the tap. Only
    /// the driver can start it again, by a reset.
    pub fn stop(&mut self) {
        self.worker = None;
    }

    /// The device as a driver has set it up, with the caller in the worker's place. A worker that runs is stopped.
    pub fn port(&mut self, activation: Activation) -> Port {
        self.stop();
        let Activation { memory, queues, features, notifier } = activation;
        let mut queues = queues.into_iter();
        let (rx, tx) = (queues.next().unwrap_or_default(), queues.next().unwrap_or_default());
        let by_device = features & 1 << VIRTIO_NET_F_CSUM != 0;
        let checksums = if by_device { Checksums::ByDevice } else { Checksums::ByDriver };
        Port::new(memory, rx, tx, Arc::clone(&self.tap), checksums, Arc::clone(&self.seen), notifier)
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        let [m0, m1, m2, m3, m4, m5] = self.mac.0;
        let [mtu0, mtu1] = self.mtu.unwrap_or(0).to_le_bytes();
        // mac, status, max_virtqueue_pairs, mtu
        [m0, m1, m2, m3, m4, m5, 0, 0, 0, 0, mtu0, mtu1]
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let mtu = if self.mtu.is_some() { 1 << VIRTIO_NET_F_MTU } else { 0 };
        1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_MAC | mtu
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let config = self.config();
        for (to, from) in data.iter_mut().zip(config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let port = self.port(activation);
        self.worker = Some(Worker::start(port)?);
        Ok(())
    }

    fn notify(&mut self, queue: u16) {
        if let Some(worker) = &self.worker {
            worker.notify(queue);
        }
    }

    fn reset(&mut self) {
        self.stop();
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.stop();
        let Counts { sent, received, dropped, malformed } = self.counts();
        debug!(tap = %self.tap.name(), sent, received, dropped, malformed, "network card gone");
    }
}
