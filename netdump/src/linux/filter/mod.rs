//! Which pages of a Linux guest a dump leaves out: free ones, the page cache, processes' own memory, as makedumpfile
//! does with `-d` (`__exclude_unnecessary_pages`), by what the kernel notes of each page in its `struct page`.
//!
//! What a page is by a damaged or lying array must not cost the dump its content: where the array's own signs are wrong
//! (the kernel's code, its page tables or the array itself would be left out) nothing is left out.

mod memory;
mod pages;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{LinuxMemory, Vmcoreinfo};
use crate::freebsd;
use crate::vmcore::minidump::page_set::{PageNumbers, PageSetBuilder};
use crate::vmcore::paging::PAGE_SIZE;
use crate::vmcore::{KernelSymbols, PhysicalMemory};
pub use memory::FilteredMemory;
use pages::{Kind, PageArray};

/// Most pages of RAM that are filtered: 16 TiB. A set of them has a bit for each.
const MAX_PAGES: u64 = 1 << 32;
/// Bytes at the start of the kernel's image that are surely code: the smallest kernels have as much.
const CODE: u64 = 2 << 20;

/// What a dump leaves out: makedumpfile's dump level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DumpFilter {
    level: u8,
}

impl DumpFilter {
    const ZERO: u8 = 1;
    const CACHE: u8 = 2;
    const PRIVATE_CACHE: u8 = 4;
    const USER: u8 = 8;
    const FREE: u8 = 16;
    const ALL: u8 = 31;
    /// Names of what is left out, with their levels. `cache` is all of it: pages with and without private data.
    const NAMES: [(&'static str, u8); 4] = [
        ("zero", Self::ZERO),
        ("free", Self::FREE),
        ("cache", Self::CACHE | Self::PRIVATE_CACHE),
        ("user", Self::USER),
    ];

    /// Whether all pages are kept. Pages of zeros need no room in any format.
    pub fn keeps_all(self) -> bool {
        self.level & !Self::ZERO == 0
    }

    /// makedumpfile's number for it.
    pub fn level(self) -> u8 {
        self.level
    }

    fn leaves_out(self, kind: Kind) -> bool {
        let either = match kind {
            Kind::Free => Self::FREE,
            Kind::Cache => Self::CACHE | Self::PRIVATE_CACHE,
            Kind::PrivateCache => Self::PRIVATE_CACHE,
            Kind::User => Self::USER,
            // Of no use to anybody, and reading them may harm.
            Kind::Poisoned | Kind::Offline => Self::ALL,
        };
        self.level & either != 0
    }
}

/// The text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not left out of a dump; zero, free, cache and user are, or makedumpfile's numbers 0 to 31")]
pub struct ParseFilterError(String);

impl FromStr for DumpFilter {
    type Err = ParseFilterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(level) = text.parse().ok().filter(|level| *level <= Self::ALL) {
            return Ok(Self { level });
        }
        let level = |name: &str| Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, level)| level);
        text.split(',').try_fold(Self::default(), |filter, name| match level(name) {
            Some(level) => Ok(Self { level: filter.level | level }),
            None => Err(ParseFilterError(name.to_owned())),
        })
    }
}

impl fmt::Display for DumpFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.level)
    }
}

/// How many pages were left out, by their kind, and how many there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FilterCounts {
    /// makedumpfile's number for what was asked for.
    pub level: u8,
    /// Pages of RAM.
    pub total: u64,
    /// Free pages.
    pub free: u64,
    /// Pages of the page cache that nothing else uses.
    pub cache: u64,
    /// Pages of the page cache with data of their file system.
    pub private_cache: u64,
    /// Processes' own memory, huge pages included.
    pub user: u64,
    /// Pages whose memory has failed.
    pub poisoned: u64,
    /// Pages that were taken from the guest (ballooned, unplugged).
    pub offline: u64,
    /// Pages of RAM that the dump keeps; those that are zeros are among them.
    pub kept: u64,
}

impl fmt::Display for FilterCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = self.cache + self.private_cache;
        write!(
            f,
            "left out of the dump: {} free pages, {cache} of the page cache, {} of processes; {} of {} are kept",
            self.free, self.user, self.kept, self.total
        )
    }
}

/// Why nothing is left out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilterError {
    /// VMCOREINFO does not say where the kernel notes what its pages are.
    #[error("the dump is not filtered: the guest's VMCOREINFO does not say {0}")]
    UnknownLayout(&'static str),
    /// No Linux, or one that has not come so far.
    #[error("the dump is not filtered: the guest has no VMCOREINFO")]
    NoVmcoreinfo,
    /// The kernel's page tables cannot be followed.
    #[error("the dump is not filtered: the guest's page tables are not where its VMCOREINFO says")]
    NoTables,
    /// The kernel would lose what it needs.
    #[error(
        "the dump is not filtered: by the guest's array of pages the page at {0:#x}, which its kernel uses, would be left out"
    )]
    Untrusted(u64),
    /// No machine.
    #[error("the dump is not filtered: {0} pages are more than any machine has")]
    TooMuchMemory(u64),
    /// The array is not there.
    #[error("the dump is not filtered: the guest's array of pages cannot be read")]
    NoArray,
}

/// [`filtered`], of a guest whose kernel has these symbols; `None` when nothing is to be left out.
pub fn for_dump<'m>(
    memory: &'m dyn PhysicalMemory,
    symbols: Option<&KernelSymbols>,
    filter: DumpFilter,
) -> Result<Option<FilteredMemory<'m>>, FilterError> {
    if filter.keeps_all() {
        return Ok(None);
    }
    let symbols = symbols.filter(|symbols| !symbols.is_empty());
    if symbols.is_some_and(freebsd::is_freebsd) {
        return Err(FilterError::NoVmcoreinfo);
    }
    let info = Vmcoreinfo::locate(memory, symbols).ok_or(FilterError::NoVmcoreinfo)?;
    filtered(memory, &info, filter).map(Some)
}

/// The memory of a stopped guest without what `filter` leaves out.
pub fn filtered<'m>(
    memory: &'m dyn PhysicalMemory,
    info: &Vmcoreinfo,
    filter: DumpFilter,
) -> Result<FilteredMemory<'m>, FilterError> {
    let kernel = LinuxMemory::new(memory, info).ok_or(FilterError::NoTables)?;
    let array = PageArray::new(kernel, info)?;
    let ranges: Vec<_> = memory.ranges().iter().map(|range| range.start..range.end()).collect();
    let numbers = PageNumbers::of_ranges(&ranges).map_err(|_| FilterError::NoArray)?;
    if numbers.bits() > MAX_PAGES {
        return Err(FilterError::TooMuchMemory(numbers.bits()));
    }
    let mut counts = FilterCounts { level: filter.level, total: numbers.bits(), ..FilterCounts::default() };
    let mut kept = PageSetBuilder::new(numbers);
    ranges.into_iter().for_each(|range| kept.insert_range(range));
    array.for_each(&mut |first, pages, kind| {
        if !filter.leaves_out(kind) {
            return;
        }
        let count = match kind {
            Kind::Free => &mut counts.free,
            Kind::Cache => &mut counts.cache,
            Kind::PrivateCache => &mut counts.private_cache,
            Kind::User => &mut counts.user,
            Kind::Poisoned => &mut counts.poisoned,
            Kind::Offline => &mut counts.offline,
        };
        *count += pages;
        kept.remove_range(first * PAGE_SIZE..first.saturating_add(pages).saturating_mul(PAGE_SIZE));
    })?;
    let kept = kept.finish();
    if let Some(lost) =
        needed(&kernel, info).find(|&page| memory.range_at(page).is_some() && !kept.contains(page))
    {
        return Err(FilterError::Untrusted(lost));
    }
    counts.kept = kept.len();
    Ok(FilteredMemory::new(memory, kept, counts))
}

/// Behind the last page that the kernel has a `struct page` for, as its number: less than the machine has where the kernel
/// was told to use less (`mem=`), or where the last of it is a ROM. `end` is the number of pages that are looked at. `None` where the kernel
/// does not say.
pub fn known_pages(memory: &dyn PhysicalMemory, info: &Vmcoreinfo, end: u64) -> Option<u64> {
    PageArray::new(LinuxMemory::new(memory, info)?, info).ok()?.known_pages(end)
}

/// Pages that no true array calls free, cached or a process's.
fn needed(kernel: &LinuxMemory<'_>, info: &Vmcoreinfo) -> impl Iterator<Item = u64> {
    let code = info.symbol("_stext").and_then(|stext| info.image_address(stext));
    let code = code.into_iter().flat_map(|start| (start..start.saturating_add(CODE)).step_by(4096));
    let named = ["swapper_pg_dir", "init_uts_ns", "mem_section", "prb"];
    let named: Vec<_> = named.iter().filter_map(|name| kernel.translate(info.symbol(name)?)).collect();
    code.chain(named)
}
