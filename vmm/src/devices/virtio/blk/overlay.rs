//! A disk's temporary file for writes: the original stays as it is. The file is sparse, has no name, and is gone with the
//! process; it is where `TMPDIR` says, else in `/tmp`.
//!
//! What was written is remembered by the sector. Every request is whole sectors, so nothing has ever to be copied from the
//! original. Memory for it goes with what is written, not with the disk's length.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;

use super::disk::SECTOR;
use super::file::HostFile;

/// Sectors of a group: 2 MiB.
const GROUP: u64 = 4096;
const WORDS: usize = 64;

/// What takes a disk's writes.
#[derive(Debug)]
pub(super) struct Overlay {
    pub(super) file: HostFile,
    written: Mutex<Written>,
}

/// Which sectors were written: groups that none was written of are absent.
#[derive(Debug, Default)]
struct Written(BTreeMap<u64, Group>);

#[derive(Debug)]
enum Group {
    All,
    Some(Box<[u64; WORDS]>),
}

/// Bytes in a row that are all from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Whether they were written.
    pub(super) written: bool,
    /// How many they are.
    pub(super) len: u64,
}

impl Overlay {
    /// An overlay for a disk of `len` bytes, of which nothing is written yet.
    pub(super) fn new(len: u64) -> io::Result<Self> {
        let file = tempfile::tempfile()?;
        file.set_len(len)?;
        Ok(Self { file: HostFile(file), written: Mutex::default() })
    }

    /// What the bytes from `offset` on are, up to `most` of them. Where `offset` is inside a sector, so is the first part.
    pub(super) fn run(&self, offset: u64, most: u64) -> Run {
        let written = self.written();
        let (first, end) = (offset / SECTOR, offset.saturating_add(most).div_ceil(SECTOR));
        let is = written.has(first);
        let mut sector = first + 1;
        while sector < end && written.has(sector) == is {
            sector += 1;
        }
        Run { written: is, len: (sector * SECTOR - offset).min(most) }
    }

    /// Writes guest memory, whole sectors, to `offset` and behind.
    pub(super) fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.file.write(offset, from)?;
        let len: usize = from.iter().map(VolatileSlice::len).sum();
        self.written().add(offset, len as u64);
        Ok(())
    }

    /// Makes whole sectors zero.
    pub(super) fn zero(&self, offset: u64, len: u64, stopping: &AtomicBool) -> io::Result<()> {
        self.file.zero(offset, len, true, stopping)?;
        self.written().add(offset, len);
        Ok(())
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Written {
    fn has(&self, sector: u64) -> bool {
        match self.0.get(&(sector / GROUP)) {
            None => false,
            Some(Group::All) => true,
            Some(Group::Some(words)) => {
                let (word, bit) = place(sector);
                words[word] & bit != 0
            }
        }
    }

    fn add(&mut self, offset: u64, len: u64) {
        let (mut sector, end) = (offset / SECTOR, (offset + len) / SECTOR);
        while sector < end {
            let group_end = (sector / GROUP + 1) * GROUP;
            let stop = end.min(group_end);
            let group = self.0.entry(sector / GROUP).or_insert_with(|| Group::Some(Box::new([0; WORDS])));
            if let Group::Some(words) = group {
                for sector in sector..stop {
                    let (word, bit) = place(sector);
                    words[word] |= bit;
                }
                if words.iter().all(|&word| word == u64::MAX) {
                    *group = Group::All;
                }
            }
            sector = stop;
        }
    }
}

/// Where in its group a sector is: a word of it, and a bit.
fn place(sector: u64) -> (usize, u64) {
    let inside = sector % GROUP;
    (usize::try_from(inside / 64).expect("less than 64"), 1 << (inside % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_told_from_what_was_not_by_the_sector() {
        let mut written = Written::default();
        for (sector, count) in [(1, 2), (GROUP - 1, 2), (2 * GROUP, GROUP), (5 * GROUP - 1, 1)] {
            written.add(sector * SECTOR, count * SECTOR);
        }
        let expected = |sector| {
            matches!(sector, 1 | 2)
                || (GROUP - 1..=GROUP).contains(&sector)
                || (2 * GROUP..3 * GROUP).contains(&sector)
                || sector == 5 * GROUP - 1
        };
        assert!((0..6 * GROUP).all(|sector| written.has(sector) == expected(sector)));
        assert!(matches!(written.0[&2], Group::All) && written.0.len() == 4);
        let overlay = Overlay { file: HostFile(tempfile::tempfile().unwrap()), written: Mutex::new(written) };
        let run = |offset, most| {
            let Run { written, len } = overlay.run(offset, most);
            (written, len)
        };
        assert_eq!([run(0, 9999), run(512, 9999), run(600, 9999)], [(false, 512), (true, 1024), (true, 936)]);
        assert_eq!(run(2 * GROUP * SECTOR, u64::from(u32::MAX)), (true, GROUP * SECTOR));
        assert_eq!(run(2048, 100), (false, 100));
    }
}
