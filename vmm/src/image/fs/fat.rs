//! FAT12, FAT16 and FAT32, as EFI system partitions have them, read by the crate `fatfs`.
//!
//! Names are compared without case. The crate follows chains of clusters wherever they lead; [`Worker`] bounds that.

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::worker::{Source, Worker};
use super::{DirEntry, FileKind, FileSystem, FileSystemType, FsError, MOST_ENTRIES, Metadata};
use crate::image::blocks::Blocks;

const KIND: &str = "vfat";

/// FAT.
#[derive(Debug)]
pub(super) struct Fat;

impl FileSystemType for Fat {
    fn name(&self) -> &'static str {
        KIND
    }

    fn recognises(&self, blocks: &Blocks) -> bool {
        let jumps = blocks.has(0, &[0xeb]) || blocks.has(0, &[0xe9]);
        let named = blocks.has(54, b"FAT1") || blocks.has(82, b"FAT32");
        jumps && named && blocks.has(510, &[0x55, 0xaa])
    }

    fn open(&self, blocks: Blocks) -> Result<Box<dyn FileSystem>, FsError> {
        let worker = Worker::start(KIND, blocks, |source| {
            let disk = Disk { source, at: 0 };
            let options = fatfs::FsOptions::new();
            fatfs::FileSystem::new(disk, options)
                .map(RefCell::new)
                .map_err(|error| damaged("the boot sector", &error))
        })?;
        let (id, label) = worker.ask("the boot sector", |fs| {
            let fs = fs.borrow();
            Ok((fs.volume_id(), fs.volume_label()))
        })?;
        let label = Some(label.trim().to_owned()).filter(|label| !label.is_empty() && label != "NO NAME");
        Ok(Box::new(OpenFat { worker, id, label }))
    }
}

#[derive(Debug)]
struct OpenFat {
    worker: Worker<RefCell<fatfs::FileSystem<Disk>>>,
    id: u32,
    label: Option<String>,
}

impl FileSystem for OpenFat {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn uuid(&self) -> Option<String> {
        Some(format!("{:04X}-{:04X}", self.id >> 16, self.id & 0xffff))
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn metadata(&self, path: &str) -> Result<Metadata, FsError> {
        let path = path.to_owned();
        self.worker.ask(&path.clone(), move |fs| metadata(&fs.borrow(), &path))
    }

    fn read(&self, path: &str, most: u64) -> Result<Vec<u8>, FsError> {
        let path = path.to_owned();
        self.worker.ask(&path.clone(), move |fs| {
            let fs = fs.borrow();
            let Metadata { kind, len, .. } = metadata(&fs, &path)?;
            if kind != FileKind::File {
                return Err(FsError::Kind { path, wanted: "regular file" });
            }
            if len > most {
                return Err(FsError::Large { path, len, most });
            }
            let failed = |error: io::Error| damaged(&path, &error);
            let file = fs.root_dir().open_file(relative(&path)).map_err(failed)?;
            let mut bytes = Vec::new();
            file.take(len).read_to_end(&mut bytes).map_err(failed)?;
            if bytes.len() as u64 != len {
                return Err(damaged(&path, &io::ErrorKind::UnexpectedEof.into()));
            }
            Ok(bytes)
        })
    }

    fn list(&self, path: &str) -> Result<Vec<DirEntry>, FsError> {
        let path = path.to_owned();
        self.worker.ask(&path.clone(), move |fs| {
            let found = list(&fs.borrow(), &path)?;
            Ok(found.into_iter().map(|(name, Metadata { kind, .. })| DirEntry { name, kind }).collect())
        })
    }
}

fn list(fs: &fatfs::FileSystem<Disk>, path: &str) -> Result<Vec<(String, Metadata)>, FsError> {
    let root = fs.root_dir();
    let directory = match relative(path) {
        "" => root,
        below => root.open_dir(below).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => FsError::NotFound { path: path.to_owned() },
            // The crate says so of a file.
            _ if error.to_string().contains("directory") => {
                FsError::Kind { path: path.to_owned(), wanted: "directory" }
            }
            _ => damaged(path, &error),
        })?,
    };
    let mut found = Vec::new();
    for entry in directory.iter() {
        let entry = entry.map_err(|error| damaged(path, &error))?;
        let name = entry.file_name();
        if name == "." || name == ".." {
            continue;
        }
        if found.len() == MOST_ENTRIES {
            let most = MOST_ENTRIES as u64;
            return Err(FsError::TooMany { place: path.to_owned(), what: "entries", most });
        }
        let kind = if entry.is_dir() { FileKind::Directory } else { FileKind::File };
        found.push((name, Metadata { kind, len: entry.len(), modified: None }));
    }
    Ok(found)
}

fn metadata(fs: &fatfs::FileSystem<Disk>, path: &str) -> Result<Metadata, FsError> {
    let (parent, name) = relative(path).rsplit_once('/').unwrap_or_else(|| ("", relative(path)));
    if name.is_empty() {
        return Ok(Metadata { kind: FileKind::Directory, len: 0, modified: None });
    }
    let not_found = || FsError::NotFound { path: path.to_owned() };
    let entries = list(fs, parent).map_err(|error| match error {
        FsError::NotFound { .. } | FsError::Kind { .. } => not_found(),
        other => other,
    })?;
    let same = |other: &str| other.to_lowercase() == name.to_lowercase();
    entries.into_iter().find(|(other, _)| same(other)).map(|(_, found)| found).ok_or_else(not_found)
}

fn relative(path: &str) -> &str {
    path.trim_matches('/')
}

fn damaged(place: &str, error: &io::Error) -> FsError {
    FsError::Damaged { kind: KIND, place: place.to_owned(), problem: error.to_string() }
}

/// What the crate reads from; it writes nothing as long as nothing is asked of it that does.
struct Disk {
    source: Source,
    at: u64,
}

impl Read for Disk {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.source.blocks.length().saturating_sub(self.at);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.source.read(self.at, &mut buf[..len]).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Disk {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.source.blocks.length().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl Write for Disk {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
