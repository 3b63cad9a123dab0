//! What kind of file an image is. Only raw files and block devices are read so far.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

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

/// Opens an image; its kind, and its bytes.
pub(super) fn open(path: &Path) -> Result<(&'static str, Blocks), ContainerError> {
    let open = |source| ContainerError::Open { path: path.to_owned(), source };
    // Looked at before it is opened: opening a pipe would wait for its other end.
    let kind = std::fs::metadata(path).map_err(open)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(ContainerError::NotADisk { path: path.to_owned() });
    }
    let mut file = File::open(path).map_err(open)?;
    let len = file.seek(SeekFrom::End(0)).map_err(open)?;
    Ok(("raw", Blocks::new(Arc::new(Raw { file, len }))))
}
