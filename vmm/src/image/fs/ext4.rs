//! ext2, ext3 and ext4, read by the crate `ext4-view`: checksums are checked, and a journal that was not played back is
//! read as if it had been.
//!
//! The crate believes the superblock's counts before it takes memory for them, so those are looked at here first; that its
//! walks end is up to [`Worker`]. It reads no file system with inline data, large directories or a journal elsewhere.

use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType};

use super::worker::{Source, Worker};
use super::{DirEntry, FileKind, FileSystem, FileSystemType, FsError, MOST_ENTRIES, Metadata};
use crate::image::blocks::Blocks;

const KIND: &str = "ext4";
/// Where the superblock is, and the magic in it (Linux `fs/ext4/ext4.h`).
const SUPERBLOCK: u64 = 1024;
const MAGIC: (u64, [u8; 2]) = (SUPERBLOCK + 0x38, [0x53, 0xef]);
/// Blocks of 64 KiB are the largest that Linux knows.
const MOST_LOG_BLOCK_SIZE: u32 = 6;
/// Most block groups: 32 TiB of the usual ones.
const MOST_GROUPS: u64 = 1 << 18;
/// Longest journal, in blocks: mke2fs makes none that is longer, unless it is told to.
const MOST_JOURNAL: u64 = 1 << 18;
/// The inode of the journal (`EXT4_JOURNAL_INO`).
const JOURNAL_INODE: u32 = 8;
/// `EXT4_FEATURE_INCOMPAT_RECOVER` and `_64BIT`.
const RECOVER: u32 = 0x4;
const IS_64BIT: u32 = 0x80;

/// ext2, ext3 and ext4.
#[derive(Debug)]
pub(super) struct Ext;

impl FileSystemType for Ext {
    fn name(&self) -> &'static str {
        KIND
    }

    fn recognises(&self, blocks: &Blocks) -> bool {
        blocks.has(MAGIC.0, &MAGIC.1)
    }

    fn open(&self, blocks: Blocks) -> Result<Box<dyn FileSystem>, FsError> {
        check(&blocks)?;
        let worker = Worker::start(KIND, blocks, |source| {
            Ext4::load(Box::new(source)).map_err(|error| failed("the superblock", error))
        })?;
        let (uuid, label) = worker.ask("the superblock", |fs| {
            Ok((fs.uuid().to_string(), fs.label().to_str().unwrap_or_default().to_owned()))
        })?;
        let label = Some(label).filter(|label| !label.is_empty());
        Ok(Box::new(OpenExt { worker, uuid, label }))
    }
}

/// Refuses counts that the crate would take memory for without need.
fn check(blocks: &Blocks) -> Result<(), FsError> {
    let read = |place: &'static str| move |source| FsError::Read { place: place.to_owned(), source };
    let bytes = blocks.array::<1024>(SUPERBLOCK).map_err(read("the superblock"))?;
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let refuse =
        |place: &str, problem: String| Err(FsError::Damaged { kind: KIND, place: place.to_owned(), problem });
    let log = word(0x18);
    if log > MOST_LOG_BLOCK_SIZE {
        return refuse("the superblock", format!("blocks of 2^{} bytes", u64::from(log) + 10));
    }
    let block = 1024_u64 << log;
    let high = if word(0x60) & IS_64BIT == 0 { 0 } else { u64::from(word(0x150)) };
    let count = high << 32 | u64::from(word(0x4));
    if count.checked_mul(block).is_none_or(|len| len > blocks.length()) {
        let problem =
            format!("{count} blocks of {block} bytes are more than the {} bytes there are", blocks.length());
        return refuse("the superblock", problem);
    }
    let groups = count.div_ceil(u64::from(word(0x20)).max(1));
    if groups > MOST_GROUPS {
        return refuse("the superblock", format!("{groups} block groups"));
    }
    if word(0x60) & RECOVER == 0 {
        return Ok(());
    }
    if word(0xe0) != JOURNAL_INODE {
        return refuse("the superblock", format!("its journal is inode {}", word(0xe0)));
    }
    // The first group's descriptor has where its inodes are.
    let wide = word(0x60) & IS_64BIT != 0;
    let descriptor = (u64::from(word(0x14)) + 1) * block;
    let half = |at| blocks.array::<4>(descriptor + at).map(|bytes| u64::from(u32::from_le_bytes(bytes)));
    let table = half(8).map_err(read("the block groups"))?;
    let table = table | if wide { half(0x28).map_err(read("the block groups"))? << 32 } else { 0 };
    let inode_size = u64::from(word(0x58) & 0xffff);
    let inode = table.saturating_mul(block).saturating_add(u64::from(JOURNAL_INODE - 1) * inode_size);
    let part =
        |at| blocks.array::<4>(inode.saturating_add(at)).map(|bytes| u64::from(u32::from_le_bytes(bytes)));
    let journal = part(4).map_err(read("inode 8"))? | part(0x6c).map_err(read("inode 8"))? << 32;
    if journal.div_ceil(block) > MOST_JOURNAL {
        return refuse("inode 8", format!("a journal of {journal} bytes that has to be played back"));
    }
    Ok(())
}

struct OpenExt {
    worker: Worker<Ext4>,
    uuid: String,
    label: Option<String>,
}

impl std::fmt::Debug for OpenExt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ext4 {}", self.uuid)
    }
}

impl FileSystem for OpenExt {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn uuid(&self) -> Option<String> {
        Some(self.uuid.clone())
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn metadata(&self, path: &str) -> Result<Metadata, FsError> {
        let path = path.to_owned();
        self.worker.ask(&path.clone(), move |fs| {
            let found = fs.metadata(path.as_str()).map_err(|error| failed(&path, error))?;
            let modified = Some(found.modified().seconds());
            Ok(Metadata { kind: kind(found.file_type()), len: found.len(), modified })
        })
    }

    fn read(&self, path: &str, most: u64) -> Result<Vec<u8>, FsError> {
        let path = path.to_owned();
        self.worker.ask(&path.clone(), move |fs| {
            let failed = |error| failed(&path, error);
            let mut file = fs.open(path.as_str()).map_err(failed)?;
            let len = file.metadata().len();
            if len > most {
                return Err(FsError::Large { path, len, most });
            }
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            let mut at = 0;
            while at < bytes.len() {
                match file.read_bytes(&mut bytes[at..]).map_err(failed)? {
                    0 => break,
                    count => at += count,
                }
            }
            Ok(bytes)
        })
    }

    fn list(&self, path: &str) -> Result<Vec<DirEntry>, FsError> {
        let path = path.to_owned();
        self.worker.ask(&path.clone(), move |fs| {
            let failed = |error| failed(&path, error);
            let mut found = Vec::new();
            for entry in fs.read_dir(path.as_str()).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = String::from_utf8_lossy(entry.file_name().as_ref()).into_owned();
                if name == "." || name == ".." {
                    continue;
                }
                if found.len() == MOST_ENTRIES {
                    return Err(FsError::TooMany { place: path, what: "entries", most: MOST_ENTRIES as u64 });
                }
                found.push(DirEntry { name, kind: entry.file_type().map_or(FileKind::Other, kind) });
            }
            Ok(found)
        })
    }
}

fn kind(kind: FileType) -> FileKind {
    match kind {
        FileType::Regular => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Link,
        _ => FileKind::Other,
    }
}

fn failed(place: &str, error: Ext4Error) -> FsError {
    let path = place.to_owned();
    match error {
        Ext4Error::NotFound | Ext4Error::NotADirectory if place.starts_with('/') => {
            FsError::NotFound { path }
        }
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => FsError::Kind { path, wanted: "regular file" },
        Ext4Error::TooManySymlinks => FsError::Links { path },
        other => FsError::Damaged { kind: KIND, place: path, problem: other.to_string() },
    }
}

impl Ext4Read for Source {
    fn read(&mut self, start: u64, buf: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self::read(self, start, buf)?)
    }
}
