//! A core before it is a file: an ordered list of extents, each of which is bytes made here, a range of guest memory,
//! or zeros.
//!
//! Headers, length and data all come from this one list, so they cannot disagree. Nothing of the guest is copied until
//! it is read, so the memory used does not grow with the guest's.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::memory::{MemoryRange, PhysicalMemory};
use super::paging::{PAGE_SIZE, left_in_page};
use crate::{ReadAt, ReadError};

/// A planned core that can be read at any offset.
pub struct DumpImage<'m> {
    memory: &'m dyn PhysicalMemory,
    extents: Vec<Extent>,
    length: u64,
    bad: Mutex<BadPages>,
}

struct Extent {
    /// Where it begins in the core.
    offset: u64,
    len: u64,
    content: Content,
}

enum Content {
    Bytes(Vec<u8>),
    /// Guest memory from this guest-physical address on.
    Guest(u64),
    Zeros,
}

impl Extent {
    fn end(&self) -> u64 {
        self.offset + self.len
    }
}

impl<'m> DumpImage<'m> {
    /// An image without extents.
    pub fn new(memory: &'m dyn PhysicalMemory) -> Self {
        Self { memory, extents: Vec::new(), length: 0, bad: Mutex::default() }
    }

    /// Appends bytes.
    pub fn push_bytes(&mut self, bytes: Vec<u8>) {
        self.push(bytes.len() as u64, Content::Bytes(bytes));
    }

    /// Appends a range of guest memory, which must lie in one RAM range.
    pub fn push_guest(&mut self, range: MemoryRange) {
        self.push(range.len, Content::Guest(range.start));
    }

    /// Appends `len` zeros.
    pub fn push_zeros(&mut self, len: u64) {
        self.push(len, Content::Zeros);
    }

    /// Guest pages that could not be read and were given as zeros, each counted once however often it was read.
    pub fn bad_pages(&self) -> u64 {
        self.bad_list().pages
    }

    /// Guest-physical ranges of those pages, ascending.
    pub fn bad_ranges(&self) -> Vec<Range<u64>> {
        self.bad_list().runs.iter().map(|(&start, &end)| start..end).collect()
    }

    fn push(&mut self, len: u64, content: Content) {
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

    /// Reads guest memory, page by page where it cannot be read at once.
    fn read_guest(&self, address: u64, buf: &mut [u8]) {
        if self.memory.read(address, buf).is_ok() {
            return;
        }
        let mut address = address;
        let mut rest = buf;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at_mut(rest.len().min(left_in_page(address)));
            if self.memory.read(address, piece).is_err() {
                piece.fill(0);
                self.bad_list().add(address & !(PAGE_SIZE - 1));
            }
            address += piece.len() as u64;
            rest = behind;
        }
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
                Content::Bytes(_) => Some(from..extent.end()),
                Content::Zeros => None,
                Content::Guest(start) => {
                    let touched = self.memory.next_touched(start + (from - extent.offset))?;
                    let inside =
                        |address: u64| extent.offset + address.saturating_sub(*start).min(extent.len);
                    let run = inside(touched.start).max(from)..inside(touched.end);
                    (!run.is_empty()).then_some(run)
                }
            }
        })
    }

    fn locate(&self, offset: u64, len: usize) -> Option<u64> {
        let extent = self.extents.get(self.extent_at(offset))?;
        let Content::Guest(start) = extent.content else { return None };
        (offset.checked_add(len as u64)? <= extent.end()).then(|| start + (offset - extent.offset))
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

/// Pages that could not be read, as runs: a resend reads the same page again, and it must not count again.
#[derive(Default)]
struct BadPages {
    /// Start and end of each run.
    runs: BTreeMap<u64, u64>,
    pages: u64,
}

impl BadPages {
    /// Bound of the list. Pages behind it are counted, but no longer told from those counted before.
    const MAX_RUNS: usize = 1 << 16;

    fn add(&mut self, page: u64) {
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
