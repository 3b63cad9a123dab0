//! Which bytes of the core go into the next message: in order, zeros left out, whether the guest never touched them or
//! wrote them.
//!
//! Of a core that still grows only full messages are taken, as long as its end is not known: what comes later fills
//! them up.

use crate::ReadAt;

/// Runs of zeros that are shorter are sent: a receiver keeps a list of what it has, and each run costs two messages
/// that are not full. One of this size saves 45 messages at an MTU of 1500, 16 at 9000.
const MIN_GAP: u64 = 64 << 10;
/// After this many runs left out, and again after as many, only runs of twice the size are: even a guest that alternates
/// pages and zeros over a TiB leaves a receiver with less than a million ranges.
const MANY_GAPS: u64 = 1 << 16;
/// Gaps begin and end at multiples of it, as do pages of guest memory in all formats of cores.
const PAGE: u64 = 4096;
/// Zeros looked at in one go, where they are aligned so.
const BLOCK: u64 = 64 << 10;
/// Bytes looked at in one call at most: less than a millisecond, in which the network waits. The holes between them
/// count as a page each.
const MAX_SEARCH: u64 = 4 << 20;

/// Bytes of the core that were left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Skipped {
    /// The guest never touched them.
    pub(super) untouched: u64,
    /// It did, but they are zeros.
    pub(super) zero: u64,
}

/// A position in the core: everything before it has been sent at least once, or needs not be.
#[derive(Debug)]
pub(super) struct Spans {
    /// Of the core, or of what there is of it so far.
    length: u64,
    is_growing: bool,
    has_holes: bool,
    next: u64,
    /// The bytes from `next` up to here are sent.
    run_end: u64,
    /// Those from there up to here are zeros, and left out.
    gap_end: u64,
    /// Of the latter.
    gap: Skipped,
    skipped: Skipped,
    /// Runs of zeros left out.
    gaps: u64,
    /// Where the last of them ended.
    last_gap_end: u64,
    is_searching: bool,
}

impl Spans {
    /// At the beginning of a core of `length` bytes.
    pub(super) fn new(length: u64) -> Self {
        Self {
            length,
            is_growing: false,
            has_holes: true,
            next: 0,
            run_end: 0,
            gap_end: 0,
            gap: Skipped::default(),
            skipped: Skipped::default(),
            gaps: 0,
            last_gap_end: 0,
            is_searching: false,
        }
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
        self.send_up_to(self.length);
    }

    /// Goes back to the beginning.
    pub(super) fn restart(&mut self) {
        let fresh = Self {
            length: self.length,
            is_growing: self.is_growing,
            has_holes: self.has_holes,
            ..Self::new(0)
        };
        *self = fresh;
        if !self.is_growing && !self.has_holes {
            self.send_up_to(self.length);
        }
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

    /// Bytes left out so far.
    pub(super) fn skipped(&self) -> Skipped {
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

    /// Whether [`Self::peek`] gave nothing only because it had looked at enough zeros for once.
    pub(super) fn is_searching(&self) -> bool {
        self.is_searching
    }

    /// How many messages of `max` bytes what is left may fill at most.
    pub(super) fn messages_left(&self, max: usize) -> usize {
        usize::try_from((self.length - self.next).div_ceil(max as u64)).unwrap_or(usize::MAX)
    }

    /// Where the next message's payload, of at most `max` bytes, lies. Asking again gives the same answer until it is
    /// [taken](Self::take).
    pub(super) fn peek<I: ReadAt + ?Sized>(&mut self, image: &I, max: usize) -> Option<(u64, usize)> {
        self.is_searching = false;
        if self.is_done() || self.is_starved(max) {
            return None;
        }
        if self.is_growing {
            return Some((self.next, max));
        }
        let mut search = Search { image, last: self.length - 1, done: 0 };
        while self.run_end < self.length && self.run_end - self.next < max as u64 {
            if self.gap_end == self.run_end {
                if search.done >= MAX_SEARCH {
                    self.is_searching = true;
                    return None;
                }
                self.look_ahead(&mut search);
            } else if self.next == self.run_end {
                self.leave_gap_out();
            } else {
                break;
            }
        }
        let run_len = usize::try_from(self.run_end - self.next).unwrap_or(usize::MAX);
        Some((self.next, run_len.min(max)))
    }

    /// Moves on behind the bytes that [`Self::peek`] gave.
    pub(super) fn take(&mut self, len: usize) {
        self.next += len as u64;
    }

    /// Finds out what lies behind `run_end`: more to send, or zeros to leave out. The core's last byte is always sent:
    /// it gives the receiver's file its length. With it goes the rest of its page if the guest has touched that.
    fn look_ahead<I: ReadAt + ?Sized>(&mut self, search: &mut Search<'_, I>) {
        let from = self.run_end;
        let least = self.least_gap();
        if search.last - from < least {
            return self.send_up_to(self.length);
        }
        // Zeros that begin in this window, and are enough, reach its last page. Of most memory no other page is looked
        // at.
        let last_page = from + least - PAGE;
        if !search.is_zero_page(last_page) {
            return self.send_up_to(last_page + PAGE);
        }
        let mut start = last_page;
        while start > from && search.is_zero_page(start - PAGE) {
            start -= PAGE;
        }
        let (end, gap) = search.zeros(start, least);
        if end - start < least {
            return self.send_up_to((end + PAGE).min(search.last));
        }
        (self.run_end, self.gap_end, self.gap) = (start, end, gap);
    }

    /// Zeros that follow zeros are left out however few there are.
    fn least_gap(&self) -> u64 {
        if self.run_end == self.last_gap_end && self.gaps > 0 {
            return PAGE;
        }
        MIN_GAP << (self.gaps / MANY_GAPS).min(16)
    }

    fn send_up_to(&mut self, end: u64) {
        (self.run_end, self.gap_end) = (end, end);
    }

    fn leave_gap_out(&mut self) {
        self.gaps += u64::from(self.next != self.last_gap_end || self.gaps == 0);
        self.skipped.untouched += self.gap.untouched;
        self.skipped.zero += self.gap.zero;
        (self.next, self.run_end, self.last_gap_end) = (self.gap_end, self.gap_end, self.gap_end);
    }
}

/// Looks for zeros.
struct Search<'a, I: ?Sized> {
    image: &'a I,
    /// Offset of the core's last byte.
    last: u64,
    /// Bytes looked at.
    done: u64,
}

impl<I: ReadAt + ?Sized> Search<'_, I> {
    /// Whether the page at `at` is zeros.
    fn is_zero_page(&mut self, at: u64) -> bool {
        self.done += PAGE;
        self.data_from(at) > at || self.image.is_zeros(at, index(PAGE))
    }

    /// Where the zeros end that begin with the page at `from`, and which they are. Where there are more of them than are
    /// looked at in one call they end early, but not before there are `least` of them.
    fn zeros(&mut self, from: u64, least: u64) -> (u64, Skipped) {
        let (mut at, mut skipped) = (from, Skipped::default());
        while at < self.last && (self.done < MAX_SEARCH || at - from < least) {
            let data = self.data_from(at);
            self.done += PAGE;
            if data > at {
                skipped.untouched += data - at;
                at = data;
                continue;
            }
            let fits = |len: &u64| at.is_multiple_of(*len) && *len <= self.last - at;
            let zeros = |len: &u64| fits(len) && self.image.is_zeros(at, index(*len));
            let Some(len) = [BLOCK, PAGE].into_iter().find(zeros) else { break };
            self.done += len;
            skipped.zero += len;
            at += len;
        }
        (at, skipped)
    }

    /// The page of the first data at or behind `at`, or the core's last byte if that comes before.
    fn data_from(&self, at: u64) -> u64 {
        self.image.data_from(at).map_or(self.last, |data| data / PAGE * PAGE).clamp(at, self.last)
    }
}

fn index(len: u64) -> usize {
    usize::try_from(len).expect("a page or a few")
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::*;

    use super::*;
    use crate::ReadError;

    /// A core that was touched in some runs only, and holds ones in some parts of them. What was not touched must not be
    /// read but for the pages around the runs.
    #[derive(Debug, Default)]
    struct Sparse {
        length: u64,
        touched: Vec<Range<u64>>,
        ones: Vec<Range<u64>>,
    }

    impl Sparse {
        fn of_ones(length: u64, runs: Vec<Range<u64>>) -> Self {
            Self { length, touched: runs.clone(), ones: runs }
        }
    }

    impl ReadAt for Sparse {
        fn length(&self) -> u64 {
            self.length
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
            buf.fill(0);
            let read = offset..offset + buf.len() as u64;
            for run in self.ones.iter().filter(|run| run.start < read.end && read.start < run.end) {
                buf[index(run.start.max(offset) - offset)..index(run.end.min(read.end) - offset)].fill(1);
            }
            Ok(())
        }

        fn next_data(&self, offset: u64) -> Option<Range<u64>> {
            let run = self.touched.iter().find(|run| run.end > offset)?;
            Some(run.start.max(offset)..run.end)
        }
    }

    /// Start and end of adjacent messages joined, and the bytes skipped.
    fn sent(image: &Sparse, max: usize) -> (Vec<(u64, u64)>, Skipped) {
        let mut spans = Spans::new(image.length);
        let mut sent: Vec<(u64, u64)> = Vec::new();
        while !spans.is_done() {
            let Some((offset, len)) = spans.peek(image, max) else {
                assert!(spans.is_searching());
                continue;
            };
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
        assert_eq!(spans.peek(image, max), None);
        (sent, spans.skipped())
    }

    fn untouched(untouched: u64) -> Skipped {
        Skipped { untouched, zero: 0 }
    }

    fn once(run: Range<u64>) -> Vec<Range<u64>> {
        std::iter::once(run).collect()
    }

    const MIB: u64 = 1 << 20;
    const KIB: u64 = 1 << 10;

    #[test]
    fn large_holes_are_left_out_and_the_last_byte_is_sent() {
        let image = Sparse::of_ones(10 * MIB, vec![MIB..2 * MIB, 5 * MIB..5 * MIB + 1]);
        let want = vec![(MIB, 2 * MIB), (5 * MIB, 5 * MIB + PAGE), (10 * MIB - 1, 10 * MIB)];
        assert_eq!(sent(&image, 1448), (want, untouched(9 * MIB - PAGE - 1)));
        let empty = Sparse { length: 10 * MIB, ..Sparse::default() };
        assert_eq!(sent(&empty, 1448), (vec![(10 * MIB - 1, 10 * MIB)], untouched(10 * MIB - 1)));
    }

    #[test]
    fn zeros_that_the_guest_wrote_are_left_out_too_and_counted_apart() {
        let image = Sparse {
            length: 4 * MIB,
            touched: vec![0..2 * MIB, 3 * MIB..4 * MIB],
            ones: vec![0..300 * KIB, 500 * KIB + 1..MIB],
        };
        let want = vec![(0, 300 * KIB), (500 * KIB, MIB), (4 * MIB - PAGE, 4 * MIB)];
        assert_eq!(sent(&image, 4096), (want, Skipped { untouched: MIB, zero: 2 * MIB + 200 * KIB - PAGE }));
    }

    #[test]
    fn small_runs_of_zeros_are_sent() {
        let runs: Vec<_> = (0..16).map(|i| i * 68 * KIB..i * 68 * KIB + 4097).collect();
        let image = Sparse::of_ones(16 * 68 * KIB, runs);
        assert_eq!(sent(&image, 4096), (vec![(0, 16 * 68 * KIB)], untouched(0)));
        let image = Sparse { touched: once(0..image.length), ..image };
        assert_eq!(sent(&image, 4096), (vec![(0, 16 * 68 * KIB)], untouched(0)));
    }

    #[test]
    fn messages_are_full_across_small_runs_of_zeros() {
        let runs = (0..16).map(|i| i * 8192..i * 8192 + 4096).collect();
        let image = Sparse::of_ones(16 * 8192, runs);
        let mut spans = Spans::new(image.length);
        for message in 0..80 {
            assert_eq!(spans.peek(&image, 1448), Some((message * 1448, 1448)));
            spans.take(1448);
        }
    }

    #[test]
    fn many_zeros_are_looked_at_in_several_calls_and_are_one_gap() {
        let image = Sparse { length: 100 * MIB, touched: once(0..100 * MIB), ones: once(0..PAGE) };
        let mut spans = Spans::new(image.length);
        assert_eq!(spans.peek(&image, 4096), Some((0, 4096)));
        spans.take(4096);
        let mut calls = 0;
        while spans.peek(&image, 4096).is_none() {
            assert!(spans.is_searching());
            calls += 1;
        }
        assert!((10..=50).contains(&calls), "{calls}");
        assert_eq!(spans.peek(&image, 4096), Some((100 * MIB - PAGE, 4096)));
        assert_eq!((spans.skipped().zero, spans.gaps), (100 * MIB - 2 * PAGE, 1));
    }

    #[test]
    fn of_data_one_page_in_16_is_looked_at() {
        use std::cell::Cell;
        struct Counted(Cell<u64>);
        impl ReadAt for Counted {
            fn length(&self) -> u64 {
                16 * MIB
            }
            fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
                self.0.set(self.0.get() + buf.len() as u64);
                buf.fill(1);
                Ok(())
            }
        }
        let (image, mut spans) = (Counted(Cell::default()), Spans::new(16 * MIB));
        while let Some((_, len)) = spans.peek(&image, 1448) {
            spans.take(len);
        }
        assert_eq!((spans.skipped(), image.0.get() <= 64 * 256), (Skipped::default(), true));
    }

    #[test]
    fn a_guest_of_many_gaps_gets_larger_ones() {
        let mut spans = Spans::new(1 << 40);
        let least = |spans: &mut Spans, gaps| {
            spans.gaps = gaps;
            spans.least_gap() >> 10
        };
        spans.send_up_to(1);
        let seen = [0, 65_535, 65_536, 131_072, u64::MAX].map(|gaps| least(&mut spans, gaps));
        assert_eq!(seen, [64, 64, 128, 256, 4 << 20]);
    }

    #[test]
    fn a_growing_core_gives_full_messages_until_its_end() {
        let image = Sparse { length: 10_000, ..Sparse::default() };
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
        assert_eq!((spans.peek(&image, 1448), spans.is_done(), spans.skipped()), (None, true, untouched(0)));
        spans.grow(9999);
        assert!(spans.is_done(), "it has ended");
    }

    #[test]
    fn an_empty_core_has_no_messages_and_one_byte_has_one() {
        assert_eq!(sent(&Sparse::default(), 1448), (vec![], untouched(0)));
        assert_eq!(sent(&Sparse { length: 1, ..Sparse::default() }, 1448), (vec![(0, 1)], untouched(0)));
    }

    #[test]
    fn a_lying_image_cannot_stop_the_dump() {
        struct Liar;
        impl ReadAt for Liar {
            fn length(&self) -> u64 {
                u64::MAX
            }
            fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
                buf.fill(1);
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
        fn every_byte_is_sent_once_or_is_a_zero_in_a_gap(
            pieces in prop::collection::vec((0..200_000_u64, 1..100_000_u64, 0..200_000_u64, any::<bool>()), 0..12),
            tail in 0..200_000_u64,
            max in 512..4097_usize,
        ) {
            let (mut at, mut image) = (0, Sparse::default());
            for (gap, len, zeros, whole_pages) in pieces {
                let start = if whole_pages { (at + gap).next_multiple_of(PAGE) } else { at + gap };
                image.ones.push(start..start + len);
                at = start + len + zeros;
                image.touched.push(start..at);
            }
            image.length = at + tail;
            let (sent, skipped) = sent(&image, max);
            let bytes: u64 = sent.iter().map(|(start, end)| end - start).sum();
            prop_assert_eq!(bytes + skipped.untouched + skipped.zero, image.length);
            prop_assert!(sent.windows(2).all(|pair| pair[1].0 - pair[0].1 >= MIN_GAP - 1));
            prop_assert_eq!(sent.last().map_or(0, |last| last.1), image.length);
            for run in &image.ones {
                prop_assert!(sent.iter().any(|(start, end)| *start <= run.start && run.end <= *end));
            }
            // Every run of zero pages that is long enough is left out.
            let bounds = |run: &Range<u64>| (run.start / PAGE * PAGE, run.end.next_multiple_of(PAGE));
            let ends = std::iter::once(0).chain(image.ones.iter().map(|run| bounds(run).1));
            let starts = image.ones.iter().map(|run| bounds(run).0).chain([image.length.saturating_sub(1) / PAGE * PAGE]);
            for (end, start) in ends.zip(starts) {
                if start >= end + MIN_GAP {
                    prop_assert!(sent.iter().all(|&(from, to)| to <= end || start <= from), "{end:#x} to {start:#x}");
                }
            }
        }
    }
}
