//! A core before it is a file: an ordered list of extents, each of which is bytes made here, a range of guest memory,
//! a set of guest pages, or zeros.
//!
//! Headers, length and data all come from this one list, so they cannot disagree. Nothing of the guest is copied until
//! it is read, so the memory used does not grow with the guest's, but for a bit for each page where a core has a choice
//! of pages.
//!
//! What a core is to say otherwise than guest memory does (a register that the guest did not save itself, say) is a
//! patch: guest memory is never written, and every place of the core that shows the patched bytes shows the patch.

mod bad_pages;
mod data;
mod patches;

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::memory::{MemoryRange, PhysicalMemory};
use super::minidump::page_set::PageSet;
use super::paging::PAGE_SIZE;
use super::virtual_memory::split_at_pages;
use crate::{ReadAt, ReadError};
use bad_pages::BadPages;
use data::Presence;
use patches::Patches;

/// A planned core that can be read at any offset.
pub struct DumpImage<'m> {
    memory: &'m dyn PhysicalMemory,
    extents: Vec<Extent<'m>>,
    length: u64,
    patches: Patches,
    bad: Mutex<BadPages>,
}

struct Extent<'m> {
    /// Where it begins in the core.
    offset: u64,
    len: u64,
    content: Content<'m>,
}

enum Content<'m> {
    Bytes(Vec<u8>),
    /// Guest memory from this guest-physical address on.
    Guest(u64),
    /// These pages of guest memory, one behind the other.
    Pages(Box<PageSet>),
    /// What is made of guest memory as it is read.
    Made(Box<dyn ReadAt + Sync + 'm>),
    Zeros,
}

impl Extent<'_> {
    fn end(&self) -> u64 {
        self.offset + self.len
    }
}

impl<'m> DumpImage<'m> {
    /// An image without extents.
    pub fn new(memory: &'m dyn PhysicalMemory) -> Self {
        Self { memory, extents: Vec::new(), length: 0, patches: Patches::default(), bad: Mutex::default() }
    }

    /// Appends bytes.
    pub fn push_bytes(&mut self, bytes: Vec<u8>) {
        self.push(bytes.len() as u64, Content::Bytes(bytes));
    }

    /// Appends a range of guest memory, which must lie in one RAM range.
    pub fn push_guest(&mut self, range: MemoryRange) {
        self.push(range.len, Content::Guest(range.start));
    }

    /// Appends the pages of a set, which must all lie in RAM.
    pub fn push_pages(&mut self, pages: PageSet) {
        self.push(pages.len() * PAGE_SIZE, Content::Pages(Box::new(pages)));
    }

    /// Appends what is made of guest memory whenever it is read.
    pub(super) fn push_made(&mut self, made: Box<dyn ReadAt + Sync + 'm>) {
        self.push(made.length(), Content::Made(made));
    }

    /// Counts guest pages as unreadable that a planner found to be so.
    pub(super) fn add_bad_pages(&self, pages: &[u64]) {
        let mut bad = self.bad_list();
        pages.iter().for_each(|&page| bad.add(page));
    }

    /// Appends `len` zeros.
    pub fn push_zeros(&mut self, len: u64) {
        self.push(len, Content::Zeros);
    }

    /// From now on the core says `bytes` wherever it shows guest memory at guest-physical `address`. A later patch of
    /// the same bytes wins.
    pub fn patch(&mut self, address: u64, bytes: &[u8]) {
        self.patches.add(address, bytes);
    }

    /// Guest pages that could not be read and were given as zeros, each counted once however often it was read.
    pub fn bad_pages(&self) -> u64 {
        self.bad_list().pages()
    }

    /// Guest-physical ranges of those pages, ascending.
    pub fn bad_ranges(&self) -> Vec<Range<u64>> {
        self.bad_list().ranges()
    }

    fn push(&mut self, len: u64, content: Content<'m>) {
        if len > 0 {
            self.extents.push(Extent { offset: self.length, len, content });
            self.length =
                self.length.checked_add(len).expect("RAM ranges do not overlap, so a core fits into u64");
        }
    }

    /// Index of the extent that holds `offset`.
    fn extent_at(&self, offset: u64) -> usize {
        self.extents.partition_point(|extent| extent.end() <= offset)
    }

    /// Reads guest memory as the core shows it.
    fn read_guest(&self, address: u64, buf: &mut [u8]) {
        self.read_unpatched(address, buf);
        self.patches.apply(address, buf);
    }

    /// Reads guest memory, page by page where it cannot be read at once.
    fn read_unpatched(&self, address: u64, buf: &mut [u8]) {
        if self.memory.read(address, buf).is_ok() {
            return;
        }
        for (at, piece) in split_at_pages(address, buf) {
            if self.memory.read(at, piece).is_err() {
                piece.fill(0);
                self.bad_list().add(at & !(PAGE_SIZE - 1));
            }
        }
    }

    /// Reads from byte `skip` of the pages of a set on.
    fn read_pages(&self, pages: &PageSet, skip: u64, buf: &mut [u8]) {
        let mut skip = skip;
        let mut rest = buf;
        while !rest.is_empty() {
            let inside = skip % PAGE_SIZE;
            let wanted = (inside + rest.len() as u64).div_ceil(PAGE_SIZE);
            let run = pages.run(skip / PAGE_SIZE, wanted).expect("an extent ends with its last page");
            let left = run.pages * PAGE_SIZE - inside;
            let len = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
            let (piece, behind) = rest.split_at_mut(len);
            self.read_guest(run.address + inside, piece);
            skip += len as u64;
            rest = behind;
        }
    }

    /// Address of the byte `skip` of the pages of a set, when `len` bytes from there lie in one piece of RAM.
    fn locate_in_pages(&self, pages: &PageSet, skip: u64, len: usize) -> Option<u64> {
        let inside = skip % PAGE_SIZE;
        let wanted = (inside + len as u64).div_ceil(PAGE_SIZE);
        let run = pages.run(skip / PAGE_SIZE, wanted).filter(|run| run.pages >= wanted.max(1))?;
        let address = run.address + inside;
        let ranges = self.memory.ranges();
        let range = ranges.get(ranges.partition_point(|range| range.end() <= address))?;
        (range.start <= address && len as u64 <= range.end() - address).then_some(address)
    }

    /// Whether any page of these bytes is left out: what the core shows there is not in the guest's memory.
    fn leaves_out(&self, address: u64, len: usize) -> bool {
        let end = address.saturating_add(len as u64);
        let mut pages = (address - address % PAGE_SIZE..end).step_by(4096);
        self.memory.kept().is_some_and(|kept| pages.any(|page| !kept.pages.contains(page)))
    }

    /// Which guest memory may hold anything but zeros.
    fn presence(&self) -> Presence<'_> {
        Presence { memory: self.memory, patches: &self.patches }
    }

    fn bad_list(&self) -> MutexGuard<'_, BadPages> {
        // The list is whole between any two statements that change it.
        self.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadAt for DumpImage<'_> {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        ReadError::check_range(offset, buf.len(), self.length)?;
        let mut offset = offset;
        let mut rest = buf;
        for extent in &self.extents[self.extent_at(offset)..] {
            if rest.is_empty() {
                break;
            }
            let skip = offset - extent.offset;
            let len = usize::try_from(extent.len - skip).map_or(rest.len(), |left| left.min(rest.len()));
            let (piece, behind) = rest.split_at_mut(len);
            match &extent.content {
                Content::Bytes(bytes) => {
                    let from = usize::try_from(skip).expect("an offset in a Vec fits into usize");
                    piece.copy_from_slice(&bytes[from..from + len]);
                }
                Content::Guest(start) => self.read_guest(start + skip, piece),
                Content::Pages(pages) => self.read_pages(pages, skip, piece),
                Content::Made(made) => made.read_at(skip, piece)?,
                Content::Zeros => piece.fill(0),
            }
            offset += len as u64;
            rest = behind;
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        self.extents[self.extent_at(offset)..].iter().find_map(|extent| {
            let from = offset.max(extent.offset);
            match &extent.content {
                Content::Bytes(_) | Content::Made(_) => Some(from..extent.end()),
                Content::Zeros => None,
                Content::Guest(start) => {
                    let touched = self.presence().next(start + (from - extent.offset))?;
                    let inside =
                        |address: u64| extent.offset + address.saturating_sub(*start).min(extent.len);
                    let run = inside(touched.start).max(from)..inside(touched.end);
                    (!run.is_empty()).then_some(run)
                }
                Content::Pages(pages) => {
                    let run = self.presence().next_in_pages(pages, from - extent.offset)?;
                    Some(extent.offset + run.start..extent.offset + run.end)
                }
            }
        })
    }

    fn data_from(&self, offset: u64) -> Option<u64> {
        self.extents[self.extent_at(offset)..].iter().find_map(|extent| {
            let from = offset.max(extent.offset);
            match &extent.content {
                Content::Bytes(_) | Content::Made(_) => Some(from),
                Content::Zeros => None,
                Content::Guest(start) => {
                    let inside =
                        self.presence().start(start + (from - extent.offset))?.saturating_sub(*start);
                    (inside < extent.len).then(|| from.max(extent.offset + inside))
                }
                Content::Pages(pages) => {
                    let start = self.presence().start_in_pages(pages, from - extent.offset)?;
                    Some(extent.offset + start)
                }
            }
        })
    }

    fn locate(&self, offset: u64, len: usize) -> Option<u64> {
        let extent = self.extents.get(self.extent_at(offset))?;
        if offset.checked_add(len as u64)? > extent.end() {
            return None;
        }
        let skip = offset - extent.offset;
        let address = match &extent.content {
            Content::Guest(start) => start + skip,
            Content::Pages(pages) => self.locate_in_pages(pages, skip, len)?,
            Content::Bytes(_) | Content::Made(_) | Content::Zeros => return None,
        };
        (!self.patches.touch(address, len) && !self.leaves_out(address, len)).then_some(address)
    }
}

impl fmt::Debug for DumpImage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DumpImage")
            .field("extents", &self.extents.len())
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}
