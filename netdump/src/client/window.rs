//! What is on its way: the unacknowledged messages, which of them count as lost, and how many there may be.
//!
//! Everything that is known of the path lives behind [`AckWindow`]: round trips, losses, the limit. The client tells it
//! what was sent and acknowledged, and asks what may be sent. No payload is kept: a resend reads the core again.
//!
//! Bit `i` of each mask belongs to the message with number `base + i`. The masks have 64 bits and so do their shifts:
//! FreeBSD's first client shifted 32-bit values and took a lost message for acknowledged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::congestion::Congestion;
use super::timers::RoundTrip;
use crate::wire::MessageKind;

/// Messages from the oldest unacknowledged one to the newest: the bits of a mask.
const SPAN: usize = u64::BITS as usize;
/// A message is lost when this many that were sent after it have overtaken it (as in RFC 9002, section 6.1.1).
const OVERTAKEN: u64 = 3;

/// A message's number. It wraps around after 2^32 messages, which is harmless as only differences count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sequence(pub u32);

impl Sequence {
    /// Of a dump's HERALD.
    pub const FIRST: Self = Self(1);

    fn plus(self, count: usize) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
        Self(self.0.wrapping_add(count as u32))
    }

    /// How many messages lie between `earlier` and this one.
    fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }
}

/// What a message carries, without the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) kind: MessageKind,
    /// Position in the object that this kind writes.
    pub(super) offset: u64,
    /// Payload bytes.
    pub(super) len: usize,
}

/// How many messages may be on their way, and how soon they are sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// One, with patience: the server has more to do for it than to copy bytes.
    Single,
    /// As many as the path bears.
    Stream,
}

/// Why an ack is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AckError {
    /// That message was acknowledged before.
    Repeated,
    /// That message was never sent.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    chunk: Chunk,
    first_sent: Instant,
    last_sent: Instant,
    /// When it is lost unless acknowledged before.
    expires: Instant,
    /// Number of its last transmission, over all messages.
    transmission: u64,
    resends: u32,
}

/// Up to 64 consecutive messages, each acknowledged or not.
#[derive(Debug)]
pub(super) struct AckWindow {
    /// Number of the first of `flights`, which is unacknowledged unless there is none.
    base: Sequence,
    flights: VecDeque<Flight>,
    unacked: u64,
    /// Those of `unacked` that wait to be sent again.
    lost: u64,
    pushed: u64,
    transmissions: u64,
    /// Transmissions before this one were made before the wait was doubled last.
    doubled_at: u64,
    pace: Pace,
    congestion: Congestion,
    round_trip: RoundTrip,
}

impl AckWindow {
    /// Empty; the next message is the dump's first. Full ones will have `payload_limit` bytes, and no wait for an ack
    /// will be longer than `longest_wait`.
    pub(super) fn new(payload_limit: usize, longest_wait: Duration) -> Self {
        Self {
            base: Sequence::FIRST,
            flights: VecDeque::with_capacity(SPAN),
            unacked: 0,
            lost: 0,
            pushed: 0,
            transmissions: 0,
            doubled_at: 0,
            pace: Pace::Single,
            congestion: Congestion::new(payload_limit),
            round_trip: RoundTrip::new(longest_wait),
        }
    }

    /// How the following messages go.
    pub(super) fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// Whether everything sent is acknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether a new message may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.flights.len() < SPAN && self.may_transmit()
    }

    /// Number of the message that is pushed next.
    pub(super) fn next_sequence(&self) -> Sequence {
        self.base.plus(self.flights.len())
    }

    /// A new message was sent: the one numbered [`Self::next_sequence`]. There must be [room](Self::has_room).
    pub(super) fn push(&mut self, now: Instant, chunk: Chunk) {
        self.unacked |= bit(self.flights.len());
        self.flights.push_back(Flight {
            chunk,
            first_sent: now,
            last_sent: now,
            expires: now + self.wait(),
            transmission: self.transmissions,
            resends: 0,
        });
        self.pushed += 1;
        self.transmissions += 1;
    }

    /// The message to send again now, if any.
    pub(super) fn peek_resend(&self) -> Option<(Sequence, Chunk)> {
        let index = bits(self.lost).next().filter(|_| self.may_transmit())?;
        Some((self.base.plus(index), self.flights.get(index)?.chunk))
    }

    /// The message of [`Self::peek_resend`] was sent.
    pub(super) fn resent(&mut self, now: Instant) {
        let Some(index) = bits(self.lost).next() else { return };
        self.lost &= !bit(index);
        let expires = now + self.wait();
        let flight = &mut self.flights[index];
        flight.last_sent = now;
        flight.expires = expires;
        flight.transmission = self.transmissions;
        flight.resends += 1;
        self.transmissions += 1;
    }

    /// Takes an ack: the message that it settles, or why it settles none.
    pub(super) fn acknowledge(&mut self, now: Instant, sequence: Sequence) -> Result<Chunk, AckError> {
        let index = sequence.since(self.base) as usize;
        if index >= self.flights.len() {
            let behind = u64::from(self.base.since(sequence));
            let settled = self.pushed - self.flights.len() as u64;
            return Err(if (1..=settled).contains(&behind) { AckError::Repeated } else { AckError::Unknown });
        }
        if self.unacked & bit(index) == 0 {
            return Err(AckError::Repeated);
        }
        self.unacked &= !bit(index);
        self.lost &= !bit(index);
        let flight = self.flights[index];
        if self.pace == Pace::Stream {
            self.congestion.acknowledged();
            if flight.resends == 0 {
                self.round_trip.sample(now.saturating_duration_since(flight.last_sent));
                self.mark_overtaken(index, flight.transmission);
            }
        }
        self.slide();
        Ok(flight.chunk)
    }

    /// Declares those lost that were waited for long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        let mut news = false;
        for index in bits(self.unacked & !self.lost) {
            let flight = &mut self.flights[index];
            if flight.expires <= now {
                news |= flight.transmission >= self.doubled_at;
                self.mark_lost(index);
            }
        }
        // Of the messages that were sent with the same wait, those that expire later tell nothing new.
        if news && self.pace == Pace::Stream {
            self.round_trip.timed_out();
            self.doubled_at = self.transmissions;
        }
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        bits(self.unacked & !self.lost).map(|index| self.flights[index].expires).min()
    }

    /// When the oldest unacknowledged message was sent first.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.flights.front().map(|flight| flight.first_sent)
    }

    /// What the oldest unacknowledged message carries.
    pub(super) fn front(&self) -> Option<Chunk> {
        self.flights.front().map(|flight| flight.chunk)
    }

    /// The unacknowledged messages, oldest first.
    pub(super) fn unacknowledged(&self) -> impl Iterator<Item = Chunk> + '_ {
        bits(self.unacked).map(|index| self.flights[index].chunk)
    }

    fn may_transmit(&self) -> bool {
        let limit = match self.pace {
            Pace::Single => 1,
            Pace::Stream => self.congestion.limit(),
        };
        (self.unacked & !self.lost).count_ones() < limit
    }

    fn wait(&self) -> Duration {
        match self.pace {
            Pace::Single => self.round_trip.patient_wait(),
            Pace::Stream => self.round_trip.wait(),
        }
    }

    /// The message at `index`, sent only once, as transmission number `acked`, has arrived: what was transmitted clearly
    /// before it, and is not acknowledged, is lost. All such messages have lower numbers, resends included, as this one
    /// was new when it was sent.
    fn mark_overtaken(&mut self, index: usize, acked: u64) {
        for index in bits(self.unacked & !self.lost & (bit(index) - 1)) {
            if self.flights[index].transmission + OVERTAKEN <= acked {
                self.mark_lost(index);
            }
        }
    }

    fn mark_lost(&mut self, index: usize) {
        self.lost |= bit(index);
        if self.pace == Pace::Stream {
            self.congestion.lost(self.flights[index].transmission, self.transmissions);
        }
    }

    /// Moves the base to the first unacknowledged message.
    fn slide(&mut self) {
        let settled = (self.unacked.trailing_zeros() as usize).min(self.flights.len());
        self.flights.drain(..settled);
        self.base = self.base.plus(settled);
        self.unacked = shifted_down(self.unacked, settled);
        self.lost = shifted_down(self.lost, settled);
    }
}

fn bit(index: usize) -> u64 {
    1 << index
}

/// Indices of the bits that are set, in ascending order.
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let index = mask.trailing_zeros() as usize;
        (mask != 0).then(|| {
            mask &= mask - 1;
            index
        })
    })
}

/// A shift by all 64 bits leaves nothing, which `>>` alone does not do.
fn shifted_down(mask: u64, count: usize) -> u64 {
    if count < SPAN { mask >> count } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn chunk(number: u64) -> Chunk {
        Chunk { kind: MessageKind::Vmcore, offset: number * 1000, len: 1000 }
    }

    /// A streaming window with `count` messages sent, numbered from 1 on.
    fn window(count: u64) -> (AckWindow, Instant) {
        let now = Instant::now();
        let mut window = AckWindow::new(4096, SECOND);
        window.set_pace(Pace::Stream);
        for number in 1..=count {
            assert!(window.has_room());
            window.push(now, chunk(number));
        }
        (window, now)
    }

    fn open(window: &AckWindow) -> Vec<u64> {
        window.unacknowledged().map(|chunk| chunk.offset / 1000).collect()
    }

    #[test]
    fn window_holds_64_messages() {
        let (mut window, now) = window(64);
        assert!(!window.has_room());
        assert_eq!(window.acknowledge(now, Sequence(2)), Ok(chunk(2)));
        assert!(!window.has_room(), "the span is still 64");
        assert_eq!(window.acknowledge(now, Sequence(1)), Ok(chunk(1)));
        assert!(window.has_room());
        assert_eq!(window.next_sequence(), Sequence(65));
    }

    #[test]
    fn acks_at_the_edges_of_32_and_64_bits_settle_one_message_each() {
        for acked in [1, 2, 31, 32, 33, 63, 64] {
            let (mut window, now) = window(64);
            let number = u32::try_from(acked).unwrap();
            assert_eq!(window.acknowledge(now, Sequence(number)), Ok(chunk(acked)));
            let want: Vec<_> = (1..=64).filter(|number| *number != acked).collect();
            assert_eq!(open(&window), want);
            assert_eq!(window.acknowledge(now, Sequence(number)), Err(AckError::Repeated));
        }
    }

    #[test]
    fn ack_beyond_window_is_ignored() {
        let (mut window, now) = window(64);
        for unsent in [65, 66, 96, 97, 128, 129, 0, u32::MAX, 0x8000_0001] {
            assert_eq!(window.acknowledge(now, Sequence(unsent)), Err(AckError::Unknown), "{unsent}");
        }
        assert_eq!(open(&window).len(), 64);
    }

    #[test]
    fn nothing_is_acknowledged_before_it_is_sent() {
        let (mut window, now) = window(0);
        assert_eq!(window.acknowledge(now, Sequence::FIRST), Err(AckError::Unknown));
    }

    #[test]
    fn window_slides_over_everything_at_once() {
        let (mut window, now) = window(64);
        for number in (1..=64).rev() {
            assert_eq!(window.acknowledge(now, Sequence(number)), Ok(chunk(number.into())));
        }
        assert!(window.is_empty());
        assert_eq!((window.base, window.unacked, window.lost), (Sequence(65), 0, 0));
        assert_eq!(window.acknowledge(now, Sequence(64)), Err(AckError::Repeated));
        assert_eq!(window.acknowledge(now, Sequence(1)), Err(AckError::Repeated));
    }

    #[test]
    fn numbers_wrap_around() {
        let (mut window, now) = window(0);
        window.base = Sequence(u32::MAX - 1);
        window.pushed = u64::from(u32::MAX);
        for number in 0..4 {
            window.push(now, chunk(number));
        }
        for (number, sequence) in [(3, 1), (0, u32::MAX - 1), (2, 0), (1, u32::MAX)] {
            assert_eq!(window.acknowledge(now, Sequence(sequence)), Ok(chunk(number)));
        }
        assert_eq!(window.next_sequence(), Sequence(2));
    }

    #[test]
    fn overtaken_messages_are_sent_again_at_once() {
        let (mut window, now) = window(6);
        for number in [2, 3] {
            window.acknowledge(now, Sequence(number)).unwrap();
            assert_eq!(window.peek_resend(), None);
        }
        window.acknowledge(now, Sequence(4)).unwrap();
        assert_eq!(window.peek_resend(), Some((Sequence(1), chunk(1))));
        window.resent(now);
        window.acknowledge(now, Sequence(5)).unwrap();
        window.acknowledge(now, Sequence(6)).unwrap();
        assert_eq!(window.peek_resend(), None, "what was sent before the resend tells nothing of it");
        for number in 7..=9 {
            window.push(now, chunk(number));
        }
        window.acknowledge(now, Sequence(9)).unwrap();
        assert_eq!(window.peek_resend(), Some((Sequence(1), chunk(1))), "what was sent after it does");
    }

    #[test]
    fn acks_of_resends_tell_nothing_of_others() {
        let (mut window, now) = window(5);
        window.expire(now + SECOND);
        while window.peek_resend().is_some() {
            window.resent(now + SECOND);
        }
        window.acknowledge(now + SECOND, Sequence(5)).unwrap();
        assert_eq!(window.peek_resend(), None);
        assert!(window.round_trip.wait() > Duration::from_millis(100), "no round trip was measured");
    }

    #[test]
    fn silence_brings_the_messages_back_and_backs_off() {
        let (mut window, start) = window(2);
        let first = window.next_expiry().unwrap();
        window.expire(first);
        assert_eq!(window.next_expiry(), None);
        assert_eq!(window.peek_resend(), Some((Sequence(1), chunk(1))));
        window.resent(first);
        assert_eq!(window.peek_resend(), Some((Sequence(2), chunk(2))));
        window.resent(first);
        assert_eq!(window.peek_resend(), None);
        assert_eq!(window.next_expiry().unwrap() - first, 2 * (first - start));
        assert_eq!(window.oldest(), Some(start));
    }

    #[test]
    fn a_path_slower_than_expected_is_learned_after_few_resends() {
        let (mut window, mut now) = window(0);
        let mut resends = 0;
        for number in 1..=20_u32 {
            let sent = now;
            window.push(now, chunk(number.into()));
            while let Some(at) = window.next_expiry().filter(|at| *at < sent + 2 * Duration::from_millis(200))
            {
                now = at;
                window.expire(now);
                window.resent(now);
                resends += 1;
            }
            now = sent + Duration::from_millis(400);
            window.acknowledge(now, Sequence(number)).unwrap();
        }
        assert!(resends <= 2, "{resends}");
    }

    #[test]
    fn a_late_ack_calls_off_the_resend() {
        let (mut window, now) = window(2);
        window.expire(now + SECOND);
        window.acknowledge(now + SECOND, Sequence(1)).unwrap();
        assert_eq!(window.peek_resend(), Some((Sequence(2), chunk(2))));
    }

    #[test]
    fn losses_close_the_window_for_new_messages_and_resends() {
        let (mut window, now) = window(64);
        window.expire(now + SECOND);
        let mut resent = 0;
        while window.peek_resend().is_some() {
            window.resent(now + SECOND);
            resent += 1;
        }
        assert_eq!(resent, 32);
        assert!(!window.has_room());
    }

    #[test]
    fn single_pace_sends_one_message() {
        let (mut window, now) = window(0);
        window.set_pace(Pace::Single);
        window.push(now, chunk(1));
        assert!(!window.has_room());
        assert_eq!(window.next_expiry(), Some(now + Duration::from_secs(1)));
    }

    proptest! {
        /// The masks against a plain set of numbers.
        #[test]
        fn window_agrees_with_a_set(start in any::<u32>(), steps in prop::collection::vec((0..3_u8, 0..80_u32), 1..400)) {
            let mut now = Instant::now();
            let mut window = AckWindow::new(4096, SECOND);
            window.set_pace(Pace::Stream);
            window.base = Sequence(start);
            let mut open = BTreeSet::new();
            let mut sent = 0_u64;
            for (what, value) in steps {
                let base = open.first().copied().unwrap_or(sent);
                match what {
                    0 => {
                        for _ in 0..value {
                            if window.has_room() {
                                window.push(now, chunk(sent));
                                open.insert(sent);
                                sent += 1;
                            }
                        }
                    }
                    1 => {
                        let number = base + u64::from(value);
                        #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
                        let ack = Sequence(start.wrapping_add(number as u32));
                        let want = match number {
                            n if open.remove(&n) => Ok(chunk(n)),
                            n if n < sent => Err(AckError::Repeated),
                            _ => Err(AckError::Unknown),
                        };
                        prop_assert_eq!(window.acknowledge(now, ack), want);
                    }
                    _ => {
                        now += Duration::from_millis(value.into());
                        window.expire(now);
                        while let Some((_, again)) = window.peek_resend() {
                            prop_assert!(open.contains(&(again.offset / 1000)));
                            window.resent(now);
                        }
                    }
                }
                let seen: Vec<_> = window.unacknowledged().map(|chunk| chunk.offset / 1000).collect();
                prop_assert_eq!(seen, open.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(window.lost & !window.unacked, 0);
                prop_assert!(window.is_empty() || window.unacked & 1 == 1);
                prop_assert!(window.is_empty() || window.next_expiry().is_some() || window.peek_resend().is_some());
            }
        }
    }
}
