//! Taking chains from a driver's queue, one after the other, with a bound on everything that the driver can stretch.

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::Notifier;
use crate::memory::GuestMemory;

/// Most chains handled in one go, so that neither other work, nor a request to stop, waits for long.
pub const BURST: usize = 256;

/// The rings themselves are impossible; the device cannot go on until its driver resets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RingError {
    /// The available ring claims more chains than it has room for, or the ring is not in guest memory.
    #[error("the available ring makes no sense")]
    Available,
    /// A chain starts outside the descriptor table.
    #[error("a chain starts at descriptor {head}, of {size}")]
    Head {
        /// Where it starts.
        head: u16,
        /// Number of descriptors.
        size: u16,
    },
    /// The used ring is not in guest memory.
    #[error("the used ring cannot be written")]
    Used,
}

/// What to do with a chain after a look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<S> {
    /// Give it back to the driver with that many bytes written.
    Use(u32),
    /// Keep it: the next look is at the same one.
    Keep,
    /// Keep it and stop.
    Stop(S),
}

/// Why [`walk`] came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk<S> {
    /// The driver has no more chains there; it will notify when it has.
    Empty,
    /// There are more, but others want their turn.
    Turn,
    /// The caller had it stop.
    Stopped(S),
}

/// Takes chains from a queue, at most [`BURST`], and tells the driver if it wants to know.
///
/// The driver need not notify while chains are being taken; it must once the queue was seen empty.
pub fn walk<'m, S>(
    queue: &mut Queue,
    index: u16,
    memory: &'m GuestMemory,
    notifier: &Notifier,
    mut step: impl FnMut(DescriptorChain<&'m GuestMemory>) -> Step<S>,
) -> Result<Walk<S>, RingError> {
    if !queue.ready() {
        return Ok(Walk::Empty);
    }
    let used_before = queue.next_used();
    let mut end = Walk::Turn;
    queue.disable_notification(memory).map_err(|_| RingError::Used)?;
    for _ in 0..BURST {
        let at = queue.next_avail();
        let Some(chain) = next_chain(queue, memory)? else {
            if queue.enable_notification(memory).map_err(|_| RingError::Used)? {
                continue;
            }
            end = Walk::Empty;
            break;
        };
        let head = chain.head_index();
        match step(chain) {
            Step::Use(len) => queue.add_used(memory, head, len).map_err(|_| RingError::Used)?,
            Step::Keep => queue.set_next_avail(at),
            Step::Stop(why) => {
                queue.set_next_avail(at);
                end = Walk::Stopped(why);
                break;
            }
        }
    }
    tell(queue, index, used_before, memory, notifier)?;
    Ok(end)
}

/// The next chain that the driver has made available, taken from the queue; `None` when there is none.
pub fn next_chain<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemory,
) -> Result<Option<DescriptorChain<&'m GuestMemory>>, RingError> {
    let Some(chain) = queue.iter(memory).map_err(|_| RingError::Available)?.next() else { return Ok(None) };
    let head = chain.head_index();
    if head < queue.size() { Ok(Some(chain)) } else { Err(RingError::Head { head, size: queue.size() }) }
}

/// Interrupts the driver if chains were used since `used_before` and it wants to know.
pub fn tell(
    queue: &mut Queue,
    index: u16,
    used_before: u16,
    memory: &GuestMemory,
    notifier: &Notifier,
) -> Result<(), RingError> {
    if queue.next_used() != used_before && wants_to_know(queue, used_before, memory)? {
        notifier.used(index);
    }
    Ok(())
}

/// Whether one of the chains used since `used_before` is the one that the driver waits for (virtio 1.2, 2.7.10).
///
/// Not [`QueueT::needs_notification`]: that counts by itself, and does not count what [`use_together`] does.
fn wants_to_know(queue: &Queue, used_before: u16, memory: &GuestMemory) -> Result<bool, RingError> {
    if !queue.event_idx_enabled() {
        return Ok(true);
    }
    // The used index must be out before the event is read: the driver looks at them the other way round.
    fence(Ordering::SeqCst);
    let place = GuestAddress(queue.avail_ring())
        .checked_add(4 + 2 * u64::from(queue.size()))
        .ok_or(RingError::Available)?;
    let event = memory.load::<u16>(place, Ordering::Relaxed).map_err(|_| RingError::Available)?;
    let now = queue.next_used();
    Ok(now.wrapping_sub(u16::from_le(event)).wrapping_sub(1) < now.wrapping_sub(used_before))
}

/// Gives chains back to the driver, heads and bytes written, so that it sees all of them or none.
pub fn use_together(queue: &mut Queue, memory: &GuestMemory, chains: &[(u16, u32)]) -> Result<(), RingError> {
    let Some((&(last, last_len), others)) = chains.split_last() else { return Ok(()) };
    for &(head, len) in others {
        let entry = 4 + 8 * u64::from(queue.next_used() % queue.size());
        let place = GuestAddress(queue.used_ring()).checked_add(entry).ok_or(RingError::Used)?;
        let entry = [u32::from(head).to_le(), len.to_le()];
        memory.write_obj(entry, place).map_err(|_| RingError::Used)?;
        queue.set_next_used(queue.next_used().wrapping_add(1));
    }
    // This one tells the driver.
    queue.add_used(memory, last, last_len).map_err(|_| RingError::Used)
}
