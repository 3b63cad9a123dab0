//! Which bytes of the core go into the next message: in order, untouched zeros left out.
//!
//! Of a core that still grows only full messages are taken, as long as its end is not known: what comes later fills
//! them up.

use std::ops::Range;

use crate::ReadAt;

/// Holes smaller than this are sent: a receiver keeps a list of what it has, and a core of many small holes would make
/// that list long to save little.
const MIN_HOLE: u64 = 256 * 1024;

/// A position in the core: everything before it has been sent at least once, or needs not be.
#[derive(Debug)]
pub(super) struct Spans {
    /// Of the core, or of what there is of it so far.
    length: u64,
    is_growing: bool,
    has_holes: bool,
    next: u64,
    /// End of the run of bytes to send that holds `next`, as far as it was looked up.
    run_end: u64,
    skipped: u64,
}

impl Spans {
    /// At the beginning of a core of `length` bytes.
    pub(super) fn new(length: u64) -> Self {
        Self { length, is_growing: false, has_holes: true, next: 0, run_end: 0, skipped: 0 }
    }

    /// At the beginning of a core of which there is nothing yet.
    pub(super) fn growing() -> Self {
        Self { is_growing: true, has_holes: false, ..Self::new(0) }
    }

    /// There are `length` bytes of a growing core.
    pub(super) fn grow(&mut self, length: u64) {
        if self.is_growing {
            self.length = self.length.max(length);
        }
    }

    /// A growing core ends at what there is of it now.
    pub(super) fn end(&mut self) {
        self.is_growing = false;
        self.run_end = self.length;
    }

    /// Goes back to the beginning.
    pub(super) fn restart(&mut self) {
        self.next = 0;
        self.skipped = 0;
        self.run_end = if self.has_holes || self.is_growing { 0 } else { self.length };
    }

    /// Whether the end is not known.
    pub(super) fn is_growing(&self) -> bool {
        self.is_growing
    }

    /// Bytes of the core, or of what there is of it so far.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Everything before this offset was sent or left out.
    pub(super) fn position(&self) -> u64 {
        self.next
    }

    /// Bytes left out.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Whether nothing is left.
    pub(super) fn is_done(&self) -> bool {
        !self.is_growing && self.next >= self.length
    }

    /// Whether a message waits for a growing core to grow.
    pub(super) fn is_starved(&self, max: usize) -> bool {
        self.is_growing && self.length - self.next < max as u64
    }

    /// How many messages of `max` bytes what is left may fill at most.
    pub(super) fn messages_left(&self, max: usize) -> usize {
        usize::try_from((self.length - self.next).div_ceil(max as u64)).unwrap_or(usize::MAX)
    }

    /// Where the next message's payload, of at most `max` bytes, lies. Asking again gives the same answer until it is
    /// [taken](Self::take).
    pub(super) fn peek<I: ReadAt + ?Sized>(&mut self, image: &I, max: usize) -> Option<(u64, usize)> {
        if self.is_done() || self.is_starved(max) {
            return None;
        }
        if self.is_growing {
            return Some((self.next, max));
        }
        while self.run_end < self.length && self.run_end - self.next < max as u64 {
            let from = self.run_end;
            let run = self.next_run(image, from);
            if run.start - from >= MIN_HOLE {
                if self.next < from {
                    break;
                }
                self.skipped += run.start - from;
                self.next = run.start;
            }
            self.run_end = run.end;
        }
        let run_len = usize::try_from(self.run_end - self.next).unwrap_or(usize::MAX);
        Some((self.next, run_len.min(max)))
    }

    /// Moves on behind the bytes that [`Self::peek`] gave.
    pub(super) fn take(&mut self, len: usize) {
        self.next += len as u64;
    }

    /// The first run to send at or behind `from`, which lies inside the core. The core's last byte always belongs to
    /// one: it gives the receiver's file its length.
    fn next_run<I: ReadAt + ?Sized>(&self, image: &I, from: u64) -> Range<u64> {
        let last_byte = self.length - 1..self.length;
        match image.next_data(from) {
            Some(run) if run.start < last_byte.start => {
                let start = run.start.max(from);
                start..run.end.clamp(start + 1, self.length)
            }
            Some(_) | None => last_byte,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ReadError;

    /// A core of which only some runs may hold data.
    struct Sparse {
        length: u64,
        runs: Vec<Range<u64>>,
    }

    impl ReadAt for Sparse {
        fn length(&self) -> u64 {
            self.length
        }

        fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), ReadError> {
            Ok(())
        }

        fn next_data(&self, offset: u64) -> Option<Range<u64>> {
            let run = self.runs.iter().find(|run| run.end > offset)?;
            Some(run.start.max(offset)..run.end)
        }
    }

    /// Start and end of adjacent messages joined, and the bytes skipped.
    fn sent(image: &Sparse, max: usize) -> (Vec<(u64, u64)>, u64) {
        let mut spans = Spans::new(image.length);
        let mut sent: Vec<(u64, u64)> = Vec::new();
        while let Some((offset, len)) = spans.peek(image, max) {
            assert_eq!(spans.peek(image, max), Some((offset, len)));
            assert!((1..=max).contains(&len));
            spans.take(len);
            let end = offset + len as u64;
            assert_eq!(spans.position(), end);
            match sent.last_mut() {
                Some(last) if last.1 == offset => last.1 = end,
                _ => sent.push((offset, end)),
            }
        }
        assert!(spans.is_done());
        (sent, spans.skipped())
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn large_holes_are_left_out_and_the_last_byte_is_sent() {
        let image = Sparse { length: 10 * MIB, runs: vec![MIB..2 * MIB, 5 * MIB..5 * MIB + 1] };
        let want = vec![(MIB, 2 * MIB), (5 * MIB, 5 * MIB + 1), (10 * MIB - 1, 10 * MIB)];
        assert_eq!(sent(&image, 1448), (want, 9 * MIB - 2));
        let empty = Sparse { length: 10 * MIB, runs: vec![] };
        assert_eq!(sent(&empty, 1448), (vec![(10 * MIB - 1, 10 * MIB)], 10 * MIB - 1));
    }

    #[test]
    fn small_holes_are_sent() {
        let runs = (0..16).map(|i| i * MIB / 8..i * MIB / 8 + 4096).collect();
        assert_eq!(sent(&Sparse { length: 2 * MIB, runs }, 4096), (vec![(0, 2 * MIB)], 0));
    }

    #[test]
    fn messages_are_full_across_small_holes() {
        let runs = (0..16).map(|i| i * 8192..i * 8192 + 4096).collect();
        let image = Sparse { length: 16 * 8192, runs };
        let mut spans = Spans::new(image.length);
        for message in 0..80 {
            assert_eq!(spans.peek(&image, 1448), Some((message * 1448, 1448)));
            spans.take(1448);
        }
    }

    #[test]
    fn a_growing_core_gives_full_messages_until_its_end() {
        let image = Sparse { length: 10_000, runs: vec![] };
        let mut spans = Spans::growing();
        assert_eq!((spans.peek(&image, 1448), spans.is_done(), spans.is_starved(1448)), (None, false, true));
        spans.grow(1447);
        assert_eq!(spans.peek(&image, 1448), None);
        spans.grow(2896);
        for offset in [0, 1448] {
            assert_eq!(spans.peek(&image, 1448), Some((offset, 1448)));
            spans.take(1448);
        }
        assert_eq!((spans.peek(&image, 1448), spans.is_done()), (None, false));
        spans.grow(2897);
        spans.grow(5);
        assert_eq!(spans.peek(&image, 1448), None, "one byte more is no message");
        spans.end();
        assert_eq!((spans.peek(&image, 1448), spans.is_starved(1448)), (Some((2896, 1)), false));
        spans.take(1);
        assert_eq!((spans.peek(&image, 1448), spans.is_done(), spans.skipped()), (None, true, 0));
        spans.grow(9999);
        assert!(spans.is_done(), "it has ended");
    }

    #[test]
    fn an_empty_core_has_no_messages_and_one_byte_has_one() {
        assert_eq!(sent(&Sparse { length: 0, runs: vec![] }, 1448), (vec![], 0));
        assert_eq!(sent(&Sparse { length: 1, runs: vec![] }, 1448), (vec![(0, 1)], 0));
    }

    #[test]
    fn a_lying_image_cannot_stop_the_dump() {
        struct Liar;
        impl ReadAt for Liar {
            fn length(&self) -> u64 {
                u64::MAX
            }
            fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), ReadError> {
                Ok(())
            }
            fn next_data(&self, offset: u64) -> Option<Range<u64>> {
                Some(if offset == 0 { 0..0 } else { 0..u64::MAX })
            }
        }
        let mut spans = Spans::new(3 * MIB);
        let mut total = 0;
        while let Some((_, len)) = spans.peek(&Liar, 4096) {
            spans.take(len);
            total += len as u64;
        }
        assert_eq!(total, 3 * MIB);
    }

    proptest! {
        #[test]
        fn every_byte_is_sent_once_or_lies_in_a_hole(
            pieces in prop::collection::vec((0..600_000_u64, 1..300_000_u64), 0..12),
            tail in 0..600_000_u64,
            max in 512..4097_usize,
        ) {
            let mut at = 0;
            let mut runs = Vec::new();
            for (gap, len) in pieces {
                runs.push(at + gap..at + gap + len);
                at += gap + len;
            }
            let image = Sparse { length: at + tail, runs: runs.clone() };
            let (sent, skipped) = sent(&image, max);
            let bytes: u64 = sent.iter().map(|(start, end)| end - start).sum();
            prop_assert_eq!(bytes + skipped, image.length);
            prop_assert!(sent.windows(2).all(|pair| pair[0].1 < pair[1].0));
            prop_assert!(sent.windows(2).all(|pair| pair[1].0 - pair[0].1 >= MIN_HOLE));
            prop_assert_eq!(sent.last().map_or(0, |last| last.1), image.length);
            for run in runs {
                prop_assert!(sent.iter().any(|(start, end)| *start <= run.start && run.end <= *end));
            }
        }
    }
}
