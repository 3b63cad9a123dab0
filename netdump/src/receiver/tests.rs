//! The rules of sessions, against a store in memory.

mod header_and_key;
mod netdumpd_faults;
mod resuming;
mod storing;

use proptest::prelude::*;

use super::store::{Commit, MemoryDump};
use super::*;
use crate::vmcore::KernelDumpHeader;
use crate::vmcore::kdh::Compression;
use crate::wire::{Message, MessageKind};

const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 20024);
const HERALD: Endpoint = Endpoint::Herald { local: LOCAL };

/// How a dump ended, what came, and what was stored.
type End<'a, T> = (&'a Ending, &'a DumpSummary, &'a Result<T, Arc<StoreError>>);

/// A receiver, a clock and the events so far.
struct Bench<S: DumpStore = MemoryStore> {
    receiver: Receiver<S>,
    now: Instant,
    events: Vec<ReceiverEvent<S::Stored>>,
}

fn bench() -> Bench {
    bench_with(ReceiverConfig::default(), MemoryStore::with_limit(1 << 20))
}

fn bench_with<S: DumpStore>(config: ReceiverConfig, store: S) -> Bench<S> {
    Bench { receiver: Receiver::new(config, store), now: Instant::now(), events: vec![] }
}

impl<S: DumpStore> Bench<S> {
    /// Delivers a message and returns the sequence numbers acknowledged.
    fn send(
        &mut self,
        to: Endpoint,
        from: SocketAddrV4,
        kind: MessageKind,
        sequence: u32,
        offset: u64,
        payload: &[u8],
    ) -> Result<Vec<u32>, Ignored> {
        let mut bytes = Vec::new();
        Message { kind, sequence, offset, payload, aux: 0 }.emit(&mut bytes);
        let result = self.receiver.handle_datagram(self.now, to, from, &bytes);
        let acks = self.drain();
        result.map(|()| acks)
    }

    fn drain(&mut self) -> Vec<u32> {
        let (mut acks, mut train) = (Vec::new(), Vec::new());
        loop {
            self.events.extend(std::iter::from_fn(|| self.receiver.poll_event()));
            if self.receiver.poll_transmit(&mut train).is_none() {
                break;
            }
            acks.extend(train.chunks(4).map(|ack| u32::from_be_bytes(ack.try_into().unwrap())));
        }
        self.events.extend(std::iter::from_fn(|| self.receiver.poll_event()));
        acks
    }

    fn wait(&mut self, seconds: f64) -> Vec<u32> {
        let end = self.now + Duration::from_secs_f64(seconds);
        while let Some(due) = self.receiver.poll_timeout().filter(|&due| due <= end) {
            self.now = self.now.max(due);
            self.receiver.handle_timeout(self.now);
        }
        self.now = end;
        self.drain()
    }

    fn herald(&mut self, from: SocketAddrV4) -> Result<Vec<u32>, Ignored> {
        self.send(HERALD, from, MessageKind::Herald, 1, 0, b"")
    }

    /// Opens a session and returns its endpoint.
    fn open(&mut self) -> Endpoint {
        assert_eq!(self.herald(PEER), Ok(vec![1]));
        self.session(self.opened() - 1)
    }

    /// As [`Self::open`], of a client that names its dump: it may leave out zeros.
    fn open_named(&mut self) -> Endpoint {
        let herald = crate::wire::message::header(MessageKind::Herald, 1, 0, 0, 7);
        self.receiver.handle_datagram(self.now, HERALD, PEER, &herald).unwrap();
        assert_eq!(self.drain().first(), Some(&1));
        self.session(self.opened() - 1)
    }

    fn session(&self, number: usize) -> Endpoint {
        let mut opened = self.events.iter().filter_map(|event| match event {
            ReceiverEvent::Opened { session, .. } => Some(Endpoint::Session(*session)),
            _ => None,
        });
        opened.nth(number).expect("the session was opened")
    }

    fn data(
        &mut self,
        to: Endpoint,
        sequence: u32,
        offset: u64,
        payload: &[u8],
    ) -> Result<Vec<u32>, Ignored> {
        self.send(to, PEER, MessageKind::Vmcore, sequence, offset, payload)
    }

    fn finish(&mut self, to: Endpoint, sequence: u32) -> Result<Vec<u32>, Ignored> {
        self.send(to, PEER, MessageKind::Finished, sequence, 0, b"")
    }

    fn opened(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, ReceiverEvent::Opened { .. })).count()
    }

    fn ends(&self) -> Vec<End<'_, S::Stored>> {
        let ends = self.events.iter().filter_map(|event| match event {
            ReceiverEvent::Ended { ending, summary, stored, .. } => Some((ending, &**summary, stored)),
            _ => None,
        });
        ends.collect()
    }
}

impl Bench {
    /// How the only dump ended, in words, and what was stored.
    fn only_end(&self) -> (String, MemoryDump) {
        let ends = self.ends();
        let [(ending, _, stored)] = ends[..] else { panic!("{} dumps ended", ends.len()) };
        (ending.to_string(), stored.as_ref().unwrap().clone())
    }
}

fn kdh(length: u64, compression: Compression) -> [u8; 512] {
    KernelDumpHeader { dump_length: length, compression, ..Default::default() }.to_bytes()
}

#[test]
fn a_dump_in_order_is_stored() {
    let mut bench = bench();
    let to = bench.open();
    assert_eq!(bench.data(to, 2, 0, b"hello "), Ok(vec![2]));
    assert_eq!(bench.data(to, 3, 6, b"world"), Ok(vec![3]));
    let header = kdh(11, Compression::None);
    assert_eq!(bench.send(to, PEER, MessageKind::Kdh, 4, 0, &header), Ok(vec![4]));
    assert_eq!(bench.finish(to, 5), Ok(vec![5]));
    let (ending, dump) = bench.only_end();
    assert_eq!((ending.as_str(), &dump.core[..]), ("Dump complete", &b"hello world"[..]));
    assert_eq!(dump.header.valid().unwrap().dump_length, 11);
    assert!(bench.receiver.is_settled());
}

#[test]
fn acks_go_to_the_client_from_its_session() {
    let mut bench = bench();
    let herald = crate::wire::message::header(MessageKind::Herald, 1, 0, 0, 0);
    let odd_port = SocketAddrV4::new(*PEER.ip(), 4711);
    bench.receiver.handle_datagram(bench.now, HERALD, odd_port, &herald).unwrap();
    let Some(ReceiverEvent::Opened { session, local, peer }) = bench.receiver.poll_event() else { panic!() };
    assert_eq!((local, peer), (LOCAL, odd_port));
    let mut train = vec![9];
    let reply = bench.receiver.poll_transmit(&mut train);
    assert_eq!(reply, Some(Reply { session, to: odd_port }));
    assert_eq!(train, [0, 0, 0, 1]);
    assert_eq!(bench.receiver.poll_transmit(&mut train), None);
}

#[test]
fn data_may_come_in_any_order_and_twice() {
    let mut bench = bench();
    let to = bench.open();
    for (sequence, offset) in [(4, 8), (2, 0), (4, 8), (3, 4)] {
        assert_eq!(
            bench.data(to, sequence, offset, &[u8::try_from(sequence).unwrap(); 4]),
            Ok(vec![sequence])
        );
    }
    bench.finish(to, 5).unwrap();
    assert_eq!(bench.only_end().1.core, [2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]);
    let summary = bench.ends()[0].1;
    assert_eq!((summary.messages, summary.repeated, summary.bytes), (4, 1, 12));
}

#[test]
fn repeated_herald_before_data_is_acknowledged_again() {
    let mut bench = bench();
    let to = bench.open();
    assert_eq!(bench.herald(PEER), Ok(vec![1]));
    assert_eq!(bench.wait(5.0), [0_u32; 0]);
    assert_eq!(bench.herald(PEER), Ok(vec![1]));
    assert_eq!(bench.opened(), 1);
    assert_eq!(bench.data(to, 2, 0, b"x"), Ok(vec![2]));
}

#[test]
fn herald_for_another_directory_before_data_replaces_the_session() {
    let mut bench = bench();
    bench.open();
    let mut heralds = 1;
    while bench.send(HERALD, PEER, MessageKind::Herald, 1, 0, b"vm1\0") != Ok(vec![1]) {
        heralds += 1;
        bench.wait(1.0);
    }
    assert_eq!((bench.opened(), heralds), (2, 3));
    assert!(bench.ends().is_empty(), "nothing came");
}

#[test]
fn a_flood_of_heralds_from_one_client_makes_one_dump() {
    let mut bench = bench();
    let to = bench.open();
    for sequence in 2..1000 {
        let _ = bench.send(HERALD, PEER, MessageKind::Herald, sequence, 0, b"");
        let _ = bench.send(HERALD, PEER, MessageKind::Herald, sequence, 0, b"vm1\0");
    }
    assert_eq!(bench.send(HERALD, PEER, MessageKind::Herald, 7, 0, b""), Ok(vec![7]));
    assert_eq!((bench.opened(), bench.ends().len()), (1, 0));
    assert_eq!(bench.data(to, 8, 0, b"x"), Ok(vec![8]));
}

#[test]
fn late_duplicate_of_the_herald_changes_nothing() {
    let mut bench = bench();
    let to = bench.open();
    bench.data(to, 2, 0, b"abc").unwrap();
    assert_eq!(bench.herald(PEER), Err(Ignored::LateHerald));
    assert_eq!(bench.data(to, 2, 0, b"abc"), Ok(vec![2]));
    // Neither does a lone one in a long silence.
    bench.wait(30.0);
    assert_eq!(bench.herald(PEER), Err(Ignored::LateHerald));
    assert_eq!(bench.data(to, 3, 3, b"def"), Ok(vec![3]));
    // Nor does one long after that, when data has come in between.
    bench.wait(30.0);
    assert_eq!(bench.herald(PEER), Err(Ignored::LateHerald));
    bench.finish(to, 4).unwrap();
    assert_eq!(bench.only_end().1.core, b"abcdef");
    assert_eq!(bench.opened(), 1);
}

#[test]
fn rebooted_guest_gets_a_new_session_and_the_old_dump_is_kept() {
    let mut bench = bench();
    let old = bench.open();
    bench.data(old, 2, 0, b"old").unwrap();
    // As a stock client repeats it, at once after a quick reboot.
    let mut heralds = 0;
    while bench.herald(PEER) != Ok(vec![1]) {
        heralds += 1;
        assert!(heralds < 5, "a stock client gives up after 12");
        bench.wait(1.0);
    }
    assert_eq!(bench.opened(), 2);
    let (ending, dump) = bench.only_end();
    assert_eq!(
        (ending.as_str(), &dump.core[..]),
        ("Dump incomplete: client began another dump", &b"old"[..])
    );
    assert_eq!(bench.data(old, 3, 3, b"old"), Err(Ignored::NoSession));
    let new = bench.session(1);
    assert_eq!(bench.data(new, 2, 0, b"new"), Ok(vec![2]));
    bench.finish(new, 3).unwrap();
    assert_eq!(bench.ends()[1].2.as_ref().unwrap().core, b"new");
}

#[test]
fn guest_that_panics_again_after_a_complete_dump_gets_a_new_session() {
    let mut bench = bench();
    let to = bench.open();
    bench.data(to, 2, 0, b"first").unwrap();
    bench.finish(to, 3).unwrap();
    assert_eq!(bench.herald(PEER), Err(Ignored::LateHerald));
    bench.wait(1.0);
    assert_eq!(bench.herald(PEER), Err(Ignored::LateHerald));
    bench.wait(1.0);
    assert_eq!(bench.herald(PEER), Ok(vec![1]));
    assert_eq!((bench.opened(), bench.ends().len()), (2, 1));
}

#[test]
fn repeated_messages_after_the_end_are_acknowledged_again_and_change_nothing() {
    let mut bench = bench();
    let to = bench.open();
    let header = KernelDumpHeader { dump_length: 3, key_size: 3, ..Default::default() }.to_bytes();
    bench.data(to, 2, 0, b"abc").unwrap();
    bench.send(to, PEER, MessageKind::EkcdKey, 3, 0, b"key").unwrap();
    bench.send(to, PEER, MessageKind::Kdh, 4, 0, &header).unwrap();
    assert_eq!(bench.finish(to, 5), Ok(vec![5]));
    for _ in 0..3 {
        assert_eq!(bench.wait(4.0), [0_u32; 0]);
        assert_eq!(bench.finish(to, 5), Ok(vec![5]));
        assert_eq!(bench.data(to, 2, 0, b"xyz"), Ok(vec![2]));
        assert_eq!(bench.send(to, PEER, MessageKind::EkcdKey, 3, 0, b"key"), Ok(vec![3]));
        assert_eq!(bench.send(to, PEER, MessageKind::Kdh, 4, 0, &header), Ok(vec![4]));
    }
    assert_eq!(bench.data(to, 9, 3, b"more"), Err(Ignored::AfterTheEnd));
    assert_eq!(bench.send(to, PEER, MessageKind::EkcdKey, 10, 1, b"eys"), Err(Ignored::AfterTheEnd));
    assert_eq!(bench.only_end().1.core, b"abc");
    bench.wait(16.0);
    assert_eq!(bench.finish(to, 5), Err(Ignored::NoSession));
    assert!(matches!(bench.events.last(), Some(ReceiverEvent::Closed { .. })));
    assert_eq!(bench.receiver.poll_timeout(), None);
}

#[test]
fn silent_client_is_given_up_and_its_gaps_are_known() {
    let mut bench = bench();
    let to = bench.open();
    bench.data(to, 2, 0, b"abc").unwrap();
    bench.wait(599.0);
    assert_eq!(bench.data(to, 3, 10, b"k"), Ok(vec![3]));
    bench.wait(599.0);
    assert!(!bench.receiver.is_settled());
    bench.wait(2.0);
    assert_eq!(bench.only_end().0, "Dump incomplete: client timed out");
    let gaps = &bench.ends()[0].1.gaps;
    assert_eq!((gaps.count, gaps.bytes, gaps.listed.first()), (1, 7, Some(&(3..10))));
    assert_eq!(bench.data(to, 3, 10, b"k"), Err(Ignored::NoSession));
    assert_eq!(bench.finish(to, 4), Err(Ignored::NoSession));
    assert_eq!(bench.herald(PEER), Ok(vec![1]), "the client may begin again at once");
}

#[test]
fn junk_does_not_keep_a_session_alive() {
    let mut bench = bench();
    let to = bench.open();
    for _ in 0..70 {
        bench.wait(10.0);
        let _ = bench.receiver.handle_datagram(bench.now, to, PEER, b"junk");
    }
    assert_eq!(bench.only_end().0, "Dump incomplete: client timed out");
    assert_eq!(bench.ends()[0].1.ignored, 59);
}

#[test]
fn clients_are_told_apart_by_address_and_port() {
    let mut bench = bench();
    let other_port = SocketAddrV4::new(*PEER.ip(), 20025);
    let other_host = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 20024);
    for peer in [PEER, other_port, other_host] {
        assert_eq!(bench.herald(peer), Ok(vec![1]));
    }
    for (number, peer) in [PEER, other_port, other_host].into_iter().enumerate() {
        let to = bench.session(number);
        let byte = [u8::try_from(number).unwrap()];
        assert_eq!(bench.send(to, peer, MessageKind::Vmcore, 2, 0, &byte), Ok(vec![2]));
        assert_eq!(bench.send(to, peer, MessageKind::Finished, 3, 0, b""), Ok(vec![3]));
    }
    let cores: Vec<_> =
        bench.ends().iter().map(|(_, _, stored)| stored.as_ref().unwrap().core.clone()).collect();
    assert_eq!(cores, [[0], [1], [2]]);
}

#[test]
fn strangers_change_nothing() {
    let mut bench = bench();
    let to = bench.open();
    bench.data(to, 2, 0, b"abc").unwrap();
    let stranger = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 66), 20024);
    for kind in [MessageKind::Vmcore, MessageKind::Finished, MessageKind::Kdh, MessageKind::Herald] {
        assert_eq!(bench.send(to, stranger, kind, 2, 0, &[0; 512]), Err(Ignored::Stranger));
    }
    assert_eq!(bench.send(HERALD, PEER, MessageKind::Vmcore, 2, 0, b"xyz"), Err(Ignored::NotAHerald));
    bench.finish(to, 3).unwrap();
    assert_eq!(bench.only_end().1.core, b"abc");
}

#[test]
fn store_that_fails_ends_the_dump_without_ack() {
    let mut bench = bench_with(ReceiverConfig::default(), MemoryStore::with_limit(8));
    let to = bench.open();
    assert_eq!(bench.data(to, 2, 0, b"abcdef"), Ok(vec![2]));
    assert_eq!(bench.data(to, 3, 6, b"ghi"), Ok(vec![]));
    assert_eq!(bench.data(to, 4, 0, b"a"), Err(Ignored::AfterTheEnd));
    assert_eq!(bench.finish(to, 5), Err(Ignored::AfterTheEnd));
    let (ending, dump) = bench.only_end();
    assert_eq!(ending, "Dump unsuccessful: 9 bytes exceed the store's limit of 8");
    assert_eq!(dump.core, b"abcdef");
    assert_eq!(bench.ends()[0].1.bytes, 6);
}

#[test]
fn too_many_ranges_are_not_acknowledged_until_gaps_close() {
    let config = ReceiverConfig { max_ranges: 2, ..Default::default() };
    let mut bench = bench_with(config, MemoryStore::with_limit(100));
    let to = bench.open();
    bench.data(to, 2, 0, b"a").unwrap();
    bench.data(to, 3, 2, b"c").unwrap();
    assert_eq!(bench.data(to, 4, 4, b"e"), Err(Ignored::TooManyRanges));
    assert_eq!(bench.data(to, 5, 1, b"b"), Ok(vec![5]));
    assert_eq!(bench.data(to, 4, 4, b"e"), Ok(vec![4]));
    bench.finish(to, 6).unwrap();
    assert_eq!(bench.only_end().1.core, b"abc\0e");
}

#[test]
fn sessions_that_only_heralds_came_to_make_room_for_a_client() {
    let config = ReceiverConfig { max_sessions: 2, ..Default::default() };
    let mut bench = bench_with(config, MemoryStore::with_limit(100));
    let peer = |port| SocketAddrV4::new(*PEER.ip(), port);
    bench.herald(peer(1)).unwrap();
    bench.send(bench.session(0), peer(1), MessageKind::Vmcore, 2, 0, b"x").unwrap();
    bench.herald(peer(2)).unwrap();
    bench.wait(2.0);
    assert_eq!(bench.herald(peer(3)), Err(Ignored::TooManySessions));
    bench.herald(peer(2)).unwrap();
    bench.wait(2.0);
    assert_eq!(bench.herald(peer(3)), Err(Ignored::TooManySessions), "it is not silent");
    bench.wait(1.5);
    assert_eq!(bench.herald(peer(3)), Ok(vec![1]));
    assert_eq!(bench.herald(peer(4)), Err(Ignored::TooManySessions));
    assert!(bench.ends().is_empty());
    assert_eq!(bench.send(bench.session(0), peer(1), MessageKind::Vmcore, 3, 1, b"y"), Ok(vec![3]));
}

#[test]
fn ended_sessions_make_room_and_open_ones_do_not() {
    let config = ReceiverConfig { max_sessions: 2, ..Default::default() };
    let mut bench = bench_with(config, MemoryStore::with_limit(100));
    let peer = |port| SocketAddrV4::new(*PEER.ip(), port);
    bench.herald(peer(1)).unwrap();
    bench.herald(peer(2)).unwrap();
    assert_eq!(bench.herald(peer(3)), Err(Ignored::TooManySessions));
    let first = bench.session(0);
    bench.send(first, peer(1), MessageKind::Finished, 2, 0, b"").unwrap();
    assert_eq!(bench.herald(peer(3)), Ok(vec![1]));
    assert_eq!(bench.send(first, peer(1), MessageKind::Finished, 2, 0, b""), Err(Ignored::NoSession));
}

#[test]
fn shut_down_abandons_what_is_open_and_opens_no_more() {
    let mut bench = bench();
    let to = bench.open();
    bench.data(to, 2, 0, b"abc").unwrap();
    bench.receiver.shut_down(bench.now);
    assert!(bench.receiver.is_settled());
    assert_eq!(bench.herald(SocketAddrV4::new(*PEER.ip(), 1)), Err(Ignored::Stopping));
    assert_eq!(bench.data(to, 3, 0, b"abc"), Err(Ignored::AfterTheEnd));
    assert_eq!(bench.only_end().0, "Dump incomplete: receiver was stopped");
}

#[test]
fn finished_without_a_header_is_complete() {
    let mut bench = bench();
    let to = bench.open();
    bench.data(to, 2, 0, b"abc").unwrap();
    assert_eq!(bench.finish(to, 3), Ok(vec![3]));
    let (ending, dump) = bench.only_end();
    assert_eq!((ending.as_str(), dump.header), ("Dump complete", HeaderSeen::Missing));
}

#[test]
fn what_was_ignored_is_counted() {
    let mut bench = bench();
    let to = bench.open();
    let _ = bench.receiver.handle_datagram(bench.now, HERALD, PEER, b"short");
    let _ = bench.receiver.handle_datagram(bench.now, HERALD, PEER, b"short");
    let _ = bench.data(to, 2, u64::MAX, b"x");
    assert_eq!(bench.receiver.ignored().collect::<Vec<_>>(), [("malformed", 2), ("offset_too_large", 1)]);
}

fn datagrams() -> impl Strategy<Value = Vec<u8>> {
    let offsets = prop_oneof![0_u64..64, Just(u64::MAX), any::<u64>()];
    let message = (0_u32..7, 0_u32..5, offsets, prop::collection::vec(any::<u8>(), 0..600));
    let header = message.prop_map(|(kind, sequence, offset, payload)| {
        let mut bytes =
            crate::wire::message::header(MessageKind::Vmcore, sequence, offset, payload.len(), 0).to_vec();
        bytes[3] = u8::try_from(kind).unwrap();
        bytes.extend(payload);
        bytes
    });
    prop_oneof![header, prop::collection::vec(any::<u8>(), 0..60)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_datagrams_of_others_change_no_stored_byte(
        junk in prop::collection::vec((datagrams(), 0_u8..4), 0..40),
    ) {
        let mut bench = bench();
        let to = bench.open();
        bench.data(to, 2, 0, b"the core").unwrap();
        let stranger = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 66), 20024);
        for (bytes, way) in junk {
            // To the session from elsewhere, and to the herald port from anyone.
            let (to, from) = match way {
                0 => (to, stranger),
                1 => (to, SocketAddrV4::new(*PEER.ip(), 7)),
                2 => (HERALD, stranger),
                _ => (HERALD, PEER),
            };
            let _ = bench.receiver.handle_datagram(bench.now, to, from, &bytes);
            bench.drain();
        }
        bench.finish(to, 3).unwrap();
        let core = bench.ends().iter().find(|(_, summary, _)| summary.peer == PEER).map(|(.., stored)| {
            stored.as_ref().unwrap().core.clone()
        });
        prop_assert_eq!(core, Some(b"the core".to_vec()));
    }

    #[test]
    fn arbitrary_datagrams_of_the_client_never_panic(
        junk in prop::collection::vec((datagrams(), 0_u32..5000), 0..60),
    ) {
        let mut bench = bench();
        let to = bench.open();
        for (bytes, wait) in junk {
            let acknowledged = bench.receiver.handle_datagram(bench.now, to, PEER, &bytes).is_ok();
            let acks = bench.drain();
            prop_assert!(acks.len() <= 1 && (acknowledged || acks.is_empty()));
            bench.wait(f64::from(wait) / 1000.0);
        }
    }
}
