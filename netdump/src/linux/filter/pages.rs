//! The kernel's `struct page` of each page of memory: SPARSEMEM's sections, and what a page is by its structure.
//!
//! Reference: `include/linux/mmzone.h` (sections), `include/linux/page-flags.h`, `include/linux/mm_types.h`;
//! makedumpfile's `__exclude_unnecessary_pages`.

use super::FilterError;
use crate::linux::{LinuxMemory, Vmcoreinfo};
use crate::vmcore::VirtualMemory;
use crate::vmcore::paging::PAGE_SIZE;

/// Bits below a section's address of its array (`SECTION_MAP_MASK`); the array lies on 64 bytes.
const SECTION_FLAGS: u64 = 0x1f;
const SECTION_PRESENT: u64 = 1;
/// The largest `struct page` that is known (with debugging options).
const MAX_STRUCT: u64 = 256;
/// A `mapping` whose page is a process's own (`PAGE_MAPPING_ANON`), and a `compound_head` whose page is a tail.
const ANONYMOUS: u64 = 1;
const TAIL: u64 = 1;
/// No compound page is larger: 64 GiB.
const MAX_ORDER: u64 = 24;
/// Pages of x86-64's section (`SECTION_SIZE_BITS` 27).
const LEAST_SECTION: u64 = 1 << 15;
/// Structures that are read at once.
const STRUCTS_AT_ONCE: u64 = 64;

/// What a page is, of those that may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Free,
    Cache,
    PrivateCache,
    User,
    Poisoned,
    Offline,
}

/// The array, by what VMCOREINFO says of it.
pub(super) struct PageArray<'m> {
    kernel: LinuxMemory<'m>,
    layout: Layout,
    /// Address of the array of roots, and how many there are.
    roots: u64,
    root_count: u64,
    sections_per_root: u64,
    section_size: u64,
    section_map: u64,
    pages_per_section: u64,
}

/// Where a `struct page` has what.
struct Layout {
    size: u64,
    flags: u64,
    mapping: u64,
    mapcount: u64,
    private: u64,
    compound_head: u64,
    /// In the structure behind a compound page's first.
    compound_order: Option<u64>,
    compound_dtor: Option<u64>,
    lru: u64,
    private_flag: u64,
    swapcache: u64,
    swapbacked: u64,
    head: u64,
    poisoned: u64,
    slab: u64,
    free_orders: u64,
    free: u32,
    unaccepted: Option<u32>,
    offline: Option<u32>,
    slab_type: Option<u32>,
    hugetlb: Option<u32>,
    hugetlb_dtor: Option<u64>,
    hugetlb_flag: u64,
}

impl<'m> PageArray<'m> {
    pub(super) fn new(kernel: LinuxMemory<'m>, info: &Vmcoreinfo) -> Result<Self, FilterError> {
        let roots = info.symbol("mem_section").ok_or(FilterError::UnknownLayout("where mem_section is"))?;
        let sections = "how memory is divided into sections";
        let number = |name| info.number(name).and_then(|number| u64::try_from(number).ok());
        let bits = number("SECTION_SIZE_BITS").filter(|bits| (20..40).contains(bits));
        let bits = bits.ok_or(FilterError::UnknownLayout(sections))?;
        let size = info.size("mem_section").filter(|size| (16..=256).contains(size));
        let section_size = size.ok_or(FilterError::UnknownLayout(sections))?;
        let root_count = info.length("mem_section").ok_or(FilterError::UnknownLayout(sections))?;
        let section_map =
            info.offset("mem_section.section_mem_map").filter(|at| at.saturating_add(8) <= section_size);
        Ok(Self {
            kernel,
            layout: Layout::new(info)?,
            roots,
            root_count: root_count.min(1 << 20),
            sections_per_root: PAGE_SIZE / section_size,
            section_size,
            section_map: section_map.ok_or(FilterError::UnknownLayout(sections))?,
            pages_per_section: 1 << (bits - 12),
        })
    }

    /// Tells of every run of pages, by the number of its first, that may be left out. Compound pages come as one.
    pub(super) fn for_each(&self, tell: &mut dyn FnMut(u64, u64, Kind)) -> Result<(), FilterError> {
        let ranges = self.kernel.physical().ranges();
        let end = ranges.last().map_or(0, |range| range.end() / PAGE_SIZE);
        let (mut read_any, mut next) = (false, 0);
        for range in ranges {
            let first = range.start / PAGE_SIZE / self.pages_per_section;
            let behind = (range.end() / PAGE_SIZE).div_ceil(self.pages_per_section);
            for section in first.max(next)..behind {
                let Some(array) = self.section(section) else { continue };
                let first = section * self.pages_per_section;
                read_any |= self.section_pages(array, first, (first + self.pages_per_section).min(end), tell);
            }
            next = next.max(behind);
        }
        if read_any { Ok(()) } else { Err(FilterError::NoArray) }
    }

    /// Number of the page behind the last section that is present, of those that begin before page `end`. x86-64's sections
    /// have 128 MiB; smaller ones are no kernel's, and would be many.
    pub(super) fn known_pages(&self, end: u64) -> Option<u64> {
        let sections = 0..end.div_ceil(self.pages_per_section);
        let mut present = sections.rev().filter(|section| self.section(*section).is_some());
        let last = if self.pages_per_section < LEAST_SECTION { None } else { present.next() }?;
        Some(end.min((last + 1) * self.pages_per_section))
    }

    /// Address of the array of all pages, as the section sees it: the structure of page 0 would lie there.
    fn section(&self, section: u64) -> Option<u64> {
        let root = section / self.sections_per_root;
        if root >= self.root_count {
            return None;
        }
        let sections = self.kernel.read_u64(self.roots.checked_add(8 * root)?)?;
        let place = self.section_size * (section % self.sections_per_root) + self.section_map;
        let map = self.kernel.read_u64(sections.checked_add(place)?)?;
        (map & SECTION_PRESENT != 0).then_some(map & !SECTION_FLAGS)
    }

    /// Whether any structure of the section could be read.
    fn section_pages(&self, array: u64, first: u64, end: u64, tell: &mut dyn FnMut(u64, u64, Kind)) -> bool {
        let size = self.layout.size;
        let len = |structs: u64| usize::try_from(structs * size).expect("some structures fit into usize");
        let mut buf = vec![0; len(STRUCTS_AT_ONCE)];
        let mut read_any = false;
        for group in (first..end).step_by(64) {
            let structs = (end - group).min(STRUCTS_AT_ONCE);
            let buf = &mut buf[..len(structs)];
            if self.kernel.read(array.wrapping_add(group * size), buf).is_none() {
                continue;
            }
            read_any = true;
            for (number, index) in (group..).zip(0..structs) {
                let page = &buf[len(index)..];
                let next = page.get(len(1)..).filter(|next| next.len() >= len(1));
                if let Some((pages, kind)) = self.layout.kind(number, page, next) {
                    tell(number, pages, kind);
                }
            }
        }
        read_any
    }
}

impl Layout {
    fn new(info: &Vmcoreinfo) -> Result<Self, FilterError> {
        let size = info.size("page").filter(|size| (56..=MAX_STRUCT).contains(size));
        let size = size.ok_or(FilterError::UnknownLayout("what a struct page is"))?;
        let field = |name| {
            let at = info.offset(name).filter(|at| at.saturating_add(8) <= size);
            at.ok_or(FilterError::UnknownLayout("where the fields of a struct page are"))
        };
        let bit = |name| info.number(name).and_then(|bit| u32::try_from(bit).ok()).filter(|bit| *bit < 64);
        let flag = |name| {
            bit(name).map(|bit| 1 << bit).ok_or(FilterError::UnknownLayout("what the flags of a page mean"))
        };
        // A page's kind stands in 32 bits; the text says it with a sign.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the low 32 bits are meant"
        )]
        let kind = |name| info.number(name).map(|value| value as u32);
        let free = kind("PAGE_BUDDY_MAPCOUNT_VALUE");
        Ok(Self {
            size,
            flags: field("page.flags")?,
            mapping: field("page.mapping")?,
            mapcount: field("page._mapcount")?,
            private: field("page.private")?,
            compound_head: field("page.compound_head")?,
            compound_order: info.offset("page.compound_order").filter(|at| *at < size),
            compound_dtor: info.offset("page.compound_dtor").filter(|at| *at < size),
            lru: flag("PG_lru")?,
            private_flag: flag("PG_private")?,
            swapcache: flag("PG_swapcache")?,
            swapbacked: flag("PG_swapbacked")?,
            head: info.number("PG_head_mask").map_or(0, i64::cast_unsigned),
            poisoned: flag("PG_hwpoison").unwrap_or(0),
            slab: flag("PG_slab").unwrap_or(0),
            free_orders: info.length("zone.free_area").unwrap_or(11).min(MAX_ORDER),
            free: free.ok_or(FilterError::UnknownLayout("how free pages are marked"))?,
            unaccepted: kind("PAGE_UNACCEPTED_MAPCOUNT_VALUE"),
            offline: kind("PAGE_OFFLINE_MAPCOUNT_VALUE"),
            slab_type: kind("PAGE_SLAB_MAPCOUNT_VALUE"),
            hugetlb: kind("PAGE_HUGETLB_MAPCOUNT_VALUE"),
            hugetlb_dtor: info.number("HUGETLB_PAGE_DTOR").map(i64::cast_unsigned),
            hugetlb_flag: flag("PG_hugetlb").unwrap_or(0),
        })
    }

    /// What the page of a structure is and how many pages, with those behind it, are the same. `next` is the structure
    /// behind, where it is at hand: a compound page begins on its own size, so that it is for all of them.
    fn kind(&self, number: u64, page: &[u8], next: Option<&[u8]>) -> Option<(u64, Kind)> {
        let flags = word(page, self.flags);
        if word(page, self.compound_head) & TAIL != 0 {
            return None;
        }
        let mapcount = u32::from_le_bytes(*page.get(index(self.mapcount)..)?.first_chunk()?);
        let is = |kind: Option<u32>| kind.is_some_and(|kind| is_type(mapcount, kind));
        let is_slab = flags & self.slab != 0 || is(self.slab_type);
        if !is_slab && (is(Some(self.free)) || is(self.unaccepted)) {
            let order = word(page, self.private);
            return (order < self.free_orders).then(|| (1 << order, Kind::Free));
        }
        let next = next.filter(|_| flags & self.head != 0);
        let order = next.map_or(0, |next| self.order(next)).min(MAX_ORDER);
        let pages = if number.is_multiple_of(1 << order) { 1 << order } else { 1 };
        let is_anonymous = word(page, self.mapping) & ANONYMOUS != 0 && !is_slab;
        let is_swap = flags & self.swapbacked != 0 && flags & self.swapcache != 0;
        let kind = if (flags & self.lru != 0 || is_swap) && !is_anonymous {
            if flags & self.private_flag != 0 { Kind::PrivateCache } else { Kind::Cache }
        } else if is_anonymous || is(self.hugetlb) || next.is_some_and(|next| self.is_huge(next)) {
            Kind::User
        } else if flags & self.poisoned != 0 {
            Kind::Poisoned
        } else if !is_slab && is(self.offline) {
            Kind::Offline
        } else {
            return None;
        };
        Some((pages, kind))
    }

    /// How large a compound page is, as a power of two, by its second structure. Since 6.6 the first of its flags says
    /// so (`folio_order`), before that a field of its own.
    fn order(&self, next: &[u8]) -> u64 {
        let at = self.compound_order.unwrap_or(self.flags);
        next.get(index(at)).map_or(0, |order| u64::from(*order))
    }

    fn is_huge(&self, next: &[u8]) -> bool {
        let by_dtor = self
            .compound_dtor
            .zip(self.hugetlb_dtor)
            .is_some_and(|(at, huge)| next.get(index(at)).is_some_and(|dtor| u64::from(*dtor) == huge));
        by_dtor || word(next, self.flags) & self.hugetlb_flag != 0
    }
}

/// Whether a page is of this type. Since 6.12 types are numbers in the top byte, before that patterns of bits.
fn is_type(mapcount: u32, kind: u32) -> bool {
    const NUMBER: u32 = 0x00ff_ffff;
    if kind & NUMBER == 0 { mapcount >> 24 == kind >> 24 } else { mapcount == kind }
}

fn word(bytes: &[u8], at: u64) -> u64 {
    bytes.get(index(at)..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}
