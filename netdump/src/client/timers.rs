//! How long to wait before a message is sent again: round trips smoothed as in RFC 6298, with bounds that suit a LAN.

use std::time::Duration;

/// Never resend sooner: a server that writes to its disk pauses for milliseconds.
const FLOOR: Duration = Duration::from_millis(20);
/// Before the first round trip was measured, and for messages whose ack waits for more than a copy (HERALD: files and
/// name look-ups; dump header: an info file). A stock server that sees a HERALD again after data begins anew.
const UNKNOWN: Duration = Duration::from_millis(200);

/// Round trips measured so far.
#[derive(Debug)]
pub(super) struct RoundTrip {
    /// Smoothed round trip and its mean deviation.
    smoothed: Option<(Duration, Duration)>,
    ceiling: Duration,
}

impl RoundTrip {
    /// Nothing measured yet; no wait will exceed `ceiling`.
    pub(super) fn new(ceiling: Duration) -> Self {
        Self { smoothed: None, ceiling }
    }

    /// Takes the time from a message's only transmission to its ack. Acks of resent messages tell nothing, as nobody
    /// knows which transmission they are for (Karn).
    pub(super) fn sample(&mut self, measured: Duration) {
        self.smoothed = Some(match self.smoothed {
            None => (measured, measured / 2),
            Some((mean, deviation)) => {
                ((mean * 7 + measured) / 8, (deviation * 3 + mean.abs_diff(measured)) / 4)
            }
        });
    }

    /// How long to wait after the `timeouts`th wait in vain for the same message.
    pub(super) fn wait(&self, timeouts: u32) -> Duration {
        let first = self.smoothed.map_or(UNKNOWN, |(mean, deviation)| (mean + deviation * 4).max(FLOOR));
        self.backed_off(first, timeouts)
    }

    /// The same for messages whose acks are slow by nature.
    pub(super) fn patient_wait(&self, timeouts: u32) -> Duration {
        self.backed_off(UNKNOWN, timeouts)
    }

    fn backed_off(&self, first: Duration, timeouts: u32) -> Duration {
        first.saturating_mul(1 << timeouts.min(20)).min(self.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn waits_double_up_to_the_ceiling() {
        let round_trip = RoundTrip::new(SECOND);
        let waits: Vec<_> = (0..5).map(|timeouts| round_trip.wait(timeouts)).collect();
        assert_eq!(waits, [ms(200), ms(400), ms(800), SECOND, SECOND]);
        assert_eq!(round_trip.wait(u32::MAX), SECOND);
        assert_eq!(RoundTrip::new(ms(3)).wait(0), ms(3));
    }

    #[test]
    fn fast_paths_wait_for_the_floor_and_slow_ones_for_their_round_trip() {
        let mut fast = RoundTrip::new(SECOND);
        fast.sample(Duration::from_micros(100));
        assert_eq!((fast.wait(0), fast.wait(1), fast.patient_wait(0)), (FLOOR, 2 * FLOOR, UNKNOWN));
        let mut slow = RoundTrip::new(SECOND);
        for _ in 0..100 {
            slow.sample(ms(300));
        }
        assert!((ms(300)..ms(310)).contains(&slow.wait(0)), "{:?}", slow.wait(0));
    }

    #[test]
    fn uneven_round_trips_widen_the_wait() {
        let mut uneven = RoundTrip::new(SECOND);
        for i in 0..100 {
            uneven.sample(ms(if i % 2 == 0 { 20 } else { 100 }));
        }
        assert!(uneven.wait(0) > ms(150), "{:?}", uneven.wait(0));
    }
}
