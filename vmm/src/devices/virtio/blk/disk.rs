//! What is behind a guest's disk: a raw file or block device of the host. Offsets and lengths are in bytes.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use smallvec::SmallVec;
use thiserror::Error;
use vm_memory::VolatileSlice;

use crate::devices::virtio::chain::behind;
use crate::sys::iovec::{Source, Target, preadv, pwritev};

/// Bytes of a sector, the unit of every request.
pub const SECTOR: u64 = 512;

/// Bytes of zeros that are written at once where the host cannot make zeros by itself.
const ZEROS: usize = 64 << 10;

/// Pieces of a request for which no list is allocated.
const PIECES: usize = 256;

/// A disk as the user gives it: `FILE` or `FILE,ro`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// The file or block device.
    pub path: PathBuf,
    /// Whether the guest may write.
    pub access: Access,
}

/// What a guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    Full,
    /// Only read.
    ReadOnly,
}

/// The text names no disk.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a disk is given as FILE or FILE,ro")]
pub struct ParseDiskError;

impl FromStr for DiskSpec {
    type Err = ParseDiskError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, access) =
            text.strip_suffix(",ro").map_or((text, Access::Full), |path| (path, Access::ReadOnly));
        if path.is_empty() { Err(ParseDiskError) } else { Ok(Self { path: path.into(), access }) }
    }
}

/// Why a disk cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It cannot be opened as it is to be used.
    #[error("opening the disk {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a pipe, ...
    #[error("the disk {} is neither a regular file nor a block device", path.display())]
    NotADisk {
        /// The file.
        path: PathBuf,
    },
    /// Another guest has it.
    #[error("the disk {} is in use: by a guest that writes to it, or it was to be written and others read it", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A disk consists of whole sectors.
    #[error("the disk {} has {len} bytes, which is no whole number of sectors of 512 bytes", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        len: u64,
    },
}

/// An open disk. It is locked: nobody else writes to it, and nobody else reads it if this guest may write.
pub struct Disk {
    file: File,
    path: PathBuf,
    len: u64,
    access: Access,
}

impl Disk {
    /// Opens and locks a disk. Its size is what it is now.
    pub fn open(spec: &DiskSpec) -> Result<Self, DiskError> {
        let path = spec.path.clone();
        let may_write = spec.access == Access::Full;
        let open = |source| DiskError::Open { path: path.clone(), source };
        // Looked at before it is opened: opening a pipe would wait for its other end.
        let kind = std::fs::metadata(&path).map_err(open)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::NotADisk { path });
        }
        let mut file = OpenOptions::new().read(true).write(may_write).open(&path).map_err(open)?;
        let locked = if may_write { file.try_lock() } else { file.try_lock_shared() };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::InUse { path }),
            // Some network file systems have no locks.
            Err(TryLockError::Error(error)) => {
                tracing::debug!(path = %path.display(), %error, "the disk cannot be locked");
            }
        }
        let len = file.seek(SeekFrom::End(0)).map_err(open)?;
        if len == 0 || !len.is_multiple_of(SECTOR) {
            return Err(DiskError::Length { path, len });
        }
        Ok(Self { file, path, len, access: spec.access })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How long it is, a multiple of [`SECTOR`].
    pub fn length(&self) -> u64 {
        self.len
    }

    /// Whether the guest may write.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Fills guest memory from `offset` on.
    pub(super) fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        whole(to, |done, left| {
            let mut targets: SmallVec<[Target<'_>; PIECES]> = left.map(Target::from).collect();
            preadv(self.file.as_fd(), &mut targets, offset + done)
        })
    }

    /// Writes guest memory to `offset` and behind.
    pub(super) fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        whole(from, |done, left| {
            let sources: SmallVec<[Source<'_>; PIECES]> = left.map(Source::from).collect();
            pwritev(self.file.as_fd(), &sources, offset + done)
        })
    }

    /// Returns once everything written is on stable storage.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The guest does not need these bytes any more. Where the host cannot give their space back, they stay.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, len).map(drop)
    }

    /// Makes bytes zero, and gives their space back if it may and can. Ends early once `stopping`.
    pub(super) fn zero(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        stopping: &AtomicBool,
    ) -> io::Result<()> {
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
        if may_unmap && self.allocate(hole, offset, len)?
            || self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, len)?
        {
            return Ok(());
        }
        self.write_zeros(offset, len, stopping)
    }

    fn write_zeros(&self, mut offset: u64, mut len: u64, stopping: &AtomicBool) -> io::Result<()> {
        let zeros = vec![0; ZEROS];
        while len > 0 {
            if stopping.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let now = usize::try_from(len).unwrap_or(ZEROS).min(ZEROS);
            let sources = [Source::from(zeros.get(..now).unwrap_or_default())];
            let wrote = again(|| pwritev(self.file.as_fd(), &sources, offset))? as u64;
            (offset, len) = (offset + wrote, len.saturating_sub(wrote));
        }
        Ok(())
    }

    /// Has the file system do it; whether it can.
    fn allocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        let position = |value: u64| i64::try_from(value).map_err(|_| Errno::EOVERFLOW);
        let mode = mode | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        loop {
            return match fallocate(&self.file, mode, position(offset)?, position(len)?) {
                Ok(()) => Ok(true),
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(false),
                Err(Errno::EINTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

/// Repeats a transfer until all of `slices` has gone through. It is told how many bytes have, and what is left.
fn whole<'m>(
    slices: &[VolatileSlice<'m>],
    mut transfer: impl FnMut(u64, &mut dyn Iterator<Item = VolatileSlice<'m>>) -> io::Result<usize>,
) -> io::Result<()> {
    let total: usize = slices.iter().map(|slice| slice.len()).sum();
    let mut done = 0;
    while done < total {
        done += again(|| transfer(done as u64, &mut behind(done, slices)))?;
    }
    Ok(())
}

/// Repeats an interrupted transfer. One that moves nothing has come to the end of a file that was cut meanwhile.
fn again(mut transfer: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match transfer() {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn spec(text: &str) -> DiskSpec {
        text.parse().unwrap()
    }

    fn disk(len: usize) -> (tempfile::NamedTempFile, Disk) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; len]).unwrap();
        let disk = Disk::open(&DiskSpec { path: file.path().into(), access: Access::Full }).unwrap();
        (file, disk)
    }

    #[test]
    fn disks_are_files_with_or_without_leave_to_write() {
        assert_eq!(spec("a.img"), DiskSpec { path: "a.img".into(), access: Access::Full });
        assert_eq!(spec("a,b.img,ro"), DiskSpec { path: "a,b.img".into(), access: Access::ReadOnly });
        assert!("".parse::<DiskSpec>().is_err() && ",ro".parse::<DiskSpec>().is_err());
    }

    #[test]
    fn what_is_no_disk_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("odd");
        std::fs::write(&odd, [0; 513]).unwrap();
        let empty = folder.path().join("empty");
        std::fs::write(&empty, []).unwrap();
        let missing = folder.path().join("missing");
        for (path, expected) in [
            (folder.path(), "neither a regular file nor a block device"),
            (&odd, "has 513 bytes"),
            (&empty, "has 0 bytes"),
            (&missing, "opening the disk"),
        ] {
            let spec = DiskSpec { path: path.into(), access: Access::ReadOnly };
            let error = Disk::open(&spec).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn a_disk_has_one_writer_or_many_readers() {
        let (file, writer) = disk(512);
        let [full, read_only] =
            [Access::Full, Access::ReadOnly].map(|access| DiskSpec { path: file.path().into(), access });
        for spec in [&full, &read_only] {
            assert!(matches!(Disk::open(spec), Err(DiskError::InUse { .. })), "{spec:?}");
        }
        drop(writer);
        let readers = [0; 2].map(|_| Disk::open(&read_only).unwrap());
        assert!(matches!(Disk::open(&full), Err(DiskError::InUse { .. })));
        drop(readers);
        Disk::open(&full).unwrap();
    }

    #[test]
    fn zeros_are_made_and_space_is_given_back() {
        let (file, disk) = disk(1 << 20);
        let go_on = AtomicBool::new(false);
        disk.zero(512, 1024, false, &go_on).unwrap();
        disk.zero(4096, 4096, true, &go_on).unwrap();
        disk.write_zeros(100 << 10, 200 << 10, &go_on).unwrap();
        disk.discard(512 << 10, 256 << 10).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        let mut expected = vec![7; 1 << 20];
        for (at, len) in [(512, 1024), (4096, 4096), (100 << 10, 200 << 10), (512 << 10, 256 << 10)] {
            expected[at..at + len].fill(0);
        }
        assert!(bytes == expected);
        assert!(file.as_file().metadata().unwrap().blocks() <= (1 << 20 >> 9) - (256 << 10 >> 9));
    }

    #[test]
    fn a_device_that_is_stopped_writes_no_more_zeros() {
        let (_file, disk) = disk(1 << 20);
        let error = disk.write_zeros(0, 1 << 20, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn a_file_that_was_cut_meanwhile_is_an_error_and_no_endless_loop() {
        let (file, disk) = disk(4096);
        file.as_file().set_len(1024).unwrap();
        let memory = vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(vm_memory::GuestAddress(0), 4096)]);
        let memory = memory.unwrap();
        let slice =
            vm_memory::GuestMemoryBackend::get_slice(&memory, vm_memory::GuestAddress(0), 4096).unwrap();
        let error = disk.read(0, &[slice]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
