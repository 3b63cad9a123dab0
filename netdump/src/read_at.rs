//! Bytes at an offset: how the client sees the core that it sends.

use std::ops::Range;

/// Why bytes of the core could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The range does not lie inside the core.
    #[error("reading {len} bytes at offset {offset:#x} of a core of {total} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// How many bytes were asked for.
        len: usize,
        /// Length of the core.
        total: u64,
    },
    /// The file behind the core failed.
    #[error("reading {len} bytes of the core at offset {offset:#x}")]
    Io {
        /// First byte asked for.
        offset: u64,
        /// How many bytes were asked for.
        len: usize,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
}

impl ReadError {
    /// Refuses `len` bytes at `offset` that do not all lie in a core of `total` bytes.
    pub(crate) fn check_range(offset: u64, len: usize, total: u64) -> Result<(), Self> {
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= total);
        if inside { Ok(()) } else { Err(Self::OutOfRange { offset, len, total }) }
    }
}

/// A core of known length that can be read at any offset, any number of times, with the same result each time.
///
/// The client keeps no payload: a resend reads the core again.
pub trait ReadAt {
    /// Length in bytes.
    fn length(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError>;

    /// The first range at or after `offset` that may hold anything but zeros; `None` when only zeros follow.
    ///
    /// What lies between such ranges need not be sent: a receiver's file reads as zeros where nothing was written.
    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        (offset < self.length()).then(|| offset..self.length())
    }

    /// Guest-physical address of `len` bytes at `offset`, when they lie in one piece of guest memory.
    ///
    /// Links that gather ([`crate::link::Link::gathers`]) send such bytes from where they are.
    fn locate(&self, _offset: u64, _len: usize) -> Option<u64> {
        None
    }
}

impl ReadAt for [u8] {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let out_of_range = || ReadError::OutOfRange { offset, len: buf.len(), total: self.length() };
        let start = usize::try_from(offset).map_err(|_| out_of_range())?;
        let end = start.checked_add(buf.len()).ok_or_else(out_of_range)?;
        let bytes = self.get(start..end).ok_or_else(out_of_range)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}
