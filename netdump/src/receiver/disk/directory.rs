//! One directory, held open. Everything is done by name inside it, so that nobody who moves or replaces it, and no link
//! planted in it, can lead a write elsewhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag};
use nix::fcntl::{open, openat, openat2, renameat, renameat2};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, fsync, symlinkat, unlinkat};

/// How a directory is opened: for reading, as fsync wants it.
pub(super) const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
/// How a file is made: anew or not at all, which also never follows a link.
const NEW_FILE: OFlag =
    OFlag::O_RDWR.union(OFlag::O_CREAT).union(OFlag::O_EXCL).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A directory to store in.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Directory {
    /// Opens any directory; links on the way are followed, as the operator named it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let fd = open(path, DIRECTORY, Mode::empty())?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens a directory below this one; a link that leads outside is refused.
    pub(super) fn open_below(&self, path: &Path) -> io::Result<Self> {
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let fd = openat2(&self.fd, path, OpenHow::new().flags(DIRECTORY).resolve(resolve))?;
        Ok(Self { fd, path: self.path.join(path) })
    }

    /// Opens a directory below this one; no link is followed.
    pub(super) fn open_inside(&self, path: &Path) -> io::Result<Self> {
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let fd = openat2(&self.fd, path, OpenHow::new().flags(DIRECTORY).resolve(resolve))?;
        Ok(Self { fd, path: self.path.join(path) })
    }

    /// Another handle of the same directory.
    pub(super) fn again(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, path: self.path.clone() })
    }

    /// Where a name in it is, for messages.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where a name in it can be opened, wherever the directory has been moved.
    pub(super) fn fd_path(&self, name: &Path) -> PathBuf {
        Path::new("/proc/self/fd").join(self.fd.as_raw_fd().to_string()).join(name)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether files can be made in it: permission, and a file system that is not read-only.
    pub(super) fn is_writable(&self) -> io::Result<()> {
        Ok(faccessat(&self.fd, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS)?)
    }

    /// Makes a file that did not exist.
    pub(super) fn create_new(&self, name: &str, mode: u32) -> io::Result<File> {
        Ok(File::from(openat(&self.fd, name, NEW_FILE, Mode::from_bits_truncate(mode))?))
    }

    /// Opens a file for reading, unless it is a link. Does not wait for the writer of a pipe.
    pub(super) fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.fd, name, flags, Mode::empty())?))
    }

    /// Opens a file for reading and writing, unless it is a link.
    pub(super) fn open_for_update(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.fd, name, flags, Mode::empty())?))
    }

    /// Whether something of this name is there, be it a dangling link.
    pub(super) fn holds(&self, name: &str) -> bool {
        fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) != Err(Errno::ENOENT)
    }

    /// Renames, replacing what has the new name.
    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Renames unless the new name is taken.
    pub(super) fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        match renameat2(&self.fd, from, &self.fd, to, RenameFlags::RENAME_NOREPLACE) {
            // A file system without this flag, such as NFS: the number of the dump was free when it was claimed.
            Err(Errno::EINVAL) if !self.holds(to) => self.rename(from, to),
            result => Ok(result?),
        }
    }

    /// Makes a link, replacing what has its name.
    pub(super) fn link(&self, name: &str, target: &str) -> io::Result<()> {
        let aside = format!(".{name}.new");
        self.remove(&aside)?;
        symlinkat(target, &self.fd, aside.as_str())?;
        self.rename(&aside, name)
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Brings the names in it to stable storage.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(fsync(&self.fd)?)
    }
}
