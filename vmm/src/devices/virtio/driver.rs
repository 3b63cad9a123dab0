//! The driver's side of a split ring (virtio 1.2, section 2.7), for whoever stands in for a guest's driver.
//!
//! The ring lies in guest memory that the caller owns. Only what the device wrote is doubted: it says which chain it
//! has used, and a number that no chain has is skipped.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use crate::memory::GuestMemory;

const IN_RING: &str = "the ring lies in memory that the caller owns";

/// Bytes that a ring of `size` entries takes, a multiple of 16.
pub const fn ring_len(size: u16) -> u64 {
    used_offset(size).next_multiple_of(16) + (6 + 8 * size as u64).next_multiple_of(16)
}

/// Behind the descriptors and the available ring: flags, index, entries, event word.
const fn used_offset(size: u16) -> u64 {
    (16 * size as u64 + 6 + 2 * size as u64).next_multiple_of(16)
}

/// One buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    /// The device reads that many bytes at that guest-physical address.
    Read(u64, u32),
    /// The device writes there.
    Write(u64, u32),
}

/// A ring as its driver keeps it.
#[derive(Debug)]
pub struct DriverRing {
    memory: GuestMemory,
    base: GuestAddress,
    size: u16,
    published: u16,
    reclaimed: u16,
}

impl DriverRing {
    /// A ring of `size` entries, a power of two, in the [`ring_len`] bytes of `memory` at `base`, which are zero and
    /// aligned to 16.
    pub fn new(memory: GuestMemory, base: GuestAddress, size: u16) -> Self {
        Self { memory, base, size, published: 0, reclaimed: 0 }
    }

    /// The ring as a transport would hand it to the device.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).expect("the size is a power of two");
        queue.try_set_desc_table_address(self.base).expect("the ring is aligned");
        queue.try_set_avail_ring_address(self.available()).expect("the ring is aligned");
        queue.try_set_used_ring_address(self.used()).expect("the ring is aligned");
        queue.set_ready(true);
        queue
    }

    /// Writes a chain of buffers into consecutive descriptors from `head` on; all of them are the caller's to give.
    pub fn describe(&self, head: u16, chain: &[Buffer]) {
        let table = self.memory.get_slice(self.base, 16 * usize::from(self.size)).expect(IN_RING);
        let mut buffers = chain.iter().peekable();
        let mut index = head;
        while let Some(buffer) = buffers.next() {
            let (address, len, way) = match *buffer {
                Buffer::Read(address, len) => (address, len, 0),
                Buffer::Write(address, len) => (address, len, VRING_DESC_F_WRITE),
            };
            let next = if buffers.peek().is_some() { VRING_DESC_F_NEXT } else { 0 };
            let flags = u16::try_from(way | next).expect("flags are the lowest bits");
            let descriptor = Descriptor::new(address, len, flags, index.wrapping_add(1));
            table.write_obj(descriptor, 16 * usize::from(index % self.size)).expect(IN_RING);
            index = index.wrapping_add(1);
        }
    }

    /// Gives the chain that starts at `head` to the device.
    pub fn publish(&mut self, head: u16) {
        let entry = self.available().unchecked_add(4 + 2 * u64::from(self.published % self.size));
        self.memory.write_obj(head.to_le(), entry).expect(IN_RING);
        self.published = self.published.wrapping_add(1);
        let index = self.available().unchecked_add(2);
        self.memory.store(self.published.to_le(), index, Ordering::Release).expect(IN_RING);
    }

    /// Takes back a chain that the device has used: its head, and how many bytes the device wrote.
    pub fn reclaim(&mut self) -> Option<(u16, u32)> {
        let index = self.used().unchecked_add(2);
        let used = u16::from_le(self.memory.load(index, Ordering::Acquire).expect(IN_RING));
        while self.reclaimed != used {
            let entry = self.used().unchecked_add(4 + 8 * u64::from(self.reclaimed % self.size));
            let [head, len] = self.memory.read_obj::<[u32; 2]>(entry).expect(IN_RING).map(u32::from_le);
            self.reclaimed = self.reclaimed.wrapping_add(1);
            if let Ok(head) = u16::try_from(head)
                && head < self.size
            {
                return Some((head, len));
            }
        }
        None
    }

    fn available(&self) -> GuestAddress {
        self.base.unchecked_add(16 * u64::from(self.size))
    }

    fn used(&self) -> GuestAddress {
        self.base.unchecked_add(used_offset(self.size))
    }
}
