//! Transmissions in order of time, and which of them others have overtaken: what was sent clearly before one that has
//! arrived, and is not acknowledged, is lost (RACK, RFC 8985; the first threshold is that of RFC 9002, section 6.1.1).
//!
//! A path may reorder. When a message proves not to have been lost, transmissions are given more time from then on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::window::Sequence;

/// A transmission is overtaken when this many that left after it have arrived before it.
const OVERTAKEN: u64 = 3;

/// One message, sent once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transmission {
    pub(super) sequence: Sequence,
    pub(super) sent: Instant,
    /// How often the wait for its ack was doubled when it was sent.
    pub(super) doublings: u32,
}

/// Transmissions from the oldest of interest to the newest, numbered as they leave.
#[derive(Debug, Default)]
pub(super) struct Air {
    queue: VecDeque<Transmission>,
    /// Number of the first in `queue`.
    first: u64,
    /// The latest that arrived: its number and when it left.
    latest: Option<(u64, Instant)>,
    /// How much later than another a transmission must have left, beside its number, to overtake it.
    head_start: Duration,
    /// Transmissions before this one left before the head start was changed last.
    widened_at: u64,
}

impl Air {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Number of the next one.
    pub(super) fn next(&self) -> u64 {
        self.first + self.queue.len() as u64
    }

    /// One more; gives its number.
    pub(super) fn push(&mut self, transmission: Transmission) -> u64 {
        self.queue.push_back(transmission);
        self.next() - 1
    }

    /// The oldest and its number.
    pub(super) fn front(&self) -> Option<(u64, Transmission)> {
        self.queue.front().map(|first| (self.first, *first))
    }

    /// Forgets the oldest.
    pub(super) fn pop(&mut self) {
        if self.queue.pop_front().is_some() {
            self.first += 1;
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.first = self.next();
        self.queue.clear();
        self.latest = None;
    }

    /// When that transmission left, unless it is forgotten.
    pub(super) fn sent(&self, number: u64) -> Option<Instant> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.queue.get(index).map(|transmission| transmission.sent)
    }

    /// That transmission has arrived.
    pub(super) fn arrived(&mut self, number: u64) {
        if self.latest.is_none_or(|(latest, _)| latest < number)
            && let Some(sent) = self.sent(number)
        {
            self.latest = Some((number, sent));
        }
    }

    /// Whether later ones have arrived clearly before this one.
    pub(super) fn is_overtaken(&self, number: u64, sent: Instant) -> bool {
        self.latest.is_some_and(|(latest, latest_sent)| {
            number + OVERTAKEN <= latest && sent + self.head_start <= latest_sent
        })
    }

    /// What counted as overtaken has arrived after all: the path reorders. Once for each round trip the head start
    /// grows, up to `longest`.
    pub(super) fn widen(&mut self, shortest: Duration, longest: Duration) {
        if self.latest.is_some_and(|(latest, _)| latest >= self.widened_at) {
            self.widened_at = self.next();
            self.head_start = (self.head_start * 2).max(shortest / 4).min(longest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn air(count: u32, apart: Duration) -> (Air, Instant) {
        let (mut air, start) = (Air::default(), Instant::now());
        for number in 0..count {
            let transmission =
                Transmission { sequence: Sequence(number), sent: start + apart * number, doublings: 0 };
            assert_eq!(air.push(transmission), u64::from(number));
        }
        (air, start)
    }

    #[test]
    fn three_later_arrivals_overtake() {
        let (mut air, start) = air(5, Duration::ZERO);
        air.arrived(2);
        assert!(!air.is_overtaken(0, start));
        air.arrived(3);
        assert!(air.is_overtaken(0, start));
        assert!(!air.is_overtaken(1, start));
        air.arrived(1);
        assert!(air.is_overtaken(0, start), "an older arrival changes nothing");
    }

    #[test]
    fn reordering_gives_others_a_head_start_once_a_round_trip() {
        let us = Duration::from_micros;
        let (mut air, start) = air(100, us(10));
        air.arrived(50);
        for _ in 0..10 {
            air.widen(us(400), us(1000));
        }
        assert!(air.is_overtaken(40, start + us(400)));
        assert!(!air.is_overtaken(41, start + us(410)), "100 us are a quarter of the shortest round trip");
        air.arrived(99);
        air.widen(us(400), us(1000));
        assert!(air.is_overtaken(89, start + us(890)), "these left before the path was known to reorder");
    }

    #[test]
    fn numbers_go_on_behind_what_is_forgotten() {
        let (mut air, start) = air(5, Duration::from_micros(1));
        air.pop();
        assert_eq!((air.len(), air.next(), air.front().map(|(number, _)| number)), (4, 5, Some(1)));
        assert_eq!((air.sent(0), air.sent(1)), (None, Some(start + Duration::from_micros(1))));
        air.clear();
        assert_eq!((air.len(), air.next(), air.sent(4)), (0, 5, None));
        air.pop();
        assert_eq!(air.next(), 5);
    }
}
