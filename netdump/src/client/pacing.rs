//! Frames at a rate that somebody has set: evenly, whatever the path would bear.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::wire::datagram::HEADERS_LEN;
use crate::wire::message::HEADER_LEN;

/// The longest burst at that rate, and thus what is made good when the clock is looked at too late.
const BURST: Duration = Duration::from_millis(2);

/// When the next frame may go.
#[derive(Debug)]
pub(super) struct Pacer {
    rate: Option<NonZeroU64>,
    /// When all that was sent will have gone at that rate.
    free_at: Option<Instant>,
}

impl Pacer {
    /// Bytes of frames in a second; no limit when absent.
    pub(super) fn new(rate: Option<NonZeroU64>) -> Self {
        Self { rate, free_at: None }
    }

    /// Until when nothing may be sent.
    pub(super) fn holds_until(&self, now: Instant) -> Option<Instant> {
        self.free_at.filter(|at| *at > now)
    }

    /// So many bytes of frames were sent.
    pub(super) fn sent(&mut self, now: Instant, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let owed = now.checked_sub(BURST).unwrap_or(now);
        let nanos = u128::from(bytes as u64) * 1_000_000_000 / u128::from(rate.get());
        let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.free_at = Some(self.free_at.map_or(now, |at| at.max(owed)) + time);
    }

    /// Most messages of `len` bytes of payload in a train.
    pub(super) fn train_limit(&self, len: usize) -> usize {
        let Some(rate) = self.rate else { return usize::MAX };
        let burst = u128::from(rate.get()) * BURST.as_nanos() / 1_000_000_000;
        usize::try_from(burst / frame_len(len) as u128).unwrap_or(usize::MAX).max(1)
    }
}

/// Bytes of the frame of a message with `len` bytes of payload.
pub(super) fn frame_len(len: usize) -> usize {
    HEADERS_LEN + HEADER_LEN + len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pacer(rate: u64) -> Pacer {
        Pacer::new(NonZeroU64::new(rate))
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let (mut pacer, now) = (Pacer::new(None), Instant::now());
        pacer.sent(now, usize::MAX);
        assert_eq!((pacer.holds_until(now), pacer.train_limit(4096)), (None, usize::MAX));
    }

    #[test]
    fn frames_leave_evenly() {
        let (mut pacer, start) = (pacer(1_000_000), Instant::now());
        pacer.sent(start, 1000);
        assert_eq!(pacer.holds_until(start), Some(start + Duration::from_millis(1)));
        assert_eq!(pacer.holds_until(start + Duration::from_millis(1)), None);
    }

    #[test]
    fn a_late_look_at_the_clock_is_made_good_but_a_long_pause_is_not() {
        for (pause, frames) in [(1, 1), (2, 2), (3, 3), (100, 3)] {
            let (mut pacer, start) = (pacer(1_000_000), Instant::now());
            pacer.sent(start, 1000);
            let now = start + Duration::from_millis(pause);
            let mut sent = 0;
            while pacer.holds_until(now).is_none() {
                pacer.sent(now, 1000);
                sent += 1;
            }
            assert_eq!(sent, frames, "after {pause} ms");
        }
    }

    #[test]
    fn trains_are_as_long_as_a_burst() {
        assert_eq!(pacer(1).train_limit(1448), 1);
        assert_eq!(pacer(1_514_000).train_limit(1448), 2);
        assert_eq!(pacer(1_000_000_000).train_limit(1448), 1321);
    }

    #[test]
    fn absurd_rates_do_not_overflow() {
        let now = Instant::now();
        let mut slow = pacer(1);
        slow.sent(now, 65_000);
        assert_eq!(slow.holds_until(now), Some(now + Duration::from_secs(65_000)));
        let mut fast = pacer(u64::MAX);
        fast.sent(now, usize::MAX);
        assert!(fast.holds_until(now).is_some());
    }
}
