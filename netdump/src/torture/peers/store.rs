//! The disk under our receiver: it outlives the receiver, has so much room, and takes its time.

use std::cell::RefCell;
use std::io::IoSlice;
use std::rc::Rc;

use crate::receiver::store::{Commit, DumpStore, MemoryDump, MemoryStore, NewDump, OpenDump, StoreError};
use crate::receiver::summary::{DumpSummary, Ending, HeaderSeen};

/// What a disk is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskKind {
    /// Most bytes of one core.
    pub room: u64,
    /// How often a commit says that it is not done yet.
    pub slow: u32,
}

impl Default for DiskKind {
    /// Room for every core of a simulation.
    fn default() -> Self {
        Self { room: 1 << 30, slow: 0 }
    }
}

/// One dump on a disk.
#[derive(Debug, Clone, Default)]
pub struct StoredFile {
    /// The core.
    pub core: Vec<u8>,
    /// Whether it was committed.
    pub is_complete: bool,
}

/// A disk of which all who hold it see the same files.
#[derive(Debug, Clone)]
pub struct SimStore {
    kind: DiskKind,
    memory: MemoryStore,
    files: Rc<RefCell<Vec<StoredFile>>>,
}

/// A dump being written to it.
#[derive(Debug)]
pub struct SimDump {
    memory: MemoryDump,
    files: Rc<RefCell<Vec<StoredFile>>>,
    index: usize,
    slow: u32,
}

impl SimStore {
    /// An empty disk.
    pub fn new(kind: DiskKind) -> Self {
        Self { kind, memory: MemoryStore::with_limit(kind.room), files: Rc::default() }
    }

    /// Takes every dump from it, those that are still being written too.
    pub fn take_files(&self) -> Vec<StoredFile> {
        self.files.take()
    }
}

impl DumpStore for SimStore {
    type Dump = SimDump;
    type Stored = ();

    fn create(&mut self, request: &NewDump) -> Result<SimDump, StoreError> {
        let memory = self.memory.create(request)?;
        let mut files = self.files.borrow_mut();
        files.push(StoredFile::default());
        Ok(SimDump { memory, files: Rc::clone(&self.files), index: files.len() - 1, slow: self.kind.slow })
    }
}

impl SimDump {
    /// What was written is on the disk at once, as the page cache is for a program that dies.
    fn with_file<T>(&mut self, change: impl FnOnce(&mut MemoryDump) -> T) -> T {
        let mut files = self.files.borrow_mut();
        let Some(file) = files.get_mut(self.index) else { return change(&mut self.memory) };
        std::mem::swap(&mut self.memory.core, &mut file.core);
        let done = change(&mut self.memory);
        std::mem::swap(&mut self.memory.core, &mut file.core);
        done
    }
}

impl OpenDump for SimDump {
    type Stored = ();

    fn write_at(&mut self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), StoreError> {
        self.with_file(|dump| dump.write_at(offset, pieces))
    }

    fn key_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.memory.key_at(offset, bytes)
    }

    fn header(&mut self, header: &HeaderSeen) -> Result<(), StoreError> {
        self.memory.header(header)
    }

    fn commit(&mut self, summary: &DumpSummary) -> Result<Commit<()>, StoreError> {
        if self.slow > 0 {
            self.slow -= 1;
            return Ok(Commit::Pending);
        }
        let Commit::Done(committed) = self.with_file(|dump| dump.commit(summary))? else {
            return Ok(Commit::Pending);
        };
        if let Some(file) = self.files.borrow_mut().get_mut(self.index) {
            *file = StoredFile { core: committed.core, is_complete: true };
        }
        Ok(Commit::Done(()))
    }

    fn abandon(&mut self, _summary: &DumpSummary, _ending: &Ending) -> Result<(), StoreError> {
        Ok(())
    }
}
