//! A set of physical pages as a minidump's bitmap holds it: which bit stands for which page, and the pages whose bits
//! are set in the order in which the file has them.
//!
//! [`PageNumbers`] is the meaning of the bits, [`PageSet`] the bits. The n-th set bit (its *rank*, from 0) is the n-th
//! page of the file, so the set answers both ways: the page of an address lies at its rank, the page at a rank has an
//! address. Memory: a bit for each page that has a number, and an eighth of that for the counts of set bits.
//!
//! Reference: FreeBSD `sys/vm/vm_dumpset.h`. Bits are little-endian in a page of u64 words: bit b is in byte b / 8.

use std::ops::Range;

use thiserror::Error;

use super::super::paging::PAGE_SIZE;

/// Pages that physical addresses of 52 bits can name.
const MAX_PAGE: u64 = 1 << 40;
/// Words of the bitmap between two counts.
const BLOCK_WORDS: usize = 8;
const BLOCK_BITS: u64 = 64 * BLOCK_WORDS as u64;

/// Why ranges of addresses number no pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NumberingError {
    /// A range that ends before it begins, begins inside the one before it, or lies beyond all physical addresses.
    #[error("the range {start:#x} to {end:#x} is empty, out of order or beyond 52-bit addresses")]
    Range {
        /// Its first address.
        start: u64,
        /// Its end.
        end: u64,
    },
}

/// Which bit stands for which page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageNumbers {
    /// Ascending by page and by bit, without overlap in either.
    runs: Vec<NumberedRun>,
    bits: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NumberedRun {
    first_page: u64,
    pages: u64,
    first_bit: u64,
}

impl PageNumbers {
    /// Version 3: the pages that the ranges of dump_avail touch, one after the other.
    pub fn of_ranges(ranges: &[Range<u64>]) -> Result<Self, NumberingError> {
        let mut numbers = Self { runs: Vec::with_capacity(ranges.len()), bits: 0 };
        let mut behind = 0;
        for range in ranges {
            let (first_page, end_page) = (range.start / PAGE_SIZE, range.end.div_ceil(PAGE_SIZE));
            if range.is_empty() || first_page < behind || end_page > MAX_PAGE {
                return Err(NumberingError::Range { start: range.start, end: range.end });
            }
            let pages = end_page - first_page;
            numbers.runs.push(NumberedRun { first_page, pages, first_bit: numbers.bits });
            numbers.bits += pages;
            behind = end_page;
        }
        Ok(numbers)
    }

    /// Versions 1 and 2: all pages from address 0, as many as the bitmap has bits.
    pub fn from_zero(bits: u64) -> Self {
        let bits = bits.min(MAX_PAGE);
        Self { runs: vec![NumberedRun { first_page: 0, pages: bits, first_bit: 0 }], bits }
    }

    /// How many pages have a bit.
    pub fn bits(&self) -> u64 {
        self.bits
    }

    /// Bytes of the bitmap in a file: whole pages.
    pub fn bitmap_len(&self) -> u64 {
        self.bits.div_ceil(8).next_multiple_of(PAGE_SIZE)
    }

    /// The bit of the page that holds `address`.
    pub fn bit(&self, address: u64) -> Option<u64> {
        let page = address / PAGE_SIZE;
        let run = self.runs.get(self.runs.partition_point(|run| run.first_page + run.pages <= page))?;
        Some(run.first_bit + page.checked_sub(run.first_page)?)
    }

    /// The bit of the first page at or behind the one that holds `address` that has a bit.
    pub fn bit_at_or_after(&self, address: u64) -> Option<u64> {
        let page = address / PAGE_SIZE;
        let run = self.runs.get(self.runs.partition_point(|run| run.first_page + run.pages <= page))?;
        Some(run.first_bit + page.saturating_sub(run.first_page))
    }

    /// Address of the page of `bit`.
    pub fn address(&self, bit: u64) -> Option<u64> {
        self.run(bit).map(|run| (run.first_page + bit - run.first_bit) * PAGE_SIZE)
    }

    /// The run that holds `bit`.
    fn run(&self, bit: u64) -> Option<&NumberedRun> {
        self.runs.get(self.runs.partition_point(|run| run.first_bit + run.pages <= bit))
    }
}

/// A run of pages, one behind the other in memory and in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// How many pages of the set come before it.
    pub rank: u64,
    /// Address of its first page.
    pub address: u64,
    /// How many pages it has; at least one.
    pub pages: u64,
}

/// A set of pages that is being made.
#[derive(Debug, Clone)]
pub struct PageSetBuilder {
    numbers: PageNumbers,
    words: Vec<u64>,
}

impl PageSetBuilder {
    /// The empty set.
    pub fn new(numbers: PageNumbers) -> Self {
        let words = vec![0; index(numbers.bits.div_ceil(64))];
        Self { numbers, words }
    }

    /// Takes over the bits of a bitmap; those that stand for no page are ignored.
    pub fn insert_bitmap(&mut self, bitmap: &[u8]) {
        for (word, bytes) in self.words.iter_mut().zip(bitmap.chunks(8)) {
            *word |= bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        self.trim();
    }

    /// Whether the page that holds `address` is in it.
    pub fn contains(&self, address: u64) -> bool {
        self.numbers.bit(address).is_some_and(|bit| self.words[index(bit / 64)] >> (bit % 64) & 1 != 0)
    }

    /// Adds the page that holds `address`, if it has a bit.
    pub fn insert(&mut self, address: u64) {
        if let Some(bit) = self.numbers.bit(address) {
            self.words[index(bit / 64)] |= 1 << (bit % 64);
        }
    }

    /// Adds every page of a range of addresses that has a bit.
    pub fn insert_range(&mut self, range: Range<u64>) {
        self.change_range(range, |word, mask| *word |= mask);
    }

    /// Removes every page of a range of addresses.
    pub fn remove_range(&mut self, range: Range<u64>) {
        self.change_range(range, |word, mask| *word &= !mask);
    }

    /// What the bits stand for.
    pub fn numbers(&self) -> &PageNumbers {
        &self.numbers
    }

    /// The finished set.
    pub fn finish(self) -> PageSet {
        let mut counts = Vec::with_capacity(self.words.len().div_ceil(BLOCK_WORDS) + 1);
        let mut count = 0;
        for block in self.words.chunks(BLOCK_WORDS) {
            counts.push(count);
            count += block.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        }
        counts.push(count);
        PageSet { numbers: self.numbers, words: self.words, counts }
    }

    fn change_range(&mut self, range: Range<u64>, change: impl Fn(&mut u64, u64)) {
        let (first, end) = (range.start / PAGE_SIZE, range.end.div_ceil(PAGE_SIZE));
        let from = self.numbers.runs.partition_point(|run| run.first_page + run.pages <= first);
        for run in &self.numbers.runs[from..] {
            let start_page = first.max(run.first_page);
            let end_page = end.min(run.first_page + run.pages);
            if start_page >= end_page {
                break;
            }
            let mut bit = run.first_bit + start_page - run.first_page;
            let end_bit = run.first_bit + end_page - run.first_page;
            while bit < end_bit {
                let next = (bit + 64 - bit % 64).min(end_bit);
                let mask = (u64::MAX >> (64 - (next - bit))) << (bit % 64);
                change(&mut self.words[index(bit / 64)], mask);
                bit = next;
            }
        }
    }

    /// Clears the bits behind the last page.
    fn trim(&mut self) {
        if let (Some(last), used @ 1..) = (self.words.last_mut(), self.numbers.bits % 64) {
            *last &= u64::MAX >> (64 - used);
        }
    }
}

/// A set of pages.
#[derive(Debug, Clone)]
pub struct PageSet {
    numbers: PageNumbers,
    words: Vec<u64>,
    /// Of each block of words, how many bits are set before it; at last, how many are set.
    counts: Vec<u64>,
}

impl PageSet {
    /// The set that a bitmap describes; bits that stand for no page are ignored.
    pub fn from_bitmap(numbers: PageNumbers, bitmap: &[u8]) -> Self {
        let mut builder = PageSetBuilder::new(numbers);
        builder.insert_bitmap(bitmap);
        builder.finish()
    }

    /// What the bits stand for.
    pub fn numbers(&self) -> &PageNumbers {
        &self.numbers
    }

    /// How many pages are in it.
    pub fn len(&self) -> u64 {
        self.counts.last().copied().unwrap_or(0)
    }

    /// Whether no page is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bitmap as a file has it, in whole pages.
    pub fn bitmap(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(index(self.numbers.bitmap_len()));
        bytes.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.resize(index(self.numbers.bitmap_len()), 0);
        bytes
    }

    /// Whether the page that holds `address` is in it.
    pub fn contains(&self, address: u64) -> bool {
        self.numbers.bit(address).is_some_and(|bit| self.is_set(bit))
    }

    /// The rank of the page that holds `address`, if that is in the set: its place among the pages of the file.
    pub fn rank(&self, address: u64) -> Option<u64> {
        let bit = self.numbers.bit(address)?;
        self.is_set(bit).then(|| self.set_below(bit))
    }

    /// How many pages of the set lie before the one that holds `address`, whether that is in the set or not.
    pub fn pages_below(&self, address: u64) -> u64 {
        self.numbers.bit_at_or_after(address).map_or_else(|| self.len(), |bit| self.set_below(bit))
    }

    /// Address of the page with this rank.
    pub fn address(&self, rank: u64) -> Option<u64> {
        self.numbers.address(self.select(rank)?)
    }

    /// The pages from the one with `rank` on, as far as they follow each other in memory, at most `max_pages`.
    pub fn run(&self, rank: u64, max_pages: u64) -> Option<PageRun> {
        let bit = self.select(rank)?;
        let run = self.numbers.run(bit)?;
        let address = (run.first_page + bit - run.first_bit) * PAGE_SIZE;
        let end = (run.first_bit + run.pages).min(bit.saturating_add(max_pages.max(1)));
        Some(PageRun { rank, address, pages: self.set_from(bit, end) })
    }

    /// All runs of the set, ascending. Two runs may still touch where two ranges of the numbering do.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> {
        let mut rank = 0;
        std::iter::from_fn(move || {
            let run = self.run(rank, u64::MAX)?;
            rank += run.pages;
            Some(run)
        })
    }

    fn is_set(&self, bit: u64) -> bool {
        self.words[index(bit / 64)] >> (bit % 64) & 1 != 0
    }

    /// How many bits are set below `bit`, which has a page.
    fn set_below(&self, bit: u64) -> u64 {
        let (block, word) = (index(bit / BLOCK_BITS), index(bit / 64));
        let before: u64 =
            self.words[block * BLOCK_WORDS..word].iter().map(|word| u64::from(word.count_ones())).sum();
        let below = self.words[word] & !(u64::MAX << (bit % 64));
        self.counts[block] + before + u64::from(below.count_ones())
    }

    /// The set bit with this rank.
    fn select(&self, rank: u64) -> Option<u64> {
        if rank >= self.len() {
            return None;
        }
        // The last block before which no more than `rank` bits are set. It is not an empty one: the next block's
        // count is greater.
        let block = self.counts.partition_point(|&count| count <= rank) - 1;
        let mut left = rank - self.counts[block];
        let from = block * BLOCK_WORDS;
        for (at, &word) in (from as u64..).zip(&self.words[from..]) {
            let ones = u64::from(word.count_ones());
            if left < ones {
                let rest = (0..left).fold(word, |word, _| word & (word - 1));
                return Some(64 * at + u64::from(rest.trailing_zeros()));
            }
            left -= ones;
        }
        None
    }

    /// How many bits from `bit` on, which is set, are set without a gap, up to `end`.
    fn set_from(&self, bit: u64, end: u64) -> u64 {
        let mut at = bit;
        while at < end {
            let ones = u64::from((self.words[index(at / 64)] >> (at % 64)).trailing_ones());
            let in_word = 64 - at % 64;
            at += ones;
            if ones < in_word {
                break;
            }
        }
        at.min(end) - bit
    }
}

/// A bit, a word or a byte of a bitmap that is in memory.
fn index(place: u64) -> usize {
    usize::try_from(place).expect("a bitmap in memory is indexed by usize")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::slice::from_ref;

    use proptest::prelude::*;

    use super::*;

    /// dump_avail of the sample kernel.
    fn sample() -> PageNumbers {
        PageNumbers::of_ranges(&[0..0x9_f000, 0x10_4000..0x7fd_f000]).unwrap()
    }

    #[test]
    fn bits_stand_for_the_pages_of_a_kernels_own_dump() {
        let numbers = sample();
        assert_eq!(numbers.bits(), 32634);
        assert_eq!(numbers.bitmap_len(), 0x1000);
        let known = [
            (0x9_efff, 158),
            (0x10_4000, 159),
            (0x15c_a590, 5477),
            (0x1ca_6868, 7233),
            (0x1cd_4c0c, 7279),
            (0x2c3_b528, 11222),
            (0x54c_4748, 21599),
            (0x7fd_efff, 32633),
        ];
        for (address, bit) in known {
            assert_eq!(numbers.bit(address), Some(bit), "{address:#x}");
            assert_eq!(numbers.address(bit), Some(address & !0xfff));
        }
        for hole in [0x9_f000, 0x10_3fff, 0x7fd_f000, u64::MAX] {
            assert_eq!(numbers.bit(hole), None, "{hole:#x}");
        }
        assert_eq!(numbers.bit_at_or_after(0x9_f000), Some(159));
        assert_eq!(numbers.bit_at_or_after(0x7fd_f000), None);
        assert_eq!(numbers.address(32634), None);
    }

    #[test]
    fn older_versions_count_from_address_zero() {
        let numbers = PageNumbers::from_zero(0x8000);
        assert_eq!((numbers.bit(0x7ff_ffff), numbers.bit(0x800_0000)), (Some(0x7fff), None));
        assert_eq!(numbers.bitmap_len(), 0x1000);
        assert_eq!(PageNumbers::from_zero(0x8001).bitmap_len(), 0x2000);
        assert_eq!(PageNumbers::from_zero(u64::MAX).bits(), 1 << 40);
    }

    #[test]
    fn ranges_that_number_nothing_well_are_refused() {
        let refused: [&[(u64, u64)]; 7] = [
            &[(0x1000, 0x1000)],
            &[(0x2000, 0x1000)],
            &[(0x3000, 0x5000), (0x1000, 0x2000)],
            &[(0x1000, 0x3000), (0x2000, 0x4000)],
            // Both touch page 2.
            &[(0x1000, 0x2800), (0x2800, 0x4000)],
            &[(0, (1 << 52) + 1)],
            &[(0, u64::MAX)],
        ];
        for pairs in refused {
            let ranges: Vec<_> = pairs.iter().map(|&(start, end)| start..end).collect();
            assert!(PageNumbers::of_ranges(&ranges).is_err(), "{ranges:x?}");
        }
        assert_eq!(PageNumbers::of_ranges(&[]).unwrap().bits(), 0);
        assert_eq!(PageNumbers::of_ranges(from_ref(&(0..1 << 52))).unwrap().bits(), 1 << 40);
    }

    #[test]
    fn bits_behind_the_last_page_are_ignored() {
        let numbers = PageNumbers::of_ranges(from_ref(&(0x1000..0x6000))).unwrap();
        let set = PageSet::from_bitmap(numbers, &[0xff; 4096]);
        assert_eq!(set.len(), 5);
        assert_eq!(set.bitmap()[..2], [0x1f, 0]);
        assert_eq!(set.bitmap().len(), 4096);
    }

    #[test]
    fn the_empty_set_answers() {
        for numbers in [PageNumbers::of_ranges(&[]).unwrap(), sample()] {
            let set = PageSet::from_bitmap(numbers, &[]);
            assert!(set.is_empty());
            assert_eq!((set.rank(0), set.address(0), set.run(0, 1)), (None, None, None));
            assert_eq!(set.pages_below(u64::MAX), 0);
            assert_eq!(set.runs().count(), 0);
        }
    }

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        prop::collection::vec((0_u64..300, 1_u64..300), 0..6).prop_map(|parts| {
            let mut end = 0;
            parts
                .into_iter()
                .map(|(gap, pages)| {
                    let start = end + gap * PAGE_SIZE;
                    end = start + pages * PAGE_SIZE;
                    start..end
                })
                .collect()
        })
    }

    proptest! {
        /// Every answer against a sorted list of pages.
        #[test]
        fn a_set_is_what_a_plain_list_of_its_pages_is(
            ranges in ranges(),
            inserted in prop::collection::vec((0_u64..2000, 0_u64..400), 0..12),
            removed in prop::collection::vec((0_u64..2000, 0_u64..40), 0..8),
            single in prop::collection::vec(0_u64..2000, 0..40),
        ) {
            let all: Vec<u64> = ranges.iter().flat_map(|range| range.clone().step_by(4096)).collect();
            let numbers = PageNumbers::of_ranges(&ranges).unwrap();
            prop_assert_eq!(numbers.bits(), all.len() as u64);
            let mut builder = PageSetBuilder::new(numbers.clone());
            let mut model = BTreeSet::new();
            let bytes = |(page, pages): (u64, u64)| page * 4096..(page + pages) * 4096;
            for range in inserted.into_iter().map(bytes) {
                builder.insert_range(range.clone());
                model.extend(all.iter().copied().filter(|page| range.contains(page)));
            }
            for range in removed.into_iter().map(bytes) {
                builder.remove_range(range.clone());
                model.retain(|page| !range.contains(page));
            }
            for page in single {
                builder.insert(page * 4096 + 77);
                model.extend(all.iter().copied().filter(|known| *known == page * 4096));
            }
            let set = builder.finish();
            let model: Vec<u64> = model.into_iter().collect();

            prop_assert_eq!(set.len(), model.len() as u64);
            for (rank, &page) in model.iter().enumerate() {
                prop_assert_eq!(set.address(rank as u64), Some(page));
                prop_assert_eq!(set.rank(page + 9), Some(rank as u64));
            }
            prop_assert_eq!(set.address(set.len()), None);
            for page in (0..2000).map(|page| page * 4096) {
                prop_assert_eq!(set.contains(page), model.contains(&page));
                let below = model.iter().filter(|&&known| known < page).count();
                prop_assert_eq!(set.pages_below(page), below as u64);
            }
            for run in set.runs() {
                let rank = usize::try_from(run.rank).unwrap();
                let pages = usize::try_from(run.pages).unwrap();
                let expected: Vec<u64> = (run.address..).step_by(4096).take(pages).collect();
                prop_assert_eq!(&model[rank..rank + pages], &expected[..]);
                if run.pages > 2 {
                    prop_assert_eq!(set.run(run.rank + 1, run.pages - 2).unwrap().pages, run.pages - 2);
                }
            }
            prop_assert_eq!(set.runs().map(|run| run.pages).sum::<u64>(), set.len());

            let bitmap = set.bitmap();
            prop_assert_eq!(bitmap.len() % 4096, 0);
            for (bit, page) in all.iter().enumerate() {
                prop_assert_eq!(bitmap[bit / 8] >> (bit % 8) & 1 == 1, model.contains(page));
            }
            let again = PageSet::from_bitmap(numbers, &bitmap);
            prop_assert_eq!(again.bitmap(), bitmap);
        }
    }
}
