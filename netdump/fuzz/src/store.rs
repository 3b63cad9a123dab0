//! A store that watches what a receiver does with it: only bytes that the dump's own client has sent may come, in the
//! order of calls that [`OpenDump`] promises, and it fails when it is told to. It outlives its receiver.

use std::cell::{Cell, RefCell};
use std::io::IoSlice;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use netdump::receiver::store::Commit;
use netdump::receiver::{
    DumpStore, DumpSummary, Ending, HeaderSeen, NewDump, OpenDump, Restored, SessionId, StoreError,
};
use netdump::vmcore::kdh::KDH_LEN;
use netdump::wire::MessageKind;

/// A message that a dump's client has sent to its session.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What it carries.
    pub kind: MessageKind,
    /// Its number.
    pub sequence: u32,
    /// Where its payload belongs.
    pub offset: u64,
    /// The payload.
    pub payload: Vec<u8>,
}

/// What became of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is being written.
    Open,
    /// It is whole and stored.
    Committed,
    /// It is kept as incomplete.
    Abandoned,
    /// It is left to the next receiver.
    Suspended,
    /// It is forgotten.
    Discarded,
    /// Its receiver has died, and it cannot go on.
    Lost,
}

/// What is known of one dump.
#[derive(Debug)]
pub struct Record {
    /// Who asked for it.
    pub request: NewDump,
    /// What was delivered and not refused.
    pub deliveries: Vec<Delivery>,
    /// What was written of the core.
    pub core: Vec<Range<u64>>,
    /// What was written of the key.
    pub key: Vec<Range<u64>>,
    /// The headers taken.
    pub headers: Vec<HeaderSeen>,
    /// How it ended.
    pub fate: Fate,
}

/// When the store fails.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Most bytes of a core.
    pub limit: u64,
    /// Whether no dump can be begun.
    pub create: bool,
    /// Whether nothing can be written.
    pub write: bool,
    /// Whether no header can be written.
    pub header: bool,
    /// Whether no dump can be committed.
    pub commit: bool,
    /// How often a commit is not done yet.
    pub pending: u8,
}

/// The store; its clones are one.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Every dump, in the order in which they were begun.
    pub records: Rc<RefCell<Vec<Record>>>,
    /// Which of them each session of the present receiver writes, by the session's number.
    pub sessions: Rc<RefCell<Vec<usize>>>,
    /// When it fails.
    pub faults: Rc<Cell<Faults>>,
}

/// A dump in it.
#[derive(Debug)]
pub struct WatchedDump {
    store: Watched,
    number: usize,
    pending: u8,
}

impl DumpStore for Watched {
    type Dump = WatchedDump;
    type Stored = usize;

    fn create(&mut self, request: &NewDump) -> Result<WatchedDump, StoreError> {
        fail(self.faults.get().create)?;
        let mut records = self.records.borrow_mut();
        records.push(Record {
            request: request.clone(),
            deliveries: Vec::new(),
            core: Vec::new(),
            key: Vec::new(),
            headers: Vec::new(),
            fate: Fate::Open,
        });
        self.sessions.borrow_mut().push(records.len() - 1);
        Ok(self.dump(records.len() - 1))
    }

    /// Those that a client can ask for by name. What was written of them is there.
    fn unfinished(&mut self) -> Vec<Restored<WatchedDump>> {
        let mut unfinished = Vec::new();
        self.sessions.borrow_mut().clear();
        for (number, record) in self.records.borrow_mut().iter_mut().enumerate() {
            match record.fate {
                Fate::Open | Fate::Suspended if record.request.dump_id.is_some() => record.fate = Fate::Open,
                Fate::Open => {
                    record.fate = Fate::Lost;
                    continue;
                }
                _ => continue,
            }
            self.sessions.borrow_mut().push(number);
            unfinished.push(Restored {
                request: record.request.clone(),
                dump: self.dump(number),
                received: joined(&record.core),
                key: joined(&record.key),
                header: record.headers.last().cloned().unwrap_or_default(),
                elapsed: Duration::from_secs(1),
            });
        }
        unfinished
    }
}

impl Watched {
    /// Does something with the dump that a session of the present receiver writes.
    pub fn with_session<T>(&self, session: SessionId, work: impl FnOnce(&mut Record) -> T) -> T {
        let number = self.sessions.borrow()[session.number() as usize];
        work(&mut self.records.borrow_mut()[number])
    }

    fn dump(&self, number: usize) -> WatchedDump {
        WatchedDump { store: self.clone(), number, pending: self.faults.get().pending }
    }
}

impl WatchedDump {
    fn with<T>(&self, work: impl FnOnce(&mut Record, Faults) -> T) -> T {
        let record = &mut self.store.records.borrow_mut()[self.number];
        assert_eq!(record.fate, Fate::Open, "dump {} has ended", self.number);
        work(record, self.store.faults.get())
    }
}

impl OpenDump for WatchedDump {
    type Stored = usize;

    fn write_at(&mut self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), StoreError> {
        assert!((1..=1024).contains(&pieces.len()) && pieces.iter().all(|piece| !piece.is_empty()));
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        let end = offset.checked_add(bytes.len() as u64).expect("it fits into an i64");
        assert!(i64::try_from(end).is_ok());
        self.with(|record, faults| {
            record.expect_delivered(MessageKind::Vmcore, offset, &bytes);
            fail(faults.write || end > faults.limit)?;
            record.core.push(offset..end);
            Ok(())
        })
    }

    fn key_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.with(|record, faults| {
            record.expect_delivered(MessageKind::EkcdKey, offset, bytes);
            fail(faults.write)?;
            // A message without bytes is acknowledged, and changes nothing.
            let range = offset..offset + bytes.len() as u64;
            record.key.extend(Some(range).filter(|range| !range.is_empty()));
            Ok(())
        })
    }

    fn header(&mut self, header: &HeaderSeen) -> Result<(), StoreError> {
        self.with(|record, faults| {
            let is_sent = record.deliveries.iter().any(|delivery| delivery.header().as_ref() == Some(header));
            assert!(is_sent, "nobody has sent that header");
            fail(faults.header)?;
            record.headers.push(header.clone());
            Ok(())
        })
    }

    fn commit(&mut self, summary: &DumpSummary) -> Result<Commit<usize>, StoreError> {
        self.with(|record, _| {
            record.expect_summary(summary);
            record.expect_whole(summary);
        });
        if self.pending > 0 {
            self.pending -= 1;
            return Ok(Commit::Pending);
        }
        self.with(|record, faults| {
            fail(faults.commit)?;
            record.fate = Fate::Committed;
            Ok(Commit::Done(self.number))
        })
    }

    fn abandon(&mut self, summary: &DumpSummary, ending: &Ending) -> Result<usize, StoreError> {
        assert!(!ending.is_complete());
        self.with(|record, faults| {
            record.expect_summary(summary);
            record.fate = Fate::Abandoned;
            fail(faults.header)?;
            Ok(self.number)
        })
    }

    fn suspend(&mut self, summary: &DumpSummary) {
        self.with(|record, _| {
            record.expect_summary(summary);
            record.fate = Fate::Suspended;
        });
    }

    fn discard(&mut self) {
        self.with(|record, _| {
            assert!(!record.has_anything());
            record.fate = Fate::Discarded;
        });
    }
}

impl Delivery {
    /// What a KDH says.
    fn header(&self) -> Option<HeaderSeen> {
        let bytes = self.payload.first_chunk::<KDH_LEN>().filter(|_| self.kind == MessageKind::Kdh)?;
        Some(HeaderSeen::judge(bytes))
    }

    fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.payload.len() as u64)
    }
}

impl Record {
    /// Whether this message's bytes are stored.
    pub fn has_stored(&self, delivery: &Delivery) -> bool {
        match delivery.kind {
            MessageKind::Herald => true,
            MessageKind::Vmcore => holds(&self.core, delivery.range()),
            MessageKind::EkcdKey => holds(&self.key, delivery.range()),
            MessageKind::Kdh => delivery.header().is_some_and(|header| self.headers.contains(&header)),
            MessageKind::Finished => self.fate == Fate::Committed,
        }
    }

    /// Whether anything is stored.
    pub fn has_anything(&self) -> bool {
        !self.core.is_empty() || !self.key.is_empty() || !self.headers.is_empty()
    }

    /// Core bytes written, each counted once.
    pub fn bytes(&self) -> u64 {
        joined(&self.core).iter().map(|range| range.end - range.start).sum()
    }

    /// Every byte is one that the client has sent for its place.
    fn expect_delivered(&self, kind: MessageKind, offset: u64, bytes: &[u8]) {
        let mut is_known = vec![false; bytes.len()];
        let end = offset + bytes.len() as u64;
        for delivery in self.deliveries.iter().filter(|delivery| delivery.kind == kind) {
            let common = delivery.range().start.max(offset)..delivery.range().end.min(end);
            for at in common {
                let index = (at - offset) as usize;
                is_known[index] |= delivery.payload[(at - delivery.offset) as usize] == bytes[index];
            }
        }
        assert!(is_known.iter().all(|known| *known), "strange bytes at {offset}..{end}");
    }

    /// The summary says what was written.
    fn expect_summary(&self, summary: &DumpSummary) {
        let stored = joined(&self.core);
        let end = stored.last().map_or(0, |range| range.end);
        assert_eq!((summary.bytes, summary.end), (self.bytes(), end));
        assert_eq!((summary.peer.ip(), summary.local), (self.request.peer.ip(), self.request.local));
        assert_eq!(summary.dump_id, self.request.dump_id);
        assert_eq!(self.headers.last().unwrap_or(&HeaderSeen::Missing), &summary.header);
        let within = |range: &Range<u64>| range.start.min(summary.length)..range.end.min(summary.length);
        let kept = stored.iter().map(within).map(|range| range.end - range.start).sum::<u64>();
        assert_eq!(summary.gaps.bytes, summary.length - kept);
        for gap in &summary.gaps.listed {
            assert!(gap.start < gap.end && gap.end <= summary.length);
            assert!(stored.iter().all(|range| range.end <= gap.start || gap.end <= range.start));
        }
    }

    /// Only a client that names its dumps leaves zeros out, and of a packed core nobody can.
    fn expect_whole(&self, summary: &DumpSummary) {
        let announced = summary.header.valid().map_or(0, |header| header.dump_length);
        if self.request.dump_id.is_none() || summary.header.is_stream() {
            assert!(summary.gaps.bytes == 0 && summary.length >= announced, "a hole is taken for zeros");
        }
    }
}

/// Whether all bytes of a range are written.
fn holds(written: &[Range<u64>], range: Range<u64>) -> bool {
    range.is_empty() || joined(written).iter().any(|one| one.start <= range.start && range.end <= one.end)
}

/// The same ranges, ascending, none touching another.
fn joined(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut ranges: Vec<_> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

fn fail(fails: bool) -> Result<(), StoreError> {
    let source = || std::io::ErrorKind::StorageFull.into();
    if fails {
        Err(StoreError::File { doing: "writing", path: PathBuf::new(), source: source() })
    } else {
        Ok(())
    }
}
