//! What the network does to frames.

use std::ops::Range;
use std::time::Duration;

use super::rng::Rng;

/// The chances of a frame, each in a thousand, and its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weather {
    /// To be lost.
    pub loss: u32,
    /// To be lost when the one before was.
    pub burst: u32,
    /// To come twice.
    pub duplicate: u32,
    /// To have a bit flipped, as a broken router does: in an IP packet, behind what Ethernet's own checksum protects.
    pub corrupt: u32,
    /// To come much later than others.
    pub straggle: u32,
    /// How much later.
    pub straggle_by: Range<Duration>,
    /// On the way; a wide range reorders.
    pub delay: Range<Duration>,
    /// When nothing arrives at all, since the start.
    pub outage: Range<Duration>,
}

impl Weather {
    /// Nothing is lost, everything takes 50 microseconds.
    pub fn calm() -> Self {
        let delay = Duration::from_micros(50);
        Self {
            loss: 0,
            burst: 0,
            duplicate: 0,
            corrupt: 0,
            straggle: 0,
            straggle_by: Duration::ZERO..Duration::ZERO,
            delay: delay..delay,
            outage: Duration::ZERO..Duration::ZERO,
        }
    }

    /// A calm network that loses this many in a thousand.
    pub fn lossy(loss: u32) -> Self {
        Self { loss, ..Self::calm() }
    }

    /// Any weather, from calm to hopeless.
    pub fn any(rng: &mut Rng) -> Self {
        let ms = Duration::from_millis;
        let base = *rng.pick(&[ms(0), ms(0), ms(1), ms(20), ms(200)]);
        let jitter = *rng.pick(&[ms(0), ms(0), ms(1), ms(30)]);
        let outage_at = ms(rng.below(500));
        let outage = *rng.pick(&[ms(0), ms(0), ms(0), ms(0), ms(500), ms(5000), ms(30_000)]);
        Self {
            loss: *rng.pick(&[0, 0, 5, 20, 50, 100, 300]),
            burst: *rng.pick(&[0, 0, 0, 300, 800]),
            duplicate: *rng.pick(&[0, 0, 10, 200]),
            corrupt: *rng.pick(&[0, 0, 10, 100]),
            straggle: *rng.pick(&[0, 0, 10, 50]),
            straggle_by: ms(1)..*rng.pick(&[ms(20), ms(500), ms(3000)]),
            delay: base..base + jitter,
            outage: outage_at..outage_at + outage,
        }
    }

    /// Any weather that a few seconds are enough for.
    pub fn brief(rng: &mut Rng) -> Self {
        let ms = Duration::from_millis;
        let base = *rng.pick(&[ms(0), ms(0), ms(1), ms(10)]);
        let jitter = *rng.pick(&[ms(0), ms(0), ms(1), ms(10)]);
        let outage_at = ms(rng.below(50));
        let outage = *rng.pick(&[ms(0), ms(0), ms(0), ms(300), ms(1000)]);
        Self {
            loss: *rng.pick(&[0, 0, 5, 20, 50, 100]),
            burst: *rng.pick(&[0, 0, 300, 800]),
            duplicate: *rng.pick(&[0, 0, 10, 200]),
            corrupt: *rng.pick(&[0, 0, 10, 100]),
            straggle: *rng.pick(&[0, 0, 10, 50]),
            straggle_by: ms(1)..*rng.pick(&[ms(20), ms(300)]),
            delay: base..base + jitter,
            outage: outage_at..outage_at + outage,
        }
    }

    /// Whether a dump must get through this.
    pub fn is_modest(&self) -> bool {
        let outage = self.outage.end.saturating_sub(self.outage.start);
        self.loss <= 50 && self.burst <= 300 && self.corrupt <= 10 && outage <= Duration::from_millis(500)
    }
}
