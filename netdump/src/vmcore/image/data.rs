//! Which parts of a core may hold anything but zeros: those that show memory that the guest touched or that is patched.

use std::ops::Range;

use super::super::memory::PhysicalMemory;
use super::super::minidump::page_set::{PageRun, PageSet};
use super::super::paging::PAGE_SIZE;
use super::patches::Patches;

/// Most pages of the set that are looked at in one step. Longer runs of the set take more steps; a limit keeps a step
/// cheap where the set's runs are long and the touched ones are short.
const STEP_PAGES: u64 = 4096;
/// Most steps in which one answer is made longer. The next question goes on from there.
const MAX_STEPS: usize = 4096;

/// Guest memory that may hold anything but zeros.
pub(super) struct Presence<'a> {
    pub(super) memory: &'a dyn PhysicalMemory,
    pub(super) patches: &'a Patches,
}

impl Presence<'_> {
    /// The first run of it at or behind `address`, in the RAM range that holds `address`.
    pub(super) fn next(&self, address: u64) -> Option<Range<u64>> {
        let touched = self.memory.next_touched(address);
        match (touched, self.patched_page(address)) {
            (Some(touched), Some(patched)) if patched.start < touched.start => Some(patched),
            (None, patched) => patched,
            (touched, _) => touched,
        }
    }

    /// Where that run begins, for less than the run.
    pub(super) fn start(&self, address: u64) -> Option<u64> {
        let touched = self.memory.touched_from(address);
        let patched = self.patched_page(address).map(|page| page.start);
        touched.into_iter().chain(patched).min()
    }

    /// The first patched page at or behind `address`, in the same RAM range, as far as it lies there.
    fn patched_page(&self, address: u64) -> Option<Range<u64>> {
        let patched = self.patches.next_page(address).filter(|page| {
            // The page of `address` is in its range; a later one may be behind it.
            page.start <= address || self.range_end(address).is_some_and(|end| page.start < end)
        })?;
        Some(patched.start.max(address)..patched.end)
    }

    /// In the pages of `set`, one behind the other, where the first run of it at or behind byte `from` begins.
    pub(super) fn start_in_pages(&self, set: &PageSet, from: u64) -> Option<u64> {
        let mut rank = from / PAGE_SIZE;
        loop {
            let run = set.run(rank, STEP_PAGES)?;
            let Some(touched) = self.start(run.address) else {
                rank = self.rank_behind_range(set, &run);
                continue;
            };
            let before = touched.saturating_sub(run.address) / PAGE_SIZE;
            if before < run.pages {
                return Some(from.max((run.rank + before) * PAGE_SIZE));
            }
            rank = set.pages_below(touched).max(run.rank + run.pages);
        }
    }

    /// The first page of a set behind the RAM range of a run of it; behind the run's first page, if that is outside RAM.
    fn rank_behind_range(&self, set: &PageSet, run: &PageRun) -> u64 {
        let end = self.range_end(run.address).unwrap_or(run.address).max(run.address + PAGE_SIZE);
        set.pages_below(end).max(run.rank + 1)
    }

    /// In the pages of `set`, one behind the other, the first run of it at or behind byte `from`.
    ///
    /// Going through all pages by one question after the other costs a step or two for each run of pages that follow
    /// each other, and for each run of touched memory between them.
    pub(super) fn next_in_pages(&self, set: &PageSet, from: u64) -> Option<Range<u64>> {
        let mut steps = Steps { presence: self, set, rank: from / PAGE_SIZE, touched: None };
        let first = steps.next()?;
        let mut end = first.end;
        for _ in 0..MAX_STEPS {
            match steps.next_if_at(end) {
                Some(next) => end = next.end,
                None => break,
            }
        }
        Some(from.max(first.start * PAGE_SIZE)..end * PAGE_SIZE)
    }

    /// Where the RAM range that holds `address` ends.
    fn range_end(&self, address: u64) -> Option<u64> {
        let ranges = self.memory.ranges();
        let range = ranges.get(ranges.partition_point(|range| range.end() <= address))?;
        (range.start <= address).then(|| range.end())
    }
}

/// Goes through the pages of a set that may hold anything but zeros, as ranges of their ranks.
struct Steps<'a> {
    presence: &'a Presence<'a>,
    set: &'a PageSet,
    /// The next page to look at.
    rank: u64,
    /// The run of touched memory that was found last, widened to pages.
    touched: Option<Range<u64>>,
}

impl Steps<'_> {
    fn next(&mut self) -> Option<Range<u64>> {
        loop {
            let run = self.set.run(self.rank, STEP_PAGES)?;
            let Some(touched) = self.touched_from(run.address) else {
                // Nothing in the rest of this RAM range; a page outside RAM holds nothing either.
                self.rank = self.presence.rank_behind_range(self.set, &run);
                continue;
            };
            if let Some(ranks) = shared(&run, &touched) {
                self.rank = ranks.end;
                return Some(ranks);
            }
            self.rank = self.set.pages_below(touched.start).max(run.rank + run.pages);
        }
    }

    /// The next step, when it begins with the page `rank`; it is lost when it does not.
    fn next_if_at(&mut self, rank: u64) -> Option<Range<u64>> {
        let run = self.set.run(rank, STEP_PAGES)?;
        let touched = self.touched_from(run.address)?;
        let ranks = shared(&run, &touched).filter(|ranks| ranks.start == rank)?;
        self.rank = ranks.end;
        Some(ranks)
    }

    /// The first run of touched memory that ends behind `address`.
    fn touched_from(&mut self, address: u64) -> Option<Range<u64>> {
        if !self.touched.as_ref().is_some_and(|touched| touched.contains(&address)) {
            self.touched = self.presence.next(address).map(|touched| {
                touched.start / PAGE_SIZE * PAGE_SIZE
                    ..touched.end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(touched.end)
            });
        }
        self.touched.clone()
    }
}

/// The ranks of the pages of a run that lie in touched memory, which ends behind the run's start.
fn shared(run: &PageRun, touched: &Range<u64>) -> Option<Range<u64>> {
    let before = touched.start.saturating_sub(run.address) / PAGE_SIZE;
    let until = (touched.end.saturating_sub(run.address) / PAGE_SIZE).min(run.pages);
    (before < until).then(|| run.rank + before..run.rank + until)
}
