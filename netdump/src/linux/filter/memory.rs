//! A guest's memory of which some pages are left out: they read as zeros and count as never touched.

use std::ops::Range;

use super::FilterCounts;
use crate::vmcore::minidump::page_set::PageSet;
use crate::vmcore::paging::PAGE_SIZE;
use crate::vmcore::{CpuState, Findings, Kept, KernelMap, MemoryError, MemoryRange, PhysicalMemory};

/// Memory without the pages that a dump leaves out.
pub struct FilteredMemory<'m> {
    memory: &'m dyn PhysicalMemory,
    kept: PageSet,
    counts: FilterCounts,
}

impl std::fmt::Debug for FilteredMemory<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FilteredMemory").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl<'m> FilteredMemory<'m> {
    pub(super) fn new(memory: &'m dyn PhysicalMemory, kept: PageSet, counts: FilterCounts) -> Self {
        Self { memory, kept, counts }
    }

    /// How many pages were left out.
    pub fn counts(&self) -> FilterCounts {
        self.counts
    }
}

impl PhysicalMemory for FilteredMemory<'_> {
    fn ranges(&self) -> &[MemoryRange] {
        self.memory.ranges()
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(address, buf)?;
        let mut at = address;
        let mut rest = buf;
        while !rest.is_empty() {
            let left = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).expect("a page fits into usize");
            let (piece, behind) = rest.split_at_mut(rest.len().min(left));
            if !self.kept.contains(at) {
                piece.fill(0);
            }
            at += piece.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    fn next_touched(&self, address: u64) -> Option<Range<u64>> {
        let end = self.memory.range_at(address)?.end();
        let mut at = address;
        while at < end {
            let touched = self.memory.next_touched(at)?;
            // No more of what is kept is counted than can be of use.
            let most = (touched.end - touched.start).div_ceil(PAGE_SIZE) + 1;
            let kept = self.kept.run(self.kept.pages_below(touched.start), most)?;
            let both =
                touched.start.max(kept.address)..touched.end.min(kept.address + kept.pages * PAGE_SIZE);
            if !both.is_empty() {
                return Some(both);
            }
            at = touched.end.max(address).min(kept.address.max(touched.end));
        }
        None
    }

    fn search_step(&self) -> usize {
        self.memory.search_step()
    }

    fn findings(&self) -> Option<&Findings> {
        self.memory.findings()
    }

    fn kept(&self) -> Option<Kept<'_>> {
        Some(Kept { pages: &self.kept, level: self.counts.level })
    }

    fn cpus(&self) -> &[CpuState] {
        self.memory.cpus()
    }

    fn kernel_map(&self) -> Option<&dyn KernelMap> {
        self.memory.kernel_map()
    }
}
