//! Opens a kdump-compressed core: those written here and makedumpfile's.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

use super::super::core_file::CoreFile;
use super::super::memory::{MemoryError, MemoryRange};
use super::super::minidump::page_set::{PageNumbers, PageSet};
use super::super::notes;
use super::super::open::{Core, Piece, PieceContent};
use super::super::paging::PAGE_SIZE;
use super::super::storage::{FilePart, Storage};
use super::method::{Method, PAGE, unpack};
use super::{BLOCK, DESCRIPTOR_LEN, SUB_HEADER_LEN};

/// Places in the header.
const STATUS: usize = 424;
const VERSION: usize = 8;
const BLOCK_SIZE: usize = 428;
const SUB_HEADER_BLOCKS: usize = 432;
const BITMAP_BLOCKS: usize = 436;
const PAGES: usize = 440;
/// The version in which the sub-header tells the number of pages in 64 bits, and the first that has notes.
const WIDE_VERSION: u32 = 6;
const OLDEST_VERSION: u32 = 4;
/// Most bytes of notes, and of both bitmaps: 16 TiB of memory.
const MAX_NOTES: u64 = 64 << 20;
const MAX_BITMAPS: u64 = 1 << 30;
/// Most ranges that the bitmap of RAM may make.
const MAX_RANGES: usize = 1 << 16;
/// Descriptors that are read at once.
const DESCRIPTORS_AT_ONCE: u64 = 8192;
/// Pages that are kept unpacked: walks through page tables come back to the same ones.
const MAX_PAGES: usize = 64;

/// Why a kdump-compressed core cannot be read.
#[derive(Debug, Error)]
pub enum KdumpError {
    /// Cut inside what says where the pages are.
    #[error("the kdump core ends inside its tables, at byte {length} of {needed}")]
    Cut {
        /// Length of the file.
        length: u64,
        /// Where the tables end.
        needed: u64,
    },
    /// An old version.
    #[error("the kdump core is of version {0}; 4 and later ones are read")]
    Version(u32),
    /// Blocks of another size.
    #[error("the kdump core has blocks of {0} bytes, not 4096: it is of no x86-64 machine")]
    BlockSize(u32),
    /// Numbers that contradict each other.
    #[error("the header of the kdump core contradicts itself: {0}")]
    Contradiction(&'static str),
    /// The operating system refused a read.
    #[error("reading the tables of the kdump core")]
    Read(#[source] io::Error),
}

/// What its pages are compressed with, mostly; a page's own descriptor says it for the page.
pub(super) fn method(head: &[u8]) -> Method {
    if u32_at(head, STATUS) & Method::Zstd.flag() != 0 { Method::Zstd } else { Method::Zlib }
}

pub(super) fn open(file: CoreFile, format: &'static str) -> Result<Core, KdumpError> {
    let head = read(&file, 0, BLOCK + SUB_HEADER_LEN)?;
    let version = u32_at(&head, VERSION);
    if version < OLDEST_VERSION {
        return Err(KdumpError::Version(version));
    }
    if u64::from(u32_at(&head, BLOCK_SIZE)) != BLOCK {
        return Err(KdumpError::BlockSize(u32_at(&head, BLOCK_SIZE)));
    }
    let sub = &head[4096..];
    let pages = if version >= WIDE_VERSION { u64_at(sub, 96) } else { u32_at(&head, PAGES).into() };
    let bitmaps_at = BLOCK * (1 + u64::from(u32_at(&head, SUB_HEADER_BLOCKS)));
    let bitmaps_len = BLOCK * u64::from(u32_at(&head, BITMAP_BLOCKS));
    if bitmaps_len > MAX_BITMAPS || pages.div_ceil(8) > bitmaps_len / 2 {
        return Err(KdumpError::Contradiction("its bitmaps have another size than its memory asks for"));
    }
    let bitmaps = read(&file, bitmaps_at, bitmaps_len)?;
    let (ram, stored) = bitmaps.split_at(bitmaps.len() / 2);
    let set = |bitmap| PageSet::from_bitmap(PageNumbers::from_zero(pages), bitmap);
    let (ram, stored) = (set(ram), set(stored));
    let (notes_at, notes_len) = (u64_at(sub, 48), u64_at(sub, 56).min(MAX_NOTES));
    let notes = read(&file, notes_at, notes_len)?;
    let table = Piece {
        content: PieceContent::Table,
        offset: bitmaps_at + bitmaps_len,
        len: stored.len() * DESCRIPTOR_LEN,
    };
    let ranges = ranges(&ram)?;
    let (places, parts) = places(&file, &table, &ranges, &stored)?;
    let pieces = vec![
        Piece { content: PieceContent::Header, offset: 0, len: BLOCK + SUB_HEADER_LEN },
        Piece { content: PieceContent::Notes, offset: notes_at, len: notes_len },
        Piece { content: PieceContent::Bitmap, offset: bitmaps_at, len: bitmaps_len },
        table,
        Piece {
            content: PieceContent::Pages(stored.len()),
            offset: places.start,
            len: places.end - places.start,
        },
    ];
    let storage = CompressedPages { ranges, parts, stored, table: table.offset, known: Mutex::default() };
    Ok(Core::new(
        file,
        format,
        "kdump-compressed core of Linux",
        pieces,
        Box::new(storage),
        notes::parse(&notes),
    ))
}

/// RAM as the first bitmap has it.
fn ranges(ram: &PageSet) -> Result<Vec<MemoryRange>, KdumpError> {
    let runs = ram.runs().take(MAX_RANGES + 1);
    let ranges: Vec<_> =
        runs.map(|run| MemoryRange { start: run.address, len: run.pages * PAGE_SIZE }).collect();
    match ranges.len() {
        0 => Err(KdumpError::Contradiction("no page is RAM")),
        1..=MAX_RANGES => Ok(ranges),
        _ => Err(KdumpError::Contradiction("RAM has more ranges than any machine")),
    }
}

/// Where the data of all pages begins and ends, and of each range the same without the page of zeros that all share: it
/// lies before all others.
fn places(
    file: &CoreFile,
    table: &Piece,
    ranges: &[MemoryRange],
    stored: &PageSet,
) -> Result<(Range<u64>, Vec<FilePart>), KdumpError> {
    let mut all = table.end()..table.end();
    // Empty until a page is found.
    let nothing = Range { start: u64::MAX, end: 0 };
    let mut parts = vec![nothing; ranges.len()];
    let mut ends = ranges.iter().map(|range| stored.pages_below(range.end())).zip(0..).peekable();
    let step = DESCRIPTORS_AT_ONCE * DESCRIPTOR_LEN;
    for at in (table.offset..table.end()).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        let bytes = read(file, at, (table.end() - at).min(step))?;
        let first = (at - table.offset) / DESCRIPTOR_LEN;
        for (rank, descriptor) in (first..).zip(bytes.chunks_exact(24).map(Descriptor::parse)) {
            let end = descriptor.offset.saturating_add(descriptor.len.into());
            all = all.start.min(descriptor.offset)..all.end.max(end);
            while ends.next_if(|(end, _)| *end <= rank).is_some() {}
            let part = ends.peek().and_then(|(_, index): &(u64, usize)| parts.get_mut(*index));
            if let Some(part) = part.filter(|_| descriptor.offset > table.end()) {
                *part = part.start.min(descriptor.offset)..part.end.max(end);
            }
        }
    }
    let part = |part: Range<u64>| match part.is_empty() {
        true => FilePart { offset: all.start, len: 0 },
        false => FilePart { offset: part.start, len: part.end - part.start },
    };
    Ok((all.clone(), parts.into_iter().map(part).collect()))
}

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    offset: u64,
    len: u32,
    flags: u32,
}

impl Descriptor {
    fn parse(bytes: &[u8]) -> Self {
        Self { offset: u64_at(bytes, 0), len: u32_at(bytes, 8), flags: u32_at(bytes, 12) }
    }
}

/// Pages that are compressed one by one.
struct CompressedPages {
    ranges: Vec<MemoryRange>,
    /// Of each range, where its pages lie.
    parts: Vec<FilePart>,
    stored: PageSet,
    /// Offset of the descriptors.
    table: u64,
    /// Some pages, by their address, the last one last.
    known: Mutex<Vec<(u64, Box<[u8; PAGE]>)>>,
}

impl std::fmt::Debug for CompressedPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompressedPages").field("pages", &self.stored.len()).finish_non_exhaustive()
    }
}

impl CompressedPages {
    fn descriptor(&self, file: &CoreFile, rank: u64) -> io::Result<Descriptor> {
        let mut bytes = [0; 24];
        file.read(self.table + rank * DESCRIPTOR_LEN, &mut bytes)?;
        Ok(Descriptor::parse(&bytes))
    }

    /// Copies from byte `inside` of a page.
    fn read_page(
        &self,
        file: &CoreFile,
        address: u64,
        inside: usize,
        buf: &mut [u8],
    ) -> Result<(), MemoryError> {
        // The list is whole between any two statements that change it.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let place = known.iter().position(|(page, _)| *page == address);
        let (_, page) = match place {
            Some(place) => known.remove(place),
            None => (address, self.unpacked(file, address)?),
        };
        buf.copy_from_slice(&page[inside..inside + buf.len()]);
        if known.len() >= MAX_PAGES {
            known.remove(0);
        }
        known.push((address, page));
        Ok(())
    }

    fn unpacked(&self, file: &CoreFile, address: u64) -> Result<Box<[u8; PAGE]>, MemoryError> {
        let rank = self.stored.rank(address).ok_or(MemoryError::NotInDump { address })?;
        let mut page = Box::new([0; PAGE]);
        let unpacked = self.descriptor(file, rank).and_then(|descriptor| {
            let len = usize::try_from(descriptor.len).ok().filter(|len| *len <= PAGE);
            let len = len.ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "a page of more than 4096 bytes")
            })?;
            let mut packed = [0; PAGE];
            file.read(descriptor.offset, &mut packed[..len])?;
            unpack(descriptor.flags, &packed[..len], &mut page)
        });
        unpacked.map_err(|source| MemoryError::Unreadable { address, len: PAGE, source })?;
        Ok(page)
    }

    fn range(&self, address: u64) -> Option<&MemoryRange> {
        let range = self.ranges.get(self.ranges.partition_point(|range| range.end() <= address))?;
        (range.start <= address).then_some(range)
    }
}

impl Storage for CompressedPages {
    fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    fn read(&self, file: &CoreFile, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        let inside = |range: &&MemoryRange| len as u64 <= range.end() - address;
        self.range(address).filter(inside).ok_or(MemoryError::NotInRam { address, len })?;
        let (mut at, mut rest) = (address, buf);
        while !rest.is_empty() {
            let inside = usize::try_from(at % PAGE_SIZE).expect("it lies in a page");
            let (piece, behind) = rest.split_at_mut(rest.len().min(PAGE - inside));
            self.read_page(file, at - at % PAGE_SIZE, inside, piece)?;
            at += piece.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    /// What was left out counts as untouched.
    fn next_touched(&self, _file: &CoreFile, address: u64) -> Option<Range<u64>> {
        let end = self.range(address)?.end();
        let run = self.stored.run(self.stored.pages_below(address), u64::MAX)?;
        let touched = run.address.max(address)..(run.address + run.pages * PAGE_SIZE).min(end);
        (!touched.is_empty()).then_some(touched)
    }

    fn place(&self, index: usize) -> FilePart {
        self.parts[index]
    }

    fn address_at(&self, _offset: u64) -> Option<u64> {
        None
    }
}

fn read(file: &CoreFile, offset: u64, len: u64) -> Result<Vec<u8>, KdumpError> {
    let needed = offset.saturating_add(len);
    if needed > file.length() {
        return Err(KdumpError::Cut { length: file.length(), needed });
    }
    let len = usize::try_from(len).map_err(|_| KdumpError::Contradiction("tables larger than memory"))?;
    file.read_up_to(offset, len).map_err(KdumpError::Read)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}
