//! Which bytes of a dump have arrived: disjoint, non-adjacent half-open ranges, at most a given number of them.

use std::collections::BTreeMap;
use std::ops::Range;

/// Most gaps that [`Gaps`] lists one by one.
pub const LISTED_GAPS: usize = 1000;

/// The set of bytes received. Memory is bounded by the cap: about 32 bytes per range.
#[derive(Debug)]
pub struct RangeSet {
    /// Start to end; neither overlapping nor touching.
    ranges: BTreeMap<u64, u64>,
    cap: usize,
    bytes: u64,
}

impl RangeSet {
    /// An empty set that takes at most `cap` ranges.
    pub fn with_cap(cap: usize) -> Self {
        Self { ranges: BTreeMap::new(), cap, bytes: 0 }
    }

    /// How many bytes are in the set.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// End of the last range; 0 when the set is empty.
    pub fn end(&self) -> u64 {
        self.ranges.last_key_value().map_or(0, |(_, &end)| end)
    }

    /// How many separate ranges there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// Whether every byte of `range` is in the set.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.ending_from(range.start).is_some_and(|(_, end)| range.end <= end)
    }

    /// Whether `range` can be inserted without exceeding the cap.
    pub fn admits(&self, range: &Range<u64>) -> bool {
        range.is_empty()
            || self.ranges.len() < self.cap
            || self.ending_from(range.start).is_some()
            || self.ranges.range(range.start..=range.end).next().is_some()
    }

    /// Adds `range` and says how many of its bytes are new. The caller has asked [`Self::admits`].
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let before = self.bytes;
        let (start, mut end) = match self.ranges.range_mut(..=range.start).next_back() {
            // The usual case: the next message behind the last one.
            Some((&start, end)) if *end >= range.start => {
                if *end >= range.end {
                    return 0;
                }
                self.bytes += range.end - *end;
                *end = range.end;
                (start, range.end)
            }
            _ => {
                self.bytes += range.end - range.start;
                self.ranges.insert(range.start, range.end);
                (range.start, range.end)
            }
        };
        while let Some((&next, &next_end)) = self.ranges.range(start + 1..=end).next() {
            self.ranges.remove(&next);
            self.bytes -= end.min(next_end) - next;
            end = end.max(next_end);
            self.ranges.insert(start, end);
        }
        self.bytes - before
    }

    /// What is missing of `0..length`.
    pub fn gaps(&self, length: u64) -> Gaps {
        let mut gaps = Gaps::default();
        let mut from = 0;
        for (&start, &end) in self.ranges.range(..length) {
            gaps.push(from..start);
            from = end;
        }
        gaps.push(from..length);
        gaps
    }

    /// The range that holds or touches `at` from below.
    fn ending_from(&self, at: u64) -> Option<(u64, u64)> {
        let (&start, &end) = self.ranges.range(..=at).next_back()?;
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
        assert_eq!((set.ranges.len(), set.bytes(), set.end()), (1, 30, 30));
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
                let touching = set.ranges.iter().zip(set.ranges.iter().skip(1)).any(|(a, b)| a.1 >= b.0);
                prop_assert!(!touching);
            }
        }
    }
}
