//! Dumps with names: clients that lost their receiver go on, clients that begin another dump begin it at once.

use super::*;
use crate::receiver::session::ABLE;

/// Where the client's second try comes from.
const OTHER_PORT: SocketAddrV4 = SocketAddrV4::new(*PEER.ip(), 30_000);

impl<S: DumpStore> Bench<S> {
    /// Delivers a HERALD of a dump with this name.
    fn name(&mut self, from: SocketAddrV4, sequence: u32, aux: u32) -> Result<Vec<u32>, Ignored> {
        let bytes = crate::wire::message::header(MessageKind::Herald, sequence, 0, 0, aux);
        let result = self.receiver.handle_datagram(self.now, HERALD, from, &bytes);
        let acks = self.drain();
        result.map(|()| acks)
    }

    fn resumed(&self) -> Vec<(u64, SocketAddrV4, u64)> {
        let resumed = self.events.iter().filter_map(|event| match event {
            ReceiverEvent::Resumed { session, peer, bytes, .. } => Some((session.number(), *peer, *bytes)),
            _ => None,
        });
        resumed.collect()
    }
}

fn header() -> [u8; 512] {
    kdh(6, Compression::None)
}

/// A dump with the name 7 of which 3 bytes came in an earlier receiver, with header and key.
fn restored(now: Instant) -> (Receiver<MemoryStore>, Endpoint) {
    let mut store = MemoryStore::with_limit(1 << 20);
    let request = NewDump { peer: PEER, local: LOCAL, path: Ok(None), dump_id: std::num::NonZeroU32::new(7) };
    let mut dump = store.create(&request).unwrap();
    dump.write_at(0, &[std::io::IoSlice::new(b"abc")]).unwrap();
    let mut receiver = Receiver::new(ReceiverConfig::default(), store);
    let restored = Restored {
        request,
        dump,
        received: std::iter::once(0..3).collect(),
        key: vec![],
        header: HeaderSeen::judge(&header()),
        elapsed: Duration::from_secs(5),
    };
    let session = receiver.restore(now, restored);
    (receiver, Endpoint::Session(session))
}

fn restored_bench() -> (Bench, Endpoint) {
    let now = Instant::now();
    let (receiver, to) = restored(now);
    (Bench { receiver, now, events: vec![] }, to)
}

#[test]
fn named_dump_is_acknowledged_twice_to_say_that_names_are_known() {
    let mut bench = bench();
    assert_eq!(bench.name(PEER, 1, 7), Ok(vec![1, 1 ^ ABLE]));
    assert_eq!(bench.name(PEER, 1, 7), Ok(vec![1, 1 ^ ABLE]), "its ack was lost");
    assert_eq!((bench.opened(), bench.resumed()), (1, vec![]));
    let to = bench.session(0);
    assert_eq!(bench.data(to, 2, 0, b"abc"), Ok(vec![2]));
}

/// This receiver may be one that knows nothing of a dump that has begun elsewhere. Were the client told to go on because the
/// first answer was lost, what had been acknowledged there would never come here.
#[test]
fn client_is_not_told_to_go_on_before_anything_has_come() {
    let mut bench = bench();
    for sequence in [1000, 1001, 1001, 1002] {
        assert_eq!(bench.name(PEER, sequence, 7), Ok(vec![sequence, sequence ^ ABLE]));
    }
    let to = bench.session(0);
    bench.data(to, 2, 0, b"abc").unwrap();
    assert_eq!(
        bench.name(PEER, 1002, 7),
        Ok(vec![1002, 1002 ^ ABLE]),
        "the same question has the same answer"
    );
    assert_eq!(bench.name(PEER, 1003, 7), Ok(vec![!1003]));
    assert_eq!(bench.opened(), 1);
}

#[test]
fn client_of_a_running_dump_goes_on_with_it() {
    let mut bench = bench();
    bench.name(PEER, 1, 7).unwrap();
    let to = bench.session(0);
    bench.data(to, 2, 0, b"abc").unwrap();
    // At once, and each time again.
    assert_eq!(bench.name(PEER, 3, 7), Ok(vec![!3]));
    assert_eq!(bench.name(PEER, 3, 7), Ok(vec![!3]));
    assert_eq!(bench.name(PEER, 9, 7), Ok(vec![!9]));
    assert_eq!(bench.data(to, 4, 3, b"def"), Ok(vec![4]));
    bench.finish(to, 5).unwrap();
    assert_eq!(bench.only_end().1.core, b"abcdef");
    assert_eq!((bench.opened(), bench.ends()[0].1.resumed), (1, 2));
    assert_eq!(bench.resumed(), [], "it has its port");
}

#[test]
fn client_that_comes_from_another_port_goes_on_from_there() {
    let mut bench = bench();
    bench.name(PEER, 1, 7).unwrap();
    let to = bench.session(0);
    bench.data(to, 2, 0, b"abc").unwrap();
    let herald = crate::wire::message::header(MessageKind::Herald, 3, 0, 0, 7);
    bench.receiver.handle_datagram(bench.now, HERALD, OTHER_PORT, &herald).unwrap();
    let (mut train, session) = (Vec::new(), SessionId(0));
    assert_eq!(bench.receiver.poll_transmit(&mut train), Some(Reply { session, to: OTHER_PORT }));
    assert_eq!(train, (!3_u32).to_be_bytes());
    bench.drain();
    assert_eq!(bench.resumed(), [(0, OTHER_PORT, 3)]);
    assert_eq!(bench.data(to, 4, 3, b"xyz"), Err(Ignored::Stranger));
    assert_eq!(bench.send(to, OTHER_PORT, MessageKind::Vmcore, 4, 3, b"def"), Ok(vec![4]));
    bench.send(to, OTHER_PORT, MessageKind::Finished, 5, 0, b"").unwrap();
    assert_eq!(bench.only_end().1.core, b"abcdef");
}

#[test]
fn name_of_another_host_or_another_of_our_addresses_is_another_dump() {
    let mut bench = bench();
    bench.name(PEER, 1, 7).unwrap();
    let to = bench.session(0);
    bench.data(to, 2, 0, b"abc").unwrap();
    let stranger = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 66), 20024);
    assert_eq!(bench.name(stranger, 9, 7), Ok(vec![9, 9 ^ ABLE]));
    let herald = crate::wire::message::header(MessageKind::Herald, 9, 0, 0, 7);
    let elsewhere = Endpoint::Herald { local: Ipv4Addr::LOCALHOST };
    bench.receiver.handle_datagram(bench.now, elsewhere, PEER, &herald).unwrap();
    assert_eq!(bench.drain(), [9, 9 ^ ABLE]);
    assert_eq!((bench.opened(), bench.resumed()), (3, vec![]));
    assert_eq!(bench.data(to, 3, 3, b"def"), Ok(vec![3]));
}

#[test]
fn another_name_from_the_same_client_is_another_dump_at_once() {
    for first in [7, 0] {
        let mut bench = bench();
        bench.name(PEER, 1, first).unwrap();
        let old = bench.session(0);
        bench.data(old, 2, 0, b"abc").unwrap();
        assert_eq!(bench.name(PEER, 1, 8), Ok(vec![1, 1 ^ ABLE]), "after {first}");
        let new = bench.session(1);
        let (ending, dump) = bench.only_end();
        assert_eq!(ending, "Dump incomplete: client began another dump");
        assert_eq!(dump.core, b"abc");
        assert!(bench.data(old, 3, 3, b"def").is_err());
        assert_eq!(bench.data(new, 2, 0, b"xyz"), Ok(vec![2]));
    }
}

#[test]
fn every_herald_that_opened_a_dump_is_known_when_it_comes_again() {
    let mut bench = bench();
    for opening in [1, 31, 32] {
        assert_eq!(bench.name(PEER, opening, 7), Ok(vec![opening, opening ^ ABLE]), "nothing has come yet");
    }
    let to = bench.session(0);
    bench.data(to, 2, 0, b"abc").unwrap();
    for opening in [1, 31, 32] {
        assert_eq!(bench.name(PEER, opening, 7), Ok(vec![opening, opening ^ ABLE]), "delivered late");
    }
    assert_eq!(bench.name(PEER, 40, 7), Ok(vec![!40]));
    assert_eq!((bench.opened(), bench.ends().len()), (1, 0));
}

#[test]
fn late_herald_of_an_earlier_dump_changes_nothing() {
    let mut bench = bench();
    bench.name(PEER, 1, 7).unwrap();
    let first = bench.session(0);
    bench.data(first, 2, 0, b"abc").unwrap();
    bench.name(PEER, 1, 8).unwrap();
    let second = bench.session(1);
    bench.data(second, 2, 0, b"xyz").unwrap();
    assert_eq!(bench.name(PEER, 1, 7), Err(Ignored::AfterTheEnd), "of one that was cut short");
    bench.finish(second, 3).unwrap();
    bench.name(PEER, 1, 9).unwrap();
    let third = bench.session(2);
    bench.data(third, 2, 0, b"123").unwrap();
    assert_eq!(bench.name(PEER, 1, 8), Ok(vec![1, 1 ^ ABLE]), "of one that is complete");
    assert_eq!(bench.data(third, 3, 3, b"456"), Ok(vec![3]));
    assert_eq!((bench.opened(), bench.ends().len()), (3, 2));
}

#[test]
fn client_of_a_complete_dump_is_told_so_long_after() {
    let mut bench = bench();
    bench.name(PEER, 1, 7).unwrap();
    let to = bench.session(0);
    bench.data(to, 2, 0, b"abc").unwrap();
    // The way back is cut for minutes.
    bench.finish(to, 3).unwrap();
    bench.wait(500.0);
    assert_eq!(bench.name(PEER, 4, 7), Ok(vec![!4]));
    assert_eq!(bench.finish(to, 3), Ok(vec![3]));
    assert_eq!((bench.opened(), bench.ends().len()), (1, 1));
    bench.wait(601.0);
    assert_eq!(bench.receiver.poll_timeout(), None, "but not for ever");
}

#[test]
fn client_of_a_dump_that_could_not_be_stored_is_not_answered_any_more() {
    let mut bench = bench_with(ReceiverConfig::default(), MemoryStore::with_limit(4));
    bench.name(PEER, 1, 7).unwrap();
    let to = bench.session(0);
    assert_eq!(bench.data(to, 2, 0, b"abcdef"), Ok(vec![]));
    for sequence in 3..100 {
        bench.wait(1.0);
        assert_eq!(bench.name(PEER, sequence, 7), Err(Ignored::AfterTheEnd));
        assert_eq!(bench.data(to, 2, 0, b"abcdef"), Err(Ignored::AfterTheEnd));
    }
    assert_eq!((bench.opened(), bench.ends().len()), (1, 1));
}

#[test]
fn client_that_was_given_up_begins_anew() {
    let mut bench = bench();
    bench.name(PEER, 1, 7).unwrap();
    let to = bench.session(0);
    bench.data(to, 2, 0, b"abc").unwrap();
    bench.wait(601.0);
    assert_eq!(bench.only_end().0, "Dump incomplete: client timed out");
    assert_eq!(bench.name(PEER, 9, 7), Ok(vec![9, 9 ^ ABLE]));
    assert_eq!(bench.opened(), 2);
}

#[test]
fn dump_of_an_earlier_receiver_goes_on() {
    let (mut bench, to) = restored_bench();
    assert_eq!(bench.name(OTHER_PORT, 5, 7), Ok(vec![!5]));
    assert_eq!((bench.opened(), bench.resumed()), (0, vec![(0, OTHER_PORT, 3)]));
    assert_eq!(bench.send(to, OTHER_PORT, MessageKind::Vmcore, 6, 3, b"def"), Ok(vec![6]));
    assert_eq!(bench.send(to, OTHER_PORT, MessageKind::Finished, 7, 0, b""), Ok(vec![7]));
    let (ending, dump) = bench.only_end();
    assert_eq!((ending.as_str(), &dump.core[..]), ("Dump complete", &b"abcdef"[..]));
    let summary = bench.ends()[0].1;
    assert_eq!((summary.bytes, summary.resumed), (6, 1));
    assert!(summary.elapsed >= Duration::from_secs(5) && summary.header.valid().is_some());
}

#[test]
fn dump_of_an_earlier_receiver_ends_when_its_client_stays_away_or_begins_another() {
    let (mut bench, _) = restored_bench();
    bench.wait(601.0);
    let (ending, dump) = bench.only_end();
    assert_eq!((ending.as_str(), &dump.core[..]), ("Dump incomplete: client timed out", &b"abc"[..]));

    let (mut bench, _) = restored_bench();
    assert_eq!(bench.name(PEER, 1, 8), Ok(vec![1, 1 ^ ABLE]));
    assert_eq!(bench.only_end().0, "Dump incomplete: client began another dump");
}

#[test]
fn dumps_that_nobody_asks_for_yet_take_no_place() {
    let now = Instant::now();
    let (mut receiver, _) = restored(now);
    receiver.config.max_sessions = 1;
    let mut bench = Bench { receiver, now, events: vec![] };
    let other = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 20024);
    assert_eq!(bench.name(other, 1, 9), Ok(vec![1, 1 ^ ABLE]));
    let to = bench.session(0);
    bench.send(to, other, MessageKind::Vmcore, 2, 0, b"abc").unwrap();
    assert_eq!(bench.name(PEER, 5, 7), Err(Ignored::TooManySessions));
    bench.send(to, other, MessageKind::Finished, 3, 0, b"").unwrap();
    assert_eq!(bench.name(PEER, 5, 7), Ok(vec![!5]), "one that has ended makes room");
}

/// A store whose dumps can be left to the next receiver, and that remembers which were.
#[derive(Debug, Clone, Default)]
struct Shelf {
    suspended: Arc<std::sync::Mutex<Vec<u64>>>,
    abandoned: Arc<std::sync::Mutex<Vec<u64>>>,
}

impl DumpStore for Shelf {
    type Dump = Self;
    type Stored = ();

    fn create(&mut self, _: &NewDump) -> Result<Self, StoreError> {
        Ok(self.clone())
    }
}

impl OpenDump for Shelf {
    type Stored = ();

    fn write_at(&mut self, _: u64, _: &[std::io::IoSlice<'_>]) -> Result<(), StoreError> {
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

    fn abandon(&mut self, summary: &DumpSummary, _: &Ending) -> Result<(), StoreError> {
        self.abandoned.lock().unwrap().push(summary.bytes);
        Ok(())
    }

    fn suspend(&mut self, summary: &DumpSummary) {
        self.suspended.lock().unwrap().push(summary.bytes);
    }
}

#[test]
fn receiver_that_is_stopped_leaves_named_dumps_to_the_next_if_told_so() {
    for resume in [true, false] {
        let shelf = Shelf::default();
        let config = ReceiverConfig { resume, ..Default::default() };
        let mut bench = bench_with(config, shelf.clone());
        let other = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 20024);
        let third = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 4), 20024);
        bench.name(PEER, 1, 7).unwrap();
        bench.name(other, 1, 0).unwrap();
        bench.name(third, 1, 9).unwrap();
        let (named, stock) = (bench.session(0), bench.session(1));
        bench.data(named, 2, 0, b"abc").unwrap();
        bench.send(stock, other, MessageKind::Vmcore, 2, 0, b"abcd").unwrap();
        bench.receiver.shut_down(bench.now);
        bench.drain();
        assert!(bench.receiver.is_settled());
        let lists = [&shelf.suspended, &shelf.abandoned].map(|list| list.lock().unwrap().clone());
        assert_eq!(lists, if resume { [vec![3], vec![4]] } else { [vec![], vec![3, 4, 0]] });
        let suspended = bench.events.iter().filter(|e| matches!(e, ReceiverEvent::Suspended { .. })).count();
        assert_eq!(suspended, lists[0].len());
        assert_eq!(bench.data(named, 3, 3, b"def"), Err(Ignored::AfterTheEnd), "nothing more is taken");
        assert_eq!(bench.name(PEER, 4, 7), Err(Ignored::AfterTheEnd));
    }
}

#[test]
fn dump_without_a_socket_leaves_nothing_and_one_that_goes_on_loses_nothing() {
    let no_socket = |bench: &mut Bench, number| {
        let error = std::io::Error::other("none left");
        bench.receiver.no_socket(bench.now, SessionId(number), error);
        bench.drain()
    };
    let mut bench = bench();
    let bytes = crate::wire::message::header(MessageKind::Herald, 1, 0, 0, 7);
    bench.receiver.handle_datagram(bench.now, HERALD, PEER, &bytes).unwrap();
    assert_eq!(no_socket(&mut bench, 0), [0_u32; 0]);
    assert!(bench.ends().is_empty() && bench.receiver.poll_timeout().is_none());
    assert!(bench.events.iter().any(|event| matches!(event, ReceiverEvent::Refused { .. })));

    let (mut bench, to) = restored_bench();
    bench.receiver.handle_datagram(bench.now, HERALD, PEER, &bytes).unwrap();
    assert_eq!(no_socket(&mut bench, 0), [0_u32; 0]);
    assert_eq!(bench.name(PEER, 2, 7), Ok(vec![!2]));
    assert_eq!(bench.resumed().len(), 2, "it asks for a socket again");
    bench.data(to, 3, 3, b"def").unwrap();
    bench.finish(to, 4).unwrap();
    assert_eq!(bench.only_end().1.core, b"abcdef");
}

#[test]
fn gap_in_a_dump_of_a_stock_client_is_a_loss_and_in_a_named_one_zeros() {
    type Piece<'a> = (u64, &'a [u8]);
    let cases: [(&[Piece<'_>], &str); 3] = [
        (&[(0, b"ab"), (4, b"ef")], "2B of the core never came, the first at 0x2-0x4"),
        (&[(0, b"abc")], "3B of the core never came, the first at 0x3-0x6"),
        (&[(1, b"bcdef")], "1B of the core never came, the first at 0x0-0x1"),
    ];
    for (pieces, words) in cases {
        for name in [0, 7] {
            let mut bench = bench();
            bench.name(PEER, 1, name).unwrap();
            let to = bench.session(0);
            for (sequence, (offset, piece)) in (2..).zip(pieces) {
                bench.data(to, sequence, *offset, piece).unwrap();
            }
            bench.send(to, PEER, MessageKind::Kdh, 8, 0, &header()).unwrap();
            let acks = bench.finish(to, 9);
            let (ending, dump) = bench.only_end();
            if name == 0 {
                assert_eq!(acks, Ok(vec![]));
                assert!(ending.starts_with("Dump incomplete: ") && ending.ends_with(words), "{ending}");
            } else {
                assert_eq!((acks, ending.as_str(), dump.core.len()), (Ok(vec![9]), "Dump complete", 6));
            }
        }
    }
    // Without a header what lies between is known to be missing, too.
    let mut bench = bench();
    let to = bench.open();
    bench.data(to, 2, 0, b"ab").unwrap();
    bench.data(to, 3, 4, b"ef").unwrap();
    assert_eq!(bench.finish(to, 4), Ok(vec![]));
    assert!(!bench.ends()[0].0.is_complete());
}

#[test]
fn clients_that_are_not_allowed_are_ignored_and_counted() {
    let allow = vec!["10.0.0.2/32".parse().unwrap(), "192.168.0.0/16".parse().unwrap()];
    let config = ReceiverConfig { allow, ..Default::default() };
    let mut bench = bench_with(config, MemoryStore::with_limit(100));
    let from = |a, b, c, d| SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), 20024);
    for (client, is_allowed) in [
        (from(10, 0, 0, 2), true),
        (from(10, 0, 0, 3), false),
        (from(192, 168, 7, 7), true),
        (from(192, 169, 0, 0), false),
    ] {
        assert_eq!(bench.herald(client).is_ok(), is_allowed, "{client}");
    }
    assert_eq!(bench.opened(), 2);
    assert_eq!(bench.receiver.ignored().collect::<Vec<_>>(), [("not_allowed", 2)]);
}
