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
    writes: Writes,
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

type Writes = Arc<Mutex<Vec<(u64, usize)>>>;

fn recorder(fails_at: usize) -> (Bench<Recorder>, Writes) {
    let store = Recorder { writes: Arc::default(), fails_at };
    let writes = Arc::clone(&store.writes);
    (bench_with(ReceiverConfig::default(), store), writes)
}

impl<S: DumpStore> Bench<S> {
    /// Delivers VMCORE messages of `len` bytes at these offsets in one batch, numbered by their offsets. As many as
    /// `trains` says are in one train.
    fn deliver(&mut self, to: Endpoint, offsets: &[u64], len: usize, trains: usize) {
        let trains: Vec<Vec<u8>> = offsets.chunks(trains).map(|offsets| data(offsets, len)).collect();
        let segment = u16::try_from(24 + len).ok();
        let arrived = |bytes| Arrived { to, from: PEER, bytes, segment };
        let batch: Vec<Arrived<'_>> = trains.iter().map(|train| arrived(train)).collect();
        self.receiver.handle_batch(self.now, &batch);
    }
}

fn data(offsets: &[u64], len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &offset in offsets {
        let (sequence, payload) = (u32::try_from(offset).unwrap(), vec![offset.to_be_bytes()[7]; len]);
        Message { kind: MessageKind::Vmcore, sequence, offset, payload: &payload, aux: 0 }.emit(&mut bytes);
    }
    bytes
}

#[test]
fn data_in_a_row_is_one_write_and_acknowledged_after_it() {
    for trains in [1, 2, 4] {
        let (mut bench, writes) = recorder(3);
        let to = bench.open();
        bench.deliver(to, &[0, 10, 20], 10, trains);
        assert_eq!(*writes.lock().unwrap(), [(0, 30)], "a batch is stored when the call returns");
        assert_eq!(bench.drain(), [0, 10, 20]);
        // A jump ends the row; what follows the failure of its write was not stored and is not acknowledged.
        bench.deliver(to, &[40, 50, 70, 90], 10, trains);
        assert_eq!(*writes.lock().unwrap(), [(0, 30), (40, 20), (70, 10)]);
        assert_eq!(bench.drain(), [40, 50, 70]);
        let [(ending, summary, _)] = bench.ends()[..] else { panic!() };
        assert_eq!((ending.is_complete(), summary.bytes, summary.end), (false, 60, 80));
    }
}

#[test]
fn rows_are_cut_where_a_write_has_too_many_pieces() {
    let (mut bench, writes) = recorder(usize::MAX);
    let to = bench.open();
    let offsets: Vec<u64> = (0..1500).map(|i| i * 100).collect();
    bench.deliver(to, &offsets, 100, 44);
    assert_eq!(*writes.lock().unwrap(), [(0, 102_400), (102_400, 47_600)]);
    assert_eq!(bench.drain().len(), 1500);
}

#[test]
fn acks_come_in_trains_and_each_goes_to_its_own_client() {
    let mut bench = bench();
    let other = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 20024);
    bench.open();
    bench.herald(other).unwrap();
    let (first, second) = (bench.session(0), bench.session(1));
    let offsets: Vec<u64> = (0..150).map(|i| i * 10).collect();
    let (long, short) = (data(&offsets, 10), data(&[0], 10));
    let batch = [
        Arrived { to: first, from: PEER, bytes: &long, segment: Some(34) },
        Arrived { to: second, from: other, bytes: &short, segment: None },
        Arrived { to: first, from: PEER, bytes: &short, segment: None },
    ];
    bench.receiver.handle_batch(bench.now, &batch);
    let (mut train, mut trains) = (Vec::new(), Vec::new());
    while let Some(reply) = bench.receiver.poll_transmit(&mut train) {
        trains.push((reply.to, train.len() / 4));
    }
    assert_eq!(trains, [(PEER, MAX_TRAIN), (PEER, 151 - MAX_TRAIN), (other, 1)]);
}

#[test]
fn what_came_before_the_end_in_a_batch_is_stored_before_it() {
    let mut bench = bench();
    let to = bench.open();
    let mut bytes = data(&[0, 3], 3);
    Message { kind: MessageKind::Finished, sequence: 9, offset: 0, payload: b"", aux: 0 }.emit(&mut bytes);
    let train = Arrived { to, from: PEER, bytes: &bytes, segment: Some(27) };
    bench.receiver.handle_batch(bench.now, &[train]);
    assert_eq!(bench.drain(), [0, 3, 9]);
    assert_eq!(bench.only_end().1.core, [0, 0, 0, 3, 3, 3]);
}

#[test]
fn message_in_a_batch_is_ignored_for_itself_only() {
    let mut bench = bench();
    let to = bench.open();
    let (good, junk, wild) = (data(&[0], 10), vec![7; 34], data(&[10], 10));
    let train = [&good[..], &junk, &wild].concat();
    bench.receiver.handle_batch(
        bench.now,
        &[
            Arrived { to, from: PEER, bytes: &train, segment: Some(34) },
            Arrived { to, from: SocketAddrV4::new(*PEER.ip(), 1), bytes: &good, segment: None },
            Arrived { to: Endpoint::Session(SessionId(7)), from: PEER, bytes: &good, segment: None },
            Arrived { to, from: PEER, bytes: b"", segment: None },
        ],
    );
    assert_eq!(bench.drain(), [0, 10]);
    let ignored: Vec<_> = bench.receiver.ignored().collect();
    assert_eq!(ignored, [("malformed", 2), ("no_session", 1), ("stranger", 1)]);
}

#[test]
fn message_without_data_is_acknowledged_and_stores_nothing() {
    let (mut bench, writes) = recorder(usize::MAX);
    let to = bench.open();
    assert_eq!(bench.data(to, 2, 77, b""), Ok(vec![2]));
    assert_eq!(*writes.lock().unwrap(), []);
}

#[test]
fn client_that_lost_its_port_is_not_told_of_the_end() {
    let mut bench = bench_with(ReceiverConfig::default(), SlowStore { polls: 400, fails: false });
    let herald = |sequence| crate::wire::message::header(MessageKind::Herald, sequence, 0, 0, 7);
    bench.receiver.handle_datagram(bench.now, HERALD, PEER, &herald(1)).unwrap();
    bench.drain();
    let to = bench.session(0);
    bench.data(to, 2, 0, b"abc").unwrap();
    assert_eq!(bench.finish(to, 3), Ok(vec![]));
    let moved = SocketAddrV4::new(*PEER.ip(), 30_000);
    bench.receiver.handle_datagram(bench.now, HERALD, moved, &herald(4)).unwrap();
    bench.receiver.no_socket(bench.now, SessionId(0), std::io::Error::other("none left"));
    assert_eq!(bench.wait(30.0), [0_u32; 0]);
    let is_complete = |event: &ReceiverEvent<bool>| matches!(event, ReceiverEvent::Ended { ending, .. } if ending.is_complete());
    assert!(bench.events.iter().any(is_complete));
}
