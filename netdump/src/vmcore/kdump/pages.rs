//! The pages of a core that is written: compressed once for their lengths, and again whenever they are read.

use std::collections::VecDeque;
use std::num::NonZero;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::memory::PhysicalMemory;
use super::super::minidump::page_set::PageSet;
use super::super::paging::PAGE_SIZE;
use super::DESCRIPTOR_LEN;
use super::method::{Method, PAGE, Packer};
use crate::zeros::are_zeros;
use crate::{ReadAt, ReadError};

/// Pages that are compressed at a time.
const GROUP: u64 = 64;
/// Groups that are kept compressed, for reads that follow each other.
const MAX_GROUPS: usize = 16;
/// Compressing threads at most.
const MAX_THREADS: usize = 4;
/// Most unreadable pages that are listed.
const MAX_BAD: usize = 1 << 16;
/// Length of a page of zeros, which has no place of its own.
const ZEROS: u16 = 0;

/// The pages of a core and how long each is.
pub(super) struct Pack<'m> {
    memory: &'m dyn PhysicalMemory,
    kept: PageSet,
    method: Method,
    /// The page of zeros, compressed; it lies before all others.
    zeros: Vec<u8>,
    /// Of each page; a page that does not become shorter is stored as it is.
    lengths: Vec<u16>,
    /// Where each group begins behind the page of zeros; at last, where the last one ends.
    starts: Vec<u64>,
    bad: Vec<u64>,
    groups: Mutex<VecDeque<(u64, Arc<Vec<u8>>)>>,
}

impl<'m> Pack<'m> {
    /// Compresses every page, to know its length.
    pub(super) fn new(memory: &'m dyn PhysicalMemory, kept: PageSet, method: Method) -> Self {
        let (mut zeros, mut packed) = (vec![0; PAGE], [0; PAGE]);
        if let Some(len) = Packer::new(method).pack(&[0; PAGE], &mut packed) {
            zeros = packed[..len].to_vec();
        }
        let mut pack = Self {
            memory,
            kept,
            method,
            zeros,
            lengths: Vec::new(),
            starts: Vec::new(),
            bad: Vec::new(),
            groups: Mutex::default(),
        };
        (pack.lengths, pack.bad) = pack.measure();
        let mut start = 0;
        for group in pack.lengths.chunks(usize::try_from(GROUP).expect("a group is small")) {
            pack.starts.push(start);
            start += group.iter().map(|len| u64::from(*len)).sum::<u64>();
        }
        pack.starts.push(start);
        pack
    }

    /// How many pages there are.
    pub(super) fn pages(&self) -> u64 {
        self.kept.len()
    }

    /// Guest-physical addresses of pages that could not be read; they are zeros.
    pub(super) fn bad_pages(&self) -> &[u64] {
        &self.bad
    }

    /// The lengths of all pages, by several threads.
    fn measure(&self) -> (Vec<u16>, Vec<u64>) {
        let pages = usize::try_from(self.kept.len()).expect("a length for each page fits into memory");
        let mut lengths = vec![ZEROS; pages];
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
        let share = pages.div_ceil(threads).max(1);
        let bad = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..)
                .step_by(share)
                .zip(lengths.chunks_mut(share))
                .map(|(first, lengths)| scope.spawn(move || self.measure_some(first, lengths)))
                .collect();
            let bad = workers.into_iter().map(|worker| worker.join().unwrap_or_default());
            bad.flatten().take(MAX_BAD).collect()
        });
        (lengths, bad)
    }

    fn measure_some(&self, first: u64, lengths: &mut [u16]) -> Vec<u64> {
        let mut bad = Vec::new();
        let mut pages = Pages::new(self, first);
        let (mut page, mut packed, mut packer) = ([0; PAGE], [0; PAGE], Packer::new(self.method));
        for length in lengths {
            match pages.next(&mut page) {
                Content::Zeros => *length = ZEROS,
                Content::Page => {
                    let len = packer.pack(&page, &mut packed).unwrap_or(PAGE);
                    *length = u16::try_from(len).expect("a packed page is no longer than a page");
                }
                Content::Unreadable(address) if bad.len() < MAX_BAD => bad.push(address),
                Content::Unreadable(_) => {}
            }
        }
        bad
    }

    /// A group of pages, compressed, one behind the other.
    fn group(&self, group: u64) -> Arc<Vec<u8>> {
        let known = |groups: &VecDeque<(u64, Arc<Vec<u8>>)>| {
            groups.iter().find(|(number, _)| *number == group).map(|(_, bytes)| bytes.clone())
        };
        // The list is whole between any two statements that change it.
        if let Some(bytes) = known(&self.groups.lock().unwrap_or_else(PoisonError::into_inner)) {
            return bytes;
        }
        let bytes = Arc::new(self.pack_group(group));
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if groups.len() >= MAX_GROUPS {
            groups.pop_front();
        }
        groups.push_back((group, bytes.clone()));
        bytes
    }

    fn pack_group(&self, group: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut pages = Pages::new(self, group * GROUP);
        let (mut page, mut packed, mut packer) = ([0; PAGE], [0; PAGE], Packer::new(self.method));
        for length in self.lengths_from(group * GROUP).iter().take(64).map(|length| usize::from(*length)) {
            if let Content::Page = pages.next(&mut page) {
                let start = bytes.len();
                match packer.pack(&page, &mut packed) {
                    Some(len) => bytes.extend_from_slice(&packed[..len]),
                    None => bytes.extend_from_slice(&page),
                }
                // The same page becomes the same bytes; were it not so, the next page must still be in its place.
                bytes.resize(start + length, 0);
            }
        }
        bytes
    }

    /// The lengths of the pages from this rank on.
    fn lengths_from(&self, rank: u64) -> &[u16] {
        usize::try_from(rank).ok().and_then(|rank| self.lengths.get(rank..)).unwrap_or_default()
    }

    fn group_start(&self, group: u64) -> u64 {
        usize::try_from(group).ok().and_then(|group| self.starts.get(group)).copied().unwrap_or_default()
    }
}

/// What the next page is.
enum Content {
    Zeros,
    Page,
    Unreadable(u64),
}

/// Reads the pages of a core one after the other; what the guest never touched is not read.
struct Pages<'a> {
    pack: &'a Pack<'a>,
    /// The pages from here on, as far as they follow each other.
    next: u64,
    address: u64,
    left: u64,
    /// The last run of memory that the guest touched.
    touched: Range<u64>,
}

impl<'a> Pages<'a> {
    fn new(pack: &'a Pack<'a>, rank: u64) -> Self {
        Self { pack, next: rank, address: 0, left: 0, touched: 0..0 }
    }

    fn next(&mut self, page: &mut [u8; PAGE]) -> Content {
        if self.left == 0 {
            let Some(run) = self.pack.kept.run(self.next, 4096) else { return Content::Zeros };
            (self.address, self.left) = (run.address, run.pages);
        }
        let address = self.address;
        self.address += PAGE_SIZE;
        self.left -= 1;
        self.next += 1;
        if !self.is_touched(address) {
            return Content::Zeros;
        }
        match self.pack.memory.read(address, page) {
            Ok(()) if are_zeros(page) => Content::Zeros,
            Ok(()) => Content::Page,
            Err(_) => Content::Unreadable(address),
        }
    }

    fn is_touched(&mut self, address: u64) -> bool {
        if address >= self.touched.end {
            let memory = self.pack.memory;
            // Where nothing follows in this range, the next question is for what lies behind it.
            let end = memory.range_at(address).map_or(address + PAGE_SIZE, |range| range.end());
            self.touched = memory.next_touched(address).unwrap_or(end..end);
        }
        self.touched.start < address + PAGE_SIZE && address < self.touched.end
    }
}

/// The table of descriptors.
pub(super) struct Descriptors<'m> {
    pack: Arc<Pack<'m>>,
    /// Offset of the page of zeros in the file.
    data_at: u64,
}

impl<'m> Descriptors<'m> {
    pub(super) fn new(pack: Arc<Pack<'m>>, data_at: u64) -> Self {
        Self { pack, data_at }
    }

    /// The descriptors of a group.
    fn group(&self, group: u64) -> Vec<u8> {
        let zeros_len = u32::try_from(self.pack.zeros.len()).expect("it is no longer than a page");
        let flag = |len: u32| if len == 4096 { 0 } else { self.pack.method.flag() };
        let mut offset = self.data_at + u64::from(zeros_len) + self.pack.group_start(group);
        let mut out = Vec::new();
        for &len in self.pack.lengths_from(group * GROUP).iter().take(64) {
            let (at, len) = if len == ZEROS { (self.data_at, zeros_len) } else { (offset, u32::from(len)) };
            if at == offset {
                offset += u64::from(len);
            }
            out.extend(at.to_le_bytes());
            out.extend([len, flag(len)].iter().flat_map(|word| word.to_le_bytes()));
            out.extend([0; 8]);
        }
        out
    }
}

impl ReadAt for Descriptors<'_> {
    fn length(&self) -> u64 {
        self.pack.pages() * DESCRIPTOR_LEN
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        ReadError::check_range(offset, buf.len(), self.length())?;
        let group_len = GROUP * DESCRIPTOR_LEN;
        copy(offset, buf, |at| {
            let group = at / group_len;
            (group * group_len, Arc::new(self.group(group)))
        });
        Ok(())
    }
}

/// The compressed pages.
pub(super) struct PageData<'m> {
    pack: Arc<Pack<'m>>,
}

impl<'m> PageData<'m> {
    pub(super) fn new(pack: Arc<Pack<'m>>) -> Self {
        Self { pack }
    }
}

impl ReadAt for PageData<'_> {
    fn length(&self) -> u64 {
        self.pack.zeros.len() as u64 + self.pack.starts.last().copied().unwrap_or_default()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        ReadError::check_range(offset, buf.len(), self.length())?;
        let zeros = &self.pack.zeros;
        copy(offset, buf, |at| {
            let Some(behind) = at.checked_sub(zeros.len() as u64) else {
                return (0, Arc::new(zeros.clone()));
            };
            // The last group that begins there or before: those before it that begin there too are empty.
            let group = self.pack.starts.partition_point(|&start| start <= behind) as u64 - 1;
            (zeros.len() as u64 + self.pack.group_start(group), self.pack.group(group))
        });
        Ok(())
    }
}

/// Fills `buf` from `offset`, piece by piece: `piece` gives the one that holds an offset, and where it begins.
fn copy(offset: u64, buf: &mut [u8], piece: impl Fn(u64) -> (u64, Arc<Vec<u8>>)) {
    let (mut at, mut rest) = (offset, buf);
    while !rest.is_empty() {
        let (start, bytes) = piece(at);
        let from = usize::try_from(at - start).expect("a piece fits into memory");
        let source = bytes.get(from..).filter(|bytes| !bytes.is_empty()).unwrap_or(&[0]);
        let len = source.len().min(rest.len());
        let (now, behind) = rest.split_at_mut(len);
        now.copy_from_slice(&source[..len]);
        at += len as u64;
        rest = behind;
    }
}
