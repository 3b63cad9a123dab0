//! Bytes at an offset: how the client sees the core that it sends.

use std::ops::Range;

use crate::zeros::are_zeros;

/// Bytes looked at first for anything but zeros: a line of the cache.
const FIRST_LOOK: usize = 64;
/// Bytes looked at at a time behind them, so that they are compared in the first cache.
const LOOK: usize = 8 << 10;

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

    /// Where the first byte at or behind `offset` lies that may be anything but zero: the start of [`Self::next_data`],
    /// for less than that where its end is found page by page.
    fn data_from(&self, offset: u64) -> Option<u64> {
        self.next_data(offset).map(|run| run.start.max(offset))
    }

    /// Whether the `len` bytes at `offset` are all zeros; not when they cannot be read.
    ///
    /// Most memory that is not all zeros shows it in its first bytes, so those are read alone.
    fn is_zeros(&self, offset: u64, len: usize) -> bool {
        let mut first = [0; FIRST_LOOK];
        let first = &mut first[..len.min(FIRST_LOOK)];
        if self.read_at(offset, first).is_err() || !are_zeros(first) {
            return false;
        }
        let mut buf = [0; LOOK];
        let mut rest = offset + first.len() as u64..offset + len as u64;
        while !rest.is_empty() {
            let now = usize::try_from(rest.end - rest.start).map_or(LOOK, |left| left.min(LOOK));
            if self.read_at(rest.start, &mut buf[..now]).is_err() || !are_zeros(&buf[..now]) {
                return false;
            }
            rest.start += now as u64;
        }
        true
    }

    /// Guest-physical address of `len` bytes at `offset`, when they lie in one piece of guest memory.
    ///
    /// Links that gather ([`crate::link::Offloads::gather`]) send such bytes from where they are.
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
