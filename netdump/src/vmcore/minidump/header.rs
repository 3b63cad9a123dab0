//! The header of a FreeBSD/amd64 minidump: its first 4096 bytes, little-endian, zero where nothing is said
//! (`sys/amd64/include/minidump.h`).
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | 24 bytes | "minidump FreeBSD/amd64", padded with zeros |
//! | 24 | u32 | version: 1, 2 or 3 |
//! | 28 | u32 | bytes of the message buffer |
//! | 32 | u32 | bytes of the bitmap |
//! | 36 | u32 | bytes of the page map |
//! | 40 | u64 | first kernel address (`VM_MIN_KERNEL_ADDRESS`, not `KERNBASE`) |
//! | 48, 56 | u64 | start and end of the direct map |
//! | 64 | u32 | version 3: bytes of dump_avail |
//!
//! Each section begins on a page.

use std::ops::Range;

use thiserror::Error;

use super::super::paging::PAGE_SIZE;

/// What every minidump of this architecture begins with.
pub const MAGIC: &[u8] = b"minidump FreeBSD/amd64\0";
/// What every minidump of any architecture begins with.
pub const ANY_MAGIC: &[u8] = b"minidump FreeBSD/";
/// Bytes of the header in the file.
pub const HEADER_LEN: usize = 4096;

const MAGIC_FIELD: usize = 24;
/// Bytes that hold fields.
const FIELDS_LEN: usize = 68;

/// Which minidump it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// FreeBSD 7 and 8: the page map holds the page-table entries of all kernel addresses.
    One,
    /// FreeBSD 9 to 12: it holds page-directory entries, and page tables are pages of the dump.
    Two,
    /// FreeBSD 13 and later: the bitmap covers the ranges of dump_avail only.
    Three,
}

impl Version {
    /// The number in the header.
    pub fn number(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        [Self::One, Self::Two, Self::Three].into_iter().find(|version| version.number() == number)
    }
}

/// The header's fields. Lengths are in bytes and as the header says them: a section takes up whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which minidump it is.
    pub version: Version,
    /// Length of the message buffer.
    pub message_buffer_len: u32,
    /// Length of dump_avail; 0 before version 3.
    pub dump_avail_len: u32,
    /// Length of the bitmap.
    pub bitmap_len: u32,
    /// Length of the page map.
    pub page_map_len: u32,
    /// The kernel address that the page map begins with.
    pub kernel_base: u64,
    /// Start of the direct map.
    pub direct_map_start: u64,
    /// End of the region of the direct map.
    pub direct_map_end: u64,
}

/// Where the sections lie in the file. Each ends where the next begins, on a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sections {
    /// The message buffer.
    pub message_buffer: Range<u64>,
    /// dump_avail; empty before version 3.
    pub dump_avail: Range<u64>,
    /// The bitmap.
    pub bitmap: Range<u64>,
    /// The page map.
    pub page_map: Range<u64>,
    /// Where the pages begin.
    pub pages: u64,
}

/// Why bytes are not the header of a minidump that can be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// The file ends inside the header.
    #[error("the minidump ends inside its header, at byte {0} of {HEADER_LEN}")]
    Cut(usize),
    /// Not the magic bytes.
    #[error("the file does not begin as a FreeBSD/amd64 minidump")]
    Magic,
    /// A version that nobody wrote yet.
    #[error("the minidump has version {0}; versions 1 to 3 are known")]
    Version(u32),
    /// A direct map that ends before it begins.
    #[error("the minidump's direct map ends at {end:#x}, before its start {start:#x}")]
    DirectMap {
        /// Its first address.
        start: u64,
        /// Its end.
        end: u64,
    },
}

impl Header {
    /// The 4096 bytes in the file.
    pub fn emit(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(MAGIC);
        out.resize(MAGIC_FIELD, 0);
        for word in [self.version.number(), self.message_buffer_len, self.bitmap_len, self.page_map_len] {
            out.extend(word.to_le_bytes());
        }
        for word in [self.kernel_base, self.direct_map_start, self.direct_map_end] {
            out.extend(word.to_le_bytes());
        }
        if self.version == Version::Three {
            out.extend(self.dump_avail_len.to_le_bytes());
        }
        out.resize(HEADER_LEN, 0);
        out
    }

    /// The header that a file begins with. Its lengths are what the file claims: check them against its real length.
    pub fn parse(head: &[u8]) -> Result<Self, HeaderError> {
        if !head.starts_with(&MAGIC[..head.len().min(MAGIC.len())]) {
            return Err(HeaderError::Magic);
        }
        let Some(fields) = head.get(..FIELDS_LEN) else { return Err(HeaderError::Cut(head.len())) };
        let half =
            |at: usize| u32::from_le_bytes([fields[at], fields[at + 1], fields[at + 2], fields[at + 3]]);
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        let version = Version::from_number(half(24)).ok_or_else(|| HeaderError::Version(half(24)))?;
        let header = Self {
            version,
            message_buffer_len: half(28),
            bitmap_len: half(32),
            page_map_len: half(36),
            kernel_base: word(40),
            direct_map_start: word(48),
            direct_map_end: word(56),
            dump_avail_len: if version == Version::Three { half(64) } else { 0 },
        };
        if header.direct_map_end < header.direct_map_start {
            let (start, end) = (header.direct_map_start, header.direct_map_end);
            return Err(HeaderError::DirectMap { start, end });
        }
        Ok(header)
    }

    /// Where the sections lie. Four 32-bit lengths cannot overflow a 64-bit offset.
    pub fn sections(&self) -> Sections {
        let mut end = HEADER_LEN as u64;
        let mut section = |len: u32| {
            let start = end;
            end += u64::from(len).next_multiple_of(PAGE_SIZE);
            start..end
        };
        let message_buffer = section(self.message_buffer_len);
        let dump_avail = section(self.dump_avail_len);
        let bitmap = section(self.bitmap_len);
        let page_map = section(self.page_map_len);
        Sections { message_buffer, dump_avail, bitmap, pages: page_map.end, page_map }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of a FreeBSD 14 kernel's own minidump.
    fn sample() -> Header {
        Header {
            version: Version::Three,
            message_buffer_len: 0x17fb8,
            dump_avail_len: 0x1000,
            bitmap_len: 0x1000,
            page_map_len: 0x7f_f000,
            kernel_base: 0xffff_fe00_0000_0000,
            direct_map_start: 0xffff_f800_0000_0000,
            direct_map_end: 0xffff_fc00_0000_0000,
        }
    }

    #[test]
    fn fields_stand_where_the_kernel_puts_them() {
        let bytes = sample().emit();
        assert_eq!(bytes.len(), 4096);
        assert_eq!(bytes[..24], *b"minidump FreeBSD/amd64\0\0");
        assert_eq!(bytes[24..40], [3, 0, 0, 0, 0xb8, 0x7f, 1, 0, 0, 0x10, 0, 0, 0, 0xf0, 0x7f, 0]);
        assert_eq!(bytes[40..48], 0xffff_fe00_0000_0000_u64.to_le_bytes());
        assert_eq!(bytes[48..56], 0xffff_f800_0000_0000_u64.to_le_bytes());
        assert_eq!(bytes[56..64], 0xffff_fc00_0000_0000_u64.to_le_bytes());
        assert_eq!(bytes[64..68], [0, 0x10, 0, 0]);
        assert!(bytes[68..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn sections_lie_as_in_a_kernels_own_dump() {
        let sections = sample().sections();
        assert_eq!(sections.message_buffer, 0x1000..0x1_9000);
        assert_eq!(sections.dump_avail, 0x1_9000..0x1_a000);
        assert_eq!(sections.bitmap, 0x1_a000..0x1_b000);
        assert_eq!(sections.page_map, 0x1_b000..0x81_a000);
        assert_eq!(sections.pages, 0x81_a000);
    }

    #[test]
    fn every_version_is_read_back_and_only_the_third_has_dump_avail() {
        for version in [Version::One, Version::Two] {
            let header = Header { version, dump_avail_len: 0, ..sample() };
            assert_eq!(Header::parse(&header.emit()), Ok(header));
            let mut bytes = header.emit();
            bytes[64] = 0xff;
            assert_eq!(Header::parse(&bytes), Ok(header));
            assert!(header.sections().dump_avail.is_empty());
        }
        assert_eq!(Header::parse(&sample().emit()), Ok(sample()));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let bytes = sample().emit();
        for len in 0..FIELDS_LEN {
            assert_eq!(Header::parse(&bytes[..len]), Err(HeaderError::Cut(len)));
        }
        let changed = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            Header::parse(&bytes)
        };
        assert_eq!(changed(0, b'M'), Err(HeaderError::Magic));
        assert_eq!(changed(22, b'x'), Err(HeaderError::Magic), "a longer name");
        assert_eq!(changed(24, 4), Err(HeaderError::Version(4)));
        assert_eq!(changed(27, 1), Err(HeaderError::Version(0x0100_0003)));
        assert!(matches!(changed(61, 0), Err(HeaderError::DirectMap { .. })));
    }

    #[test]
    fn the_longest_sections_fit() {
        let most = Header {
            message_buffer_len: u32::MAX,
            dump_avail_len: u32::MAX,
            bitmap_len: u32::MAX,
            page_map_len: u32::MAX,
            ..sample()
        };
        assert_eq!(most.sections().pages, 0x4_0000_1000);
    }
}
