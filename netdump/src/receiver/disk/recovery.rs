//! What becomes of dumps whose receiver died: they go on, or are kept as incomplete.

use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::stat::{Mode, fchmod};

use super::directory::Directory;
use super::dump::{DiskDump, Origin};
use super::files::{Files, INCOMPLETE, PARTIAL, READ_ONLY, Settled};
use super::journal::{Contents, Head, Journal, NotTaken};
use super::{DiskStore, PRIVATE, StoredDump, tree};
use crate::receiver::info::InfoText;
use crate::receiver::path::DumpPath;
use crate::receiver::store::{NewDump, Restored, StoreError};
use crate::receiver::summary::{Cause, DumpSummary, Ending, HeaderSeen};
use crate::vmcore::InfoFile;

/// What a core or a key can be called, behind HOST and N.
const SUFFIXES: [&str; 5] = [PARTIAL, "", ".gz", ".zst", INCOMPLETE];
const CORES: [&str; 2] = ["vmcore", "vmcore_encrypted"];
const KEYS: [&str; 1] = ["key"];

/// A dump of a dead receiver that has ended with this one's start.
#[derive(Debug)]
pub struct Leftover {
    /// How: complete when its receiver died after it had committed the dump.
    pub ending: Ending,
    /// What came, as its journal says. Messages were not counted.
    pub summary: DumpSummary,
    /// Where it is, or why it could not be kept.
    pub stored: Result<StoredDump, StoreError>,
}

impl DiskStore {
    /// Looks for dumps that a receiver left when it died. Those that can go on are kept for
    /// [`DumpStore::unfinished`](crate::receiver::DumpStore::unfinished) if `resume` says so. All others end here.
    ///
    /// A dump whose receiver lives is not touched. A dump cannot go on when its client has no name for it, or when the
    /// machine was started anew: what was acknowledged may then be lost.
    pub fn take_over(&mut self, resume: bool) -> Vec<Leftover> {
        let mut ended = Vec::new();
        for (directory, name) in tree::journals(&self.root) {
            let (journal, contents) = match Journal::take_over(&directory, &name) {
                Ok(taken) => taken,
                Err(NotTaken::Alive) => continue,
                Err(NotTaken::Unusable(error)) => {
                    let path = directory.path_of(&name);
                    tracing::warn!(path = %path.display(), %error, "journal not usable; its dump is left as it is");
                    continue;
                }
            };
            let host = contents.head.host.clone();
            match Files::reopen(directory, host, contents.head.index) {
                Ok(Ok(files)) => match self.settle(files, journal, contents, resume) {
                    Fate::GoesOn(restored) => self.unfinished.push(*restored),
                    Fate::Ended(leftover) => ended.push(*leftover),
                },
                // Somebody has removed the core.
                Ok(Err(directory)) => journal.remove(&directory),
                Err(error) => {
                    tracing::warn!(journal = name, %error, "the dump of a dead receiver is left as it is")
                }
            }
        }
        ended
    }

    fn settle(&self, files: Files, journal: Journal, contents: Contents, resume: bool) -> Fate {
        let Contents { head, header } = contents;
        let summary = summary(&head, &header, &journal);
        let text = InfoText { host: head.host.clone(), address: *head.peer.ip(), notes: head.notes.clone() };
        let origin = Origin { path: head.path.clone(), began: began(&head) };
        let received = journal.core().iter().collect();
        let key = journal.key().iter().collect();
        let is_open = files.directory.holds(&files.name("info", PARTIAL));
        let is_complete = !is_open && files.says_complete();
        let is_of_this_boot = head.is_of_this_boot();
        let mut dump = DiskDump::new(files, text, journal, origin, self.shared.clone());
        if is_complete {
            let stored = dump.take_up_proof(&summary);
            return Fate::Ended(Box::new(Leftover { ending: Ending::Complete, summary, stored }));
        }
        let unsettled = if is_open { dump.unsettle() } else { Ok(()) };
        if resume && is_open && is_of_this_boot && unsettled.is_ok() && head.dump_id.is_some() {
            let elapsed = summary.elapsed;
            let request = request(&head);
            return Fate::GoesOn(Box::new(Restored { request, dump, received, key, header, elapsed }));
        }
        if !is_of_this_boot {
            dump.note("the machine was started anew since: parts that came may be missing");
        }
        let ending = Ending::Incomplete(Cause::ReceiverDied);
        let stored =
            if is_open { dump.give_up(&summary, &ending) } else { dump.go_on_giving_up(&summary, &ending) };
        Fate::Ended(Box::new(Leftover { ending, summary, stored }))
    }
}

enum Fate {
    GoesOn(Box<Restored<DiskDump>>),
    Ended(Box<Leftover>),
}

impl Files {
    /// Opens the files that a dead receiver has left, whatever names it gave them last. Without a core the directory is
    /// handed back.
    fn reopen(directory: Directory, host: String, index: u32) -> io::Result<Result<Self, Directory>> {
        let Some(core) = existing(&directory, &host, index, &CORES) else { return Ok(Err(directory)) };
        let core = directory.open_for_update(&core)?;
        let key = match existing(&directory, &host, index, &KEYS) {
            Some(name) => OnceLock::from(open_key(&directory, &name)?),
            None => OnceLock::new(),
        };
        let name = format!("info.{host}.{index}");
        let info = directory.open_for_update(&name)?;
        let info_aside = match directory.open_for_update(&format!("{name}{PARTIAL}")) {
            // It has its final name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => info.try_clone()?,
            opened => opened?,
        };
        Ok(Ok(Self { directory, host, index, core, key, info, info_aside }))
    }

    /// Whether the info file says that the dump is complete; then everything has its final name.
    fn says_complete(&self) -> bool {
        let path = self.directory.fd_path(Path::new(&self.name("info", "")));
        InfoFile::read(&path).is_ok_and(|info| info.is_complete())
    }

    /// Gives core and key the names back that they had before a commit began.
    pub(super) fn unsettle(&self) -> io::Result<()> {
        for (partial, kinds) in [("vmcore", &CORES[..]), ("key", &KEYS)] {
            let partial = self.name(partial, PARTIAL);
            match existing(&self.directory, &self.host, self.index, kinds) {
                Some(name) if name != partial => self.directory.rename_new(&name, &partial)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The names of a dump that has ended.
    pub(super) fn settled(&self, complete: bool) -> Option<Settled> {
        let core = existing(&self.directory, &self.host, self.index, &CORES)?;
        let key = existing(&self.directory, &self.host, self.index, &KEYS);
        Some(Settled { core, key, info: self.name("info", ""), complete })
    }
}

/// The file of one of these kinds that is there.
fn existing(directory: &Directory, host: &str, index: u32, kinds: &[&str]) -> Option<String> {
    let names = kinds.iter().flat_map(|kind| SUFFIXES.map(|suffix| format!("{kind}.{host}.{index}{suffix}")));
    names.into_iter().find(|name| directory.holds(name))
}

/// A key may not be written to, not even by its owner; who has made it may change that.
fn open_key(directory: &Directory, name: &str) -> io::Result<std::fs::File> {
    match directory.open_for_update(name) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        opened => return opened,
    }
    let handle = directory.open_file(name)?;
    fchmod(&handle, Mode::from_bits_truncate(PRIVATE))?;
    let opened = directory.open_for_update(name);
    fchmod(&handle, Mode::from_bits_truncate(READ_ONLY))?;
    opened
}

fn began(head: &Head) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(head.began)).unwrap_or(UNIX_EPOCH)
}

fn request(head: &Head) -> NewDump {
    let path =
        head.path.as_ref().map_or(Ok(None), |path| DumpPath::from_herald(&[path.as_bytes(), &[0]].concat()));
    NewDump { peer: head.peer, local: head.local, path, dump_id: head.dump_id }
}

/// What a journal knows of a dump.
fn summary(head: &Head, header: &HeaderSeen, journal: &Journal) -> DumpSummary {
    let received = journal.core();
    let length = header.file_length(received.end());
    let last = journal.modified().unwrap_or_else(|| began(head));
    DumpSummary {
        peer: head.peer,
        local: head.local,
        dump_id: head.dump_id,
        resumed: 0,
        header: header.clone(),
        bytes: received.bytes(),
        end: received.end(),
        length,
        gaps: received.gaps(length),
        messages: 0,
        repeated: 0,
        ignored: 0,
        elapsed: last.duration_since(began(head)).unwrap_or_default(),
    }
}
