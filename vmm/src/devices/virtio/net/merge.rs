//! Received frames that may lie in several buffers (VIRTIO_NET_F_MRG_RXBUF, virtio 1.2, 5.1.6.4).
//!
//! How long a frame is turns out when it has been read. A short one is read into the driver's buffers without a copy; the
//! rest of a long one into a buffer of our own, and copied from there. One for which the driver has too little room
//! waits until there is more.

use smallvec::SmallVec;
use virtio_queue::{Queue, QueueT};
use vm_memory::VolatileSlice;

use super::RX;
use super::header::{self, NetHeader};
use super::port::{MAX_FRAME, MIN_FRAME, Pause, Wire, count};
use crate::devices::virtio::Notifier;
use crate::devices::virtio::chain::{Direction, Slices, behind, collect, copy_from, copy_to};
use crate::devices::virtio::rings::{BURST, RingError, next_chain, tell, use_together};
use crate::memory::GuestMemory;
use crate::sys::iovec::Target;
use crate::sys::tap::VNET_HEADER_LEN;

/// Room that is gathered before a frame is read: for any frame of a path that does not leave its cutting to us.
const USUAL: usize = 4096;
/// Most pieces of one chain, and of all that are gathered; a system call takes 1024, and a few are our own.
const PIECES_OF_ONE: usize = 64;
const PIECES: usize = 900;

/// What is kept from one frame to the next.
#[derive(Debug)]
pub(super) struct Merger {
    /// Takes the end of a frame that is longer than the room.
    surplus: Vec<u8>,
    /// A frame that waits for room, header first; empty when there is none.
    waiting: Vec<u8>,
}

impl Default for Merger {
    fn default() -> Self {
        Self { surplus: vec![0; MAX_FRAME], waiting: Vec::new() }
    }
}

impl Merger {
    /// As [`super::port::Port::receive`].
    pub(super) fn receive(
        &mut self,
        rx: &mut Queue,
        memory: &GuestMemory,
        wire: &Wire,
        notifier: &Notifier,
    ) -> Result<Pause, RingError> {
        if !rx.ready() {
            return Ok(Pause::NoBuffers);
        }
        let (used_before, first) = (rx.next_used(), rx.next_avail());
        rx.disable_notification(memory).map_err(|_| RingError::Used)?;
        let mut room = Room::new(memory);
        let mut pause = Pause::Turn;
        for _ in 0..BURST {
            if let Some(why) = self.next(rx, wire, &mut room)? {
                pause = why;
                break;
            }
        }
        // Asked for with all that was seen counted, as it was not enough.
        if pause == Pause::NoBuffers && rx.enable_notification(memory).map_err(|_| RingError::Used)? {
            pause = Pause::Turn;
        }
        rx.set_next_avail(first.wrapping_add(room.spent()));
        tell(rx, RX, used_before, memory, notifier)?;
        Ok(pause)
    }

    /// Takes one frame, the waiting one first; `Some` when there is nothing more to do now.
    fn next(&mut self, rx: &mut Queue, wire: &Wire, room: &mut Room<'_>) -> Result<Option<Pause>, RingError> {
        let wanted = if self.waiting.is_empty() { USUAL } else { self.waiting.len() };
        room.gather(rx, wanted)?;
        if !self.waiting.is_empty() {
            if room.len() < self.waiting.len() && room.is_full() {
                self.waiting.clear();
                count(&wire.seen.dropped);
                return Ok(None);
            }
            if room.len() < self.waiting.len() {
                return Ok(Some(Pause::NoBuffers));
            }
            copy_to(&self.waiting, room.slices());
            let header = self.waiting.first_chunk().copied().unwrap_or(header::RECEIVED);
            room.spend(rx, header, self.waiting.len())?;
            self.waiting.clear();
            count(&wire.seen.received);
            return Ok(None);
        }
        if room.len() < VNET_HEADER_LEN + MIN_FRAME {
            return Ok(Some(Pause::NoBuffers));
        }
        let mut header: NetHeader = header::PLAIN;
        let mut pieces = SmallVec::<[Target<'_>; 32]>::new();
        pieces.push(Target::from(&mut header[..]));
        pieces.extend(behind(VNET_HEADER_LEN, room.slices()).map(Target::from));
        pieces.push(Target::from(&mut self.surplus[..]));
        let came = wire.tap.receive(&mut pieces);
        drop(pieces);
        let len = match came {
            Ok(Some(len)) => len,
            Ok(None) => return Ok(Some(Pause::NoFrames)),
            Err(_) => return Ok(Some(Pause::TapGone)),
        };
        match header::for_driver(header, wire.receiving) {
            Some(header) if len >= VNET_HEADER_LEN => self.deliver(header, len, rx, wire, room)?,
            _ => count(&wire.seen.dropped),
        }
        Ok(None)
    }

    /// Gives the driver a frame of `len` bytes, header included, which lies behind the header's place in `room`, and
    /// where that ends in our surplus; or keeps it.
    fn deliver(
        &mut self,
        header: NetHeader,
        len: usize,
        rx: &mut Queue,
        wire: &Wire,
        room: &mut Room<'_>,
    ) -> Result<(), RingError> {
        let had = room.len();
        let surplus = self.surplus.get(..len.saturating_sub(had)).unwrap_or(&self.surplus);
        if !surplus.is_empty() {
            room.gather(rx, len)?;
            if room.len() < len {
                self.waiting.resize(had, 0);
                copy_from(room.slices(), &mut self.waiting);
                self.waiting[..VNET_HEADER_LEN].copy_from_slice(&header);
                self.waiting.extend_from_slice(surplus);
                return Ok(());
            }
            let rest: Slices<'_> = behind(had, room.slices()).collect();
            copy_to(surplus, &rest);
        }
        room.spend(rx, header, len)?;
        count(&wire.seen.received);
        Ok(())
    }
}

/// Buffers that the driver has queued, taken in order, and not used yet.
struct Room<'m> {
    memory: &'m GuestMemory,
    slices: Vec<VolatileSlice<'m>>,
    chains: Vec<Chain>,
    /// How many of both are used up.
    first_slice: usize,
    first_chain: usize,
    len: usize,
}

/// One chain; one that takes nothing has no bytes.
struct Chain {
    head: u16,
    slices: usize,
    len: usize,
}

impl<'m> Room<'m> {
    fn new(memory: &'m GuestMemory) -> Self {
        Self { memory, slices: Vec::new(), chains: Vec::new(), first_slice: 0, first_chain: 0, len: 0 }
    }

    /// Takes chains until there is room for `wanted` bytes, or there are no more.
    fn gather(&mut self, rx: &mut Queue, wanted: usize) -> Result<(), RingError> {
        let mut slices = Slices::new();
        while self.len < wanted
            && !self.is_full()
            && let Some(chain) = next_chain(rx, self.memory)?
        {
            let head = chain.head_index();
            // A chain too short for a header cannot begin a frame, so it is of no use at all.
            let len = match collect(chain, self.memory, Direction::ToDriver, usize::MAX, &mut slices) {
                Ok(len) if len >= VNET_HEADER_LEN && slices.len() <= PIECES_OF_ONE => len,
                _ => {
                    slices.clear();
                    0
                }
            };
            self.chains.push(Chain { head, slices: slices.len(), len });
            self.slices.extend(slices.drain(..));
            self.len += len;
        }
        Ok(())
    }

    /// Whether so much has been taken that no more will be, however little room it makes.
    fn is_full(&self) -> bool {
        self.chains.len() - self.first_chain >= BURST || self.slices().len() >= PIECES
    }

    /// Bytes that there is room for.
    fn len(&self) -> usize {
        self.len
    }

    fn slices(&self) -> &[VolatileSlice<'m>] {
        self.slices.get(self.first_slice..).unwrap_or_default()
    }

    /// How many chains are used up.
    fn spent(&self) -> u16 {
        u16::try_from(self.first_chain).expect("a burst of frames, each of a ring of chains at most")
    }

    /// Gives the chains that hold the first `len` bytes to the driver, with a header that tells how many they are.
    fn spend(&mut self, rx: &mut Queue, mut header: NetHeader, len: usize) -> Result<(), RingError> {
        let mut left = len;
        let mut used = SmallVec::<[(u16, u32); 64]>::new();
        let place = self.slices.get(self.first_slice..).unwrap_or_default();
        let mut buffers = 0u16;
        while left > 0
            && let Some(chain) = self.chains.get(self.first_chain)
        {
            let now = left.min(chain.len);
            used.push((chain.head, u32::try_from(now).unwrap_or(u32::MAX)));
            buffers += u16::from(chain.len > 0);
            left -= now;
            self.first_chain += 1;
            self.first_slice += chain.slices;
            self.len -= chain.len;
        }
        header::set_buffers(&mut header, buffers);
        copy_to(&header, place);
        // Chains that are no use go back first: those of a frame must follow each other.
        let (useless, useful): (SmallVec<[_; 64]>, SmallVec<[_; 64]>) =
            used.into_iter().partition(|&(_, len)| len == 0);
        // And all at once: a driver that sees the first looks for the others.
        let all: SmallVec<[_; 64]> = useless.into_iter().chain(useful).collect();
        use_together(rx, self.memory, &all)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::Arc;

    use vm_memory::{Bytes, GuestAddress};

    use super::super::port::{Counts, Port, Seen};
    use super::*;
    use crate::devices::virtio::Interrupt;
    use crate::devices::virtio::driver::{Buffer, DriverRing};
    use crate::sys::tap::fake;

    const DATA: u64 = 0x2000;
    /// MRG_RXBUF; and with GUEST_CSUM and GUEST_TSO4.
    const MERGEABLE: u64 = 1 << 15;
    const SEGMENTS: u64 = MERGEABLE | 1 << 1 | 1 << 7;

    #[derive(Debug)]
    struct Silent;

    impl Interrupt for Silent {
        fn used(&self, _queue: u16) {}

        fn config_changed(&self) {}
    }

    struct Bench {
        memory: GuestMemory,
        ring: DriverRing,
        port: Port,
        host: UnixDatagram,
        seen: Arc<Seen>,
    }

    impl Bench {
        fn new(features: u64) -> Self {
            let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap();
            let ring = DriverRing::new(memory.clone(), GuestAddress(0x1000), 64);
            let (tap, host) = fake::tap();
            let seen = Arc::<Seen>::default();
            let notifier = Arc::new(Notifier::new(Arc::new(Silent)));
            let (tap, seen_by_port) = (Arc::new(tap), seen.clone());
            let tx = Queue::default();
            let port = Port::new(memory.clone(), ring.queue(), tx, tap, features, seen_by_port, notifier);
            Self { memory, ring, port, host, seen }
        }

        /// Offers buffers of `len` bytes one behind the other, those of `heads`.
        fn offer(&mut self, heads: std::ops::Range<u16>, len: u32) {
            for head in heads {
                let at = DATA + u64::from(head) * u64::from(len);
                self.ring.describe(head, &[Buffer::Write(at, len)]);
                self.ring.publish(head);
            }
        }

        fn arrive(&self, header: NetHeader, frame: &[u8]) {
            self.host.send(&[&header[..], frame].concat()).unwrap();
        }

        fn used(&mut self) -> Vec<(u16, u32)> {
            std::iter::from_fn(|| self.ring.reclaim()).collect()
        }

        fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        }
    }

    fn frame(len: usize) -> Vec<u8> {
        (0..=250).cycle().take(len).collect()
    }

    #[test]
    fn a_short_frame_takes_one_buffer_and_the_others_stay() {
        let mut bench = Bench::new(MERGEABLE);
        bench.offer(0..8, 2000);
        bench.arrive(header::PLAIN, &frame(60));
        bench.arrive(header::PLAIN, &frame(1514));
        assert_eq!(bench.port.receive(), Ok(Pause::NoFrames));
        assert_eq!(bench.used(), [(0, 72), (1, 1526)]);
        assert_eq!(bench.bytes(DATA, 72), [&header::RECEIVED[..], &frame(60)].concat());
        assert_eq!(bench.bytes(DATA + 2012, 1514), frame(1514));
        bench.arrive(header::PLAIN, &frame(61));
        assert_eq!(bench.port.receive(), Ok(Pause::NoFrames));
        assert_eq!(bench.used(), [(2, 73)]);
    }

    #[test]
    fn a_long_frame_takes_as_many_buffers_as_it_needs_and_says_how_many() {
        for (features, sent, got) in [
            (MERGEABLE, header::PLAIN, header::RECEIVED),
            (
                SEGMENTS,
                [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0],
                [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 1, 0],
            ),
        ] {
            let mut bench = Bench::new(features);
            bench.offer(0..40, 1536);
            bench.arrive(sent, &frame(40_000));
            bench.arrive(header::PLAIN, &frame(60));
            assert_eq!(bench.port.receive(), Ok(Pause::NoFrames));
            let used = bench.used();
            // 40,012 bytes are 26 buffers and 76 bytes.
            assert_eq!((used.len(), used[0], used[26], used[27]), (28, (0, 1536), (26, 76), (27, 72)));
            let mut header = got;
            header::set_buffers(&mut header, 27);
            assert_eq!(bench.bytes(DATA, 40_012), [&header[..], &frame(40_000)].concat());
            assert_eq!(bench.seen.counts(), Counts { received: 2, ..Counts::default() });
        }
    }

    #[test]
    fn a_frame_without_enough_room_waits_for_more() {
        let mut bench = Bench::new(MERGEABLE);
        bench.offer(0..4, 1000);
        bench.arrive(header::PLAIN, &frame(9000));
        bench.arrive(header::PLAIN, &frame(60));
        for _ in 0..3 {
            assert_eq!(bench.port.receive(), Ok(Pause::NoBuffers));
        }
        assert_eq!(bench.used(), []);
        bench.offer(4..11, 1000);
        assert_eq!(bench.port.receive(), Ok(Pause::NoBuffers), "all of them are used");
        let used = bench.used();
        assert_eq!((used.len(), used[9], used[10]), (11, (9, 12), (10, 72)));
        let mut header = header::RECEIVED;
        header::set_buffers(&mut header, 10);
        assert_eq!(bench.bytes(DATA, 9012), [&header[..], &frame(9000)].concat());
    }

    #[test]
    fn buffers_that_are_no_use_are_given_back_before_the_frame() {
        let mut bench = Bench::new(MERGEABLE);
        for (head, buffer) in [
            (0, Buffer::Write(DATA, 2000)),
            (1, Buffer::Read(DATA, 2000)),
            (2, Buffer::Write(DATA, 11)),
            (3, Buffer::Write(0x4_0000 - 10, 100)),
            (4, Buffer::Write(DATA + 2000, 2000)),
        ] {
            bench.ring.describe(head, &[buffer]);
            bench.ring.publish(head);
        }
        bench.arrive(header::PLAIN, &frame(3000));
        bench.port.receive().unwrap();
        assert_eq!(bench.used(), [(1, 0), (2, 0), (3, 0), (0, 2000), (4, 1012)]);
        assert_eq!(bench.bytes(DATA + 10, 3002), [&[2, 0][..], &frame(3000)].concat());
    }

    #[test]
    fn a_frame_for_which_there_will_never_be_room_is_dropped() {
        let mut bench = Bench::new(MERGEABLE);
        let pieces: Vec<_> = (0..60).map(|at| Buffer::Write(DATA + at, 1)).collect();
        bench.ring.describe(0, &pieces);
        // The same chain again and again: 3,840 bytes in as many pieces.
        (0..64).for_each(|_| bench.ring.publish(0));
        bench.arrive(header::PLAIN, &frame(2000));
        let ended = (0..4).map(|_| bench.port.receive()).last();
        assert_eq!(ended, Some(Ok(Pause::NoFrames)));
        assert_eq!((bench.used(), bench.seen.counts().dropped), (vec![], 1));
    }

    #[test]
    fn what_was_not_agreed_on_is_dropped() {
        let mut bench = Bench::new(MERGEABLE);
        bench.offer(0..4, 2000);
        bench.arrive([1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0], &frame(3000));
        bench.arrive(header::PLAIN, &frame(60));
        assert_eq!(bench.port.receive(), Ok(Pause::NoFrames));
        assert_eq!(bench.used(), [(0, 72)]);
        assert_eq!(bench.seen.counts(), Counts { received: 1, dropped: 1, ..Counts::default() });
    }
}
