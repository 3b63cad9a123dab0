//! Guest-physical memory, read-only, wherever it comes from: a paused guest, a core file, a fake.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::cpu::CpuState;
use super::minidump::page_set::PageSet;
use crate::linux::Vmcoreinfo;
use crate::linux::early::EarlyKernel;

/// One range of guest RAM. Ranges are page-aligned, ascending and do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// Guest-physical address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl MemoryRange {
    /// Guest-physical address behind the last byte.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// Why guest-physical memory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The bytes do not all lie in RAM.
    #[error("guest-physical {address:#x} + {len:#x} is not in RAM")]
    NotInRam {
        /// First byte asked for.
        address: u64,
        /// How many bytes were asked for.
        len: usize,
    },
    /// The page lies in RAM, but the dump was made without it.
    #[error("the page of guest-physical {address:#x} is not in this dump")]
    NotInDump {
        /// First byte asked for in that page.
        address: u64,
    },
    /// The bytes lie in RAM but could not be read, or are missing from the file.
    #[error("guest-physical {address:#x} + {len:#x} cannot be read")]
    Unreadable {
        /// First byte asked for.
        address: u64,
        /// How many bytes were asked for.
        len: usize,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
}

/// What takes a look at all of a memory to be found: kept with it, so that it is looked for once.
#[derive(Debug, Default)]
pub struct Findings {
    /// What a Linux kernel says of itself, when there is one.
    pub(crate) vmcoreinfo: OnceLock<Option<Vmcoreinfo>>,
    /// A Linux kernel that has not come so far as to say it.
    pub(crate) early: OnceLock<Option<Arc<EarlyKernel>>>,
}

/// What is kept of a memory.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// The pages.
    pub pages: &'a PageSet,
    /// What was left out, as makedumpfile's number.
    pub level: u8,
}

/// Read-only guest-physical memory and the CPUs that used it. It does not change while this exists.
pub trait PhysicalMemory: Sync {
    /// The RAM ranges, in ascending order.
    fn ranges(&self) -> &[MemoryRange];

    /// The RAM range that holds `address`.
    fn range_at(&self, address: u64) -> Option<MemoryRange> {
        let ranges = self.ranges();
        let range = ranges.get(ranges.partition_point(|range| range.end() <= address))?;
        (range.start <= address).then_some(*range)
    }

    /// Fills `buf` from guest-physical `address`; all of it must lie in one RAM range.
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// The first run at or after `address`, inside the RAM range that holds `address`, that the guest may have
    /// touched; `None` when the rest of that range reads as zeros. Asking allocates nothing.
    fn next_touched(&self, address: u64) -> Option<Range<u64>> {
        let range = self.ranges().iter().find(|r| r.start <= address && address < r.end())?;
        Some(address..range.end())
    }

    /// Where the first byte of that run lies, for less than the run where its end is found page by page.
    fn touched_from(&self, address: u64) -> Option<u64> {
        self.next_touched(address).map(|run| run.start)
    }

    /// How many bytes a search that looks at a few of each page does best to read at once: one page, where reading
    /// costs as much as is copied; more, where each read costs a system call.
    fn search_step(&self) -> usize {
        4096
    }

    /// What was found in it, where that is kept.
    fn findings(&self) -> Option<&Findings> {
        None
    }

    /// The pages that a dump keeps, where some are left out; these read as zeros.
    fn kept(&self) -> Option<Kept<'_>> {
        None
    }

    /// The CPUs, in the order of their numbers.
    fn cpus(&self) -> &[CpuState];

    /// How kernel addresses translate, where the file says so itself, as a minidump does: it lacks the upper levels of
    /// the kernel's page tables.
    fn kernel_map(&self) -> Option<&dyn KernelMap> {
        None
    }
}

/// A translation of kernel addresses that needs no page-table root.
pub trait KernelMap: Sync {
    /// Guest-physical address of the byte at virtual `address`; `None` when it is no kernel address or not mapped.
    fn translate(&self, address: u64) -> Option<u64>;
}
