//! Frames between the rings of a virtio-net device and its tap, both ways, without a copy.
//!
//! Whoever owns the [`Port`] moves the frames: the device's worker thread while the guest runs, the dumper while it
//! stands in for the guest's driver. Nothing here waits.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use thiserror::Error;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::VolatileSlice;

use super::header::{self, Checksums, NetHeader};
use super::sniff::{SNIFFED, source_address};
use super::{RX, TX};
use crate::devices::virtio::Notifier;
use crate::devices::virtio::chain::{Direction, collect};
use crate::memory::GuestMemory;
use crate::sys::iovec::{Source, Target};
use crate::sys::tap::{Tap, VNET_HEADER_LEN};

/// Shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;
/// Longest frame: an Ethernet header, a VLAN tag and the longest IP packet.
const MAX_FRAME: usize = 14 + 4 + 65_535;
/// Most chains handled in one go, so that neither direction, nor a request to stop, waits for long.
const BURST: usize = 256;

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

/// Why [`Port::transmit`] or [`Port::receive`] came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// The driver has no more buffers there; it will notify when it has.
    NoBuffers,
    /// No more frames in the tap.
    NoFrames,
    /// There is more to do, but others want their turn.
    Turn,
    /// The tap gives no frames any more: it was removed.
    TapGone,
}

/// What became of frames since the device was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent by the driver and taken by the tap.
    pub sent: u64,
    /// Given to the driver.
    pub received: u64,
    /// Refused by the tap, or too long for the driver's buffer.
    pub dropped: u64,
    /// Chains that hold no frame, or no room for one.
    pub malformed: u64,
}

/// What is known of the frames that passed, for others to look at meanwhile.
#[derive(Debug, Default)]
pub(super) struct Seen {
    sent: AtomicU64,
    received: AtomicU64,
    dropped: AtomicU64,
    malformed: AtomicU64,
    /// The address that the guest last sent from; zero when there was none.
    ipv4: AtomicU32,
}

impl Seen {
    pub(super) fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            sent: load(&self.sent),
            received: load(&self.received),
            dropped: load(&self.dropped),
            malformed: load(&self.malformed),
        }
    }

    pub(super) fn ipv4(&self) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from_bits(self.ipv4.load(Ordering::Relaxed));
        (!address.is_unspecified()).then_some(address)
    }
}

/// The rings and the tap.
#[derive(Debug)]
pub struct Port {
    memory: GuestMemory,
    rx: Queue,
    tx: Queue,
    wire: Wire,
    notifier: Arc<Notifier>,
}

/// The side of the port that is not rings.
#[derive(Debug)]
struct Wire {
    tap: Arc<Tap>,
    checksums: Checksums,
    seen: Arc<Seen>,
}

impl Port {
    pub(super) fn new(
        memory: GuestMemory,
        rx: Queue,
        tx: Queue,
        tap: Arc<Tap>,
        checksums: Checksums,
        seen: Arc<Seen>,
        notifier: Arc<Notifier>,
    ) -> Self {
        Self { memory, rx, tx, wire: Wire { tap, checksums, seen }, notifier }
    }

    /// The tap at the far side.
    pub fn tap(&self) -> &Arc<Tap> {
        &self.wire.tap
    }

    pub(super) fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Sends what the driver has queued. Chains that hold no proper frame are used up and counted.
    pub fn transmit(&mut self) -> Result<Pause, RingError> {
        let Self { memory, tx, wire, notifier, .. } = self;
        let mut slices = Vec::new();
        walk(tx, TX, memory, notifier, |chain| {
            match collect(chain, memory, Direction::ToDevice, VNET_HEADER_LEN + MAX_FRAME, &mut slices) {
                Ok(len) => wire.send(&slices, len),
                Err(_) => count(&wire.seen.malformed),
            }
            Step::Use(0)
        })
    }

    /// Takes frames from the tap into the buffers that the driver has queued. Chains without proper room are used up
    /// and counted.
    pub fn receive(&mut self) -> Result<Pause, RingError> {
        let Self { memory, rx, wire, notifier, .. } = self;
        let mut slices = Vec::new();
        walk(rx, RX, memory, notifier, |chain| {
            match collect(chain, memory, Direction::ToDriver, usize::MAX, &mut slices) {
                Ok(len) if len >= VNET_HEADER_LEN + MIN_FRAME => wire.receive(&slices, len),
                Ok(_) | Err(_) => {
                    count(&wire.seen.malformed);
                    Step::Use(0)
                }
            }
        })
    }
}

/// What to do with a chain after a look at it.
enum Step {
    /// Give it back to the driver with that many bytes written.
    Use(u32),
    /// Keep it for the next frame.
    Keep,
    /// Keep it and stop.
    Stop(Pause),
}

/// Takes chains from a queue one after the other, at most a burst, and tells the driver if it wants to know.
///
/// The driver need not notify while chains are being taken; it must once the queue was seen empty.
fn walk<'m>(
    queue: &mut Queue,
    index: u16,
    memory: &'m GuestMemory,
    notifier: &Notifier,
    mut step: impl FnMut(DescriptorChain<&'m GuestMemory>) -> Step,
) -> Result<Pause, RingError> {
    if !queue.ready() {
        return Ok(Pause::NoBuffers);
    }
    let used_before = queue.next_used();
    let mut pause = Pause::Turn;
    queue.disable_notification(memory).map_err(|_| RingError::Used)?;
    for _ in 0..BURST {
        let at = queue.next_avail();
        let next = queue.iter(memory).map_err(|_| RingError::Available)?.next();
        let Some(chain) = next else {
            if queue.enable_notification(memory).map_err(|_| RingError::Used)? {
                continue;
            }
            pause = Pause::NoBuffers;
            break;
        };
        let head = chain.head_index();
        if head >= queue.size() {
            return Err(RingError::Head { head, size: queue.size() });
        }
        match step(chain) {
            Step::Use(len) => queue.add_used(memory, head, len).map_err(|_| RingError::Used)?,
            Step::Keep => queue.set_next_avail(at),
            Step::Stop(why) => {
                queue.set_next_avail(at);
                pause = why;
                break;
            }
        }
    }
    if queue.next_used() != used_before
        && queue.needs_notification(memory).map_err(|_| RingError::Available)?
    {
        notifier.used(index);
    }
    Ok(pause)
}

impl Wire {
    /// Sends the frame of `len` bytes, header included, that lies in `slices`.
    ///
    /// The driver may still be writing there. What is judged is therefore copied first, and the header that goes out
    /// is rebuilt from the copy.
    fn send(&self, slices: &[VolatileSlice<'_>], len: usize) {
        let mut start = [0; VNET_HEADER_LEN + SNIFFED];
        let copied = copy_from(slices, &mut start);
        let (header, frame) = start.split_first_chunk::<VNET_HEADER_LEN>().expect("start holds a header");
        let frame_len = len.saturating_sub(VNET_HEADER_LEN);
        let checked = header::sanitize(*header, frame_len, self.checksums);
        let Some(header) = checked.filter(|_| frame_len >= MIN_FRAME) else {
            return count(&self.seen.malformed);
        };
        let sniffed = frame.get(..copied.saturating_sub(VNET_HEADER_LEN)).unwrap_or_default();
        if let Some(address) = source_address(sniffed) {
            self.seen.ipv4.store(address.to_bits(), Ordering::Relaxed);
        }
        let mut pieces = Vec::with_capacity(1 + slices.len());
        pieces.push(Source::from(&header[..]));
        pieces.extend(behind(VNET_HEADER_LEN, slices).map(Source::from));
        match self.tap.send(&pieces) {
            Ok(()) => count(&self.seen.sent),
            Err(_) => count(&self.seen.dropped),
        }
    }

    /// Takes a frame into `slices`, which have room for `room` bytes, header included.
    fn receive(&self, slices: &[VolatileSlice<'_>], room: usize) -> Step {
        // The tap's header is not the driver's: it may say what was not negotiated, and lacks num_buffers.
        let mut header: NetHeader = header::PLAIN;
        let mut surplus = [0];
        let mut pieces = Vec::with_capacity(2 + slices.len());
        pieces.push(Target::from(&mut header[..]));
        pieces.extend(behind(VNET_HEADER_LEN, slices).map(Target::from));
        pieces.push(Target::from(&mut surplus[..]));
        let len = match self.tap.receive(&mut pieces) {
            Ok(Some(len)) => len,
            Ok(None) => return Step::Stop(Pause::NoFrames),
            Err(_) => return Step::Stop(Pause::TapGone),
        };
        match u32::try_from(len) {
            Ok(used) if len <= room => {
                copy_to(&header::RECEIVED, slices);
                count(&self.seen.received);
                Step::Use(used)
            }
            _ => {
                count(&self.seen.dropped);
                Step::Keep
            }
        }
    }
}

/// Copies the first bytes of `slices`; how many there were.
fn copy_from(slices: &[VolatileSlice<'_>], mut to: &mut [u8]) -> usize {
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
fn copy_to(mut from: &[u8], slices: &[VolatileSlice<'_>]) {
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
fn behind<'m>(mut skip: usize, slices: &[VolatileSlice<'m>]) -> impl Iterator<Item = VolatileSlice<'m>> {
    slices.iter().filter_map(move |slice| {
        let rest = slice.offset(skip.min(slice.len())).ok()?;
        skip = skip.saturating_sub(slice.len());
        (!rest.is_empty()).then_some(rest)
    })
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
