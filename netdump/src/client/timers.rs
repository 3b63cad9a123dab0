//! How long to wait before a message is sent again: round trips smoothed as in RFC 6298, with bounds that suit a LAN.

use std::time::Duration;

/// Never resend sooner after the usual round trip: a server that writes to its disk pauses for milliseconds.
const MARGIN: Duration = Duration::from_millis(10);
/// Before the first round trip of data was measured.
const UNKNOWN: Duration = Duration::from_millis(200);

/// Round trips measured so far.
#[derive(Debug)]
pub(super) struct RoundTrip {
    smoothed: Option<Smoothed>,
    shortest: Duration,
    /// How often the wait was doubled since the last measurement. It stays doubled for new messages too: on a path that
    /// has become slower than the wait, all messages would be sent twice, and as resent ones give no measurement, for
    /// ever (RFC 6298, section 5.5).
    doublings: u32,
    ceiling: Duration,
}

/// Round trip and its mean deviation in nanoseconds: this is done for every ack.
#[derive(Debug, Clone, Copy)]
struct Smoothed {
    mean: u64,
    deviation: u64,
}

impl RoundTrip {
    /// Nothing measured yet; no wait will exceed `ceiling`.
    pub(super) fn new(ceiling: Duration) -> Self {
        Self { smoothed: None, shortest: Duration::MAX, doublings: 0, ceiling }
    }

    /// Takes the time from a message's only transmission to its ack. Acks of resent messages tell nothing, as nobody
    /// knows which transmission they are for (Karn).
    pub(super) fn sample(&mut self, measured: Duration) {
        self.doublings = 0;
        self.shortest = self.shortest.min(measured);
        let measured = u64::try_from(measured.as_nanos()).unwrap_or(u64::MAX / 8);
        self.smoothed = Some(match self.smoothed {
            None => Smoothed { mean: measured, deviation: measured / 2 },
            Some(Smoothed { mean, deviation }) => Smoothed {
                mean: mean - mean / 8 + measured / 8,
                deviation: deviation - deviation / 4 + mean.abs_diff(measured) / 4,
            },
        });
    }

    /// Messages were waited for in vain.
    pub(super) fn timed_out(&mut self) {
        self.doublings = self.doublings.saturating_add(1);
    }

    /// The path is well again.
    pub(super) fn forget_doublings(&mut self) {
        self.doublings = 0;
    }

    /// How often the wait was doubled since the last measurement.
    pub(super) fn doublings(&self) -> u32 {
        self.doublings
    }

    /// The shortest ever measured and the usual one, once there are any.
    pub(super) fn shortest_and_usual(&self) -> Option<(Duration, Duration)> {
        self.smoothed.map(|smoothed| (self.shortest, Duration::from_nanos(smoothed.mean)))
    }

    /// How long to wait for the ack of a message that was sent when the wait had been doubled `doublings` times. A
    /// measurement since then counts for it too.
    pub(super) fn wait(&self, doublings: u32) -> Duration {
        let first = self.smoothed.map_or(UNKNOWN, |Smoothed { mean, deviation }| {
            Duration::from_nanos(mean) + MARGIN.max(Duration::from_nanos(deviation) * 4)
        });
        first.saturating_mul(1 << doublings.min(self.doublings).min(20)).min(self.ceiling)
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
            let wait = round_trip.wait(u32::MAX);
            round_trip.timed_out();
            wait
        });
        assert_eq!(waits, [ms(200), ms(400), ms(800), SECOND, SECOND]);
        assert_eq!(round_trip.patient_wait(), SECOND);
        assert_eq!(RoundTrip::new(ms(3)).wait(0), ms(3));
    }

    #[test]
    fn a_measurement_ends_the_doubling() {
        let mut round_trip = RoundTrip::new(SECOND);
        round_trip.sample(ms(1));
        round_trip.timed_out();
        round_trip.timed_out();
        assert_eq!(round_trip.wait(u32::MAX), 4 * ms(11));
        round_trip.sample(ms(1));
        assert_eq!(round_trip.wait(u32::MAX), ms(11));
    }

    #[test]
    fn waits_are_a_little_longer_than_the_round_trip() {
        let mut fast = RoundTrip::new(SECOND);
        fast.sample(ms(1));
        assert_eq!((fast.wait(0), fast.patient_wait()), (ms(11), SECOND));
        let mut slow = RoundTrip::new(SECOND);
        for _ in 0..100 {
            slow.sample(ms(300));
        }
        assert!((ms(309)..ms(320)).contains(&slow.wait(0)), "{:?}", slow.wait(0));
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
