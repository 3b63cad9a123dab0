//! Where a core file holds guest memory: what differs between formats when a core is read.

use std::fmt;
use std::ops::Range;

use super::core_file::CoreFile;
use super::memory::{MemoryError, MemoryRange};
use super::minidump::read::Minidump;
use super::open::{Piece, PieceContent};

/// A format's way to keep guest memory in a file.
pub(super) trait Storage: Send + Sync + fmt::Debug {
    /// The RAM ranges, ascending and without overlap.
    fn ranges(&self) -> &[MemoryRange];

    /// Fills `buf` from guest-physical `address`.
    fn read(&self, file: &CoreFile, address: u64, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// As [`super::PhysicalMemory::next_touched`].
    fn next_touched(&self, file: &CoreFile, address: u64) -> Option<Range<u64>>;

    /// Where the bytes of a RAM range lie in the file; several ranges have several places.
    fn place(&self, index: usize) -> FilePart;

    /// The guest-physical address of the byte at an offset of the file, if guest memory lies there.
    fn address_at(&self, offset: u64) -> Option<u64>;

    /// Guest-physical address of the byte at kernel address `address`, where the file can tell.
    fn translate(&self, _file: &CoreFile, _address: u64) -> Option<u64> {
        None
    }

    /// The minidump, if it is one.
    fn minidump(&self) -> Option<&Minidump> {
        None
    }
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FilePart {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl FilePart {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// Each range in one part of the file. The part may be shorter: what is missing at its end reads as zeros.
#[derive(Debug)]
pub(super) struct Segments {
    ranges: Vec<MemoryRange>,
    /// The place of each range.
    parts: Vec<FilePart>,
}

impl Segments {
    /// The memory among the pieces of a file.
    ///
    /// Where pieces overlap (a kernel image listed apart from the RAM that it lies in), the one with the lower address
    /// is kept, of two with the same address the longer one.
    pub(super) fn of(pieces: &[Piece]) -> Self {
        let mut memory: Vec<_> = pieces
            .iter()
            .filter_map(|piece| match piece.content {
                PieceContent::Memory(range) => {
                    Some((range, FilePart { offset: piece.offset, len: piece.len }))
                }
                _ => None,
            })
            .collect();
        memory.sort_by_key(|(range, _)| (range.start, u64::MAX - range.len));
        let mut end = 0_u64;
        memory.retain_mut(|(range, part)| {
            let covered = end.saturating_sub(range.start);
            if covered >= range.len {
                return false;
            }
            range.start += covered;
            range.len -= covered;
            part.offset += covered.min(part.len);
            part.len -= covered.min(part.len);
            end = range.end();
            true
        });
        let (ranges, parts) = memory.into_iter().unzip();
        Self { ranges, parts }
    }

    /// The range that holds `address`, and its place in the file.
    fn locate(&self, address: u64) -> Option<(MemoryRange, FilePart)> {
        let index = self.ranges.partition_point(|range| range.end() <= address);
        let range = self.ranges.get(index).filter(|range| range.start <= address)?;
        Some((*range, self.parts[index]))
    }
}

impl Storage for Segments {
    fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    fn read(&self, file: &CoreFile, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let not_in_ram = MemoryError::NotInRam { address, len: buf.len() };
        let Some((range, part)) = self.locate(address) else { return Err(not_in_ram) };
        if buf.len() as u64 > range.end() - address {
            return Err(not_in_ram);
        }
        let skip = address - range.start;
        let in_file =
            usize::try_from(part.len.saturating_sub(skip)).map_or(buf.len(), |left| left.min(buf.len()));
        let (stored, left_out) = buf.split_at_mut(in_file);
        left_out.fill(0);
        let len = stored.len();
        file.read(part.offset.saturating_add(skip), stored).map_err(|source| MemoryError::Unreadable {
            address,
            len,
            source,
        })
    }

    /// Holes of the file count as untouched; what a cut file lacks does not, as it cannot be read.
    fn next_touched(&self, file: &CoreFile, address: u64) -> Option<Range<u64>> {
        let (range, part) = self.locate(address)?;
        let from = part.offset.saturating_add(address - range.start);
        let data = match file.next_data(from) {
            Some(data) => data,
            None => from.max(file.length())..part.end(),
        };
        let address_of = |offset: u64| range.start + (offset.min(part.end()) - part.offset);
        let touched = address_of(data.start)..address_of(data.end);
        (data.start < part.end() && !touched.is_empty()).then_some(touched)
    }

    fn place(&self, index: usize) -> FilePart {
        self.parts[index]
    }

    fn address_at(&self, offset: u64) -> Option<u64> {
        let holds = |part: &&FilePart| part.offset <= offset && offset < part.end();
        let (index, part) = self.parts.iter().enumerate().find(|(_, part)| holds(part))?;
        self.ranges[index].start.checked_add(offset - part.offset)
    }
}
