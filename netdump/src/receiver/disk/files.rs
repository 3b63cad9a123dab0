//! The files of one dump: their names, what makes them, and what gives them their final names.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio::pwritev;

use super::PRIVATE;
use super::directory::Directory;
use crate::receiver::info::{self, InfoText};
use crate::receiver::store::StoreError;
use crate::receiver::summary::{DumpSummary, Ending, HeaderSeen};
use crate::vmcore::kdh::Compression;

/// Nobody writes to a key once it is there.
pub(super) const READ_ONLY: u32 = 0o400;
/// Behind the names of files that are being written.
pub(super) const PARTIAL: &str = ".partial";
/// Behind the names of what is left of a dump that stopped early.
pub(super) const INCOMPLETE: &str = ".incomplete";

/// The open files of a dump and their names.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) directory: Directory,
    pub(super) host: String,
    pub(super) index: u32,
    pub(super) core: File,
    pub(super) key: OnceLock<File>,
    /// Claims the number, and says that the dump is incomplete as long as it is.
    pub(super) info: File,
    /// Replaces it. Its blocks are allocated when the dump begins: there must be room for it when the disk is full.
    pub(super) info_aside: File,
}

impl Files {
    /// Makes the files; `info` claims the number and exists. Leaves none of them when one cannot be made.
    pub(super) fn make(
        directory: Directory,
        info: File,
        host: String,
        index: u32,
        text: &InfoText,
    ) -> Result<Self, StoreError> {
        let [core_name, info_name] = &partial_names(&host, index);
        let make = |name: &String| {
            let made = directory.create_new(name, PRIVATE);
            made.map_err(|source| StoreError::File { doing: "making", path: directory.path_of(name), source })
        };
        let made = make(core_name).and_then(|core| {
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
        match made {
            Ok((core, info_aside)) => {
                Ok(Self { directory, host, index, core, key: OnceLock::new(), info, info_aside })
            }
            Err(error) => {
                remove_all(&directory, &host, index);
                Err(error)
            }
        }
    }

    /// Removes them all; the number is free then.
    pub(super) fn remove(&self) {
        remove_all(&self.directory, &self.host, self.index);
    }

    /// Puts bytes into the core.
    pub(super) fn write_core(&self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), StoreError> {
        write_all(&self.core, offset, pieces).map_err(|source| {
            let len = pieces.iter().map(|piece| piece.len()).sum();
            StoreError::Write { path: self.path_of("vmcore", PARTIAL), offset, len, source }
        })
    }

    /// Puts bytes into the key, whose file is made when its first ones come.
    pub(super) fn write_key(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.made_key().and_then(|key| key.write_all_at(bytes, offset)).map_err(|source| {
            let path = self.path_of("key", PARTIAL);
            StoreError::Write { path, offset, len: bytes.len(), source }
        })
    }

    /// Replaces the text that remains if the receiver dies.
    pub(super) fn write_info(&self, text: &str) -> Result<(), StoreError> {
        replace_text(&self.info, text).map_err(self.failed("writing", "info", ""))
    }

    /// Brings everything to stable storage, then under its final name, then the names to stable storage. The info file is
    /// the last to get its name: when it says that the dump is complete, everything is in its place.
    pub(super) fn commit(&self, mut text: InfoText, summary: &DumpSummary) -> Result<Settled, StoreError> {
        let CoreName { kind, suffix } = self.core_name(&summary.header);
        if summary.length != summary.end
            && let Err(error) = self.core.set_len(summary.length)
        {
            text.notes
                .push(format!("the core could not be given its length of {}B: {error}", summary.length));
        }
        self.core.sync_all().map_err(self.failed("syncing", "vmcore", PARTIAL))?;
        if let Some(key) = self.key.get() {
            key.sync_all().map_err(self.failed("syncing", "key", PARTIAL))?;
        }
        replace_text(&self.info_aside, &text.ended(summary, &Ending::Complete))
            .and_then(|()| self.info_aside.sync_all())
            .map_err(self.failed("writing", "info", PARTIAL))?;

        let core = self.settle("vmcore", PARTIAL, kind, suffix)?;
        let key = self.key.get().map(|_| self.settle("key", PARTIAL, "key", "")).transpose()?;
        let info = self.put_info()?;
        self.link_last("vmcore", "", &core);
        self.link_last("info", "", &info);
        self.directory.sync().map_err(self.failed("syncing the directory of", kind, suffix))?;
        Ok(Settled { core, key, info, complete: true })
    }

    /// Puts all there is under names that say that it is incomplete.
    pub(super) fn abandon(&self, text: &str, header: &HeaderSeen) -> Result<Settled, StoreError> {
        // The info file first: it is worth the most.
        let written = replace_text(&self.info_aside, text).map_err(self.failed("writing", "info", PARTIAL));
        let info = written.and_then(|()| self.put_info());
        let settled = self.settle_incomplete(header)?;
        info.map(|_| settled)
    }

    /// Gives core and key the names of what is left of a dump.
    pub(super) fn settle_incomplete(&self, header: &HeaderSeen) -> Result<Settled, StoreError> {
        let CoreName { kind, suffix } = self.core_name(header);
        // A commit that failed late has renamed them before.
        let core = self
            .settle("vmcore", PARTIAL, kind, INCOMPLETE)
            .or_else(|_| self.settle(kind, suffix, kind, INCOMPLETE));
        let key = self.key.get().map(|_| {
            let partial = self.settle("key", PARTIAL, "key", INCOMPLETE);
            partial.or_else(|_| self.settle("key", "", "key", INCOMPLETE))
        });
        Ok(Settled { core: core?, key: key.transpose()?, info: self.name("info", ""), complete: false })
    }

    /// Puts a manifest, as `write` writes it, beside the dump.
    pub(super) fn put_manifest(
        &self,
        complete: bool,
        write: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<PathBuf> {
        let (name, aside) = (self.name("manifest", ".json"), self.name("manifest", ".json.partial"));
        self.directory.remove(&aside)?;
        let file = self.directory.create_new(&aside, PRIVATE)?;
        let put =
            write(&file).and_then(|()| file.sync_all()).and_then(|()| self.directory.rename(&aside, &name));
        if let Err(error) = put {
            let _ = self.directory.remove(&aside);
            return Err(error);
        }
        if complete {
            self.link_last("manifest", ".json", &name);
        }
        self.directory.sync()?;
        Ok(self.directory.path_of(&name))
    }

    /// What an operation on one of the files failed with.
    pub(super) fn failed<'a>(
        &'a self,
        doing: &'static str,
        kind: &'a str,
        suffix: &'a str,
    ) -> impl FnOnce(io::Error) -> StoreError + 'a {
        move |source| StoreError::File { doing, path: self.path_of(kind, suffix), source }
    }

    pub(super) fn name(&self, kind: &str, suffix: &str) -> String {
        format!("{kind}.{}.{}{suffix}", self.host, self.index)
    }

    fn path_of(&self, kind: &str, suffix: &str) -> PathBuf {
        self.directory.path_of(&self.name(kind, suffix))
    }

    fn made_key(&self) -> io::Result<&File> {
        if let Some(key) = self.key.get() {
            return Ok(key);
        }
        let made = self.directory.create_new(&self.name("key", PARTIAL), READ_ONLY)?;
        Ok(self.key.get_or_init(|| made))
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
    ) -> Result<String, StoreError> {
        let (from, to) = (self.name(kind, suffix), self.name(final_kind, final_suffix));
        self.directory.rename_new(&from, &to).map_err(self.failed("renaming", kind, suffix))?;
        Ok(to)
    }

    /// A dump is complete without such links too; netdumpd also goes on when it cannot make them.
    fn link_last(&self, kind: &str, suffix: &str, target: &str) {
        if let Err(error) = self.directory.link(&format!("{kind}.{}.last{suffix}", self.host), target) {
            tracing::debug!(kind, %error, "link to the last dump not made");
        }
    }

    /// Puts the text written aside in the place of the one that says that the dump is being received.
    fn put_info(&self) -> Result<String, StoreError> {
        match self.directory.rename(&self.name("info", PARTIAL), &self.name("info", "")) {
            // A commit that failed late has done it before.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(self.failed("renaming", "info", PARTIAL))?,
        }
        Ok(self.name("info", ""))
    }
}

/// The names of a dump's files when it has ended.
#[derive(Debug, Clone)]
pub(super) struct Settled {
    pub(super) core: String,
    pub(super) key: Option<String>,
    pub(super) info: String,
    pub(super) complete: bool,
}

/// The parts of a core's name around host and number.
struct CoreName {
    kind: &'static str,
    suffix: &'static str,
}

/// The files of a dump of which nothing came, but for the info file that claims its number.
fn partial_names(host: &str, index: u32) -> [String; 2] {
    ["vmcore", "info"].map(|kind| format!("{kind}.{host}.{index}{PARTIAL}"))
}

fn remove_all(directory: &Directory, host: &str, index: u32) {
    for name in partial_names(host, index).iter().chain([&format!("info.{host}.{index}")]) {
        let _ = directory.remove(name);
    }
}

/// Writes pieces in a row, in one go where the system takes them all.
fn write_all(file: &File, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
    let position = |at: u64| i64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
    let mut written = loop {
        match pwritev(file, pieces, position(offset)?) {
            Err(Errno::EINTR) => {}
            written => break written?,
        }
    };
    // A short write, as before a disk is full: the rest piece by piece, until it all fits or the reason comes.
    let mut at = offset;
    for piece in pieces {
        let rest = piece.get(written.min(piece.len())..).unwrap_or_default();
        written -= piece.len() - rest.len();
        if !rest.is_empty() {
            file.write_all_at(rest, at + (piece.len() - rest.len()) as u64)?;
        }
        at += piece.len() as u64;
    }
    Ok(())
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
