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
    let mut other = Slices::new();
    let (to_device, to_driver) = match direction {
        Direction::ToDevice => (slices, &mut other),
        Direction::ToDriver => (&mut other, slices),
    };
    let (read, written) = collect_both(chain, memory, limit, to_device, to_driver)?;
    match direction {
        Direction::ToDevice if written == 0 && to_driver.is_empty() => Ok(read),
        Direction::ToDriver if read == 0 && to_device.is_empty() => Ok(written),
        _ => Err(ChainError::WrongWay),
    }
}

/// Puts the chain's memory into two lists (replacing what is there), empty buffers left out: what the driver has
/// written, and what the device may write, which comes behind (virtio 1.2, 2.7.4.2); how many bytes each is, together
/// at most `limit`.
pub fn collect_both<'m>(
    chain: DescriptorChain<&'m GuestMemory>,
    memory: &'m GuestMemory,
    limit: usize,
    to_device: &mut Slices<'m>,
    to_driver: &mut Slices<'m>,
) -> Result<(usize, usize), ChainError> {
    to_device.clear();
    to_driver.clear();
    let mut read = 0;
    let mut bytes = 0usize;
    let mut writes = false;
    let mut ended = false;
    for (count, descriptor) in chain.enumerate() {
        ended = !descriptor.has_next();
        if writes && !descriptor.is_write_only() {
            return Err(ChainError::WrongWay);
        }
        writes = descriptor.is_write_only();
        let len = usize::try_from(descriptor.len()).map_err(|_| ChainError::TooLong)?;
        bytes = bytes.saturating_add(len);
        if bytes > limit || count >= MAX_SLICES {
            return Err(ChainError::TooLong);
        }
        let slices = if writes { &mut *to_driver } else { &mut *to_device };
        for slice in memory.get_slices(descriptor.addr(), len) {
            slices.push(slice.map_err(|_| ChainError::NoMemory)?);
        }
        if !writes {
            read = bytes;
        }
    }
    match ended {
        _ if to_device.len().max(to_driver.len()) > MAX_SLICES => Err(ChainError::TooLong),
        true => Ok((read, bytes - read)),
        // The iterator stops without a word where a chain cannot go on.
        false => Err(ChainError::Endless),
    }
}

/// Copies the first bytes of `slices`; how many there were.
pub fn copy_from(slices: &[VolatileSlice<'_>], mut to: &mut [u8]) -> usize {
    let mut copied = 0;
    for slice in slices {
        let len = slice.copy_to(to);
        copied += len;
        to = to.split_at_mut(len).1;
        if to.is_empty() {
            break;
        }
    }
    copied
}

/// Copies `from` to the first bytes of `slices`, which are at least as long.
pub fn copy_to(mut from: &[u8], slices: &[VolatileSlice<'_>]) {
    for slice in slices {
        let (now, later) = from.split_at(slice.len().min(from.len()));
        slice.copy_from(now);
        from = later;
        if from.is_empty() {
            break;
        }
    }
}

/// What of `slices` lies behind their first `skip` bytes.
pub fn behind<'m>(skip: usize, slices: &[VolatileSlice<'m>]) -> impl Iterator<Item = VolatileSlice<'m>> {
    part(slices, skip, usize::MAX)
}

/// The `len` bytes, or as many as there are, that follow the first `skip` bytes of `slices`.
pub fn part<'m>(
    slices: &[VolatileSlice<'m>],
    mut skip: usize,
    mut len: usize,
) -> impl Iterator<Item = VolatileSlice<'m>> {
    slices.iter().filter_map(move |slice| {
        let rest = slice.offset(skip.min(slice.len())).ok()?;
        skip = skip.saturating_sub(slice.len());
        let wanted = rest.subslice(0, rest.len().min(len)).ok()?;
        len -= wanted.len();
        (!wanted.is_empty()).then_some(wanted)
    })
}
