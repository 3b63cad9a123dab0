//! What kind of file an image is: raw (which everything is that has no format's magic number) or qcow2.

mod qcow2;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

pub use self::qcow2::{Qcow2, Qcow2Error};
use super::blocks::{Blocks, Storage};

/// Why an image file cannot be read.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// It cannot be opened.
    #[error("opening the image {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a pipe, ...
    #[error("the image {} is neither a regular file nor a block device", path.display())]
    NotADisk {
        /// The file.
        path: PathBuf,
    },
    /// It is a qcow2 image that cannot be read.
    #[error("the qcow2 image {} cannot be used", path.display())]
    Qcow2 {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Qcow2Error,
    },
}

/// What an image file turned out to be.
#[derive(Debug)]
pub(crate) enum Opened {
    /// The file is the disk.
    Raw {
        /// Its length in bytes.
        len: u64,
    },
    /// The file is of a format of its own.
    Format {
        /// The format's name.
        kind: &'static str,
        /// The disk in it.
        storage: Arc<dyn Storage>,
    },
}

impl Opened {
    /// The format's name.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Raw { .. } => "raw",
            Self::Format { kind, .. } => kind,
        }
    }
}

/// A raw file or block device.
#[derive(Debug)]
struct Raw {
    file: File,
    len: u64,
}

impl Storage for Raw {
    fn length(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

/// Looks at what kind of image an open file is; `path` is its name.
pub(crate) fn open(mut file: &File, path: &Path) -> Result<Opened, ContainerError> {
    let failed = |source| ContainerError::Open { path: path.to_owned(), source };
    let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
    let raw = || -> io::Result<_> { Ok(Arc::new(Raw { file: file.try_clone()?, len })) };
    if !Qcow2::is_in(&*raw().map_err(failed)?) {
        return Ok(Opened::Raw { len });
    }
    let disk = Qcow2::open(raw().map_err(failed)?)
        .map_err(|source| ContainerError::Qcow2 { path: path.to_owned(), source })?;
    Ok(Opened::Format { kind: "qcow2", storage: Arc::new(disk) })
}

/// Opens an image to be read only; its kind, and the bytes of the disk.
pub(super) fn open_path(path: &Path) -> Result<(&'static str, Blocks), ContainerError> {
    let failed = |source| ContainerError::Open { path: path.to_owned(), source };
    // Looked at before it is opened: opening a pipe would wait for its other end.
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(ContainerError::NotADisk { path: path.to_owned() });
    }
    let file = File::open(path).map_err(failed)?;
    let opened = open(&file, path)?;
    let name = opened.kind();
    let storage = match opened {
        Opened::Raw { len } => Arc::new(Raw { file, len }),
        Opened::Format { storage, .. } => storage,
    };
    Ok((name, Blocks::new(storage)))
}
