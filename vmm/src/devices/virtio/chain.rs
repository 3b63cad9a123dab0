//! Descriptor chains as lists of guest memory slices, with a bound on everything that a driver can stretch.

use smallvec::SmallVec;
use thiserror::Error;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

use crate::memory::GuestMemory;

/// Most slices in one chain. A system call takes 1024 pieces, and a few are the device's own.
pub const MAX_SLICES: usize = 1000;

/// A chain's memory. The longest usual one, a train of 64 datagrams, needs no allocation.
pub type Slices<'m> = SmallVec<[VolatileSlice<'m>; 256]>;

/// Which way a chain's buffers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The driver has written them, the device reads.
    ToDevice,
    /// The device writes them.
    ToDriver,
}

/// What is wrong with a chain. The ring itself goes on: only this chain is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ChainError {
    /// It leads out of the descriptor table, into itself or through a bad indirect table.
    #[error("the descriptor chain does not end")]
    Endless,
    /// A buffer is of the other direction.
    #[error("a buffer is of the wrong direction")]
    WrongWay,
    /// A buffer is not in guest memory.
    #[error("a buffer is not in guest memory")]
    NoMemory,
    /// More buffers or bytes than the device takes.
    #[error("more buffers or bytes than the device takes")]
    TooLong,
}

/// Puts the chain's memory into `slices` (replacing what is there), empty buffers left out; how many bytes it is, at
/// most `limit`. All buffers must go the same way.
pub fn collect<'m>(
    chain: DescriptorChain<&'m GuestMemory>,
    memory: &'m GuestMemory,
    direction: Direction,
    limit: usize,
    slices: &mut Slices<'m>,
) -> Result<usize, ChainError> {
    slices.clear();
    let mut bytes = 0usize;
    let mut ended = false;
    for (count, descriptor) in chain.enumerate() {
        ended = !descriptor.has_next();
        if descriptor.is_write_only() != (direction == Direction::ToDriver) {
            return Err(ChainError::WrongWay);
        }
        let len = usize::try_from(descriptor.len()).map_err(|_| ChainError::TooLong)?;
        bytes = bytes.saturating_add(len);
        if bytes > limit || count >= MAX_SLICES {
            return Err(ChainError::TooLong);
        }
        for slice in memory.get_slices(descriptor.addr(), len) {
            slices.push(slice.map_err(|_| ChainError::NoMemory)?);
        }
    }
    match ended {
        _ if slices.len() > MAX_SLICES => Err(ChainError::TooLong),
        true => Ok(bytes),
        // The iterator stops without a word where a chain cannot go on.
        false => Err(ChainError::Endless),
    }
}
