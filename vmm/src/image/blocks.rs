//! The bytes of a disk or of a part of it: what partition tables and file systems are read from. Offsets and lengths
//! are in bytes.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;

/// Most bytes that [`Blocks::bytes`] reads at once: no structure of a partition table or file system is larger.
pub const MOST_BYTES: usize = 1 << 20;

/// Something of known length that can be read at any offset: a raw file, or what a qcow2 file holds.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Length in bytes, the same each time.
    fn length(&self) -> u64;

    /// Fills `buf` with what is from `offset` on, which lies inside.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// Why bytes of a disk could not be read.
#[derive(Debug, Error)]
pub enum ReadBlocksError {
    /// The range does not lie inside. On a disk this means that something points behind its end.
    #[error("{len} bytes at offset {offset:#x} are wanted of {total} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// How many bytes were asked for.
        len: u64,
        /// Length of what is read.
        total: u64,
    },
    /// More is wanted at once than anything sound needs.
    #[error(
        "a structure of {len} bytes at offset {offset:#x} is more than the {MOST_BYTES} that are ever read at once"
    )]
    Large {
        /// First byte asked for.
        offset: u64,
        /// How many bytes were asked for.
        len: u64,
    },
    /// The file behind it failed.
    #[error("reading {len} bytes at offset {offset:#x}")]
    Io {
        /// First byte asked for.
        offset: u64,
        /// How many bytes were asked for.
        len: u64,
        /// What the operating system, or the reader of the image's format, said.
        #[source]
        source: io::Error,
    },
}

/// A disk, or a part of it. Clones are cheap and read the same bytes.
#[derive(Clone)]
pub struct Blocks {
    storage: Arc<dyn Storage>,
    start: u64,
    len: u64,
}

impl Blocks {
    /// All of a disk.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        let len = storage.length();
        Self { storage, start: 0, len }
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.len
    }

    /// A part of it, such as a partition, which counts from its own start.
    pub fn slice(&self, part: Range<u64>) -> Result<Self, ReadBlocksError> {
        let len = part.end.saturating_sub(part.start);
        let start = self.place(part.start, len)?;
        Ok(Self { storage: self.storage.clone(), start, len })
    }

    /// Fills `buf` with what is from `offset` on.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadBlocksError> {
        let len = buf.len() as u64;
        let at = self.place(offset, len)?;
        self.storage.read_at(at, buf).map_err(|source| ReadBlocksError::Io { offset, len, source })
    }

    /// `len` bytes, up to [`MOST_BYTES`], from `offset` on.
    pub fn bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>, ReadBlocksError> {
        if len > MOST_BYTES {
            return Err(ReadBlocksError::Large { offset, len: len as u64 });
        }
        self.place(offset, len as u64)?;
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// `N` bytes from `offset` on.
    pub fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N], ReadBlocksError> {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Whether `magic` is at `offset`; not where nothing can be read.
    pub fn has(&self, offset: u64, magic: &[u8]) -> bool {
        self.bytes(offset, magic.len()).is_ok_and(|bytes| bytes == magic)
    }

    /// Where `offset` is in the storage, if `len` bytes from there on lie inside.
    fn place(&self, offset: u64, len: u64) -> Result<u64, ReadBlocksError> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        let at = self.start.checked_add(offset).filter(|_| inside);
        at.ok_or(ReadBlocksError::OutOfRange { offset, len, total: self.len })
    }
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blocks({:#x} bytes from {:#x})", self.len, self.start)
    }
}

/// Bytes in memory, for tests and for small things that were unpacked.
impl Storage for Vec<u8> {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = self.get(start..).and_then(|behind| behind.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks() -> Blocks {
        Blocks::new(Arc::new((0..=255).collect::<Vec<u8>>()))
    }

    #[test]
    fn a_part_counts_from_its_own_start_and_ends_at_its_end() {
        let part = blocks().slice(16..48).unwrap().slice(8..16).unwrap();
        assert_eq!((part.length(), part.bytes(0, 8).unwrap()), (8, (24..32).collect()));
        assert!(part.has(2, &[26, 27]) && !part.has(7, &[31, 32]) && !part.has(u64::MAX, &[0]));
        for (offset, len) in [(8, 1), (7, 2), (u64::MAX, 1), (u64::MAX, 0)] {
            let error = part.bytes(offset, len).unwrap_err();
            assert!(matches!(error, ReadBlocksError::OutOfRange { total: 8, .. }), "{error}");
        }
        assert!(part.bytes(8, 0).unwrap().is_empty());
    }

    #[test]
    fn a_part_that_leaves_the_disk_or_ends_before_it_begins_is_refused_or_empty() {
        assert!(blocks().slice(0..257).is_err() && blocks().slice(300..301).is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "as a hostile table says it")]
        let backwards = blocks().slice(20..10).unwrap();
        assert_eq!(backwards.length(), 0);
    }

    #[test]
    fn absurd_structures_are_refused_before_memory_is_taken() {
        let error = blocks().bytes(0, usize::MAX).unwrap_err();
        assert!(matches!(error, ReadBlocksError::Large { .. }), "{error}");
    }
}
