//! The window of FreeBSD's own client (`netdump_send`): 64 KiB, then nothing until all of it is acknowledged, which is
//! looked for every half millisecond. What is not acknowledged after `polls` looks is sent again.
//!
//! It is there to be compared with: it never sends more than 131 MB/s and stands still for a second after each loss. Only
//! its 32-bit ack mask, by which it takes lost messages for acknowledged, is not imitated.

use std::time::Instant;

use super::config::POLL;

/// Bytes sent at a time (`maxiosize` of FreeBSD's dumper).
pub(super) const CHUNK: usize = 64 * 1024;

/// What of a chunk may yet be sent.
#[derive(Debug)]
pub(super) struct Classic {
    left: usize,
    /// When its last message was sent, from which the looks are counted.
    sent_at: Option<Instant>,
    /// The look that found the chunk before acknowledged.
    opened_at: Option<Instant>,
}

impl Classic {
    /// Before the first chunk.
    pub(super) fn new() -> Self {
        Self { left: CHUNK, sent_at: None, opened_at: None }
    }

    /// Payload bytes that the chunk has room for.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// From when on new messages may be sent.
    pub(super) fn opened_at(&self) -> Option<Instant> {
        self.opened_at
    }

    /// A message with so many bytes of payload was sent, for the first time (else 0).
    pub(super) fn sent(&mut self, now: Instant, len: usize) {
        self.left = self.left.saturating_sub(len);
        self.sent_at = Some(now);
    }

    /// Everything sent is acknowledged.
    pub(super) fn settled(&mut self, now: Instant) {
        self.left = CHUNK;
        self.opened_at = self.sent_at.map(|sent| {
            let looks = now.saturating_duration_since(sent).as_nanos().div_ceil(POLL.as_nanos()).max(1);
            sent + POLL * u32::try_from(looks).unwrap_or(u32::MAX)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn acks_are_looked_for_every_half_millisecond() {
        let us = Duration::from_micros;
        let start = Instant::now();
        for (acked, opened) in [(0, 500), (1, 500), (500, 500), (501, 1000), (999_900, 1_000_000)] {
            let mut classic = Classic::new();
            assert_eq!((classic.left(), classic.opened_at()), (65_536, None));
            classic.sent(start, 65_536);
            assert_eq!(classic.left(), 0);
            classic.settled(start + us(acked));
            assert_eq!((classic.left(), classic.opened_at()), (65_536, Some(start + us(opened))));
        }
    }
}
