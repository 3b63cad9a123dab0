//! When a store is written to, and when what it took is acknowledged.

use std::io::IoSlice;
use std::sync::Mutex;

use super::*;

/// A store that takes its time, and fails at the end if told so.
#[derive(Debug, Clone)]
struct SlowStore {
    polls: u32,
    fails: bool,
}

impl DumpStore for SlowStore {
    type Dump = Self;
    type Stored = bool;

    fn create(&mut self, _: &NewDump) -> Result<Self, StoreError> {
        Ok(self.clone())
    }
}

impl OpenDump for SlowStore {
    type Stored = bool;

    fn write_at(&mut self, _: u64, _: &[IoSlice<'_>]) -> Result<(), StoreError> {
        Ok(())
    }

    fn key_at(&mut self, _: u64, _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }

    fn header(&mut self, _: &HeaderSeen) -> Result<(), StoreError> {
        Ok(())
    }

    fn commit(&mut self, _: &DumpSummary) -> Result<Commit<bool>, StoreError> {
        if self.polls > 0 {
            self.polls -= 1;
            return Ok(Commit::Pending);
        }
        if self.fails { Err(StoreError::Full { end: 1, limit: 0 }) } else { Ok(Commit::Done(true)) }
    }

    fn abandon(&mut self, _: &DumpSummary, _: &Ending) -> Result<bool, StoreError> {
        Ok(false)
    }
}

#[test]
fn finished_is_acknowledged_only_when_the_commit_is_done() {
    let mut bench = bench_with(ReceiverConfig::default(), SlowStore { polls: 400, fails: false });
    let to = bench.open();
    bench.data(to, 2, 0, b"abc").unwrap();
    assert_eq!(bench.finish(to, 3), Ok(vec![]));
    assert_eq!(bench.wait(1.0), [0_u32; 0]);
    assert_eq!(bench.finish(to, 3), Ok(vec![]));
    assert_eq!(bench.data(to, 2, 0, b"abc"), Ok(vec![2]));
    assert_eq!(bench.herald(PEER), Err(Ignored::LateHerald));
    bench.receiver.shut_down(bench.now);
    assert!(!bench.receiver.is_settled(), "a commit under way is not cut short");
    assert_eq!(bench.wait(1.5), [3]);
    assert!(bench.receiver.is_settled());
    assert!(bench.ends()[0].0.is_complete());
}

#[test]
fn finished_is_not_acknowledged_when_the_commit_fails() {
    let mut bench = bench_with(ReceiverConfig::default(), SlowStore { polls: 3, fails: true });
    let to = bench.open();
    bench.data(to, 2, 0, b"abc").unwrap();
    assert_eq!(bench.finish(to, 3), Ok(vec![]));
    assert_eq!(bench.wait(1.0), [0_u32; 0]);
    assert_eq!(bench.finish(to, 3), Err(Ignored::AfterTheEnd));
    let [(ending, _, stored)] = bench.ends()[..] else { panic!() };
    assert_eq!((ending.is_complete(), stored.as_ref().unwrap()), (false, &false));
}

/// A store that records the writes it was asked for, and fails from the given one on.
#[derive(Debug, Clone)]
struct Recorder {
    writes: Arc<Mutex<Vec<(u64, usize)>>>,
    fails_at: usize,
}

impl DumpStore for Recorder {
    type Dump = Self;
    type Stored = ();

    fn create(&mut self, _: &NewDump) -> Result<Self, StoreError> {
        Ok(self.clone())
    }
}

impl OpenDump for Recorder {
    type Stored = ();

    fn write_at(&mut self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), StoreError> {
        let mut writes = self.writes.lock().unwrap();
        if writes.len() == self.fails_at {
            return Err(StoreError::Full { end: 0, limit: 0 });
        }
        writes.push((offset, pieces.iter().map(|piece| piece.len()).sum()));
        Ok(())
    }

    fn key_at(&mut self, _: u64, _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }

    fn header(&mut self, _: &HeaderSeen) -> Result<(), StoreError> {
        Ok(())
    }

    fn commit(&mut self, _: &DumpSummary) -> Result<Commit<()>, StoreError> {
        Ok(Commit::Done(()))
    }

    fn abandon(&mut self, _: &DumpSummary, _: &Ending) -> Result<(), StoreError> {
        Ok(())
    }
}

#[test]
fn data_in_a_row_is_one_write_and_acknowledged_after_it() {
    let store = Recorder { writes: Arc::default(), fails_at: 3 };
    let writes = Arc::clone(&store.writes);
    let mut bench = bench_with(ReceiverConfig::default(), store);
    let to = bench.open();
    let send = |bench: &mut Bench<Recorder>, offset: u64| {
        let mut bytes = Vec::new();
        let sequence = u32::try_from(offset).unwrap();
        Message { kind: MessageKind::Vmcore, sequence, offset, payload: &[0; 10], aux: 0 }.emit(&mut bytes);
        bench.receiver.handle_datagram(bench.now, to, PEER, &bytes).unwrap();
    };
    [0, 10, 20].into_iter().for_each(|offset| send(&mut bench, offset));
    assert_eq!(*writes.lock().unwrap(), []);
    assert_eq!(bench.drain(), [0, 10, 20]);
    assert_eq!(*writes.lock().unwrap(), [(0, 30)]);
    // A jump ends the row; what follows the failure of its write was not stored and is not acknowledged.
    [40, 50, 70, 90].into_iter().for_each(|offset| send(&mut bench, offset));
    assert_eq!(*writes.lock().unwrap(), [(0, 30), (40, 20), (70, 10)]);
    assert_eq!(bench.drain(), [40, 50, 70]);
    let [(ending, summary, _)] = bench.ends()[..] else { panic!() };
    assert_eq!((ending.is_complete(), summary.bytes, summary.end), (false, 60, 80));
}

#[test]
fn rows_are_cut_where_a_write_becomes_too_long() {
    let store = Recorder { writes: Arc::default(), fails_at: usize::MAX };
    let writes = Arc::clone(&store.writes);
    let mut bench = bench_with(ReceiverConfig::default(), store);
    let to = bench.open();
    for sequence in 0..100 {
        let mut bytes = Vec::new();
        let offset = u64::from(sequence) * 4096;
        Message { kind: MessageKind::Vmcore, sequence, offset, payload: &[0; 4096], aux: 0 }.emit(&mut bytes);
        bench.receiver.handle_datagram(bench.now, to, PEER, &bytes).unwrap();
    }
    assert_eq!(bench.drain().len(), 100);
    assert_eq!(*writes.lock().unwrap(), [(0, 256 * 1024), (256 * 1024, 144 * 1024)]);
}

#[test]
fn what_was_gathered_is_stored_before_the_dump_ends() {
    let mut bench = bench();
    let to = bench.open();
    let mut bytes = Vec::new();
    Message { kind: MessageKind::Vmcore, sequence: 2, offset: 0, payload: b"abc", aux: 0 }.emit(&mut bytes);
    bench.receiver.handle_datagram(bench.now, to, PEER, &bytes).unwrap();
    bench.receiver.shut_down(bench.now);
    assert_eq!(bench.drain(), [2]);
    assert_eq!(bench.only_end().1.core, b"abc");
}
