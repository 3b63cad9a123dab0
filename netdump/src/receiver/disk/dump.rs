//! One dump on disk: written aside, and put under its final names when it is whole.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::directory::Directory;
use super::{PRIVATE, StoredDump};
use crate::receiver::info::{self, InfoText};
use crate::receiver::store::{Commit, OpenDump, StoreError};
use crate::receiver::summary::{DumpSummary, Ending, HeaderSeen};
use crate::vmcore::kdh::Compression;

/// Nobody writes to a key once it is there.
const READ_ONLY: u32 = 0o400;

/// One dump on disk.
#[derive(Debug)]
pub struct DiskDump {
    files: Arc<Files>,
    text: InfoText,
    /// The commit under way. It has a thread of its own: fsync of a large core takes longer than the other clients'
    /// patience.
    commit: Option<JoinHandle<Result<StoredDump, StoreError>>>,
}

/// The open files of a dump and their names.
#[derive(Debug)]
struct Files {
    directory: Directory,
    host: String,
    index: u32,
    core: File,
    key: OnceLock<File>,
    /// Claims the number, and says that the dump is incomplete as long as it is.
    info: File,
    /// Replaces it. Its blocks are allocated when the dump begins: there must be room for it when the disk is full.
    info_aside: File,
}

impl DiskDump {
    /// Makes the files; `info` claims the number and exists. Leaves none of them when one cannot be made.
    pub(super) fn begin(
        directory: Directory,
        info: File,
        host: String,
        address: Ipv4Addr,
        index: u32,
        note: Option<String>,
    ) -> Result<Self, StoreError> {
        let names = partial_names(&host, index);
        let make = |name: &String| {
            let made = directory.create_new(name, PRIVATE);
            made.map_err(|source| StoreError::File { doing: "making", path: directory.path_of(name), source })
        };
        let [core_name, info_name] = &names;
        let text = InfoText { host: host.clone(), address, notes: note.into_iter().collect() };
        let begun = make(core_name).and_then(|core| {
            let info_aside = make(info_name)?;
            reserve(&info_aside)
                .and_then(|()| replace_text(&info, &text.receiving(&HeaderSeen::Missing)))
                .map_err(|source| StoreError::File {
                    doing: "making room for",
                    path: directory.path_of(info_name),
                    source,
                })?;
            Ok((core, info_aside))
        });
        match begun {
            Ok((core, info_aside)) => {
                let key = OnceLock::new();
                let files = Files { directory, host, index, core, key, info, info_aside };
                Ok(Self { files: Arc::new(files), text, commit: None })
            }
            Err(error) => {
                remove_all(&directory, &host, index);
                Err(error)
            }
        }
    }
}

impl OpenDump for DiskDump {
    type Stored = StoredDump;

    fn write_at(&mut self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), StoreError> {
        let mut at = offset;
        for piece in pieces {
            self.files.core.write_all_at(piece, at).map_err(|source| {
                let path = self.files.path_of("vmcore", ".partial");
                StoreError::Write { path, offset: at, len: piece.len(), source }
            })?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn key_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.files.key().and_then(|key| key.write_all_at(bytes, offset));
        written.map_err(|source| {
            let path = self.files.path_of("key", ".partial");
            StoreError::Write { path, offset, len: bytes.len(), source }
        })
    }

    fn header(&mut self, header: &HeaderSeen) -> Result<(), StoreError> {
        let written = replace_text(&self.files.info, &self.text.receiving(header));
        written.map_err(|source| self.files.failed("writing", "info", "")(source))
    }

    fn commit(&mut self, summary: &DumpSummary) -> Result<Commit<StoredDump>, StoreError> {
        let Some(running) = self.commit.take() else {
            let (files, text, summary) = (Arc::clone(&self.files), self.text.clone(), summary.clone());
            let thread = std::thread::Builder::new().name("netdump-commit".into());
            let started = thread.spawn(move || files.commit(text, &summary));
            self.commit =
                Some(started.map_err(|source| self.files.failed("committing", "vmcore", "")(source))?);
            return Ok(Commit::Pending);
        };
        if !running.is_finished() {
            self.commit = Some(running);
            return Ok(Commit::Pending);
        }
        let panicked = || self.files.failed("committing", "vmcore", "")(io::Error::other("a panic"));
        running.join().unwrap_or_else(|_| Err(panicked())).map(Commit::Done)
    }

    fn abandon(&mut self, summary: &DumpSummary, ending: &Ending) -> Result<StoredDump, StoreError> {
        self.files.abandon(&self.text.ended(summary, ending), &summary.header)
    }

    fn discard(&mut self) {
        remove_all(&self.files.directory, &self.files.host, self.files.index);
    }
}

impl Files {
    fn name(&self, kind: &str, suffix: &str) -> String {
        format!("{kind}.{}.{}{suffix}", self.host, self.index)
    }

    fn path_of(&self, kind: &str, suffix: &str) -> PathBuf {
        self.directory.path_of(&self.name(kind, suffix))
    }

    fn failed<'a>(
        &'a self,
        doing: &'static str,
        kind: &'a str,
        suffix: &'a str,
    ) -> impl FnOnce(io::Error) -> StoreError + 'a {
        move |source| StoreError::File { doing, path: self.path_of(kind, suffix), source }
    }

    /// The key's file, made when its first bytes come.
    fn key(&self) -> io::Result<&File> {
        if let Some(key) = self.key.get() {
            return Ok(key);
        }
        let made = self.directory.create_new(&self.name("key", ".partial"), READ_ONLY)?;
        Ok(self.key.get_or_init(|| made))
    }

    /// Brings everything to stable storage, then under its final name, then the names to stable storage.
    fn commit(&self, mut text: InfoText, summary: &DumpSummary) -> Result<StoredDump, StoreError> {
        let core = self.core_name(&summary.header);
        if summary.length != summary.end
            && let Err(error) = self.core.set_len(summary.length)
        {
            text.notes
                .push(format!("the core could not be given its length of {}B: {error}", summary.length));
        }
        self.core.sync_all().map_err(self.failed("syncing", "vmcore", ".partial"))?;
        if let Some(key) = self.key.get() {
            key.sync_all().map_err(self.failed("syncing", "key", ".partial"))?;
        }
        replace_text(&self.info_aside, &text.ended(summary, &Ending::Complete))
            .and_then(|()| self.info_aside.sync_all())
            .map_err(self.failed("writing", "info", ".partial"))?;

        let core_path = self.settle("vmcore", ".partial", core.kind, core.suffix)?;
        let key_path = match self.key.get() {
            Some(_) => Some(self.settle("key", ".partial", "key", "")?),
            None => None,
        };
        let info_path = self.put_info()?;
        // Complete without these links too; netdumpd also goes on when it cannot make them.
        for (kind, target) in [("vmcore", self.name(core.kind, core.suffix)), ("info", self.name("info", ""))]
        {
            if let Err(error) = self.directory.link(&format!("{kind}.{}.last", self.host), &target) {
                tracing::debug!(kind, %error, "link to the last dump not made");
            }
        }
        self.directory.sync().map_err(self.failed("syncing the directory of", core.kind, core.suffix))?;
        Ok(StoredDump { core: core_path, info: info_path, key: key_path, complete: true })
    }

    /// Puts all there is under names that say that it is incomplete.
    fn abandon(&self, text: &str, header: &HeaderSeen) -> Result<StoredDump, StoreError> {
        // The info file first: it is worth the most.
        let written =
            replace_text(&self.info_aside, text).map_err(self.failed("writing", "info", ".partial"));
        let info = written.and_then(|()| self.put_info());
        let core = self.core_name(header);
        // A commit that failed late has renamed them before.
        let core_path = self
            .settle("vmcore", ".partial", core.kind, ".incomplete")
            .or_else(|_| self.settle(core.kind, core.suffix, core.kind, ".incomplete"));
        let key = self.key.get().map(|_| {
            let partial = self.settle("key", ".partial", "key", ".incomplete");
            partial.or_else(|_| self.settle("key", "", "key", ".incomplete"))
        });
        Ok(StoredDump { core: core_path?, info: info?, key: key.transpose()?, complete: false })
    }

    /// How netdumpd names a core with such a header. Of a core whose header did not come, or makes no sense, a key tells
    /// that it is encrypted.
    fn core_name(&self, header: &HeaderSeen) -> CoreName {
        let is_encrypted = match header.valid() {
            Some(_) => header.is_encrypted(),
            None => self.key.get().is_some(),
        };
        CoreName {
            kind: if is_encrypted { "vmcore_encrypted" } else { "vmcore" },
            suffix: match header.compression() {
                Compression::None => "",
                Compression::Gzip => ".gz",
                Compression::Zstd => ".zst",
            },
        }
    }

    /// Gives a file its final name, which nothing else may have.
    fn settle(
        &self,
        kind: &str,
        suffix: &str,
        final_kind: &str,
        final_suffix: &str,
    ) -> Result<PathBuf, StoreError> {
        let (from, to) = (self.name(kind, suffix), self.name(final_kind, final_suffix));
        self.directory.rename_new(&from, &to).map_err(self.failed("renaming", kind, suffix))?;
        Ok(self.directory.path_of(&to))
    }

    /// Puts the text written aside in the place of the one that says that the dump is being received.
    fn put_info(&self) -> Result<PathBuf, StoreError> {
        match self.directory.rename(&self.name("info", ".partial"), &self.name("info", "")) {
            // A commit that failed late has done it before.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(self.failed("renaming", "info", ".partial"))?,
        }
        Ok(self.path_of("info", ""))
    }
}

/// The files of a dump of which nothing came, but for the info file that claims its number.
fn partial_names(host: &str, index: u32) -> [String; 2] {
    ["vmcore", "info"].map(|kind| format!("{kind}.{host}.{index}.partial"))
}

/// Removes them; the number is free when all are gone.
fn remove_all(directory: &Directory, host: &str, index: u32) {
    for name in partial_names(host, index).iter().chain([&format!("info.{host}.{index}")]) {
        let _ = directory.remove(name);
    }
}

/// The parts of a core's name around host and number.
struct CoreName {
    kind: &'static str,
    suffix: &'static str,
}

/// Allocates blocks for the longest text. The file stays empty: that is what is left of it if the receiver dies.
fn reserve(file: &File) -> io::Result<()> {
    let len = i64::try_from(info::MAX_LEN).expect("a constant of some KiB fits");
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, len) {
        // Not every file system can; then the text may be lost when the disk is full, not the core.
        Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn replace_text(file: &File, text: &str) -> io::Result<()> {
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}
