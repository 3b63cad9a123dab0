//! Frames between the rings of a virtio-net device and its tap, both ways, without a copy.
//!
//! Whoever has the [`Port`] moves the frames: the device's worker and the vCPUs that notify it while the guest runs, the
//! dumper while it stands in for the guest's driver. Nothing here waits.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use smallvec::SmallVec;
use tracing::debug;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::Queue;
use vm_memory::VolatileSlice;

use super::header::{self, NetHeader, Offload};
use super::merge::Merger;
use super::sniff::{SNIFFED, source_address};
use super::{RX, TX};
use crate::devices::virtio::Notifier;
use crate::devices::virtio::chain::{Direction, Slices, behind, collect, copy_from, copy_to};
use crate::devices::virtio::rings::{RingError, Step, Walk, walk};
use crate::memory::GuestMemory;
use crate::sys::iovec::{Source, Target};
use crate::sys::tap::{Reading, Tap, VNET_HEADER_LEN};

/// Shortest frame: an Ethernet header.
pub(super) const MIN_FRAME: usize = 14;
/// Longest frame: an Ethernet header, a VLAN tag and the longest IP packet.
pub(super) const MAX_FRAME: usize = 14 + 4 + 65_535;
/// Pieces of one frame for which no list is allocated: those of a train of 64 datagrams, and some.
const PIECES: usize = 256;
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

impl From<Walk<Self>> for Pause {
    fn from(walk: Walk<Self>) -> Self {
        match walk {
            Walk::Empty => Self::NoBuffers,
            Walk::Turn => Self::Turn,
            Walk::Stopped(why) => why,
        }
    }
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
    /// Trains that the tap takes at no time, whatever its state.
    pub refused: u64,
    /// Chains that hold no frame, or no room for one.
    pub malformed: u64,
}

/// What is known of the frames that passed, for others to look at meanwhile.
#[derive(Debug, Default)]
pub(super) struct Seen {
    sent: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) dropped: AtomicU64,
    refused: AtomicU64,
    pub(super) malformed: AtomicU64,
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
            refused: load(&self.refused),
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
    /// How frames are received in several buffers, if the driver takes them so.
    merger: Option<Merger>,
    notifier: Arc<Notifier>,
}

/// The side of the port that is not rings.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) tap: Arc<Tap>,
    /// What the driver may leave to us, and we to the driver.
    sending: Offload,
    pub(super) receiving: Offload,
    pub(super) seen: Arc<Seen>,
}

impl Port {
    pub(super) fn new(
        memory: GuestMemory,
        rx: Queue,
        tx: Queue,
        tap: Arc<Tap>,
        features: u64,
        seen: Arc<Seen>,
        notifier: Arc<Notifier>,
    ) -> Self {
        let (sending, receiving) = (Offload::of_driver(features), Offload::of_device(features));
        let merger = (features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0).then(Merger::default);
        Self { memory, rx, tx, wire: Wire::new(tap, sending, receiving, seen), merger, notifier }
    }

    /// The tap at the far side.
    pub fn tap(&self) -> &Arc<Tap> {
        &self.wire.tap
    }

    /// What became of the frames so far.
    pub fn counts(&self) -> Counts {
        self.wire.seen.counts()
    }

    pub(super) fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Sends what the driver has queued. Chains that hold no proper frame are used up and counted.
    pub fn transmit(&mut self) -> Result<Pause, RingError> {
        let Self { memory, tx, wire, notifier, .. } = self;
        let mut slices = Slices::new();
        walk(tx, TX, memory, notifier, |chain| {
            match collect(chain, memory, Direction::ToDevice, VNET_HEADER_LEN + MAX_FRAME, &mut slices) {
                Ok(len) => wire.send(&slices, len),
                Err(_) => count(&wire.seen.malformed),
            }
            Step::Use(0)
        })
        .map(Pause::from)
    }

    /// Takes frames from the tap into the buffers that the driver has queued. Chains without proper room are used up
    /// and counted.
    pub fn receive(&mut self) -> Result<Pause, RingError> {
        let Self { memory, rx, wire, notifier, merger, .. } = self;
        if let Some(merger) = merger {
            return merger.receive(rx, memory, wire, notifier);
        }
        let mut slices = Slices::new();
        walk(rx, RX, memory, notifier, |chain| {
            match collect(chain, memory, Direction::ToDriver, usize::MAX, &mut slices) {
                Ok(len) if len >= VNET_HEADER_LEN + MIN_FRAME => wire.receive(&slices, len),
                Ok(_) | Err(_) => {
                    count(&wire.seen.malformed);
                    Step::Use(0)
                }
            }
        })
        .map(Pause::from)
    }
}

impl Wire {
    fn new(tap: Arc<Tap>, sending: Offload, receiving: Offload, seen: Arc<Seen>) -> Self {
        let Offload { checksum, tcp4, tcp6, udp } = receiving;
        if checksum && let Err(error) = tap.set_reading(Reading::Unfinished { tcp4, tcp6, udp }) {
            debug!(tap = %tap.name(), %error, "the host leaves no work on frames to their reader");
        }
        Self { tap, sending, receiving, seen }
    }

    /// Sends the frame of `len` bytes, header included, that lies in `slices`.
    ///
    /// The driver may still be writing there. What is judged is therefore copied first, and the header that goes out
    /// is rebuilt from the copy.
    fn send(&self, slices: &[VolatileSlice<'_>], len: usize) {
        let mut start = [0; VNET_HEADER_LEN + SNIFFED];
        let copied = copy_from(slices, &mut start);
        let (header, frame) = start.split_first_chunk::<VNET_HEADER_LEN>().expect("start holds a header");
        let frame_len = len.saturating_sub(VNET_HEADER_LEN);
        let checked = header::sanitize(*header, frame_len, self.sending);
        let Some(header) = checked.filter(|_| frame_len >= MIN_FRAME) else {
            return count(&self.seen.malformed);
        };
        let sniffed = frame.get(..copied.saturating_sub(VNET_HEADER_LEN)).unwrap_or_default();
        if let Some(address) = source_address(sniffed) {
            self.seen.ipv4.store(address.to_bits(), Ordering::Relaxed);
        }
        let mut pieces = SmallVec::<[Source<'_>; PIECES]>::new();
        pieces.push(Source::from(&header[..]));
        pieces.extend(behind(VNET_HEADER_LEN, slices).map(Source::from));
        match self.tap.send(&pieces) {
            Ok(()) => count(&self.seen.sent),
            Err(error)
                if error.raw_os_error() == Some(libc::EINVAL) && header::arrival(header).0.is_some() =>
            {
                count(&self.seen.refused)
            }
            Err(_) => count(&self.seen.dropped),
        }
    }

    /// Takes a frame into `slices`, which have room for `room` bytes, header included.
    fn receive(&self, slices: &[VolatileSlice<'_>], room: usize) -> Step<Pause> {
        let mut header: NetHeader = header::PLAIN;
        let mut surplus = [0];
        let mut pieces = SmallVec::<[Target<'_>; PIECES]>::new();
        pieces.push(Target::from(&mut header[..]));
        pieces.extend(behind(VNET_HEADER_LEN, slices).map(Target::from));
        pieces.push(Target::from(&mut surplus[..]));
        let came = self.tap.receive(&mut pieces);
        drop(pieces);
        let len = match came {
            Ok(Some(len)) => len,
            Ok(None) => return Step::Stop(Pause::NoFrames),
            Err(_) => return Step::Stop(Pause::TapGone),
        };
        // The tap's header is not the driver's: it may say what was not negotiated, and lacks num_buffers.
        match (u32::try_from(len), header::for_driver(header, self.receiving)) {
            (Ok(used), Some(header)) if len <= room => {
                copy_to(&header, slices);
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

impl Drop for Wire {
    /// Whoever reads from the tap next has agreed to nothing.
    fn drop(&mut self) {
        if self.receiving != Offload::NONE {
            // A tap that was removed has no reader.
            let _ = self.tap.set_reading(Reading::Plain);
            self.tap.drain();
        }
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
