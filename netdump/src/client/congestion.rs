//! How many messages may be on their way: one more for each window acknowledged, half as many after a loss.
//!
//! A stock netdumpd has 128 KiB of socket buffer, which is about 100 datagrams of 1448 bytes but only 24 of 4096, and
//! what does not fit is lost silently; so losses must close the window. They also happen by chance, so it never closes
//! further than FreeBSD's own client, whose [`CHUNK`] on the way at a time every server is made for.

/// The window at the start and at most.
pub(super) const MAX_LIMIT: u32 = 64;
/// Bytes that FreeBSD's client sends before it waits for all their acks (`maxiosize` of its dumper).
const CHUNK: usize = 64 * 1024;

/// The window's present limit.
#[derive(Debug)]
pub(super) struct Congestion {
    limit: u32,
    /// The limit at least.
    floor: u32,
    /// Acks since the limit last grew.
    acks: u32,
    /// Transmissions before this one were made with the old limit: their losses are the same event.
    recovering_until: u64,
}

impl Congestion {
    /// Wide open, for messages of `payload_limit` bytes.
    pub(super) fn new(payload_limit: usize) -> Self {
        let chunk = u32::try_from(CHUNK / payload_limit.max(1)).unwrap_or(u32::MAX);
        Self { limit: MAX_LIMIT, floor: chunk.clamp(1, MAX_LIMIT), acks: 0, recovering_until: 0 }
    }

    /// Most messages on their way.
    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// One message was acknowledged.
    pub(super) fn acknowledged(&mut self) {
        self.acks += 1;
        if self.acks >= self.limit {
            self.acks = 0;
            self.limit = MAX_LIMIT.min(self.limit + 1);
        }
    }

    /// Transmission number `lost` was lost; the next one will be number `next`.
    pub(super) fn lost(&mut self, lost: u64, next: u64) {
        if lost >= self.recovering_until {
            self.recovering_until = next;
            self.acks = 0;
            self.limit = self.floor.max(self.limit / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_of_one_window_halve_once() {
        let mut congestion = Congestion::new(4096);
        for lost in 10..40 {
            congestion.lost(lost, 64);
        }
        assert_eq!(congestion.limit(), 32);
        congestion.lost(64, 90);
        assert_eq!(congestion.limit(), 16);
    }

    #[test]
    fn limit_stays_between_the_originals_chunk_and_64() {
        for (payload, floor) in [(512, 64), (1448, 45), (4096, 16)] {
            let mut congestion = Congestion::new(payload);
            for round in 0..10 {
                congestion.lost(round, round + 1);
            }
            assert_eq!(congestion.limit(), floor);
            for _ in 0..floor {
                congestion.acknowledged();
            }
            assert_eq!(congestion.limit(), MAX_LIMIT.min(floor + 1));
            for _ in 0..10_000 {
                congestion.acknowledged();
            }
            assert_eq!(congestion.limit(), MAX_LIMIT);
        }
    }
}
