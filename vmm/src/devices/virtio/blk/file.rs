//! Reads, writes and zeros of a file or block device of the host. Offsets and lengths are in bytes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use crate::devices::virtio::chain::behind;
use crate::sys::iovec::{Source, Target, preadv, pwritev};

/// Bytes of zeros that are written at once where the host cannot make zeros by itself.
const ZEROS: usize = 64 << 10;

/// Pieces of a request for which no list is allocated.
const PIECES: usize = 256;

/// A file behind a disk.
#[derive(Debug)]
pub(super) struct HostFile(pub(super) File);

impl HostFile {
    /// Fills guest memory from `offset` on.
    pub(super) fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        whole(to, |done, left| {
            let mut targets: SmallVec<[Target<'_>; PIECES]> = left.map(Target::from).collect();
            preadv(self.0.as_fd(), &mut targets, offset + done)
        })
    }

    /// Writes guest memory to `offset` and behind.
    pub(super) fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        whole(from, |done, left| {
            let sources: SmallVec<[Source<'_>; PIECES]> = left.map(Source::from).collect();
            pwritev(self.0.as_fd(), &sources, offset + done)
        })
    }

    /// Returns once everything written is on stable storage.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.0.sync_data()
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

    pub(super) fn write_zeros(&self, mut offset: u64, mut len: u64, stopping: &AtomicBool) -> io::Result<()> {
        let zeros = vec![0; ZEROS];
        while len > 0 {
            if stopping.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let now = usize::try_from(len).unwrap_or(ZEROS).min(ZEROS);
            let sources = [Source::from(zeros.get(..now).unwrap_or_default())];
            let wrote = again(|| pwritev(self.0.as_fd(), &sources, offset))? as u64;
            (offset, len) = (offset + wrote, len.saturating_sub(wrote));
        }
        Ok(())
    }

    /// Has the file system do it; whether it can.
    fn allocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        let position = |value: u64| i64::try_from(value).map_err(|_| Errno::EOVERFLOW);
        let mode = mode | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        loop {
            return match fallocate(&self.0, mode, position(offset)?, position(len)?) {
                Ok(()) => Ok(true),
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(false),
                Err(Errno::EINTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
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

    fn disk(len: usize) -> (tempfile::NamedTempFile, HostFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; len]).unwrap();
        let disk = HostFile(File::options().read(true).write(true).open(file.path()).unwrap());
        (file, disk)
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
