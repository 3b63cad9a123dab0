//! What is behind a guest's disk: a raw file or block device of the host, or a qcow2 image; and perhaps a temporary file
//! that takes the writes. Offsets and lengths are in bytes.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use thiserror::Error;
use vm_memory::VolatileSlice;

use super::file::HostFile;
use super::overlay::Overlay;
use super::spec::{Access, DiskSpec};
use crate::devices::virtio::chain::part;
use crate::image::blocks::{Blocks, Storage};
use crate::image::{ContainerError, container};

/// Bytes of a sector, the unit of every request.
pub const SECTOR: u64 = 512;

/// Bytes that are read at once of what cannot be read into guest memory directly.
const PIECE: usize = 64 << 10;

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
    /// There is no room for what the guest writes.
    #[error("making the temporary file for writes to the disk {}", path.display())]
    Overlay {
        /// The disk.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It is a disk image that cannot be read.
    #[error(transparent)]
    Container(#[from] ContainerError),
}

/// An open disk. It is locked: nobody else writes to it, and nobody else reads it if this guest may write to it.
pub struct Disk {
    base: Base,
    overlay: Option<Overlay>,
    container: &'static str,
    path: PathBuf,
    len: u64,
    access: Access,
}

/// What the disk held when it was opened; without an overlay also what takes the writes.
enum Base {
    /// The file is the disk.
    File(HostFile),
    /// The file is an image of a format of its own, which is only read. It holds the file open, and so its lock.
    Image(Arc<dyn Storage>),
}

impl Disk {
    /// Opens and locks a disk. Its size is what it is now. Writes to a qcow2 image go to a temporary file.
    pub fn open(spec: &DiskSpec) -> Result<Self, DiskError> {
        let path = spec.path.clone();
        let file = open_locked(spec)?;
        let opened = container::open(&file, &path)?;
        let container = opened.kind();
        let (base, len) = match opened {
            container::Opened::Raw { len } => (Base::File(HostFile(file)), len),
            container::Opened::Format { storage, .. } => {
                let len = storage.length();
                (Base::Image(storage), len)
            }
        };
        if len == 0 || !len.is_multiple_of(SECTOR) {
            return Err(DiskError::Length { path, len });
        }
        let access = match (&base, spec.access) {
            (Base::Image(_), Access::Full) => {
                tracing::warn!(
                    disk = %path.display(), format = container,
                    "the image itself is not written to: what the guest writes is gone when it ends"
                );
                Access::Overlay
            }
            (_, access) => access,
        };
        let overlay = (access == Access::Overlay).then(|| Overlay::new(len)).transpose();
        let overlay = overlay.map_err(|source| DiskError::Overlay { path: path.clone(), source })?;
        Ok(Self { base, overlay, container, path, len, access })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of file it is, such as `raw`.
    pub fn container(&self) -> &'static str {
        self.container
    }

    /// How long it is, a multiple of [`SECTOR`].
    pub fn length(&self) -> u64 {
        self.len
    }

    /// Whether the guest may write, and whereto.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Its bytes as the guest left them, for a look at what they hold.
    pub fn blocks(self: &Arc<Self>) -> Blocks {
        Blocks::new(self.clone())
    }

    /// Fills guest memory from `offset` on.
    pub(super) fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        let Some(overlay) = &self.overlay else { return self.base.read(offset, to) };
        let len: usize = to.iter().map(VolatileSlice::len).sum();
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let run = overlay.run(at, (len - done) as u64);
            let now = usize::try_from(run.len).unwrap_or(usize::MAX).min(len - done);
            let room: Vec<_> = part(to, done, now).collect();
            if run.written {
                overlay.file.read(at, &room)?;
            } else {
                self.base.read(at, &room)?;
            }
            done += now;
        }
        Ok(())
    }

    /// Writes guest memory to `offset` and behind.
    pub(super) fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        match (&self.overlay, &self.base) {
            (Some(overlay), _) => overlay.write(offset, from),
            (None, Base::File(file)) => file.write(offset, from),
            (None, Base::Image(_)) => Err(read_only()),
        }
    }

    /// Returns once everything written is on stable storage. What is temporary needs none.
    pub(super) fn flush(&self) -> io::Result<()> {
        match (&self.overlay, &self.base) {
            (None, Base::File(file)) => file.flush(),
            _ => Ok(()),
        }
    }

    /// The guest does not need these bytes any more. Where the host cannot give their space back, they stay.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match (&self.overlay, &self.base) {
            (Some(overlay), _) => overlay.file.discard(offset, len),
            (None, Base::File(file)) => file.discard(offset, len),
            (None, Base::Image(_)) => Err(read_only()),
        }
    }

    /// Makes bytes zero, and gives their space back if it may and can. Ends early once `stopping`.
    pub(super) fn zero(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        stopping: &AtomicBool,
    ) -> io::Result<()> {
        match (&self.overlay, &self.base) {
            (Some(overlay), _) => overlay.zero(offset, len, stopping),
            (None, Base::File(file)) => file.zero(offset, len, may_unmap, stopping),
            (None, Base::Image(_)) => Err(read_only()),
        }
    }
}

impl Base {
    fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        let storage = match self {
            Self::File(file) => return file.read(offset, to),
            Self::Image(storage) => storage,
        };
        let mut at = offset;
        let mut piece = vec![0; PIECE];
        for slice in to {
            let mut done = 0;
            while done < slice.len() {
                let now = (slice.len() - done).min(PIECE);
                let bytes = piece.get_mut(..now).unwrap_or_default();
                storage.read_at(at, bytes)?;
                slice.subslice(done, now).map_err(io::Error::other)?.copy_from(bytes);
                (done, at) = (done + now, at + now as u64);
            }
        }
        Ok(())
    }
}

impl Storage for Disk {
    fn length(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read(offset, &[VolatileSlice::from(buf)])
    }
}

/// Opens a disk's file as the guest is to use it, and locks it.
fn open_locked(spec: &DiskSpec) -> Result<File, DiskError> {
    let path = &spec.path;
    let writes = spec.access == Access::Full;
    let open = |source| DiskError::Open { path: path.clone(), source };
    // Looked at before it is opened: opening a pipe would wait for its other end.
    let kind = std::fs::metadata(path).map_err(open)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DiskError::NotADisk { path: path.clone() });
    }
    let file = OpenOptions::new().read(true).write(writes).open(path).map_err(open)?;
    let locked = if writes { file.try_lock() } else { file.try_lock_shared() };
    match locked {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DiskError::InUse { path: path.clone() }),
        // Some network file systems have no locks.
        Err(TryLockError::Error(error)) => {
            tracing::debug!(path = %path.display(), %error, "the disk cannot be locked");
            Ok(file)
        }
    }
}

fn read_only() -> io::Error {
    io::ErrorKind::ReadOnlyFilesystem.into()
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(len: usize) -> (tempfile::NamedTempFile, Disk) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; len]).unwrap();
        let disk = Disk::open(&DiskSpec { path: file.path().into(), access: Access::Full }).unwrap();
        (file, disk)
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
    fn an_overlay_shares_the_disk_with_readers_and_shows_what_was_written() {
        let (file, writer) = disk(4096);
        drop(writer);
        let spec = |access| DiskSpec { path: file.path().into(), access };
        let overlays = [0; 2].map(|_| Arc::new(Disk::open(&spec(Access::Overlay)).unwrap()));
        Disk::open(&spec(Access::ReadOnly)).unwrap();
        assert!(matches!(Disk::open(&spec(Access::Full)), Err(DiskError::InUse { .. })));
        let mut bytes = [1; 512];
        overlays[0].write(1024, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
        let [one, other] = overlays.each_ref().map(|disk| disk.blocks().bytes(0, 4096).unwrap());
        assert!(one[..1024] == [7; 1024] && one[1024..1536] == [1; 512] && one[1536..] == [7; 2560]);
        assert!(other == [7; 4096] && std::fs::read(file.path()).unwrap() == [7; 4096]);
    }

    #[test]
    fn a_qcow2_image_is_a_disk_whose_writes_go_elsewhere() {
        let mut image = Vec::new();
        let packed = include_bytes!("../../../image/container/fixtures/zstd.qcow2.gz");
        io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut image).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &image).unwrap();
        let spec = |access| DiskSpec { path: file.path().into(), access };
        let disk = Arc::new(Disk::open(&spec(Access::Full)).unwrap());
        assert_eq!((disk.container(), disk.length(), disk.access()), ("qcow2", 1 << 20, Access::Overlay));
        assert_eq!(disk.blocks().array(1500 * 512).unwrap(), 1500_u64.to_le_bytes());
        let mut bytes = [1; 512];
        disk.write(1500 * 512, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
        assert_eq!(disk.blocks().array(1500 * 512).unwrap(), [1; 8]);
        assert_eq!(disk.blocks().array(2047 * 512).unwrap(), 2047_u64.to_le_bytes());
        assert!(std::fs::read(file.path()).unwrap() == image);
        drop(disk);
        assert_eq!(Disk::open(&spec(Access::ReadOnly)).unwrap().access(), Access::ReadOnly);
    }
}
