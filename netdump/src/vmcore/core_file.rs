//! A core's file: bounded reads at any offset, and which parts of it are holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::unpack::Packed;
use crate::{ReadAt, ReadError};

/// A regular file of known length. It may be sparse: holes are told from data without being read.
#[derive(Debug)]
pub struct CoreFile {
    file: File,
    length: u64,
    /// When `file` is a temporary one with what was packed in the core's own.
    packed: Option<Packed>,
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
        Self::of(File::open(path)?)
    }

    /// A regular file that is open.
    pub(crate) fn of(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, length, packed: None })
    }

    /// What was unpacked of a compressed core.
    pub(super) fn of_packed(file: File, packed: Packed) -> Self {
        Self { file, length: packed.unpacked, packed: Some(packed) }
    }

    /// How the core was packed, if this is not the file itself but what it unpacks to.
    pub fn packed(&self) -> Option<&Packed> {
        self.packed.as_ref()
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
        ReadError::check_range(offset, buf.len(), self.length)?;
        self.read(offset, buf).map_err(|source| ReadError::Io { offset, len: buf.len(), source })
    }

    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        Self::next_data(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4 KiB of data, a hole of 60 KiB, 100 bytes of data.
    fn sparse() -> (CoreFile, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&[1; 4096], 0).unwrap();
        file.as_file().write_all_at(&[2; 100], 0x1_0000).unwrap();
        (CoreFile::open(file.path()).unwrap(), file)
    }

    #[test]
    fn holes_are_told_from_data() {
        let (core, _file) = sparse();
        assert_eq!(core.length(), 0x1_0064);
        assert_eq!(core.next_data(5), Some(5..0x1000));
        assert_eq!(core.next_data(0x1000), Some(0x1_0000..0x1_0064));
        assert_eq!(core.next_data(0x1_0063), Some(0x1_0063..0x1_0064));
        for behind in [0x1_0064, u64::MAX] {
            assert_eq!(core.next_data(behind), None);
        }
    }

    #[test]
    fn reads_end_with_the_file() {
        let (core, _file) = sparse();
        let mut bytes = [0xaa; 4];
        ReadAt::read_at(&core, 0xfffe, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 2, 2]);
        for offset in [0x1_0061, u64::MAX] {
            assert!(matches!(ReadAt::read_at(&core, offset, &mut bytes), Err(ReadError::OutOfRange { .. })));
        }
        assert_eq!(core.read_up_to(0x1_0060, 4096).unwrap(), [2; 4]);
        assert!(core.read_up_to(u64::MAX, 4096).unwrap().is_empty());
    }

    #[test]
    fn only_regular_files_are_opened() {
        let kind = |path: &Path| CoreFile::open(path).unwrap_err().kind();
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(kind(directory.path()), io::ErrorKind::IsADirectory);
        assert_eq!(kind(Path::new("/dev/null")), io::ErrorKind::InvalidInput);
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(kind(&pipe), io::ErrorKind::InvalidInput, "opening it would wait for a writer");
    }
}
