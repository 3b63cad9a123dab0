//! A core of which every byte is sent, for receivers whose storage does not read as zeros where nothing was written.

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::reader::Reader;
use crate::{ReadAt, ReadError};

/// What becomes of zeros.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Zeros {
    /// Long runs of them are left out: the receiver's file reads as zeros there anyway.
    #[default]
    Skip,
    /// They are sent like everything else.
    Send,
}

/// A core that says nothing of its zeros. They are sent, but memory that was never touched still is not read, as the host
/// would have to find memory for it.
pub struct Dense<'a> {
    image: &'a (dyn ReadAt + Sync),
    reader: Mutex<Reader<'a>>,
}

impl<'a> Dense<'a> {
    /// All of this core.
    pub fn new(image: &'a (dyn ReadAt + Sync)) -> Self {
        Self { image, reader: Mutex::new(Reader::new(image)) }
    }

    /// The reader is whole between any two statements that change it.
    fn reader(&self) -> MutexGuard<'_, Reader<'a>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadAt for Dense<'_> {
    fn length(&self) -> u64 {
        self.image.length()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        ReadError::check_range(offset, buf.len(), self.length())?;
        self.reader().read(offset, buf).map(drop)
    }

    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        (offset < self.length()).then(|| offset..self.length())
    }

    fn is_zeros(&self, _offset: u64, _len: usize) -> bool {
        false
    }

    fn locate(&self, offset: u64, len: usize) -> Option<u64> {
        let data = self.reader().next_data(offset);
        let is_data = data.start == offset && data.end - data.start >= len as u64;
        is_data.then(|| self.image.locate(offset, len)).flatten()
    }
}

impl fmt::Debug for Dense<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dense").field("length", &self.length()).finish_non_exhaustive()
    }
}
