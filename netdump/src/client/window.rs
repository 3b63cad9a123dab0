//! What is on its way: the unacknowledged messages, which of them count as lost, and how many there may be.
//!
//! Everything that is known of the path lives behind [`AckWindow`]: round trips, losses, the limit. The client tells it
//! what was sent and acknowledged, and asks what may be sent. No payload is kept: a resend reads the core again.
//!
//! All work is O(1) for a message sent or acknowledged, whatever the window: messages lie in order of their numbers,
//! transmissions in order of time ([`Air`]), and losses are looked for at the front of the latter only.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::air::{Air, Transmission};
use super::classic::Classic;
use super::config::{MAX_WINDOW, WindowChoice};
use super::congestion::Congestion;
use super::timers::RoundTrip;
use crate::wire::MessageKind;

/// Messages from the oldest unacknowledged one to the newest. One that is lost again and again holds all others up when
/// this is reached, so it is several windows.
const SPAN: usize = 4 * MAX_WINDOW as usize;

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// On its way.
    Out,
    /// Waits to be sent again.
    Lost,
    Acked,
}

/// Why a message was sent again, or shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// It was not.
    None,
    /// Others overtook it.
    Overtaken,
    /// It was waited for in vain.
    Expired,
}

/// A message between the oldest unacknowledged one and the newest.
#[derive(Debug, Clone, Copy)]
struct Flight {
    offset: u64,
    /// Number of its last transmission.
    transmission: u64,
    len: u16,
    kind: MessageKind,
    state: State,
    /// The last time.
    loss: Loss,
}

impl Flight {
    fn new(chunk: Chunk, transmission: u64) -> Self {
        let Chunk { kind, offset, len } = chunk;
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        Self { offset, transmission, len, kind, state: State::Out, loss: Loss::None }
    }

    fn chunk(&self) -> Chunk {
        Chunk { kind: self.kind, offset: self.offset, len: self.len.into() }
    }
}

/// Consecutive messages, each acknowledged or not.
#[derive(Debug)]
pub(super) struct AckWindow {
    /// Number of the first of `flights`, which is unacknowledged unless there is none.
    base: Sequence,
    flights: VecDeque<Flight>,
    /// Flights that are out.
    out: usize,
    /// What waits to be sent again, in order of loss; some may have been acknowledged since.
    lost: VecDeque<Sequence>,
    air: Air,
    /// Messages acknowledged so far.
    settled: u64,
    /// Since when nothing was acknowledged, of what is unacknowledged.
    silent_since: Option<Instant>,
    /// When a message was acknowledged last.
    acked_at: Option<Instant>,
    pace: Pace,
    congestion: Congestion,
    /// Instead, if FreeBSD's own algorithm is wanted.
    classic: Option<Classic>,
    round_trip: RoundTrip,
}

impl AckWindow {
    /// Empty; the next message is the dump's first. Full ones will have `payload_limit` bytes, and no wait for an ack will
    /// be longer than `longest_wait`.
    pub(super) fn new(payload_limit: usize, choice: WindowChoice, longest_wait: Duration) -> Self {
        let (cap, classic) = match choice {
            WindowChoice::Adaptive { cap } => (cap.clamp(1, MAX_WINDOW), None),
            WindowChoice::Classic => (MAX_WINDOW, Some(Classic::new())),
        };
        Self {
            base: Sequence::FIRST,
            flights: VecDeque::new(),
            out: 0,
            lost: VecDeque::new(),
            air: Air::default(),
            settled: 0,
            silent_since: None,
            acked_at: None,
            pace: Pace::Single,
            congestion: Congestion::new(payload_limit, cap),
            classic,
            round_trip: RoundTrip::new(longest_wait),
        }
    }

    /// Keeps the window at `limit` messages.
    #[cfg(test)]
    pub(super) fn fix_limit(&mut self, limit: usize) {
        self.congestion = Congestion::fixed(limit);
    }

    /// Begins anew with this number.
    #[cfg(test)]
    pub(super) fn restart_at(&mut self, sequence: Sequence) {
        self.restart();
        self.base = sequence;
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
        self.flights.len() < SPAN && self.room() > 0 && self.fits(1) > 0
    }

    /// From when on new messages may be sent, if that is a matter of time.
    pub(super) fn opened_at(&self) -> Option<Instant> {
        self.chunk().and_then(Classic::opened_at)
    }

    /// How many payload bytes the next message may have, `most` at most.
    pub(super) fn fits(&self, most: usize) -> usize {
        self.chunk().map_or(most, |chunk| chunk.left().min(most))
    }

    /// Most messages in a train.
    pub(super) fn train_limit(&self) -> usize {
        // FreeBSD sends frame by frame.
        if self.classic.is_some() { 1 } else { usize::MAX }
    }

    /// Whether to begin a train of up to `messages` now: not while there is room for a part of it only and acks will
    /// soon make more. A train is at most a quarter of the window, so that there is always one on its way.
    pub(super) fn is_worth_a_train(&self, messages: usize) -> bool {
        self.out == 0 || self.room() >= messages.min(self.limit() / 4).max(1)
    }

    /// Messages that wait to be sent again, those among them counted that have come late.
    pub(super) fn lost_count(&self) -> usize {
        self.lost.len()
    }

    /// Messages that may be sent now, new or again.
    fn room(&self) -> usize {
        if self.air.len() < SPAN { self.limit().saturating_sub(self.out) } else { 0 }
    }

    fn limit(&self) -> usize {
        match (self.pace, self.chunk()) {
            (Pace::Single, _) => 1,
            (Pace::Stream, None) => self.congestion.limit(),
            (Pace::Stream, Some(_)) => SPAN,
        }
    }

    /// The chunk that is on its way, of FreeBSD's algorithm.
    fn chunk(&self) -> Option<&Classic> {
        self.classic.as_ref().filter(|_| self.pace == Pace::Stream)
    }

    /// Number of the message that is pushed next.
    pub(super) fn next_sequence(&self) -> Sequence {
        self.base.plus(self.flights.len())
    }

    /// A new message was sent: the one numbered [`Self::next_sequence`]. There must be [room](Self::has_room).
    pub(super) fn push(&mut self, now: Instant, chunk: Chunk) {
        let sequence = self.next_sequence();
        self.silent_since.get_or_insert(now);
        let transmission = self.transmit(now, sequence, chunk.len);
        self.flights.push_back(Flight::new(chunk, transmission));
    }

    /// The message to send again now, if any.
    pub(super) fn peek_resend(&mut self) -> Option<(Sequence, Chunk)> {
        if self.room() == 0 {
            return None;
        }
        while let Some(&sequence) = self.lost.front() {
            match self.flight(sequence) {
                Some(flight) if flight.state == State::Lost => return Some((sequence, flight.chunk())),
                _ => drop(self.lost.pop_front()),
            }
        }
        None
    }

    /// The message of [`Self::peek_resend`] was sent.
    pub(super) fn resent(&mut self, now: Instant) {
        let Some(sequence) = self.lost.pop_front() else { return };
        let transmission = self.transmit(now, sequence, 0);
        if let Some(flight) = self.flight_mut(sequence) {
            flight.transmission = transmission;
            flight.state = State::Out;
        }
    }

    /// Sends a message, of which so many bytes were never sent.
    fn transmit(&mut self, now: Instant, sequence: Sequence, fresh: usize) -> u64 {
        self.out += 1;
        self.congestion.sent(self.out);
        if self.pace == Pace::Stream
            && let Some(classic) = &mut self.classic
        {
            classic.sent(now, fresh);
        }
        self.air.push(Transmission { sequence, sent: now, doublings: self.round_trip.doublings() })
    }

    /// Takes an ack: the message that it settles, or why it settles none.
    pub(super) fn acknowledge(&mut self, now: Instant, sequence: Sequence) -> Result<Chunk, AckError> {
        let (base, settled) = (self.base, self.settled);
        let Some(flight) = self.flight_mut(sequence) else {
            let is_behind = (1..=settled).contains(&u64::from(base.since(sequence)));
            return Err(if is_behind { AckError::Repeated } else { AckError::Unknown });
        };
        let before = *flight;
        flight.state = State::Acked;
        match before.state {
            State::Acked => return Err(AckError::Repeated),
            State::Out => self.out -= 1,
            State::Lost => {}
        }
        if self.is_adaptive() {
            self.learn(now, &before);
            self.congestion.acknowledged(now, before.transmission, self.air.next());
        }
        self.sweep(Loss::Overtaken, |window, number, sent| window.air.is_overtaken(number, sent.sent));
        self.slide();
        self.acked_at = Some(now);
        self.silent_since = self.acked_at.filter(|_| !self.is_empty());
        if self.is_empty()
            && let Some(classic) = &mut self.classic
        {
            classic.settled(now);
        }
        Ok(before.chunk())
    }

    fn is_adaptive(&self) -> bool {
        self.pace == Pace::Stream && self.classic.is_none()
    }

    /// What the ack of `flight`, as it was before, tells of the path.
    fn learn(&mut self, now: Instant, flight: &Flight) {
        let is_out = flight.state == State::Out;
        let trip = self.air.sent(flight.transmission).map(|sent| now.saturating_duration_since(sent));
        let (Some(trip), true) = (trip, is_out) else { return self.was_not_lost(now, flight.loss) };
        if flight.loss == Loss::None {
            self.round_trip.sample(trip);
            self.air.arrived(flight.transmission);
            return;
        }
        // The answer to a resend cannot come sooner than any other ever did: then it is that to an earlier transmission.
        match self.round_trip.shortest_and_usual() {
            Some((shortest, _)) if trip < shortest => self.was_not_lost(now, flight.loss),
            Some(_) => self.air.arrived(flight.transmission),
            None => {}
        }
    }

    /// A message that counted as lost was only late.
    fn was_not_lost(&mut self, now: Instant, loss: Loss) {
        match (loss, self.round_trip.shortest_and_usual()) {
            (Loss::Overtaken, Some((shortest, usual))) => self.air.widen(shortest, usual),
            (Loss::Expired, _) if self.congestion.silence_was_spurious() => self.wait_on(now),
            (Loss::Overtaken | Loss::Expired | Loss::None, _) => {}
        }
    }

    /// The server was only busy and goes on: what counts as lost since will be acknowledged soon. It is treated as if it
    /// had been sent just now.
    fn wait_on(&mut self, now: Instant) {
        while self.peek_resend().is_some() {
            self.resent(now);
        }
    }

    /// Declares those lost that were waited for long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        let is_silent = self.silent_since.is_some_and(|since| since + self.wait(0) <= now);
        let last = self.sweep(Loss::Expired, |window, _, sent| window.expiry(sent) <= now);
        // Of the messages that were sent with the same wait, those that expire later tell nothing new.
        let is_news = last.is_some_and(|last| last.doublings >= self.round_trip.doublings());
        if is_news && self.is_adaptive() {
            self.round_trip.timed_out();
            if is_silent {
                self.congestion.silence(self.air.next());
            }
        }
    }

    /// How long an ack takes at most, as a rule.
    pub(super) fn usual_wait(&self) -> Duration {
        self.round_trip.wait(0)
    }

    /// The server was silent and is there again. If it `has_moved`, nothing that is on its way will reach it.
    pub(super) fn resume(&mut self, now: Instant, has_moved: bool) {
        self.round_trip.forget_doublings();
        if has_moved {
            self.air.clear();
            self.out = 0;
            self.lost.clear();
            for (flight, step) in self.flights.iter_mut().zip(0..).filter(|(it, _)| it.state != State::Acked)
            {
                (flight.state, flight.loss) = (State::Lost, Loss::Expired);
                self.lost.push_back(self.base.plus(step));
            }
            self.congestion.start_over(self.air.next());
        } else {
            self.expire(now);
        }
    }

    /// Nothing of what was sent counts any more. Numbers go on, so that late acks of it do not count either.
    pub(super) fn restart(&mut self) {
        self.base = self.next_sequence();
        self.settled += self.flights.len() as u64;
        self.flights.clear();
        self.lost.clear();
        self.air.clear();
        self.out = 0;
        self.silent_since = None;
        self.round_trip.forget_doublings();
        self.congestion.start_over(self.air.next());
        self.classic = self.classic.take().map(|_| Classic::new());
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.air.front().map(|(_, oldest)| self.expiry(&oldest))
    }

    /// Since when there was no ack for what is unacknowledged.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        self.silent_since
    }

    /// When a message was acknowledged last.
    pub(super) fn acked_at(&self) -> Option<Instant> {
        self.acked_at
    }

    /// What the oldest unacknowledged message carries.
    pub(super) fn front(&self) -> Option<Chunk> {
        self.flights.front().map(Flight::chunk)
    }

    /// The unacknowledged messages, oldest first.
    pub(super) fn unacknowledged(&self) -> impl Iterator<Item = Chunk> + '_ {
        self.flights.iter().filter(|flight| flight.state != State::Acked).map(Flight::chunk)
    }

    fn flight(&self, sequence: Sequence) -> Option<&Flight> {
        self.flights.get(sequence.since(self.base) as usize)
    }

    fn flight_mut(&mut self, sequence: Sequence) -> Option<&mut Flight> {
        self.flights.get_mut(sequence.since(self.base) as usize)
    }

    fn expiry(&self, transmission: &Transmission) -> Instant {
        transmission.sent + self.wait(transmission.doublings)
    }

    fn wait(&self, doublings: u32) -> Duration {
        if self.is_adaptive() { self.round_trip.wait(doublings) } else { self.round_trip.patient_wait() }
    }

    /// Goes through the oldest transmissions: forgets what is acknowledged or was sent again since, and declares lost
    /// what `is_lost` says is, up to the first that is not. Gives the last one lost.
    fn sweep(
        &mut self,
        loss: Loss,
        is_lost: impl Fn(&Self, u64, &Transmission) -> bool,
    ) -> Option<Transmission> {
        let mut last = None;
        while let Some((number, oldest)) = self.air.front() {
            let is_live = |flight: &Flight| flight.state == State::Out && flight.transmission == number;
            if self.flight(oldest.sequence).is_some_and(is_live) {
                if !is_lost(self, number, &oldest) {
                    break;
                }
                self.lose(number, oldest.sequence, loss);
                last = Some(oldest);
            }
            self.air.pop();
        }
        last
    }

    fn lose(&mut self, transmission: u64, sequence: Sequence, loss: Loss) {
        if let Some(flight) = self.flight_mut(sequence) {
            flight.state = State::Lost;
            flight.loss = loss;
            self.out -= 1;
            self.lost.push_back(sequence);
            if self.is_adaptive() {
                self.congestion.lost(transmission);
            }
        }
    }

    /// Moves the base to the first unacknowledged message.
    fn slide(&mut self) {
        while self.flights.front().is_some_and(|flight| flight.state == State::Acked) {
            self.flights.pop_front();
            self.base = self.base.plus(1);
            self.settled += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn chunk(number: u64) -> Chunk {
        Chunk { kind: MessageKind::Vmcore, offset: number * 1000, len: 1000 }
    }

    /// A streaming window with `count` messages sent, numbered from 1 on.
    fn window(count: u64) -> (AckWindow, Instant) {
        let now = Instant::now();
        let mut window = AckWindow::new(1448, WindowChoice::default(), SECOND);
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
    fn window_begins_with_64_messages() {
        let (mut window, now) = window(64);
        assert!(!window.has_room());
        assert_eq!(window.acknowledge(now, Sequence(2)), Ok(chunk(2)));
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
        assert_eq!((window.base, window.out, window.air.len()), (Sequence(65), 0, 0));
        assert_eq!(window.acknowledge(now, Sequence(64)), Err(AckError::Repeated));
        assert_eq!(window.acknowledge(now, Sequence(1)), Err(AckError::Repeated));
    }

    #[test]
    fn numbers_wrap_around() {
        let (mut window, now) = window(0);
        window.base = Sequence(u32::MAX - 1);
        window.settled = u64::from(u32::MAX);
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
    fn acks_of_resends_tell_nothing_as_long_as_no_round_trip_is_known() {
        let (mut window, now) = window(5);
        window.expire(now + SECOND);
        while window.peek_resend().is_some() {
            window.resent(now + SECOND);
        }
        window.acknowledge(now + SECOND, Sequence(5)).unwrap();
        assert_eq!(window.peek_resend(), None);
        assert_eq!(window.round_trip.shortest_and_usual(), None);
    }

    #[test]
    fn acks_of_resends_count_when_they_take_a_round_trip() {
        let ms = Duration::from_millis;
        let (mut window, mut now) = window(1);
        now += ms(4);
        window.acknowledge(now, Sequence(1)).unwrap();
        for number in 2..=6 {
            window.push(now, chunk(number));
        }
        now += SECOND;
        window.expire(now);
        while window.peek_resend().is_some() {
            window.resent(now);
        }
        window.acknowledge(now + ms(3), Sequence(6)).unwrap();
        assert_eq!(window.peek_resend(), None, "this was the answer to the first attempt");
        window.acknowledge(now + ms(4), Sequence(5)).unwrap();
        assert_eq!(window.peek_resend(), Some((Sequence(2), chunk(2))));
    }

    #[test]
    fn a_path_that_reorders_is_given_time() {
        let us = Duration::from_micros;
        let (mut window, start) = window(0);
        let mut resends = 0;
        // Each tenth message takes 200 us longer than the others, which take 1 ms.
        let mut acks = BTreeMap::new();
        for number in 1..=1000_u32 {
            let now = start + us(20) * number;
            let late = if number % 10 == 0 { us(200) } else { us(0) };
            acks.entry(now + us(1000) + late).or_insert_with(Vec::new).push(number);
            let due: Vec<_> = acks.range(..=now).map(|(at, _)| *at).collect();
            for at in due {
                for number in acks.remove(&at).unwrap() {
                    window.acknowledge(at, Sequence(number)).unwrap();
                }
            }
            while window.peek_resend().is_some() {
                window.resent(now);
                resends += 1;
            }
            window.push(now, chunk(number.into()));
        }
        assert!((1..40).contains(&resends), "{resends} of 100");
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
        assert_eq!(window.silent_since(), Some(start));
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
    fn a_late_ack_calls_off_the_resends() {
        let (mut window, now) = window(40);
        window.expire(now + SECOND);
        let mut resends = 0;
        while window.peek_resend().is_some() {
            window.resent(now + SECOND);
            resends += 1;
        }
        assert_eq!(resends, 4, "more would be in vain if the server is away");
        window.acknowledge(now + SECOND, Sequence(10)).unwrap();
        assert_eq!(window.peek_resend(), None, "it was only late, and so the others may be");
        assert_eq!((open(&window).len(), window.out), (39, 39));
    }

    #[test]
    fn after_a_silence_everything_is_sent_again() {
        let (mut window, now) = window(64);
        window.acknowledge(now + Duration::from_millis(1), Sequence(1)).unwrap();
        let later = now + SECOND;
        window.expire(later);
        for _ in 0..4 {
            window.resent(later);
        }
        window.acknowledge(later + Duration::from_millis(1), Sequence(2)).unwrap();
        let mut resends = 0;
        while window.peek_resend().is_some() {
            window.resent(later);
            resends += 1;
        }
        assert_eq!(resends, 64 - 5);
    }

    #[test]
    fn single_pace_sends_one_message() {
        let (mut window, now) = window(0);
        window.set_pace(Pace::Single);
        window.push(now, chunk(1));
        assert!(!window.has_room());
        assert_eq!(window.next_expiry(), Some(now + Duration::from_secs(1)));
    }

    #[test]
    fn trains_wait_for_room_while_acks_are_expected() {
        let (mut window, now) = window(64);
        let later = now + Duration::from_millis(1);
        for acked in 1..=15 {
            window.acknowledge(later, Sequence(acked)).unwrap();
        }
        assert!(!window.is_worth_a_train(44) && window.is_worth_a_train(15));
        window.acknowledge(later, Sequence(16)).unwrap();
        assert!(window.is_worth_a_train(44), "a quarter of the window");
        for acked in 17..=64 {
            window.acknowledge(later, Sequence(acked)).unwrap();
        }
        assert!(window.is_worth_a_train(1000), "no ack is expected");
    }

    fn thread_time() -> Duration {
        use nix::time::{ClockId, clock_gettime};
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
    }

    /// What a message costs in a full window that slides, with a loss now and then.
    #[test]
    #[ignore = "prints figures"]
    fn cost_of_a_message() {
        for (limit, loss) in [(64, 0), (1024, 0), (8192, 0), (8192, 100), (8192, 20), (16_384, 0)] {
            let (mut window, mut now) = window(0);
            window.fix_limit(limit);
            let (mut pushed, mut acked) = (0_u64, 0_u64);
            const COUNT: u64 = 4_000_000;
            let started = thread_time();
            while acked < COUNT {
                while window.peek_resend().is_some() {
                    window.resent(now);
                    acked += 1;
                }
                while window.has_room() {
                    window.push(now, chunk(pushed));
                    pushed += 1;
                }
                now += Duration::from_micros(50);
                let first = window.base;
                for step in 0..window.flights.len().min(44) {
                    let sequence = first.plus(step);
                    if loss == 0
                        || sequence.0 % loss != 0
                        || window.flight(sequence).is_some_and(|it| it.loss != Loss::None)
                    {
                        acked += u64::from(window.acknowledge(now, sequence).is_ok());
                    }
                }
            }
            let each = (thread_time() - started).as_nanos() / u128::from(COUNT);
            println!("window {limit:5}, 1 in {loss:3} lost: {each} ns for push and ack");
        }
    }

    /// Every message's number, and how often it was sent; those acknowledged are not there.
    type Model = BTreeMap<u64, u32>;

    proptest! {
        /// The window against a plain map, from any first number on.
        #[test]
        fn window_agrees_with_a_map(
            start in any::<u32>(),
            cap in prop::sample::select(vec![1, 2, 64, 500, MAX_WINDOW]),
            steps in prop::collection::vec((0..4_u8, 0..200_u32), 1..400),
        ) {
            let mut now = Instant::now();
            let mut window = AckWindow::new(1448, WindowChoice::Adaptive { cap }, SECOND);
            window.set_pace(Pace::Stream);
            window.base = Sequence(start);
            let (mut model, mut pushed) = (Model::new(), 0_u64);
            for (what, value) in steps {
                let base = model.first_key_value().map_or(pushed, |(first, _)| *first);
                match what {
                    0 => for _ in 0..value {
                        if window.has_room() {
                            #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
                            let sequence = Sequence(start.wrapping_add(pushed as u32));
                            prop_assert_eq!(window.next_sequence(), sequence);
                            window.push(now, chunk(pushed));
                            model.insert(pushed, 1);
                            pushed += 1;
                        }
                    },
                    1 => {
                        let number = base + u64::from(value);
                        #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
                        let ack = Sequence(start.wrapping_add(number as u32));
                        let want = match number {
                            n if model.remove(&n).is_some() => Ok(chunk(n)),
                            n if n < pushed => Err(AckError::Repeated),
                            _ => Err(AckError::Unknown),
                        };
                        prop_assert_eq!(window.acknowledge(now, ack), want);
                    }
                    2 => now += Duration::from_micros(value.into()),
                    _ => {
                        now += Duration::from_millis(value.into());
                        window.expire(now);
                        while let Some((_, again)) = window.peek_resend() {
                            let sent = model.get_mut(&(again.offset / 1000));
                            prop_assert!(sent.is_some());
                            *sent.unwrap() += 1;
                            window.resent(now);
                        }
                    }
                }
                let open = open(&window);
                prop_assert_eq!(&open, &model.keys().copied().collect::<Vec<_>>());
                let lost = window.flights.iter().filter(|flight| flight.state == State::Lost).count();
                prop_assert_eq!(window.out + lost, open.len());
                prop_assert!(window.out <= cap as usize);
                prop_assert!(window.lost.len() >= lost);
                prop_assert_eq!(window.is_empty(), open.is_empty());
                prop_assert!(window.is_empty() || window.flights[0].state != State::Acked);
                // Nothing is forgotten: what is out expires, what is lost goes as soon as there is room.
                prop_assert_eq!(window.next_expiry().is_some(), window.out > 0);
                prop_assert!(lost == 0 || window.peek_resend().is_some() || window.room() == 0);
            }
        }
    }
}
