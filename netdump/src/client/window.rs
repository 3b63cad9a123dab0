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
pub(super) use super::flight::Chunk;
pub use super::flight::Sequence;
use super::flight::{Flight, Loss, State};
use super::timers::RoundTrip;

/// Messages from the oldest unacknowledged one to the newest. One that is lost again and again holds all others up when
/// this is reached, so it is several windows.
const SPAN: usize = 4 * MAX_WINDOW as usize;

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
mod tests;
