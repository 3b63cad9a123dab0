//! The receiver's sockets, over loopback.

use std::io::{IoSlice, IoSliceMut};
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver as Inbox, channel};
use std::thread;
use std::time::Duration;

use nix::sys::socket::sockopt::UdpGroSegment;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
};
use tempfile::NamedTempFile;

use super::*;
use crate::client::ClientConfig;
use crate::drive::{self, Dump};
use crate::link::{Link, UdpLink};
use crate::receiver::store::{Commit, MemoryDump, NewDump, OpenDump, Restored, StoreError};
use crate::receiver::{DumpSummary, Ending, HeaderSeen, MemoryStore, ReceiverConfig};
use crate::report::{DumpReport, Outcome};
use crate::stream::Packing;
use crate::vmcore::{CoreFile, KernelDumpHeader};
use crate::wire::{Message, MessageKind};

const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn server<S: DumpStore>(store: S) -> Server<S> {
    Server::bind(ANY, RECEIVE_BUFFER, Receiver::new(ReceiverConfig::default(), store)).unwrap()
}

/// A client's socket, whose every message is the test's choice.
struct Peer {
    socket: std::net::UdpSocket,
    server: SocketAddr,
}

impl Peer {
    fn new<S: DumpStore>(server: &Server<S>) -> Self {
        let socket = std::net::UdpSocket::bind(ANY).unwrap();
        socket.set_nonblocking(true).unwrap();
        setsockopt(&socket, UdpGroSegment, &true).unwrap();
        Self { socket, server: server.address().unwrap() }
    }

    fn address(&self) -> SocketAddrV4 {
        v4(self.socket.local_addr().unwrap())
    }

    fn send(&self, kind: MessageKind, sequence: u32, offset: u64, payload: &[u8]) {
        self.send_named(kind, sequence, offset, payload, 0);
    }

    fn send_named(&self, kind: MessageKind, sequence: u32, offset: u64, payload: &[u8], aux: u32) {
        let mut bytes = Vec::new();
        Message { kind, sequence, offset, payload, aux }.emit(&mut bytes);
        self.socket.send_to(&bytes, self.server).unwrap();
    }

    /// Lets the server work until this many acks have come.
    fn acks<S: DumpStore>(&mut self, server: &mut Server<S>, count: usize) -> Vec<u32> {
        let (mut acks, end) = (Vec::new(), Instant::now() + PATIENCE);
        while acks.len() < count {
            assert!(Instant::now() < end, "{acks:?}");
            server.turn(Some(Instant::now() + Duration::from_millis(10))).unwrap();
            while let Some((from, train, _)) = self.receive() {
                self.server = from.into();
                acks.extend(train.chunks(4).map(|ack| u32::from_be_bytes(ack.try_into().unwrap())));
            }
        }
        acks
    }

    /// Where from, the bytes of all datagrams that came together, and how long each is.
    fn receive(&self) -> Option<(SocketAddrV4, Vec<u8>, usize)> {
        let mut bytes = vec![0; 65_536];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut control = nix::cmsg_space!(i32);
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrIn>(fd, &mut parts, Some(&mut control), MsgFlags::empty()).ok()?;
        let segment = message.cmsgs().unwrap().find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(len) => Some(usize::try_from(len).unwrap()),
            _ => None,
        });
        let (len, from) = (message.bytes, message.address.unwrap());
        bytes.truncate(len);
        Some((SocketAddrV4::new(from.ip(), from.port()), bytes, segment.unwrap_or(len)))
    }
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    let SocketAddr::V4(address) = address else { panic!("{address} is none of IPv4") };
    address
}

/// The dumps that have ended.
fn ends<S: DumpStore>(server: &mut Server<S>) -> Vec<(Ending, S::Stored)> {
    let events = std::iter::from_fn(|| server.poll_event());
    let ends = events.filter_map(|event| match event {
        ReceiverEvent::Ended { ending, stored, .. } => Some((ending, stored.unwrap())),
        _ => None,
    });
    ends.collect()
}

#[test]
fn trains_are_received_whole_and_answered_by_trains() {
    let mut server = server(MemoryStore::with_limit(1 << 20));
    let mut peer = Peer::new(&server);
    peer.send(MessageKind::Herald, 1, 0, b"");
    assert_eq!(peer.acks(&mut server, 1), [1]);
    let mut train = Vec::new();
    for (sequence, payload) in (2..42).zip(0_u8..) {
        let offset = u64::from(payload) * 1000;
        Message { kind: MessageKind::Vmcore, sequence, offset, payload: &[payload; 1000], aux: 0 }
            .emit(&mut train);
    }
    let segment = 1024;
    let to = SockaddrIn::from(v4(peer.server));
    let control = [ControlMessage::UdpGsoSegments(&segment)];
    let fd = peer.socket.as_raw_fd();
    sendmsg(fd, &[IoSlice::new(&train)], &control, MsgFlags::empty(), Some(&to)).unwrap();
    let end = Instant::now() + PATIENCE;
    let acks = loop {
        server.turn(Some(Instant::now() + Duration::from_millis(10))).unwrap();
        if let Some((_, acks, segment)) = peer.receive() {
            assert_eq!(segment, 4, "they come in one piece");
            break acks;
        }
        assert!(Instant::now() < end);
    };
    let numbers: Vec<u32> = acks.chunks(4).map(|ack| u32::from_be_bytes(ack.try_into().unwrap())).collect();
    assert_eq!(numbers, (2..42).collect::<Vec<_>>());
    peer.send(MessageKind::Finished, 42, 0, b"");
    assert_eq!(peer.acks(&mut server, 1), [42]);
    let [(ending, dump)] = &ends(&mut server)[..] else { panic!() };
    assert!(ending.is_complete());
    assert!(
        dump.core.chunks(1000).zip(0_u8..).all(|(piece, i)| piece == [i; 1000]) && dump.core.len() == 40_000
    );
}

#[test]
fn more_acks_than_fit_in_a_train_all_arrive() {
    let mut server = server(MemoryStore::with_limit(1 << 20));
    let mut peer = Peer::new(&server);
    peer.send(MessageKind::Herald, 1, 0, b"");
    peer.acks(&mut server, 1);
    for sequence in 2..402 {
        peer.send(MessageKind::Vmcore, sequence, u64::from(sequence - 2) * 10, &[7; 10]);
    }
    assert_eq!(peer.acks(&mut server, 400), (2..402).collect::<Vec<_>>());
}

#[test]
fn strangers_do_not_reach_a_session() {
    let mut server = server(MemoryStore::with_limit(1 << 20));
    let (mut peer, mut stranger) = (Peer::new(&server), Peer::new(&server));
    peer.send(MessageKind::Herald, 1, 0, b"");
    peer.acks(&mut server, 1);
    stranger.server = peer.server;
    let junk = [0xa5; 1400];
    for kind in [MessageKind::Vmcore, MessageKind::Kdh, MessageKind::EkcdKey, MessageKind::Finished] {
        // To the session's port they do not get; at the well-known one they are no HERALDs.
        let _ = stranger.socket.send_to(&junk, peer.server);
        let mut bytes = Vec::new();
        Message { kind, sequence: 2, offset: 0, payload: &junk, aux: 0 }.emit(&mut bytes);
        let _ = stranger.socket.send_to(&bytes, peer.server);
        let _ = stranger.socket.send_to(&bytes, server.address().unwrap());
        let _ = stranger.socket.send_to(&[0, 0, 0, 2], server.address().unwrap());
    }
    peer.send(MessageKind::Vmcore, 2, 0, b"core");
    peer.acks(&mut server, 1);
    peer.send(MessageKind::Finished, 3, 0, b"");
    peer.acks(&mut server, 1);
    assert_eq!(stranger.receive(), None);
    let [(ending, dump)] = &ends(&mut server)[..] else { panic!() };
    assert_eq!((ending.is_complete(), &dump.core[..]), (true, &b"core"[..]));
    let ignored: BTreeMap<_, _> = server.receiver().ignored().collect();
    assert_eq!(ignored, BTreeMap::from([("malformed", 4), ("not_a_herald", 4)]));
}

#[test]
fn client_that_moves_is_answered_where_it_is() {
    let mut server = server(MemoryStore::with_limit(1 << 20));
    let (mut before, mut after) = (Peer::new(&server), Peer::new(&server));
    before.send_named(MessageKind::Herald, 1, 0, b"", 7);
    before.acks(&mut server, 2);
    before.send(MessageKind::Vmcore, 2, 0, b"abc");
    before.acks(&mut server, 1);
    after.send_named(MessageKind::Herald, 3, 0, b"", 7);
    assert_eq!(after.acks(&mut server, 1), [!3]);
    assert_eq!(after.server, before.server, "the dump keeps its port");
    let _ = before.socket.send_to(b"from where it was", before.server);
    after.send(MessageKind::Vmcore, 4, 3, b"def");
    after.acks(&mut server, 1);
    after.send(MessageKind::Finished, 5, 0, b"");
    after.acks(&mut server, 1);
    let [(ending, dump)] = &ends(&mut server)[..] else { panic!() };
    assert_eq!((ending.is_complete(), &dump.core[..]), (true, &b"abcdef"[..]));
    assert_eq!(before.receive(), None);
}

/// A store that holds one unfinished dump.
struct OneLeft(MemoryStore, Option<Restored<MemoryDump>>);

impl DumpStore for OneLeft {
    type Dump = MemoryDump;
    type Stored = MemoryDump;

    fn create(&mut self, request: &NewDump) -> Result<MemoryDump, StoreError> {
        self.0.create(request)
    }

    fn unfinished(&mut self) -> Vec<Restored<MemoryDump>> {
        self.1.take().into_iter().collect()
    }
}

#[test]
fn dump_of_an_earlier_receiver_gets_a_port_when_its_client_asks() {
    let mut memory = MemoryStore::with_limit(1 << 20);
    let old_client = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);
    let request =
        NewDump { peer: old_client, local: Ipv4Addr::LOCALHOST, path: Ok(None), dump_id: NonZeroU32::new(7) };
    let mut dump = memory.create(&request).unwrap();
    dump.write_at(0, &[IoSlice::new(b"abc")]).unwrap();
    let (header, elapsed) = (HeaderSeen::Missing, Duration::ZERO);
    let restored =
        Restored { request, dump, received: std::iter::once(0..3).collect(), key: vec![], header, elapsed };
    let mut server = server(OneLeft(memory, Some(restored)));
    assert_eq!(server.restore_unfinished(), 1);
    let mut peer = Peer::new(&server);
    peer.send_named(MessageKind::Herald, 9, 0, b"", 7);
    assert_eq!(peer.acks(&mut server, 1), [!9]);
    peer.send(MessageKind::Vmcore, 10, 3, b"def");
    peer.acks(&mut server, 1);
    peer.send(MessageKind::Finished, 11, 0, b"");
    peer.acks(&mut server, 1);
    let [(ending, dump)] = &ends(&mut server)[..] else { panic!() };
    assert_eq!((ending.is_complete(), &dump.core[..]), (true, &b"abcdef"[..]));
    assert_eq!(dump.request.peer.port(), 9, "the store is not bothered with that: {}", peer.address());
}

/// A store whose every write takes its time.
#[derive(Debug)]
struct Slow<T>(T, Duration);

impl DumpStore for Slow<MemoryStore> {
    type Dump = Slow<MemoryDump>;
    type Stored = MemoryDump;

    fn create(&mut self, request: &NewDump) -> Result<Self::Dump, StoreError> {
        Ok(Slow(self.0.create(request)?, self.1))
    }
}

impl OpenDump for Slow<MemoryDump> {
    type Stored = MemoryDump;

    fn write_at(&mut self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), StoreError> {
        thread::sleep(self.1);
        self.0.write_at(offset, pieces)
    }

    fn key_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.0.key_at(offset, bytes)
    }

    fn header(&mut self, header: &HeaderSeen) -> Result<(), StoreError> {
        self.0.header(header)
    }

    fn commit(&mut self, summary: &DumpSummary) -> Result<Commit<MemoryDump>, StoreError> {
        self.0.commit(summary)
    }

    fn abandon(&mut self, summary: &DumpSummary, ending: &Ending) -> Result<MemoryDump, StoreError> {
        self.0.abandon(summary, ending)
    }
}

/// Bytes of a core; of one of another length they are others.
fn pattern(len: usize) -> Vec<u8> {
    let len = len as u64;
    (0..len).map(|i| (i ^ len << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]).collect()
}

/// Sends a core to the server by our own client.
fn send(server: SocketAddrV4, core: &[u8]) -> DumpReport {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), core).unwrap();
    let image = CoreFile::open(file.path()).unwrap();
    let mut link = UdpLink::open(server, Some(ANY)).unwrap();
    let config = ClientConfig {
        server_port: server.port(),
        client_port: link.local_port(),
        ..ClientConfig::new(*server.ip(), link.local_ip(), link.mac(), link.mtu().unwrap())
    };
    let (header, packing) = (KernelDumpHeader::default(), Packing::default());
    let dump = Dump { path: None, header: &header, image: &image, packing: &packing };
    drive::run(config, &dump, &mut link, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Runs a server until all these clients are through; what they reported, and the dumps that ended.
fn serve<S: DumpStore>(
    mut server: Server<S>,
    clients: Vec<Vec<u8>>,
) -> (Vec<DumpReport>, Vec<(Ending, S::Stored)>) {
    let address = v4(server.address().unwrap());
    let (outbox, inbox): (_, Inbox<DumpReport>) = channel();
    let count = clients.len();
    for core in clients {
        let outbox = outbox.clone();
        thread::spawn(move || outbox.send(send(address, &core)).unwrap());
    }
    let (mut reports, mut dumps) = (Vec::new(), Vec::new());
    while reports.len() < count {
        server.turn(Some(Instant::now() + Duration::from_millis(20))).unwrap();
        dumps.extend(ends(&mut server));
        reports.extend(inbox.try_iter());
    }
    (reports, dumps)
}

#[test]
fn slow_store_slows_its_client_and_loses_nothing() {
    let core = pattern(8_000_000);
    let store = Slow(MemoryStore::with_limit(1 << 30), Duration::from_millis(20));
    let (reports, dumps) = serve(server(store), vec![core.clone()]);
    assert_eq!(reports[0].outcome, Outcome::Complete, "{:?}", reports[0]);
    let [(ending, dump)] = &dumps[..] else { panic!("{} dumps ended", dumps.len()) };
    assert!(ending.is_complete() && dump.core == core);
}

#[test]
fn client_whose_store_is_full_fails_and_the_others_go_on() {
    let cores = [pattern(300_000), pattern(2_000_000), pattern(400_000)];
    let (reports, dumps) = serve(server(MemoryStore::with_limit(1_000_000)), cores.to_vec());
    let complete = reports.iter().filter(|report| report.outcome == Outcome::Complete).count();
    assert_eq!((complete, dumps.len()), (2, 3));
    for (ending, dump) in &dumps {
        match dump.core.len() {
            300_000 => assert!(ending.is_complete() && dump.core == cores[0]),
            400_000 => assert!(ending.is_complete() && dump.core == cores[2]),
            len => {
                let words = "Dump unsuccessful: ";
                assert!(ending.to_string().starts_with(words) && dump.core == cores[1][..len], "{ending}");
            }
        }
    }
}

#[test]
fn sixty_four_clients_are_served_at_once() {
    let cores: Vec<_> = (0..64).map(|i| pattern(200_000 + i)).collect();
    let (reports, mut dumps) = serve(server(MemoryStore::with_limit(1 << 20)), cores.clone());
    assert!(reports.iter().all(|report| report.outcome == Outcome::Complete), "{reports:?}");
    dumps.sort_by_key(|(_, dump)| dump.core.len());
    assert!(dumps.iter().map(|(_, dump)| &dump.core).eq(&cores), "{} dumps", dumps.len());
    assert!(dumps.iter().all(|(ending, _)| ending.is_complete()));
}
