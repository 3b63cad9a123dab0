//! Opens a minidump of FreeBSD/amd64, of any version, and reads guest memory from it.
//!
//! The file is hostile. Sections must lie in it and fit each other, before they are read; of a cut file only the pages
//! may be missing. Memory: the set of pages, and nothing for each page; page tables are read where they lie.

use std::io;
use std::ops::Range;

use thiserror::Error;

use super::header::{Header, HeaderError, Sections, Version};
use super::page_set::{NumberingError, PageNumbers, PageSet};
use crate::freebsd::msgbuf;
use crate::vmcore::core_file::CoreFile;
use crate::vmcore::memory::{MemoryError, MemoryRange};
use crate::vmcore::notes::ParsedNotes;
use crate::vmcore::open::{Core, Piece, PieceContent};
use crate::vmcore::paging::PAGE_SIZE;
use crate::vmcore::storage::{FilePart, Storage};
use crate::vmcore::virtual_memory::split_at_pages;

/// Most bytes of a bitmap: those of 4 TiB, all that FreeBSD's direct map holds.
const MAX_BITMAP: u64 = 128 << 20;
/// Most bytes of dump_avail that are read; the kernel's has 1024 (`PHYS_AVAIL_COUNT` words).
const MAX_DUMP_AVAIL: u64 = 64 << 10;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const LARGE_FRAME: u64 = 0x000f_ffff_ffe0_0000;
const LARGE_INSIDE: u64 = 0x1f_ffff;
const INSIDE: u64 = PAGE_SIZE - 1;

/// Why a minidump cannot be read.
#[derive(Debug, Error)]
pub enum MinidumpError {
    /// What stands in the header makes no sense.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Cut before its pages begin.
    #[error("the minidump ends inside {section}, at byte {length} of the {needed} before its pages")]
    Cut {
        /// Where it ends.
        section: PieceContent,
        /// Length of the file.
        length: u64,
        /// Where the pages begin.
        needed: u64,
    },
    /// Ranges of RAM that number no pages.
    #[error("dump_avail of the minidump is damaged")]
    DumpAvail(#[source] NumberingError),
    /// A bitmap without a bit for each page of RAM.
    #[error("the minidump's bitmap has {is} bytes, {needed} are needed for the RAM in its dump_avail")]
    BitmapShort {
        /// Its length in bytes.
        is: u64,
        /// Length that is needed.
        needed: u64,
    },
    /// A bitmap for more memory than a kernel can have.
    #[error("the minidump's bitmap has {0} bytes, more than the {MAX_BITMAP} of the largest machine")]
    BitmapLong(u64),
    /// The operating system refused a read.
    #[error("reading the headers of the minidump")]
    Read(#[source] io::Error),
}

/// An open minidump, without its file.
#[derive(Debug)]
pub struct Minidump {
    header: Header,
    sections: Sections,
    pages: PageSet,
    ranges: Vec<MemoryRange>,
    stray_bits: u64,
}

/// Opens a file that begins as a minidump of this architecture does.
pub(in crate::vmcore) fn open(file: CoreFile) -> Result<Core, MinidumpError> {
    let head = file.read_up_to(0, super::header::HEADER_LEN).map_err(MinidumpError::Read)?;
    let header = Header::parse(&head)?;
    let sections = header.sections();
    check_length(&file, &sections)?;
    let (numbers, ranges) = numbers(&file, &header, &sections)?;
    let (is, needed) = (u64::from(header.bitmap_len), numbers.bitmap_len());
    if header.version == Version::Three && is.next_multiple_of(PAGE_SIZE) < needed {
        return Err(MinidumpError::BitmapShort { is, needed });
    }
    if is > MAX_BITMAP {
        return Err(MinidumpError::BitmapLong(is));
    }
    let bitmap = read(&file, sections.bitmap.start, is)?;
    let pages = PageSet::from_bitmap(numbers, &bitmap);
    let set: u64 = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
    let ranges = ranges.unwrap_or_else(|| from_zero(&pages));
    let stray_bits = set.saturating_sub(pages.len());
    let kind = match header.version {
        Version::One => "FreeBSD/amd64 minidump, version 1",
        Version::Two => "FreeBSD/amd64 minidump, version 2",
        Version::Three => "FreeBSD/amd64 minidump, version 3",
    };
    let minidump = Minidump { header, sections, pages, ranges, stray_bits };
    let pieces = minidump.pieces();
    Ok(Core::new(file, "minidump", kind, pieces, Box::new(minidump), ParsedNotes::default()))
}

/// Everything before the pages must be there.
fn check_length(file: &CoreFile, sections: &Sections) -> Result<(), MinidumpError> {
    let (length, needed) = (file.length(), sections.pages);
    if length >= needed {
        return Ok(());
    }
    let section = parts(sections)
        .into_iter()
        .find(|(_, place)| length < place.end)
        .map_or(PieceContent::PageMap, |(content, _)| content);
    Err(MinidumpError::Cut { section, length, needed })
}

/// What the bitmap's bits stand for, and the ranges of RAM where the file says which there are.
fn numbers(
    file: &CoreFile,
    header: &Header,
    sections: &Sections,
) -> Result<(PageNumbers, Option<Vec<MemoryRange>>), MinidumpError> {
    if header.version != Version::Three {
        return Ok((PageNumbers::from_zero(u64::from(header.bitmap_len) * 8), None));
    }
    let len = u64::from(header.dump_avail_len).min(MAX_DUMP_AVAIL);
    let bytes = read(file, sections.dump_avail.start, len)?;
    let (words, _) = bytes.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    let ranges: Vec<Range<u64>> = pairs
        .iter()
        .map(|[start, end]| u64::from_le_bytes(*start)..u64::from_le_bytes(*end))
        .take_while(|range| range.end != 0)
        .collect();
    let numbers = PageNumbers::of_ranges(&ranges).map_err(MinidumpError::DumpAvail)?;
    let pages = |range: &Range<u64>| {
        let start = range.start / PAGE_SIZE * PAGE_SIZE;
        MemoryRange { start, len: range.end.next_multiple_of(PAGE_SIZE) - start }
    };
    Ok((numbers, Some(ranges.iter().map(pages).collect())))
}

/// Before version 3 nothing tells where RAM ends: up to the last page that is there.
fn from_zero(pages: &PageSet) -> Vec<MemoryRange> {
    let last = pages.len().checked_sub(1).and_then(|rank| pages.address(rank));
    last.map(|last| MemoryRange { start: 0, len: last + PAGE_SIZE }).into_iter().collect()
}

fn parts(sections: &Sections) -> [(PieceContent, Range<u64>); 5] {
    [
        (PieceContent::Header, 0..super::header::HEADER_LEN as u64),
        (PieceContent::MessageBuffer, sections.message_buffer.clone()),
        (PieceContent::DumpAvail, sections.dump_avail.clone()),
        (PieceContent::Bitmap, sections.bitmap.clone()),
        (PieceContent::PageMap, sections.page_map.clone()),
    ]
}

fn read(file: &CoreFile, offset: u64, len: u64) -> Result<Vec<u8>, MinidumpError> {
    let len = usize::try_from(len).expect("lengths were bounded to a few MiB");
    let mut bytes = vec![0; len];
    file.read(offset, &mut bytes).map_err(MinidumpError::Read)?;
    Ok(bytes)
}

impl Minidump {
    /// Its header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The pages that are in it.
    pub fn pages(&self) -> &PageSet {
        &self.pages
    }

    /// How many bits of the bitmap are set that stand for no page.
    pub fn stray_bits(&self) -> u64 {
        self.stray_bits
    }

    /// How many of its pages a file of this length holds whole.
    pub fn pages_in(&self, length: u64) -> u64 {
        (length.saturating_sub(self.sections.pages) / PAGE_SIZE).min(self.pages.len())
    }

    /// What the kernel said, the oldest first.
    pub(in crate::vmcore) fn messages(&self, file: &CoreFile) -> Option<String> {
        let section = &self.sections.message_buffer;
        msgbuf::of_section(u64::from(self.header.message_buffer_len), |offset, buf| {
            let from = section.start.checked_add(offset)?;
            (from.checked_add(buf.len() as u64)? <= section.end).then(|| file.read(from, buf).ok()).flatten()
        })
    }

    fn pieces(&self) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = parts(&self.sections)
            .into_iter()
            .map(|(content, place)| Piece { content, offset: place.start, len: place.end - place.start })
            .filter(|piece| piece.len > 0)
            .collect();
        let count = self.pages.len();
        pieces.push(Piece {
            content: PieceContent::Pages(count),
            offset: self.sections.pages,
            len: count * PAGE_SIZE,
        });
        pieces
    }

    fn range_of(&self, address: u64) -> Option<&MemoryRange> {
        let index = self.ranges.partition_point(|range| range.end() <= address);
        self.ranges.get(index).filter(|range| range.start <= address)
    }

    /// An entry of the page map.
    fn entry(&self, file: &CoreFile, index: u64) -> Option<u64> {
        let at = index.checked_mul(8).filter(|&at| at + 8 <= u64::from(self.header.page_map_len))?;
        let mut bytes = [0; 8];
        file.read(self.sections.page_map.start + at, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes)).filter(|entry| entry & PRESENT != 0)
    }

    /// An entry of a page table, which is a page of the dump.
    fn table_entry(&self, file: &CoreFile, table: u64, index: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(file, table + 8 * index, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes)).filter(|entry| entry & PRESENT != 0)
    }
}

impl Storage for Minidump {
    fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    fn read(&self, file: &CoreFile, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        if self.range_of(address).is_none_or(|range| len as u64 > range.end() - address) {
            return Err(MemoryError::NotInRam { address, len });
        }
        split_at_pages(address, buf).try_for_each(|(address, piece)| {
            let rank = self.pages.rank(address).ok_or(MemoryError::NotInDump { address })?;
            let offset = self.sections.pages + rank * PAGE_SIZE + (address & INSIDE);
            let len = piece.len();
            file.read(offset, piece).map_err(|source| MemoryError::Unreadable { address, len, source })
        })
    }

    /// Pages that are in the dump. What is not cannot be read either.
    fn next_touched(&self, _file: &CoreFile, address: u64) -> Option<Range<u64>> {
        let range = self.range_of(address)?;
        let run = self.pages.run(self.pages.pages_below(address), u64::MAX)?;
        let touched = run.address.max(address)..(run.address + run.pages * PAGE_SIZE).min(range.end());
        (!touched.is_empty()).then_some(touched)
    }

    fn place(&self, index: usize) -> FilePart {
        let range = self.ranges[index];
        let (first, end) = (self.pages.pages_below(range.start), self.pages.pages_below(range.end()));
        FilePart { offset: self.sections.pages + first * PAGE_SIZE, len: (end - first) * PAGE_SIZE }
    }

    fn address_at(&self, offset: u64) -> Option<u64> {
        let inside = offset.checked_sub(self.sections.pages)?;
        Some(self.pages.address(inside / PAGE_SIZE)? + (inside & INSIDE))
    }

    /// As the kernel's own readers do: the page map for kernel addresses, the direct map for the rest.
    fn translate(&self, file: &CoreFile, address: u64) -> Option<u64> {
        let header = &self.header;
        let Some(inside) = address.checked_sub(header.kernel_base) else {
            let direct = header.direct_map_start..header.direct_map_end;
            return direct.contains(&address).then(|| address - header.direct_map_start);
        };
        if header.version == Version::One {
            let page = self.entry(file, inside >> 12)?;
            return Some(page & FRAME | address & INSIDE);
        }
        let entry = self.entry(file, inside >> 21)?;
        if entry & LARGE != 0 {
            return Some(entry & LARGE_FRAME | address & LARGE_INSIDE);
        }
        let page = self.table_entry(file, entry & FRAME, (address >> 12) & 511)?;
        Some(page & FRAME | address & INSIDE)
    }

    fn minidump(&self) -> Option<&Minidump> {
        Some(self)
    }
}
