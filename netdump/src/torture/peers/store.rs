//! The disk under our receiver: it outlives the receiver, has so much room, and takes its time.

use std::cell::RefCell;
use std::io::IoSlice;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use crate::receiver::store::{
    Commit, DumpStore, MemoryDump, MemoryStore, NewDump, OpenDump, Restored, StoreError,
};
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
#[derive(Debug, Clone)]
pub struct StoredFile {
    /// The core.
    pub core: Vec<u8>,
    /// Whether it was committed.
    pub is_complete: bool,
    /// Whether it can go on.
    is_open: bool,
    request: NewDump,
    /// What of core and key was written, ascending.
    received: Vec<Range<u64>>,
    key: Vec<Range<u64>>,
    header: HeaderSeen,
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
        let mut files = self.files.borrow_mut();
        files.push(StoredFile {
            core: Vec::new(),
            is_complete: false,
            is_open: true,
            request: request.clone(),
            received: Vec::new(),
            key: Vec::new(),
            header: HeaderSeen::Missing,
        });
        self.open(files.len() - 1, request)
    }

    fn unfinished(&mut self) -> Vec<Restored<SimDump>> {
        let files = self.files.borrow();
        let open = |file: &StoredFile| file.is_open && file.request.dump_id.is_some();
        let open = files.iter().enumerate().filter(|(_, file)| open(file));
        let restored = open.filter_map(|(index, file)| {
            Some(Restored {
                request: file.request.clone(),
                dump: self.open(index, &file.request).ok()?,
                received: file.received.clone(),
                key: file.key.clone(),
                header: file.header.clone(),
                elapsed: Duration::ZERO,
            })
        });
        restored.collect()
    }
}

impl SimStore {
    /// A dump of which the core is in that file.
    fn open(&self, index: usize, request: &NewDump) -> Result<SimDump, StoreError> {
        let memory = self.memory.clone().create(request)?;
        Ok(SimDump { memory, files: Rc::clone(&self.files), index, slow: self.kind.slow })
    }
}

impl SimDump {
    /// What is written is on the disk at once, as the page cache is for a program that dies.
    fn with_file<T>(
        &mut self,
        change: impl FnOnce(&mut MemoryDump, &mut StoredFile) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut files = self.files.borrow_mut();
        // A receiver that is no longer asked for anything may still hold a dump of a disk that was looked at and emptied.
        let full = StoreError::Full { end: 0, limit: 0 };
        let file = files.get_mut(self.index).ok_or(full)?;
        std::mem::swap(&mut self.memory.core, &mut file.core);
        let changed = change(&mut self.memory, file);
        std::mem::swap(&mut self.memory.core, &mut file.core);
        changed
    }
}

impl OpenDump for SimDump {
    type Stored = ();

    fn write_at(&mut self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), StoreError> {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        self.with_file(|dump, file| {
            dump.write_at(offset, pieces)?;
            insert(&mut file.received, offset..offset + len as u64);
            Ok(())
        })
    }

    fn key_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.with_file(|dump, file| {
            dump.key_at(offset, bytes)?;
            insert(&mut file.key, offset..offset + bytes.len() as u64);
            Ok(())
        })
    }

    fn header(&mut self, header: &HeaderSeen) -> Result<(), StoreError> {
        self.with_file(|dump, file| {
            file.header = header.clone();
            dump.header(header)
        })
    }

    fn commit(&mut self, summary: &DumpSummary) -> Result<Commit<()>, StoreError> {
        if self.slow > 0 {
            self.slow -= 1;
            return Ok(Commit::Pending);
        }
        self.with_file(|dump, file| {
            let committed = dump.commit(summary)?;
            if let Commit::Done(committed) = committed {
                dump.core = committed.core;
                (file.is_complete, file.is_open) = (true, false);
                return Ok(Commit::Done(()));
            }
            Ok(Commit::Pending)
        })
    }

    fn abandon(&mut self, _summary: &DumpSummary, _ending: &Ending) -> Result<(), StoreError> {
        self.with_file(|_, file| {
            file.is_open = false;
            Ok(())
        })
    }
}

/// Adds a range to some that ascend and neither overlap nor touch; most often it goes on where the last one ends.
fn insert(ranges: &mut Vec<Range<u64>>, new: Range<u64>) {
    if new.is_empty() {
        return;
    }
    if let Some(last) = ranges.last_mut().filter(|last| last.end == new.start) {
        last.end = new.end;
        return;
    }
    let first = ranges.partition_point(|range| range.end < new.start);
    let behind = ranges.partition_point(|range| range.start <= new.end);
    let start = ranges
        .get(first..behind)
        .and_then(<[_]>::first)
        .map_or(new.start, |range| range.start.min(new.start));
    let end = ranges.get(first..behind).and_then(<[_]>::last).map_or(new.end, |range| range.end.max(new.end));
    ranges.splice(first..behind.max(first), std::iter::once(start..end));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_where_they_meet() {
        let mut ranges = Vec::new();
        for new in [10..20, 20..30, 40..50, 0..5, 30..35, 5..5] {
            insert(&mut ranges, new);
        }
        assert_eq!(ranges, [0..5, 10..35, 40..50]);
        insert(&mut ranges, 5..40);
        assert!(ranges.iter().eq([&(0..50)]));
        insert(&mut ranges, 10..12);
        assert!(ranges.iter().eq([&(0..50)]));
    }
}
