//! Guest RAM: one memfd, mapped as one region below the 32-bit hole and, for larger guests, one above it.
//!
//! The memfd is why never-touched pages can be told from zero pages without faulting them in: `SEEK_DATA` asks the file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::str::FromStr;

use netdump::vmcore::cpu::CpuState;
use netdump::vmcore::{MemoryRange, PhysicalMemory};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek64};
use thiserror::Error;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

use crate::x86_64::layout::{HOLE_END, HOLE_START};

/// Guest RAM, without dirty tracking.
pub type GuestMemory = GuestMemoryMmap<()>;

/// One MiB in bytes.
const MIB: u64 = 1 << 20;

/// How much RAM a guest gets: whole MiB, at least 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize(u64);

/// Why a memory size is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MemorySizeError {
    /// Not a number with a unit.
    #[error("'{0}' is not a memory size such as 256M or 4G")]
    Malformed(String),
    /// Not a whole number of MiB.
    #[error("{0} bytes of memory are not a whole number of MiB (such as 256M)")]
    NotWholeMib(u64),
    /// Nothing could run in it.
    #[error("{0} MiB of memory are too few: a guest needs at least 2M")]
    TooSmall(u64),
    /// More than is supported.
    #[error("{0} MiB of memory are too many: at most 1024G")]
    TooLarge(u64),
}

impl MemorySize {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Checks a size in bytes.
    pub fn new(bytes: u64) -> Result<Self, MemorySizeError> {
        match bytes / MIB {
            _ if !bytes.is_multiple_of(MIB) => Err(MemorySizeError::NotWholeMib(bytes)),
            mib @ 0..2 => Err(MemorySizeError::TooSmall(mib)),
            2..=0x10_0000 => Ok(Self(bytes)),
            mib => Err(MemorySizeError::TooLarge(mib)),
        }
    }

    /// The RAM ranges of such a guest, the 32-bit hole left out.
    pub fn ranges(self) -> Vec<MemoryRange> {
        let low = self.0.min(HOLE_START);
        let high = self.0 - low;
        let mut ranges = vec![MemoryRange { start: 0, len: low }];
        if high > 0 {
            ranges.push(MemoryRange { start: HOLE_END, len: high });
        }
        ranges
    }
}

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    /// Reads `256M`, `4G`, `262144K` or plain bytes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || MemorySizeError::Malformed(text.to_owned());
        let (digits, unit) = match text.char_indices().last().ok_or_else(malformed)? {
            (at, 'K' | 'k') => (&text[..at], 1 << 10),
            (at, 'M' | 'm') => (&text[..at], MIB),
            (at, 'G' | 'g') => (&text[..at], 1 << 30),
            _ => (text, 1),
        };
        // Unlike u64's own parser, refuse a sign.
        let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>());
        let number = number.and_then(Result::ok).ok_or_else(malformed)?;
        Self::new(number.checked_mul(unit).ok_or_else(malformed)?)
    }
}

/// Why guest RAM could not be made.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The file behind it.
    #[error("creating a memory file of {bytes} bytes for the guest")]
    File {
        /// Its size.
        bytes: u64,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A mapping of it.
    #[error("mapping {len:#x} bytes of guest memory at guest-physical {start:#x}")]
    Map {
        /// Guest-physical start.
        start: u64,
        /// Length in bytes.
        len: u64,
        /// What the operating system said.
        #[source]
        source: MmapRegionError,
    },
}

/// Makes the RAM of a guest: sparse, and shared so that the file knows what was touched.
pub fn create(size: MemorySize) -> Result<GuestMemory, MemoryError> {
    let file =
        memory_file(size.bytes()).map_err(|source| MemoryError::File { bytes: size.bytes(), source })?;
    let file = std::sync::Arc::new(file);
    let mut offset = 0;
    let mut regions = Vec::new();
    for range in size.ranges() {
        let file = FileOffset::from_arc(file.clone(), offset);
        let map = map(file, range.len).map_err(|source| MemoryError::Map {
            start: range.start,
            len: range.len,
            source,
        })?;
        regions.push(GuestRegionMmap::new(map, GuestAddress(range.start)).expect("RAM ends far below 2^64"));
        offset += range.len;
    }
    Ok(GuestMemory::from_regions(regions).expect("RAM ranges ascend and do not overlap"))
}

fn memory_file(bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create("guest-memory", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(bytes)?;
    Ok(file)
}

fn map(file: FileOffset, len: u64) -> Result<MmapRegion<()>, MmapRegionError> {
    let len = usize::try_from(len).expect("a 64-bit address space");
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    MmapRegion::build(Some(file), len, prot, libc::MAP_SHARED | libc::MAP_NORESERVE)
}

/// The first run of pages at or after guest-physical `address`, in the region that holds it, that were ever touched.
/// `None`: the rest of the region was not. Where the file cannot tell, everything counts as touched.
pub fn next_touched(memory: &GuestMemory, address: u64) -> Option<Range<u64>> {
    let data = touched_from(memory, address)?;
    let Pages { file, start, end, first } = Pages::at(memory, data)?;
    let to_file = |address: u64| address - start + first;
    let hole = file.map(|file| seek(file, to_file(data), Whence::SeekHole));
    let hole = hole.and_then(Result::ok).map_or(end, |offset| (offset - first + start).min(end));
    Some(data..hole)
}

/// Where that run begins. The end of a run is found page by page, its start at once.
pub fn touched_from(memory: &GuestMemory, address: u64) -> Option<u64> {
    let Pages { file, start, end, first } = Pages::at(memory, address)?;
    let Some(file) = file else { return Some(address) };
    match seek(file, address - start + first, Whence::SeekData) {
        Ok(offset) => Some(offset - first + start).filter(|&data| data < end),
        Err(Errno::ENXIO) => None,
        Err(_) => Some(address),
    }
}

/// A region of guest RAM and the file behind it.
struct Pages<'a> {
    file: Option<&'a File>,
    /// Where the region lies.
    start: u64,
    end: u64,
    /// Where it begins in the file.
    first: u64,
}

impl<'a> Pages<'a> {
    /// The region that holds `address`.
    fn at(memory: &'a GuestMemory, address: u64) -> Option<Self> {
        let region = memory.find_region(GuestAddress(address))?;
        let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
        let file = region.file_offset();
        Some(Self {
            file: file.map(|file| file.file()),
            start,
            end,
            first: file.map_or(0, FileOffset::start),
        })
    }
}

fn seek(file: &File, offset: u64, whence: Whence) -> Result<u64, Errno> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    let found = lseek64(file, offset, whence)?;
    u64::try_from(found).map_err(|_| Errno::EOVERFLOW)
}

/// The memory of a guest that may be running: what is read is of different moments, and may be torn between them. For
/// whoever checks every value.
#[derive(Debug)]
pub(crate) struct RunningGuest {
    memory: GuestMemory,
    ranges: Vec<MemoryRange>,
}

impl RunningGuest {
    pub(crate) fn new(memory: GuestMemory) -> Self {
        let ranges = ranges_of(&memory);
        Self { memory, ranges }
    }
}

impl PhysicalMemory for RunningGuest {
    fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), netdump::vmcore::MemoryError> {
        read(&self.memory, address, buf)
    }

    fn next_touched(&self, address: u64) -> Option<Range<u64>> {
        next_touched(&self.memory, address)
    }

    fn touched_from(&self, address: u64) -> Option<u64> {
        touched_from(&self.memory, address)
    }

    fn cpus(&self) -> &[CpuState] {
        &[]
    }
}

/// The RAM ranges of a guest.
pub(crate) fn ranges_of(memory: &GuestMemory) -> Vec<MemoryRange> {
    memory.iter().map(|region| MemoryRange { start: region.start_addr().0, len: region.len() }).collect()
}

/// Fills `buf` from guest-physical `address`, by volatile reads.
pub(crate) fn read(
    memory: &GuestMemory,
    address: u64,
    buf: &mut [u8],
) -> Result<(), netdump::vmcore::MemoryError> {
    let len = buf.len();
    let not_in_ram = |_| netdump::vmcore::MemoryError::NotInRam { address, len };
    memory.read_slice(buf, GuestAddress(address)).map_err(not_in_ram)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn sizes_are_read_with_their_units() {
        let bytes = |text: &str| text.parse::<MemorySize>().map(MemorySize::bytes);
        assert_eq!(bytes("256M"), Ok(256 << 20));
        assert_eq!(bytes("4g"), Ok(4 << 30));
        assert_eq!(bytes("2048K"), Ok(2 << 20));
        assert_eq!(bytes("3145728"), Ok(3 << 20));
    }

    #[test]
    fn odd_sizes_are_refused_with_the_reason() {
        let fail = |text: &str| text.parse::<MemorySize>().unwrap_err();
        assert_eq!(fail("0"), MemorySizeError::TooSmall(0));
        assert_eq!(fail("1M"), MemorySizeError::TooSmall(1));
        assert_eq!(fail("2049K"), MemorySizeError::NotWholeMib(2049 << 10));
        assert_eq!(fail("2000G"), MemorySizeError::TooLarge(2000 << 10));
        for text in ["", "M", "+5M", "-5M", "5MB", "1e3M", "99999999999999G", "ü"] {
            assert_eq!(fail(text), MemorySizeError::Malformed(text.into()), "{text}");
        }
    }

    #[test]
    fn ram_leaves_the_32_bit_hole_out() {
        let ranges = |mib: u64| {
            MemorySize::new(mib << 20)
                .unwrap()
                .ranges()
                .iter()
                .map(|r| (r.start, r.end()))
                .collect::<Vec<_>>()
        };
        assert_eq!(ranges(64), [(0, 64 << 20)]);
        assert_eq!(ranges(3072), [(0, 0xc000_0000)]);
        assert_eq!(ranges(3073), [(0, 0xc000_0000), (1 << 32, (1 << 32) + (1 << 20))]);
    }

    #[test]
    fn touched_pages_are_found_and_others_stay_untouched() {
        let memory = create(MemorySize::new(4 << 30).unwrap()).unwrap();
        assert_eq!(next_touched(&memory, 0), None);
        let high = HOLE_END + 0x20_0000;
        memory.write_obj(1_u8, GuestAddress(0x5000)).unwrap();
        memory.write_obj(1_u8, GuestAddress(high)).unwrap();
        let low = next_touched(&memory, 0).unwrap();
        assert!(low.contains(&0x5000) && low.end <= 0x20_0000, "{low:x?}");
        assert_eq!(next_touched(&memory, low.end), None, "the low region ends without more data");
        let found = next_touched(&memory, HOLE_END).unwrap();
        assert!(found.contains(&high) && found.start >= HOLE_END, "{found:x?}");
        assert_eq!(next_touched(&memory, HOLE_START), None, "the hole is no RAM");
    }
}
