//! Which bytes of a dump have arrived: disjoint, non-adjacent half-open ranges, at most a given number of them.

use std::collections::BTreeMap;
use std::ops::Range;

/// Most gaps that [`Gaps`] lists one by one.
pub const LISTED_GAPS: usize = 1000;

/// The set of bytes received. Memory is bounded by the cap: about 32 bytes per range. What comes in order is taken in
/// constant time, anything else in the logarithm of the number of ranges.
#[derive(Debug, Clone)]
pub struct RangeSet {
    /// The ranges below the highest one, start to end; neither overlapping nor touching.
    lower: BTreeMap<u64, u64>,
    /// The highest range, which data in order lengthens; empty only when the set is.
    highest: Range<u64>,
    cap: usize,
    bytes: u64,
}

impl RangeSet {
    /// An empty set that takes at most `cap` ranges.
    pub fn with_cap(cap: usize) -> Self {
        Self { lower: BTreeMap::new(), highest: 0..0, cap, bytes: 0 }
    }

    /// How many bytes are in the set.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// End of the last range; 0 when the set is empty.
    pub fn end(&self) -> u64 {
        self.highest.end
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.lower.len() + usize::from(!self.highest.is_empty())
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.highest.is_empty()
    }

    /// The ranges, ascending, neither overlapping nor touching.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        let highest = (!self.highest.is_empty()).then(|| self.highest.clone());
        self.lower.iter().map(|(&start, &end)| start..end).chain(highest)
    }

    /// Whether every byte of `range` is in the set.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        if range.is_empty() {
            return true;
        }
        if range.start >= self.highest.start {
            return range.end <= self.highest.end;
        }
        self.ending_from(range.start).is_some_and(|(_, end)| range.end <= end)
    }

    /// Whether `range` can be inserted without exceeding the cap.
    pub fn admits(&self, range: &Range<u64>) -> bool {
        let touches_highest = self.highest.start <= range.end && range.start <= self.highest.end;
        range.is_empty()
            || (touches_highest && !self.highest.is_empty())
            || self.len() < self.cap
            || self.ending_from(range.start).is_some()
            || self.lower.range(range.start..=range.end).next().is_some()
    }

    /// Adds `range` and says how many of its bytes are new. The caller has asked [`Self::admits`].
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        let before = self.bytes;
        if range.is_empty() {
            return 0;
        }
        if range.start < self.highest.start {
            self.insert_lower(range.start..range.end.min(self.highest.start));
            self.lengthen(range.end);
            self.join_highest();
        } else if self.highest.is_empty() || range.start > self.highest.end {
            self.bytes += range.end - range.start;
            let overtaken = std::mem::replace(&mut self.highest, range);
            if !overtaken.is_empty() {
                self.lower.insert(overtaken.start, overtaken.end);
            }
        } else {
            // The usual case: the next message behind the last one.
            self.lengthen(range.end);
        }
        self.bytes - before
    }

    /// What is missing of `0..length`.
    pub fn gaps(&self, length: u64) -> Gaps {
        let mut gaps = Gaps::default();
        let mut from = 0;
        for range in self.iter().take_while(|range| range.start < length) {
            gaps.push(from..range.start);
            from = range.end;
        }
        gaps.push(from..length);
        gaps
    }

    /// Lets the highest range reach to `end` at least.
    fn lengthen(&mut self, end: u64) {
        self.bytes += end.saturating_sub(self.highest.end);
        self.highest.end = self.highest.end.max(end);
    }

    /// Adds a range that ends where the highest one begins, or below.
    fn insert_lower(&mut self, range: Range<u64>) {
        let (start, mut end) = match self.lower.range_mut(..=range.start).next_back() {
            Some((&start, end)) if *end >= range.start => {
                if *end >= range.end {
                    return;
                }
                self.bytes += range.end - *end;
                *end = range.end;
                (start, range.end)
            }
            _ => {
                self.bytes += range.end - range.start;
                self.lower.insert(range.start, range.end);
                (range.start, range.end)
            }
        };
        while let Some((&next, &next_end)) = self.lower.range(start + 1..=end).next() {
            self.lower.remove(&next);
            self.bytes -= end.min(next_end) - next;
            end = end.max(next_end);
            self.lower.insert(start, end);
        }
    }

    /// Makes one range of the two highest where they touch.
    fn join_highest(&mut self) {
        if let Some(below) = self.lower.last_entry()
            && *below.get() == self.highest.start
        {
            self.highest.start = *below.key();
            below.remove();
        }
    }

    /// The lower range that holds or touches `at` from below.
    fn ending_from(&self, at: u64) -> Option<(u64, u64)> {
        let (&start, &end) = self.lower.range(..=at).next_back()?;
        (end >= at).then_some((start, end))
    }
}

/// The parts of a core that did not arrive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gaps {
    /// How many there are.
    pub count: u64,
    /// Their bytes together.
    pub bytes: u64,
    /// The first [`LISTED_GAPS`] of them, ascending.
    pub listed: Vec<Range<u64>>,
}

impl Gaps {
    fn push(&mut self, gap: Range<u64>) {
        if gap.is_empty() {
            return;
        }
        self.count += 1;
        self.bytes += gap.end - gap.start;
        if self.listed.len() < LISTED_GAPS {
            self.listed.push(gap);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set<const N: usize>(ranges: [(u64, u64); N]) -> RangeSet {
        let mut set = RangeSet::with_cap(100);
        for (start, end) in ranges {
            set.insert(start..end);
        }
        set
    }

    #[test]
    fn touching_ranges_become_one() {
        let set = set([(0, 10), (20, 30), (10, 20)]);
        assert_eq!((set.len(), set.bytes(), set.end()), (1, 30, 30));
    }

    #[test]
    fn a_resend_adds_nothing() {
        let mut set = set([(0, 10), (20, 30)]);
        assert_eq!(set.insert(20..30), 0);
        assert_eq!(set.insert(5..25), 10);
        assert_eq!(set.bytes(), 30);
    }

    #[test]
    fn gaps_lie_between_ranges_and_behind_the_last() {
        let gaps = set([(10, 20), (30, 40)]).gaps(50);
        assert_eq!(gaps, Gaps { count: 3, bytes: 30, listed: vec![0..10, 20..30, 40..50] });
        assert_eq!(set([(0, 40)]).gaps(40), Gaps::default());
        assert_eq!(set([(0, 40)]).gaps(10), Gaps::default());
    }

    #[test]
    fn a_full_set_admits_only_what_touches_a_range() {
        let mut set = RangeSet::with_cap(2);
        set.insert(0..10);
        set.insert(20..30);
        assert!(!set.admits(&(40..50)));
        assert!(!set.admits(&(11..19)));
        assert!(set.admits(&(30..40)));
        assert!(set.admits(&(11..20)));
        assert!(set.admits(&(10..12)));
        assert!(set.admits(&(5..6)));
    }

    #[test]
    fn data_in_order_only_lengthens_the_highest_range() {
        let mut set = set([(0, 10), (20, 30)]);
        for at in 30..100 {
            assert!(!set.contains(&(at..at + 1)));
            assert_eq!(set.insert(at..at + 1), 1);
            assert_eq!((set.lower.len(), &set.highest), (1, &(20..at + 1)));
        }
        set.insert(10..20);
        assert_eq!((set.lower.len(), &set.highest), (0, &(0..100)));
    }

    #[test]
    fn ranges_reach_to_the_end_of_the_offsets() {
        let set = set([(u64::MAX - 10, u64::MAX), (0, 1)]);
        assert_eq!(set.end(), u64::MAX);
        assert_eq!(set.gaps(u64::MAX).bytes, u64::MAX - 11);
    }

    proptest! {
        #[test]
        fn set_and_bitmap_agree(ranges in prop::collection::vec((0_u8..120, 0_u8..20), 0..60)) {
            let mut set = RangeSet::with_cap(1000);
            let mut bits = [false; 140];
            for (start, len) in ranges {
                let range = u64::from(start)..u64::from(start + len);
                let covered = &mut bits[usize::from(start)..usize::from(start + len)];
                let new = covered.iter().filter(|&&bit| !bit).count() as u64;
                covered.fill(true);
                prop_assert_eq!(set.contains(&range), new == 0);
                prop_assert_eq!(set.insert(range), new);
                prop_assert_eq!(set.bytes(), bits.iter().filter(|&&b| b).count() as u64);
                prop_assert_eq!(set.gaps(140).bytes, 140 - set.bytes());
                let touching = set.iter().zip(set.iter().skip(1)).any(|(a, b)| a.end >= b.start);
                prop_assert!(!touching && set.iter().all(|range| !range.is_empty()));
                prop_assert_eq!(set.iter().map(|range| range.end - range.start).sum::<u64>(), set.bytes());
                prop_assert_eq!(set.iter().count(), set.len());
            }
        }
    }
}
