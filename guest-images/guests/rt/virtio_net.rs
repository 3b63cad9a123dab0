//! A driver for virtio-net (virtio 1.2, section 5.1): one receive and one transmit queue, polled.

use crate::time;
use crate::virtio::{BUFFER_SIZE, Descriptor, Device, Kind, QUEUE_SIZE, Rings, WRITE, buffer};

/// Queue of received frames.
pub const RECEIVE: usize = 0;
/// Queue of frames to send.
pub const TRANSMIT: usize = 1;

/// `struct virtio_net_hdr_v1`: all zero in a plain frame, but for num_buffers that the device sets.
pub const HEADER: usize = 12;
/// An Ethernet frame without its checksum has at least so many bytes.
const SHORTEST_FRAME: usize = 60;
/// VIRTIO_NET_F_MAC.
const FEATURE_MAC: u32 = 1 << 5;

/// The device, running.
pub struct VirtioNet {
    /// What it is beneath.
    pub device: Device,
    mac: [u8; 6],
    received: u16,
}

impl VirtioNet {
    /// Starts the first network card, with all receive buffers. `None` when there is none.
    pub fn start() -> Option<Self> {
        let device = Device::start(Kind::Network, 2, FEATURE_MAC)?;
        let mac = core::array::from_fn(|place| device.config(place as u64));
        let mut net = Self { device, mac, received: 0 };
        net.post_buffers();
        Some(net)
    }

    /// Resets the device and starts it anew. Says whether it agrees.
    pub fn restart(&mut self) -> bool {
        let started = self.device.restart(|queue| self.device.rings(queue).address());
        self.post_buffers();
        started
    }

    fn post_buffers(&mut self) {
        self.received = 0;
        (0..QUEUE_SIZE).for_each(|index| self.post_buffer(index));
        self.device.notify(RECEIVE);
    }

    /// The device's own address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The rings of a queue.
    pub fn rings(&self, queue: usize) -> &'static Rings {
        self.device.rings(queue)
    }

    /// Sends a frame, padded to the shortest that Ethernet allows; waits until the device has taken it, at most a
    /// second. Says whether it has.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        let rings = self.rings(TRANSMIT);
        let index = rings.offered() % QUEUE_SIZE;
        let address = buffer(TRANSMIT, index);
        let length = frame.len().max(SHORTEST_FRAME);
        // SAFETY: the driver's own buffer, which the device has returned: every frame is waited for.
        let bytes = unsafe { core::slice::from_raw_parts_mut(address as *mut u8, HEADER + length) };
        bytes.fill(0);
        bytes[HEADER..HEADER + frame.len()].copy_from_slice(frame);
        rings.describe(index, Descriptor { address, length: bytes.len() as u32, flags: 0, next: 0 });
        rings.offer(index);
        self.device.notify(TRANSMIT);
        let taken = time::within(1000, || rings.returned() == rings.offered());
        self.device.acknowledge();
        taken
    }

    /// The next received frame, handed to `take`; its buffer is then given back. `None` when none comes within
    /// `patience` milliseconds.
    pub fn receive<T>(&mut self, patience: u64, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let rings = self.rings(RECEIVE);
        if !time::within(patience, || rings.returned() != self.received) {
            return None;
        }
        self.device.acknowledge();
        let (index, length) = rings.returned_at(self.received);
        self.received = self.received.wrapping_add(1);
        let length = length.clamp(HEADER as u32, BUFFER_SIZE) as usize;
        // SAFETY: the driver's own buffer, which the device has returned.
        let bytes = unsafe { core::slice::from_raw_parts(buffer(RECEIVE, index) as *const u8, length) };
        let result = take(&bytes[HEADER..]);
        self.post_buffer(index);
        self.device.notify(RECEIVE);
        Some(result)
    }

    fn post_buffer(&self, index: u16) {
        let address = buffer(RECEIVE, index);
        let rings = self.rings(RECEIVE);
        rings.describe(index, Descriptor { address, length: BUFFER_SIZE, flags: WRITE, next: 0 });
        rings.offer(index);
    }
}
