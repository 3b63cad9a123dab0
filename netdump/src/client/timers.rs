//! How long to wait before a message is sent again: round trips smoothed as in RFC 6298, with bounds that suit a LAN.

use std::time::Duration;

/// Never resend sooner after the usual round trip: a server that writes to its disk pauses for milliseconds.
const MARGIN: Duration = Duration::from_millis(20);
/// Before the first round trip of data was measured.
const UNKNOWN: Duration = Duration::from_millis(200);

/// Round trips measured so far.
#[derive(Debug)]
pub(super) struct RoundTrip {
    /// Smoothed round trip and its mean deviation.
    smoothed: Option<(Duration, Duration)>,
    /// How often the wait was doubled since the last measurement. It stays doubled for new messages too: on a path that
    /// has become slower than the wait, all messages would be sent twice, and as resent ones give no measurement, for
    /// ever (RFC 6298, section 5.5).
    doublings: u32,
    ceiling: Duration,
}

impl RoundTrip {
    /// Nothing measured yet; no wait will exceed `ceiling`.
    pub(super) fn new(ceiling: Duration) -> Self {
        Self { smoothed: None, doublings: 0, ceiling }
    }

    /// Takes the time from a message's only transmission to its ack. Acks of resent messages tell nothing, as nobody
    /// knows which transmission they are for (Karn).
    pub(super) fn sample(&mut self, measured: Duration) {
        self.doublings = 0;
        self.smoothed = Some(match self.smoothed {
            None => (measured, measured / 2),
            Some((mean, deviation)) => {
                ((mean * 7 + measured) / 8, (deviation * 3 + mean.abs_diff(measured)) / 4)
            }
        });
    }

    /// Messages were waited for in vain.
    pub(super) fn timed_out(&mut self) {
        self.doublings = self.doublings.saturating_add(1);
    }

    /// How long to wait for the ack of a message.
    pub(super) fn wait(&self) -> Duration {
        let first = self.smoothed.map_or(UNKNOWN, |(mean, deviation)| mean + MARGIN.max(deviation * 4));
        first.saturating_mul(1 << self.doublings.min(20)).min(self.ceiling)
    }

    /// The same for HERALD, dump header and FINISHED, whose acks wait for more than a copy: files, name look-ups, a
    /// disk. They get the original's whole second: a stock server that sees a HERALD again after data begins anew, and
    /// writes a header's lines into its info file each time it comes.
    pub(super) fn patient_wait(&self) -> Duration {
        self.ceiling
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
        let mut round_trip = RoundTrip::new(SECOND);
        let waits = [0; 5].map(|_| {
            let wait = round_trip.wait();
            round_trip.timed_out();
            wait
        });
        assert_eq!(waits, [ms(200), ms(400), ms(800), SECOND, SECOND]);
        assert_eq!(round_trip.patient_wait(), SECOND);
        assert_eq!(RoundTrip::new(ms(3)).wait(), ms(3));
    }

    #[test]
    fn a_measurement_ends_the_doubling() {
        let mut round_trip = RoundTrip::new(SECOND);
        round_trip.sample(ms(1));
        round_trip.timed_out();
        round_trip.timed_out();
        assert_eq!(round_trip.wait(), 4 * ms(21));
        round_trip.sample(ms(1));
        assert_eq!(round_trip.wait(), ms(21));
    }

    #[test]
    fn waits_are_a_little_longer_than_the_round_trip() {
        let mut fast = RoundTrip::new(SECOND);
        fast.sample(ms(1));
        assert_eq!((fast.wait(), fast.patient_wait()), (ms(21), SECOND));
        let mut slow = RoundTrip::new(SECOND);
        for _ in 0..100 {
            slow.sample(ms(300));
        }
        assert!((ms(320)..ms(330)).contains(&slow.wait()), "{:?}", slow.wait());
    }

    #[test]
    fn uneven_round_trips_widen_the_wait() {
        let mut uneven = RoundTrip::new(SECOND);
        for i in 0..100 {
            uneven.sample(ms(if i % 2 == 0 { 20 } else { 100 }));
        }
        assert!(uneven.wait() > ms(150), "{:?}", uneven.wait());
    }
}
