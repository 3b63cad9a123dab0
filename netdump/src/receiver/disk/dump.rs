//! One dump on disk while it is received.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::SystemTime;

use super::budget::Spending;
use super::files::{Files, INCOMPLETE, Settled};
use super::journal::{Journal, Object};
use super::proof::{Job, Promise};
use super::writeback::Unflushed;
use super::{Shared, StoredDump};
use crate::receiver::info::InfoText;
use crate::receiver::store::{Commit, OpenDump, StoreError};
use crate::receiver::summary::{DumpSummary, Ending, HeaderSeen};

/// One dump on disk.
#[derive(Debug)]
pub struct DiskDump {
    files: Arc<Files>,
    text: InfoText,
    /// Goes to the proof when the dump has ended.
    journal: Option<Journal>,
    origin: Origin,
    shared: Arc<Shared>,
    spending: Spending,
    unflushed: Unflushed,
    /// The commit under way. It has a thread of its own: fsync of a large core takes longer than the other clients'
    /// patience.
    commit: Option<JoinHandle<Result<Settled, StoreError>>>,
}

/// What the manifest says of a dump's beginning.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// The directory that the client asked for and got.
    pub(super) path: Option<String>,
    pub(super) began: SystemTime,
}

impl DiskDump {
    pub(super) fn new(
        files: Files,
        text: InfoText,
        journal: Journal,
        origin: Origin,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            files: Arc::new(files),
            text,
            journal: Some(journal),
            origin,
            shared,
            spending: Spending::default(),
            unflushed: Unflushed::default(),
            commit: None,
        }
    }

    /// Adds a line to what the info file says.
    pub(super) fn note(&mut self, note: &str) {
        self.text.notes.push(note.to_owned());
    }

    /// Of a dump whose commit did not come to its end.
    pub(super) fn unsettle(&self) -> io::Result<()> {
        self.files.unsettle()
    }

    /// Keeps what came.
    pub(super) fn give_up(
        &mut self,
        summary: &DumpSummary,
        ending: &Ending,
    ) -> Result<StoredDump, StoreError> {
        let settled = self.files.abandon(&self.text.ended(summary, ending), &summary.header)?;
        Ok(self.ended(settled, summary, ending))
    }

    /// Keeps what came of a dump whose info file has been written before.
    pub(super) fn go_on_giving_up(
        &mut self,
        summary: &DumpSummary,
        ending: &Ending,
    ) -> Result<StoredDump, StoreError> {
        let settled = match self.files.settled(false).filter(|settled| settled.core.ends_with(INCOMPLETE)) {
            Some(settled) => settled,
            None => self.files.settle_incomplete(&summary.header)?,
        };
        Ok(self.ended(settled, summary, ending))
    }

    /// Of a dump that was committed and lacks only its manifest.
    pub(super) fn take_up_proof(&mut self, summary: &DumpSummary) -> Result<StoredDump, StoreError> {
        let missing = || self.files.failed("looking for", "vmcore", "")(io::ErrorKind::NotFound.into());
        let settled = self.files.settled(true).ok_or_else(missing)?;
        Ok(self.ended(settled, summary, &Ending::Complete))
    }

    /// Orders the manifest of a dump that has ended, and says where all is.
    fn ended(&mut self, names: Settled, summary: &DumpSummary, ending: &Ending) -> StoredDump {
        let promise = Promise::default();
        let path_of = |name: &String| self.files.directory.path_of(name);
        let stored = StoredDump {
            core: path_of(&names.core),
            info: path_of(&names.info),
            key: names.key.as_ref().map(path_of),
            complete: names.complete,
            proof: promise.proof(),
        };
        if let Some(journal) = self.journal.take() {
            self.shared.prover.order(Job {
                files: Arc::clone(&self.files),
                names,
                summary: summary.clone(),
                ending: ending.clone(),
                origin: self.origin.clone(),
                ended: SystemTime::now(),
                journal,
                promise,
            });
        }
        stored
    }

    /// Runs `write` for bytes that then are noted in the journal.
    fn journalled(
        &mut self,
        object: Object,
        offset: u64,
        len: usize,
        write: impl FnOnce(&Files) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Self { files, journal: Some(journal), shared, spending, .. } = self else {
            return Err(self.files.failed("writing to", "vmcore", "")(io::Error::other("it has ended")));
        };
        let range = offset..offset.saturating_add(len as u64);
        let new = journal.expect(object, &range);
        if new > 0 && object == Object::Core {
            shared.budget.admit_bytes(spending, &files.core, journal.core().bytes(), new)?;
        }
        write(files)?;
        if new > 0 {
            journal
                .stored(&files.directory, object, range)
                .map_err(files.failed("writing", "journal", ""))?;
        }
        Ok(())
    }
}

impl OpenDump for DiskDump {
    type Stored = StoredDump;

    fn write_at(&mut self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), StoreError> {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        self.journalled(Object::Core, offset, len, |files| files.write_core(offset, pieces))?;
        self.unflushed.add(&(offset..offset + len as u64), &self.files.core, &self.shared.write_back);
        Ok(())
    }

    fn key_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.journalled(Object::Key, offset, bytes.len(), |files| files.write_key(offset, bytes))
    }

    fn header(&mut self, header: &HeaderSeen) -> Result<(), StoreError> {
        self.files.write_info(&self.text.receiving(header))?;
        let noted = self.journal.as_ref().map_or(Ok(()), |journal| journal.header(header));
        noted.map_err(self.files.failed("writing", "journal", ""))
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
        let settled = running.join().unwrap_or_else(|_| Err(panicked()))?;
        Ok(Commit::Done(self.ended(settled, summary, &Ending::Complete)))
    }

    fn abandon(&mut self, summary: &DumpSummary, ending: &Ending) -> Result<StoredDump, StoreError> {
        self.give_up(summary, ending)
    }

    fn discard(&mut self) {
        self.files.remove();
        if let Some(journal) = self.journal.take() {
            journal.remove(&self.files.directory);
        }
    }
}
