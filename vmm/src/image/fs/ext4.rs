//! ext2, ext3 and ext4, read by the crate `ext4-view`: checksums are checked, and a journal that was not played back is
//! read as if it had been.
//!
//! The crate takes memory for what the superblock counts and for however long a link says it is, so those are looked at here
//! first, and [`Tree`] follows the links; that the crate's walks end is up to [`Worker`]. What it does not read is in
//! [`UNREAD`].

use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType};

use super::lookup::{MOST_TARGET, Tree};
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
/// `EXT4_FEATURE_INCOMPAT_FILETYPE`, without which the crate reads nothing.
const FILETYPE: u32 = 0x2;
/// Incompatible features that the crate reads nothing of (Linux `fs/ext4/ext4.h`), by the names that mke2fs has for them, and
/// those that it knows: what is not among them is newer than this program.
const UNREAD: [(u32, &str); 9] = [
    (0x1, "a compressed ext4 file system"),
    (0x8, "an ext4 file system with its journal on another device (journal_dev)"),
    (0x10, "an ext4 file system with meta block groups (meta_bg)"),
    (0x100, "an ext4 file system with multiple mount protection (mmp)"),
    (0x400, "an ext4 file system with extended attributes in inodes (ea_inode)"),
    (0x1000, "an ext4 file system with data in directory entries (dirdata)"),
    (0x4000, "an ext4 file system with large directories (large_dir)"),
    (0x8000, "an ext4 file system with data in inodes (inline_data)"),
    (0x2_0000, "an ext4 file system with names in any case (casefold)"),
];
const KNOWN: u32 = 0x3_d7df;
/// What to do in place of reading.
const FROM_FILES: &str = "give kernel and initrd as files, the image with --disk";

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
            Ext4::load(Box::new(source)).map_err(|error| match error {
                // Its features have been looked at.
                Ext4Error::Incompatible(_) => FsError::Unsupported {
                    what: "an ext4 file system with such a journal that was not played back",
                    advice: "let Linux do that: mount it once, or e2fsck -fp",
                },
                other => failed("the superblock", other),
            })
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
    // With or without 64BIT, as Linux and the crate have it.
    let count = u64::from(word(0x150)) << 32 | u64::from(word(0x4));
    if count.checked_mul(block).is_none_or(|len| len > blocks.length()) {
        let problem =
            format!("{count} blocks of {block} bytes are more than the {} bytes there are", blocks.length());
        return refuse("the superblock", problem);
    }
    let groups = count.div_ceil(u64::from(word(0x20)).max(1));
    if groups > MOST_GROUPS {
        return refuse("the superblock", format!("{groups} block groups"));
    }
    if let Some(what) = unread(word(0x60)) {
        return Err(FsError::Unsupported { what, advice: FROM_FILES });
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

/// What the crate would not read, by the incompatible features of a file system.
fn unread(features: u32) -> Option<&'static str> {
    if let Some((_, what)) = UNREAD.iter().find(|(bit, _)| features & bit != 0) {
        Some(what)
    } else if features & FILETYPE == 0 {
        Some("an ext2 file system without file types in directories (^filetype)")
    } else {
        (features & !KNOWN != 0).then_some("an ext4 file system with features that are not known here")
    }
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
            let found = fs.lookup(&path)?.metadata;
            let modified = Some(found.modified().seconds());
            Ok(Metadata { kind: kind(found.file_type()), len: found.len(), modified })
        })
    }

    fn read(&self, path: &str, most: u64) -> Result<Vec<u8>, FsError> {
        let path = path.to_owned();
        self.worker.ask(&path.clone(), move |fs| {
            let failed = |error| failed(&path, error);
            let found = fs.lookup(&path)?;
            let mut file = fs.open(found.path.as_slice()).map_err(failed)?;
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
            let directory = fs.lookup(&path)?;
            for entry in fs.read_dir(directory.path.as_slice()).map_err(failed)? {
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

/// A file by a path that leads through no link.
pub(super) struct Found {
    path: Vec<u8>,
    metadata: ext4_view::Metadata,
}

impl Found {
    fn at(fs: &Ext4, path: Vec<u8>, looked_up: &str) -> Result<Self, FsError> {
        let metadata = fs.symlink_metadata(path.as_slice()).map_err(|error| failed(looked_up, error))?;
        Ok(Self { path, metadata })
    }
}

impl Tree for Ext4 {
    type File = Found;

    fn root(&self) -> Result<Found, FsError> {
        Found::at(self, b"/".to_vec(), "/")
    }

    fn child(&self, directory: &Found, name: &[u8], path: &str) -> Result<Found, FsError> {
        let parent = directory.path.strip_suffix(b"/").unwrap_or(&directory.path);
        Found::at(self, [parent, name].join(&b'/'), path)
    }

    fn target(&self, file: &Found) -> Result<Option<Vec<u8>>, FsError> {
        if !file.metadata.is_symlink() {
            return Ok(None);
        }
        let place = String::from_utf8_lossy(&file.path);
        let len = file.metadata.len();
        if len > MOST_TARGET {
            let problem = format!("a symbolic link of {len} bytes");
            return Err(FsError::Damaged { kind: KIND, place: place.into_owned(), problem });
        }
        let target = self.read_link(file.path.as_slice()).map_err(|error| failed(&place, error))?;
        Ok(Some(target.as_ref().to_vec()))
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
        Ext4Error::Encrypted => FsError::Unsupported { what: "an encrypted file", advice: FROM_FILES },
        // The one thing that may turn up in a directory.
        Ext4Error::Incompatible(_) => {
            FsError::Unsupported { what: "a directory with names hashed the old way", advice: FROM_FILES }
        }
        other => FsError::Damaged { kind: KIND, place: path, problem: other.to_string() },
    }
}

impl Ext4Read for Source {
    fn read(&mut self, start: u64, buf: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self::read(self, start, buf)?)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;

    use super::*;
    use crate::image::DiskImage;
    use crate::image::boot::{Wishes, plan};

    fn run(program: &str, arguments: &[&str], folder: &Path) -> bool {
        let mut command = Command::new(program);
        command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").current_dir(folder).args(arguments);
        let done = command.output().is_ok_and(|done| done.status.success());
        if !done {
            println!("SKIPPED mkfs: {program} {arguments:?} does not work here");
        }
        done
    }

    /// What is said of the file system `image` in a folder.
    fn told(folder: &Path) -> String {
        let bytes = std::fs::read(folder.join("image")).unwrap();
        let disk = DiskImage::new(Path::new("disk"), "raw", Blocks::new(Arc::new(bytes)));
        plan(&disk, &Wishes::default()).unwrap_err().to_string()
    }

    /// Found by fuzzing: the crate takes memory for the block groups of the high word, too.
    #[test]
    fn more_blocks_than_there_are_are_refused_with_and_without_64bit() {
        for features in [FILETYPE, FILETYPE | IS_64BIT] {
            let mut bytes = vec![0; 16 << 10];
            let mut put = |at: usize, value: u32| {
                bytes[1024 + at..][..4].copy_from_slice(&value.to_le_bytes());
            };
            put(0x4, 16);
            put(0x20, 0x2000);
            put(0x60, features);
            put(0x150, 0xd00);
            let told = check(&Blocks::new(Arc::new(bytes))).unwrap_err().to_string();
            assert!(told.contains("14293651161104 blocks of 1024 bytes are more than"), "{told}");
        }
    }

    /// Found by fuzzing: the crate takes memory for all of a link before it reads it.
    #[test]
    fn a_link_that_says_it_is_huge_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("tree/boot")).unwrap();
        std::os::unix::fs::symlink("x".repeat(100), folder.path().join("tree/boot/link")).unwrap();
        if run("mkfs.ext4", &["-q", "-F", "-O", "^metadata_csum", "-d", "tree", "image", "8M"], folder.path())
            && run("debugfs", &["-w", "-R", "sif /boot/link size 68719476749", "image"], folder.path())
        {
            let bytes = std::fs::read(folder.path().join("image")).unwrap();
            let fs = Ext.open(Blocks::new(Arc::new(bytes))).unwrap();
            for told in [fs.metadata("/boot/link").err(), fs.read("/boot/link/x", 1).err()] {
                let told = told.expect("it leads nowhere").to_string();
                assert!(
                    told.ends_with("damaged: /boot/link: a symbolic link of 68719476749 bytes"),
                    "{told}"
                );
            }
        }
    }

    #[test]
    fn features_that_are_not_read_are_told_by_name() {
        for (features, expected) in [
            (
                "inline_data",
                "data in inodes (inline_data) cannot be read here: give kernel and initrd as files",
            ),
            ("meta_bg,^resize_inode", "meta block groups (meta_bg) cannot"),
            ("mmp", "multiple mount protection (mmp) cannot"),
            ("ea_inode", "extended attributes in inodes (ea_inode) cannot"),
            ("large_dir", "large directories (large_dir) cannot"),
            ("casefold", "names in any case (casefold) cannot"),
            ("^filetype", "without file types in directories (^filetype) cannot"),
            ("encrypt,bigalloc", "has ext4 without a kernel"),
            ("^64bit,^extent,^metadata_csum,^has_journal", "has ext4 without a kernel"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            if run("mkfs.ext4", &["-q", "-F", "-O", features, "image", "8M"], folder.path()) {
                let told = told(folder.path());
                assert!(told.contains(expected), "{features}: {told}");
            }
        }
        assert!(unread(0x8_0002).is_some_and(|what| what.contains("not known")));
        assert_eq!((unread(0x2), unread(0x1_02c6)), (None, None));
    }

    #[test]
    fn a_journal_that_is_not_read_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        // A block that begins as the journal's own do is written there in disguise.
        std::fs::write(folder.path().join("block"), [&[0xc0, 0x3b, 0x39, 0x98][..], &[0; 1020]].concat())
            .unwrap();
        std::fs::write(folder.path().join("commands"), "jo -c\njw -b 5000 block\njc\n").unwrap();
        if run("mkfs.ext4", &["-q", "-F", "-b", "1024", "image", "8M"], folder.path())
            && run("debugfs", &["-w", "-f", "commands", "image"], folder.path())
        {
            let told = told(folder.path());
            assert!(
                told.contains("not played back cannot be read here: let Linux do that: mount it once"),
                "{told}"
            );
        }
    }
}
