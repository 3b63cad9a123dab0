//! A core's file: bounded reads at any offset, and which parts of it are holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::{ReadAt, ReadError};

/// A regular file of known length. It may be sparse: holes are told from data without being read.
#[derive(Debug)]
pub struct CoreFile {
    file: File,
    length: u64,
}

impl CoreFile {
    /// Opens a regular file; anything else is [`io::ErrorKind::InvalidInput`] or, for a directory,
    /// [`io::ErrorKind::IsADirectory`].
    pub fn open(path: &Path) -> io::Result<Self> {
        // Opening a pipe would wait for a writer, so ask first.
        let metadata = std::fs::metadata(path)?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, length })
    }

    /// Length in bytes when it was opened.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buf` from `offset`; [`io::ErrorKind::UnexpectedEof`] when the file ends before.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    /// Reads `len` bytes from `offset`, or as many as there are.
    pub fn read_up_to(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let left = self.length.saturating_sub(offset);
        let len = usize::try_from(left).map_or(len, |left| len.min(left));
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// The first run of data at or after `offset`. File systems that know no holes give the rest of the file.
    pub fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        if offset >= self.length {
            return None;
        }
        let start = match self.seek(offset, Whence::SeekData) {
            Ok(start) => start.max(offset),
            Err(Errno::ENXIO) => return None,
            Err(_) => return Some(offset..self.length),
        };
        let end = self.seek(start, Whence::SeekHole).unwrap_or(self.length).min(self.length);
        (start < end).then_some(start..end)
    }

    fn seek(&self, offset: u64, whence: Whence) -> Result<u64, Errno> {
        let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let found = lseek(&self.file, offset, whence)?;
        u64::try_from(found).map_err(|_| Errno::EOVERFLOW)
    }
}

impl ReadAt for CoreFile {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let inside = offset.checked_add(buf.len() as u64).is_some_and(|end| end <= self.length);
        if !inside {
            return Err(ReadError::OutOfRange { offset, len: buf.len(), total: self.length });
        }
        self.read(offset, buf).map_err(|source| ReadError::Io { offset, len: buf.len(), source })
    }

    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        Self::next_data(self, offset)
    }
}
