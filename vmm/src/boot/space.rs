//! Guest memory behind the kernel, filled from the bottom up with what the kernel is handed.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{BootError, KernelImage};
use crate::memory::GuestMemory;

/// FreeBSD's first page tables map this much of physical memory, and no more.
const MAPPED: u64 = 1 << 30;
/// Page size.
pub(super) const PAGE: u64 = 0x1000;

/// Where low RAM ends.
pub(super) fn low_ram_end(memory: &GuestMemory) -> u64 {
    memory.iter().next().map_or(0, |region| region.start_addr().0 + region.len())
}

/// The memory that is still free, from `next` on.
#[derive(Debug)]
pub(super) struct Space<'a> {
    memory: &'a GuestMemory,
    image: &'a KernelImage,
    next: u64,
}

impl<'a> Space<'a> {
    /// All of low memory from `start` on. `image` is for messages.
    pub(super) fn new(memory: &'a GuestMemory, image: &'a KernelImage, start: u64) -> Self {
        Self { memory, image, next: start }
    }

    /// Leaves room up to a multiple of `to`, a power of two; returns where that is.
    pub(super) fn align(&mut self, to: u64) -> Result<u64, BootError> {
        self.skip(self.next.wrapping_neg() & (to - 1))?;
        Ok(self.next)
    }

    /// Writes bytes; returns where they begin.
    pub(super) fn put(&mut self, what: &'static str, bytes: &[u8]) -> Result<u64, BootError> {
        let at = self.skip(bytes.len() as u64)?;
        self.write(at, what, bytes)?;
        Ok(at)
    }

    /// Keeps room for so many bytes, which are zero; returns where they begin.
    pub(super) fn skip(&mut self, len: u64) -> Result<u64, BootError> {
        let at = self.next;
        self.next = self.check(at.saturating_add(len))?;
        Ok(at)
    }

    /// Writes where there is room already.
    pub(super) fn write(&self, at: u64, what: &'static str, bytes: &[u8]) -> Result<(), BootError> {
        self.memory.write_slice(bytes, GuestAddress(at)).map_err(|source| BootError::Write { what, source })
    }

    /// That memory reaches to `end`.
    fn check(&self, end: u64) -> Result<u64, BootError> {
        let image = || self.image.path().display().to_string();
        let available = low_ram_end(self.memory);
        if end > MAPPED {
            return Err(BootError::BeyondMap { image: image(), system: "FreeBSD", needed: end });
        }
        if end > available {
            return Err(BootError::TooLarge { image: image(), needed: end, available });
        }
        Ok(end)
    }
}
