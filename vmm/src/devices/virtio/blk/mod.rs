//! A disk (virtio 1.2, section 5.2): one queue, served by a thread of its own, so that neither vCPUs nor the event loop
//! wait for the host's storage.
//!
//! Writes may be cached by the host until the driver flushes; a driver that does not know of flushing gets every write
//! on stable storage before it ends. Discarded ranges become holes of the file.

mod disk;
mod file;
mod overlay;
mod request;
mod spec;

use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

pub use self::disk::{Disk, DiskError, SECTOR};
use self::request::{Executor, ID_LEN, MOST_RANGES, MOST_SECTORS};
pub use self::spec::{Access, DiskSpec, ParseDiskError};
use super::server::{QueueServer, Served};
use super::{ActivateError, Activation, VirtioDevice};

/// Entries of the queue.
const QUEUE_SIZE: u16 = 256;
/// Most buffers of data in a request: header and status take one each.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The disk likes accesses of 2^3 sectors: those are the host's pages and its file systems' blocks.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;
/// Length of configuration space up to the write-zeroes fields.
const CONFIG_LEN: usize = 60;

/// The device. The disk outlives it: a device made anew for a guest that was reset takes the same one.
#[derive(Debug)]
pub struct Blk {
    disk: Arc<Disk>,
    id: [u8; ID_LEN],
    server: Option<QueueServer>,
}

impl Blk {
    /// A device with `disk` behind it, that a guest may tell by its number.
    pub fn new(disk: Arc<Disk>, number: usize) -> Self {
        let mut id = [0; ID_LEN];
        id.iter_mut().zip(format!("vmm-disk-{number}").bytes()).for_each(|(to, from)| *to = from);
        Self { disk, id, server: None }
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let sectors = |sectors: u64| u32::try_from(sectors).expect("a few");
        put(0, &(self.disk.length() / SECTOR).to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &sectors(SECTOR).to_le_bytes());
        // Topology: the block, and the shortest access that is quick (u16, in sectors).
        put(24, &[PHYSICAL_BLOCK_EXPONENT, 0, 1 << PHYSICAL_BLOCK_EXPONENT, 0]);
        // Discard: most sectors, most ranges, alignment.
        put(36, &MOST_SECTORS.to_le_bytes());
        put(40, &MOST_RANGES.to_le_bytes());
        put(44, &(1u32 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
        // Write zeroes: most sectors, most ranges, and it may give space back.
        put(48, &MOST_SECTORS.to_le_bytes());
        put(52, &MOST_RANGES.to_le_bytes());
        put(56, &[1]);
        config
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always = [VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_FLUSH];
        let own: &[u32] = match self.disk.access() {
            Access::Full | Access::Overlay => &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES],
            Access::ReadOnly => &[VIRTIO_BLK_F_RO],
        };
        always.iter().chain(own).fold(0, |all, bit| all | 1 << bit)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        data.iter_mut().zip(self.config().iter().skip(offset)).for_each(|(to, from)| *to = *from);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, features, notifier } = activation;
        let queue = queues.into_iter().next().unwrap_or_default();
        let executor = Executor {
            disk: Arc::clone(&self.disk),
            id: self.id,
            write_through: features & 1 << VIRTIO_BLK_F_FLUSH == 0,
            warned: false,
        };
        let served = Served { memory, queue, index: 0, notifier };
        self.server = Some(QueueServer::start("virtio-blk", served, executor)?);
        Ok(())
    }

    fn notify(&mut self, _queue: u16) {
        if let Some(server) = &self.server {
            server.wake();
        }
    }

    fn reset(&mut self) {
        self.server = None;
    }
}

#[cfg(test)]
mod tests;
