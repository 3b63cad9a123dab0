//! Which guest pages could not be read.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::paging::PAGE_SIZE;

/// Pages that could not be read, as runs: a resend reads the same page again, and it must not count again.
#[derive(Default)]
pub(super) struct BadPages {
    /// Start and end of each run.
    runs: BTreeMap<u64, u64>,
    pages: u64,
}

impl BadPages {
    /// Bound of the list. Pages behind it are counted, but no longer told from those counted before.
    const MAX_RUNS: usize = 1 << 16;

    /// How many there are.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Their guest-physical ranges, ascending.
    pub(super) fn ranges(&self) -> Vec<Range<u64>> {
        self.runs.iter().map(|(&start, &end)| start..end).collect()
    }

    /// Counts the page at an address, once.
    pub(super) fn add(&mut self, page: u64) {
        let before = self.runs.range(..=page).next_back().map(|(&start, &end)| (start, end));
        if before.is_some_and(|(_, end)| page < end) {
            return;
        }
        self.pages += 1;
        let next = page + PAGE_SIZE;
        let start = before.filter(|&(_, end)| end == page).map_or(page, |(start, _)| start);
        let end = self.runs.remove(&next).unwrap_or(next);
        if start < page || end > next || self.runs.len() < Self::MAX_RUNS {
            self.runs.insert(start, end);
        }
    }
}
