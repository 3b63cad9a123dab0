//! Taking chains from a driver's queue, one after the other, with a bound on everything that the driver can stretch.

use thiserror::Error;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

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
    if queue.next_used() != used_before
        && queue.needs_notification(memory).map_err(|_| RingError::Available)?
    {
        notifier.used(index);
    }
    Ok(())
}
