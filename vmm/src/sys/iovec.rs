//! Scattered reads and writes over guest memory and our own, without a copy between them.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, iovec};
use vm_memory::VolatileSlice;

/// Bytes that a [`writev`] takes: of guest memory, which may change meanwhile, or of ours.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Source<'a> {
    iovec: iovec,
    memory: PhantomData<&'a [u8]>,
}

/// Room that a [`readv`] fills: in guest memory, which others may use meanwhile, or in ours.
#[repr(transparent)]
pub struct Target<'a> {
    iovec: iovec,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> From<&'a [u8]> for Source<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        // A writev only reads, so the mutable pointer that iovec wants is never written through.
        let iov_base = bytes.as_ptr().cast_mut().cast();
        Self { iovec: iovec { iov_base, iov_len: bytes.len() }, memory: PhantomData }
    }
}

impl<'a> From<VolatileSlice<'a>> for Source<'a> {
    fn from(slice: VolatileSlice<'a>) -> Self {
        // The guard maps nothing with the mmap backend: the pointer lives as long as the slice.
        let iov_base = slice.ptr_guard().as_ptr().cast_mut().cast();
        Self { iovec: iovec { iov_base, iov_len: slice.len() }, memory: PhantomData }
    }
}

impl<'a> From<&'a mut [u8]> for Target<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self {
            iovec: iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() },
            memory: PhantomData,
        }
    }
}

impl<'a> From<VolatileSlice<'a>> for Target<'a> {
    fn from(slice: VolatileSlice<'a>) -> Self {
        let iov_base = slice.ptr_guard_mut().as_ptr().cast();
        Self { iovec: iovec { iov_base, iov_len: slice.len() }, memory: PhantomData }
    }
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({} bytes)", self.iovec.iov_len)
    }
}

impl fmt::Debug for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({} bytes)", self.iovec.iov_len)
    }
}

/// Writes all of `sources`, in order, by one system call; how many bytes went.
pub fn writev(fd: BorrowedFd<'_>, sources: &[Source<'_>]) -> io::Result<usize> {
    let first: *const iovec = sources.as_ptr().cast();
    // SAFETY: `Source` is a transparent iovec, so `first` points at `sources.len()` of them. Each one covers memory
    // that stays mapped and readable for the lifetime in its type, which outlasts this call; the kernel does the
    // copying, so memory that the guest changes meanwhile is no data race in this program.
    let count = unsafe { libc::writev(fd.as_raw_fd(), first, length(sources.len())) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Fills `targets`, in order, by one system call; how many bytes came.
pub fn readv(fd: BorrowedFd<'_>, targets: &mut [Target<'_>]) -> io::Result<usize> {
    let first: *const iovec = targets.as_ptr().cast();
    // SAFETY: `Target` is a transparent iovec, so `first` points at `targets.len()` of them. Each one covers memory
    // that stays mapped and writable for the lifetime in its type, which outlasts this call: our own is borrowed
    // mutably, guest memory is only ever seen through volatile accesses. Any byte is valid in both.
    let count = unsafe { libc::readv(fd.as_raw_fd(), first, length(targets.len())) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes `sources`, in order, at `offset` bytes into a file; how many bytes went, which may be fewer than there are.
pub fn pwritev(fd: BorrowedFd<'_>, sources: &[Source<'_>], offset: u64) -> io::Result<usize> {
    let first: *const iovec = sources.as_ptr().cast();
    // SAFETY: as for `writev`; the offset is a number by value.
    let count = unsafe { libc::pwritev(fd.as_raw_fd(), first, length(sources.len()), position(offset)?) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Fills `targets`, in order, from `offset` bytes into a file on; how many bytes came, which may be fewer than fit.
pub fn preadv(fd: BorrowedFd<'_>, targets: &mut [Target<'_>], offset: u64) -> io::Result<usize> {
    let first: *const iovec = targets.as_ptr().cast();
    // SAFETY: as for `readv`; the offset is a number by value.
    let count = unsafe { libc::preadv(fd.as_raw_fd(), first, length(targets.len()), position(offset)?) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn position(offset: u64) -> io::Result<libc::off_t> {
    offset.try_into().map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
}

/// The kernel refuses more than 1024 pieces (`UIO_MAXIOV`), so a count cut to the largest `int` is refused as well.
fn length(pieces: usize) -> c_int {
    c_int::try_from(pieces).unwrap_or(c_int::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::*;

    #[test]
    fn pieces_of_guest_memory_and_ours_go_and_come_in_order() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        memory.write_slice(b"guest", GuestAddress(0x10)).unwrap();
        let slice = memory.get_slice(GuestAddress(0x10), 5).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let sources = [Source::from(&b"head "[..]), Source::from(slice), Source::from(&b" tail"[..])];
        assert_eq!(writev(file.as_fd(), &sources).unwrap(), 15);
        let mut all = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut all).unwrap();
        assert_eq!(all, "head guest tail");

        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(b"HEAD GUEST").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut head = [0; 5];
        let mut targets = [Target::from(&mut head[..]), Target::from(slice)];
        assert_eq!(readv(file.as_fd(), &mut targets).unwrap(), 10);
        assert_eq!(&head, b"HEAD ");
        assert_eq!(memory.read_obj::<[u8; 5]>(GuestAddress(0x10)).unwrap(), *b"GUEST");
    }

    #[test]
    fn pieces_go_to_and_come_from_a_place_in_a_file() {
        let file = tempfile::tempfile().unwrap();
        let sources = [Source::from(&b"one"[..]), Source::from(&b"two"[..])];
        assert_eq!(pwritev(file.as_fd(), &sources, 10).unwrap(), 6);
        let (mut gap, mut text) = ([9; 2], [0; 6]);
        let mut targets = [Target::from(&mut gap[..]), Target::from(&mut text[..])];
        assert_eq!(preadv(file.as_fd(), &mut targets, 8).unwrap(), 8);
        assert_eq!((gap, &text), ([0; 2], b"onetwo"));
        assert_eq!(
            preadv(file.as_fd(), &mut [], u64::MAX).unwrap_err().raw_os_error(),
            Some(libc::EOVERFLOW)
        );
    }

    #[test]
    fn more_pieces_than_the_kernel_takes_are_an_error() {
        let file = tempfile::tempfile().unwrap();
        let sources = vec![Source::from(&b"x"[..]); 1025];
        assert_eq!(writev(file.as_fd(), &sources).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
