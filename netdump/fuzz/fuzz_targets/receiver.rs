//! Datagrams of several clients, in any order, into a receiver whose store and sockets fail at times, and that dies and
//! is started anew: nothing is acknowledged that is not stored, nothing is stored that the dump's own client has not sent
//! to the dump's own port, and every dump of which something came ends, and is told of, once.
//!
//! An input is steps (see `World::step`).

#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use netdump::receiver::{
    Arrived, DumpStore, Endpoint, MAX_TRAIN, Receiver, ReceiverConfig, ReceiverEvent, Reply, SessionId,
};
use netdump::vmcore::KernelDumpHeader;
use netdump::vmcore::kdh::Compression;
use netdump::wire::message::MAX_PAYLOAD;
use netdump::wire::{Ack, Message, MessageKind};
use netdump_fuzz::sent::ABLE;
use netdump_fuzz::store::{Delivery, Fate, Faults, Record, Watched};
use netdump_fuzz::{Script, trace};

const PEERS: [SocketAddrV4; 4] = [
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 20024),
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 20025),
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 20024),
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 4), 20024),
];
/// Not among those whose dumps are taken.
const FORBIDDEN: SocketAddrV4 = PEERS[3];
const LOCALS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 1, 0, 9)];
const KINDS: [MessageKind; 5] =
    [MessageKind::Vmcore, MessageKind::Herald, MessageKind::Kdh, MessageKind::EkcdKey, MessageKind::Finished];
const WAITS: [Duration; 8] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(3),
    Duration::from_secs(15),
    Duration::from_secs(600),
];
const LIMIT: u64 = 256 * 1024;
const MAX_STEPS: usize = 200;
/// Waits until nothing is left to do.
const PATIENCE: usize = 1_000;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let mut world = World::new();
    for _ in 0..MAX_STEPS {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
    }
    world.end();
});

struct World {
    receiver: Receiver<Watched>,
    store: Watched,
    now: Instant,
    /// What has arrived and was not handed over yet.
    arrived: Vec<Datagrams>,
    /// The sessions of this receiver, by their numbers.
    sessions: BTreeMap<u64, Told>,
    /// Numbers of the HERALDs that came.
    heralds: BTreeMap<Dump, Vec<u32>>,
    /// Whether no socket can be had.
    lacks_sockets: bool,
}

/// Who asks for a dump, at which address, by which name: clients without names are told apart by their ports too.
type Dump = (SocketAddrV4, Ipv4Addr, u32);

/// What the receiver has told of a session.
struct Told {
    id: SessionId,
    /// Where it sends to, once it has a port.
    to: Option<SocketAddrV4>,
    /// Whether this receiver has begun it, and by which HERALD.
    is_new: bool,
    opened_by: Option<u32>,
    ended: bool,
    closed: bool,
    acks: Vec<u32>,
}

impl Told {
    fn new(id: SessionId, is_new: bool) -> Self {
        Self { id, to: None, is_new, opened_by: None, ended: false, closed: false, acks: Vec::new() }
    }
}

impl World {
    fn new() -> Self {
        let store = Watched::default();
        store.faults.set(Faults { limit: LIMIT, ..Faults::default() });
        Self {
            receiver: Receiver::new(config(), store.clone()),
            store,
            now: Instant::now(),
            arrived: Vec::new(),
            sessions: BTreeMap::new(),
            heralds: BTreeMap::new(),
            lacks_sockets: false,
        }
    }

    /// One thing happens. Datagrams are handed over together, as they wait at a socket, before anything else happens.
    fn step(&mut self, script: &mut Script<'_>) {
        let what = script.byte() % 10;
        if what > 3 {
            self.hand_over();
        }
        trace(|| format!("step {what}"));
        match what {
            0 | 1 => {
                let (to, from) = (self.endpoint(script), script.one_of(&PEERS));
                self.arrived.push(Datagrams { to, from, bytes: message(script), segment: None });
            }
            2 => {
                let (to, from) = (self.endpoint(script), script.one_of(&PEERS));
                let (bytes, segment) = train(script);
                self.arrived.push(Datagrams { to, from, bytes, segment: Some(segment) });
            }
            3 => {
                let (to, from) = (self.endpoint(script), script.one_of(&PEERS));
                let len = usize::from(script.byte());
                let segment = Some(u16::from(script.byte())).filter(|segment| *segment != 0xff);
                self.arrived.push(Datagrams { to, from, bytes: script.bytes(len).to_vec(), segment });
            }
            4 => {
                self.now += script.one_of(&WAITS);
                self.handle_timeouts();
            }
            5 => self.break_things(script.byte()),
            6 if script.byte() == 0xff => self.receiver.shut_down(self.now),
            8 if script.byte() == 0xff => self.restart(),
            _ => self.settle(),
        }
    }

    /// A well-known or a session's port, perhaps that of one which is long gone.
    fn endpoint(&self, script: &mut Script<'_>) -> Endpoint {
        let number = script.byte();
        let session = self.sessions.values().nth(usize::from(number >> 1));
        match session {
            Some(told) if number & 1 == 1 => Endpoint::Session(told.id),
            _ => Endpoint::Herald { local: LOCALS[usize::from(number >> 1) % LOCALS.len()] },
        }
    }

    /// A bit for each fault.
    fn break_things(&mut self, bits: u8) {
        let is_set = |bit: u8| bits & (1 << bit) != 0;
        self.lacks_sockets = is_set(4);
        self.store.faults.set(Faults {
            limit: LIMIT,
            create: is_set(0),
            write: is_set(1),
            header: is_set(2),
            commit: is_set(3),
            pending: bits >> 6,
        });
    }

    /// The receiver is gone at once, with all that it had not told; the store stays.
    fn restart(&mut self) {
        self.receiver = Receiver::new(config(), self.store.clone());
        self.sessions.clear();
        for restored in self.store.unfinished() {
            let id = self.receiver.restore(self.now, restored);
            self.sessions.insert(id.number(), Told::new(id, false));
        }
    }

    /// Hands over what has arrived: one by its own call, which says what became of it, several as a batch.
    fn hand_over(&mut self) {
        let mut arrived = std::mem::take(&mut self.arrived);
        // Without a port nothing can arrive there.
        arrived.retain(|datagrams| match datagrams.to {
            Endpoint::Session(session) => self.told(session).to.is_some(),
            Endpoint::Herald { .. } => true,
        });
        // What they carry may be stored while they are handled.
        for datagrams in &arrived {
            self.note(datagrams);
        }
        match &arrived[..] {
            [] => {}
            [one] => {
                let taken = self.receiver.handle_arrived(self.now, &one.arrived());
                let is_own = match one.to {
                    Endpoint::Session(session) => self.is_own(session, one.from),
                    Endpoint::Herald { .. } => one.from != FORBIDDEN,
                };
                assert!(is_own || taken.is_err(), "a stranger's words count");
            }
            many => {
                let batch: Vec<_> = many.iter().map(Datagrams::arrived).collect();
                self.receiver.handle_batch(self.now, &batch);
            }
        }
        self.hear_all();
    }

    /// Enters what a dump's own client says.
    fn note(&mut self, datagrams: &Datagrams) {
        trace(|| format!("{datagrams:?}"));
        for message in datagrams.messages() {
            trace(|| {
                format!(
                    "  {:?} {} at {}, aux {}",
                    message.kind, message.sequence, message.offset, message.aux
                )
            });
            match datagrams.to {
                Endpoint::Herald { local } if message.kind == MessageKind::Herald => {
                    let dump = dump(datagrams.from, local, message.aux);
                    self.heralds.entry(dump).or_default().push(message.sequence);
                }
                Endpoint::Session(session) if self.is_own(session, datagrams.from) => {
                    let delivery = Delivery {
                        kind: message.kind,
                        sequence: message.sequence,
                        offset: message.offset,
                        payload: message.payload.to_vec(),
                    };
                    self.store.with_session(session, |record| record.deliveries.push(delivery));
                }
                Endpoint::Herald { .. } | Endpoint::Session(_) => {}
            }
        }
    }

    /// A client that names its dumps may come from another port.
    fn is_own(&self, session: SessionId, from: SocketAddrV4) -> bool {
        let request = self.store.with_session(session, |record| record.request.clone());
        request.peer == from || (request.dump_id.is_some() && request.peer.ip() == from.ip())
    }

    /// Afterwards nothing is due.
    fn handle_timeouts(&mut self) {
        let is_due = |world: &Self| world.receiver.poll_timeout().is_some_and(|at| at <= world.now);
        self.receiver.handle_timeout(self.now);
        for _ in 0..PATIENCE {
            if !is_due(self) {
                return;
            }
            self.receiver.handle_timeout(self.now);
        }
        panic!("busy at {:?}", self.receiver.poll_timeout());
    }

    /// Hears what the receiver has to tell, events before acks, as a new session needs its port first.
    fn settle(&mut self) {
        self.hand_over();
        self.hear_all();
        let mut train = Vec::new();
        while let Some(reply) = self.receiver.poll_transmit(&mut train) {
            self.check_reply(reply, &train);
        }
        assert!(self.receiver.poll_event().is_none(), "to ask for acks is no news");
        for (id, peer, bytes) in self.receiver.progress() {
            self.store.with_session(id, |record| {
                assert_eq!((peer.ip(), record.fate), (record.request.peer.ip(), Fate::Open));
                assert_eq!(bytes, record.bytes());
            });
        }
    }

    fn hear_all(&mut self) {
        while let Some(event) = self.receiver.poll_event() {
            self.hear(event);
        }
    }

    fn hear(&mut self, event: ReceiverEvent<usize>) {
        trace(|| format!("{event:?}"));
        match event {
            ReceiverEvent::Opened { session, local, peer } => {
                let request = self.store.with_session(session, |record| record.request.clone());
                assert_eq!((peer, local), (request.peer, request.local));
                assert_ne!(peer, FORBIDDEN);
                let known = self.sessions.insert(session.number(), Told::new(session, true));
                assert!(known.is_none(), "opened twice");
                self.give_port(session, peer);
            }
            ReceiverEvent::Resumed { session, local, peer, bytes } => {
                let request = self.store.with_session(session, |record| {
                    assert!(bytes <= record.bytes());
                    record.request.clone()
                });
                assert_eq!((peer.ip(), local), (request.peer.ip(), request.local));
                assert!(request.dump_id.is_some());
                self.give_port(session, peer);
            }
            ReceiverEvent::Refused { peer, .. } => assert!(PEERS.contains(&peer)),
            ReceiverEvent::Header { session, header } => {
                self.store.with_session(session, |record| assert!(record.headers.contains(&header)));
            }
            ReceiverEvent::Suspended { session } => {
                let fate = self.store.with_session(session, |record| record.fate);
                assert!(fate == Fate::Suspended && !self.told(session).ended);
            }
            ReceiverEvent::Ended { session, ending, stored, .. } => {
                let told = self.told(session);
                assert!(!told.ended && !told.closed, "ended twice, or after it was closed");
                told.ended = true;
                let fate = self.store.with_session(session, |record| record.fate);
                assert_eq!(fate, if ending.is_complete() { Fate::Committed } else { Fate::Abandoned });
                assert!(stored.is_ok() || !ending.is_complete());
            }
            ReceiverEvent::Closed { session } => {
                let told = self.told(session);
                assert!(!told.closed, "closed twice");
                told.closed = true;
            }
        }
    }

    /// Gives a session the port that it needs, if there is one.
    fn give_port(&mut self, session: SessionId, peer: SocketAddrV4) {
        let lacks_sockets = self.lacks_sockets;
        self.told(session).to = Some(peer).filter(|_| !lacks_sockets);
        if lacks_sockets {
            self.receiver.no_socket(self.now, session, std::io::ErrorKind::AddrInUse.into());
        }
    }

    fn told(&mut self, session: SessionId) -> &mut Told {
        self.sessions.get_mut(&session.number()).expect("it was opened")
    }

    /// Acks go to the dump's own client, each number as often at most as it was sent, and only for what is stored.
    fn check_reply(&mut self, Reply { session, to }: Reply, train: &[u8]) {
        assert!(!train.is_empty() && train.len().is_multiple_of(4) && train.len() <= 4 * MAX_TRAIN);
        let told = self.sessions.get_mut(&session.number()).expect("it was opened");
        assert_eq!(Some(to), told.to);
        self.store.with_session(session, |record| {
            let aux = record.request.dump_id.map_or(0, NonZeroU32::get);
            let heralds = self.heralds.get(&dump(to, record.request.local, aux));
            let heralds = heralds.map_or(&[][..], Vec::as_slice);
            for ack in train.chunks(4) {
                let number = Ack::parse(ack).expect("an ack").0;
                trace(|| format!("ack {number} (!{}) of {session:?}", !number));
                told.acks.push(number);
                check_ack(record, told, number, heralds);
            }
        });
    }

    /// Everyone falls silent.
    fn end(mut self) {
        self.settle();
        let opened: BTreeSet<_> = self.sessions.keys().copied().collect();
        for _ in 0..PATIENCE {
            let Some(at) = self.receiver.poll_timeout() else { break };
            self.now = self.now.max(at);
            self.handle_timeouts();
            self.settle();
        }
        assert!(self.receiver.poll_timeout().is_none() && self.receiver.is_settled(), "something is left");
        assert!(self.sessions.keys().copied().eq(opened), "a dump began by itself");
        for told in self.sessions.values() {
            let fate = self.store.with_session(told.id, |record| record.fate);
            assert!(told.closed && fate != Fate::Open, "{:?}: closed {}, {fate:?}", told.id, told.closed);
            assert_eq!(told.ended, matches!(fate, Fate::Committed | Fate::Abandoned), "{fate:?}");
        }
    }
}

/// An ack answers a HERALD, in one of the ways that it can be answered, or says that something is stored.
fn check_ack(record: &Record, told: &mut Told, number: u32, heralds: &[u32]) {
    let is_named = record.request.dump_id.is_some();
    let answers =
        |herald: &&u32| **herald == number || (is_named && [**herald ^ ABLE, !**herald].contains(&number));
    let heralds_answered = heralds.iter().filter(answers).count();
    let messages = record.deliveries.iter().filter(|delivery| delivery.sequence == number);
    let acks = told.acks.iter().filter(|known| **known == number).count();
    assert!(acks <= heralds_answered + messages.clone().count(), "{number} is acknowledged too often");
    let is_stored = messages.clone().any(|message| record.has_stored(message));
    assert!(is_stored || acks <= heralds_answered, "{number} is not stored");
    if is_named && heralds.contains(&!number) {
        // The client will not send again what an earlier session has acknowledged, so it must know this one. When it
        // sends FINISHED, it does.
        let has_begun = record.has_anything() && told.opened_by != Some(!number);
        let has_finished = record.deliveries.iter().any(|delivery| delivery.kind == MessageKind::Finished);
        assert!(has_begun || has_finished, "told to go on with a dump that has just begun");
    }
    told.opened_by = told.opened_by.or(Some(number).filter(|_| told.acks.len() == 1 && told.is_new));
}

/// Who asks for what.
fn dump(from: SocketAddrV4, local: Ipv4Addr, name: u32) -> Dump {
    let port = if name == 0 { from.port() } else { 0 };
    (SocketAddrV4::new(*from.ip(), port), local, name)
}

fn config() -> ReceiverConfig {
    ReceiverConfig {
        max_sessions: 3,
        max_ranges: 6,
        allow: vec!["10.0.0.2/31".parse().expect("a network")],
        resume: true,
        ..ReceiverConfig::default()
    }
}

/// One datagram or a train, on its way to a port.
struct Datagrams {
    to: Endpoint,
    from: SocketAddrV4,
    bytes: Vec<u8>,
    segment: Option<u16>,
}

impl fmt::Debug for Datagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { to, from, bytes, segment } = self;
        write!(f, "{} bytes (in {segment:?}) from {from} to {to:?}", bytes.len())
    }
}

impl Datagrams {
    fn arrived(&self) -> Arrived<'_> {
        Arrived { to: self.to, from: self.from, bytes: &self.bytes, segment: self.segment }
    }

    fn messages(&self) -> impl Iterator<Item = Message<'_>> {
        let segment = self.segment.filter(|segment| *segment > 0).map_or(self.bytes.len(), usize::from);
        self.bytes.chunks(segment.max(1)).filter_map(|datagram| Message::parse(datagram).ok())
    }
}

/// A message whose length fits: kind, number, aux word, place, and how many bytes of what.
fn message(script: &mut Script<'_>) -> Vec<u8> {
    let kind = script.one_of(&KINDS);
    let (sequence, aux) = (u32::from(script.byte()), u32::from(script.byte() % 4));
    let payload = match kind {
        MessageKind::Herald => script.one_of(&[&b""[..], b"a/b\0", b"../up\0", b"c\0"]).to_vec(),
        MessageKind::Finished => Vec::new(),
        MessageKind::Kdh => header(script),
        MessageKind::Vmcore | MessageKind::EkcdKey => {
            let (len, first) = (usize::from(script.word()) % (MAX_PAYLOAD + 1), script.byte());
            (0..len).map(|index| first.wrapping_add(index as u8)).collect()
        }
    };
    let offset = match (kind, script.byte()) {
        (MessageKind::Herald | MessageKind::Finished, _) => 0,
        (MessageKind::Kdh, scale) => u64::from(scale == 0xff),
        (_, 0xff) => script.quad(),
        (_, pages) => u64::from(pages) * 1024,
    };
    let mut datagram = Vec::new();
    Message { kind, sequence, offset, payload: &payload, aux }.emit(&mut datagram);
    datagram
}

/// Data in a row, and how long each datagram is but perhaps the last.
fn train(script: &mut Script<'_>) -> (Vec<u8>, u16) {
    let (count, len) = (u32::from(script.byte() % 8) + 1, script.word() % 2000);
    let (sequence, start, first) = (u32::from(script.byte()), u64::from(script.byte()) * 1024, script.byte());
    let mut bytes = Vec::new();
    for index in 0..count {
        let payload = vec![first.wrapping_add(index as u8); len.into()];
        let offset = start + u64::from(index) * u64::from(len);
        let sequence = sequence + index;
        Message { kind: MessageKind::Vmcore, sequence, offset, payload: &payload, aux: 0 }.emit(&mut bytes);
    }
    let cut = usize::from(script.byte());
    bytes.truncate(bytes.len() - cut.min(bytes.len()));
    (bytes, 24 + len)
}

/// A dump header, perhaps cut or damaged.
fn header(script: &mut Script<'_>) -> Vec<u8> {
    let header = KernelDumpHeader {
        dump_length: u64::from(script.word()) * 16,
        compression: script.one_of(&[Compression::None, Compression::Gzip, Compression::Zstd]),
        key_size: script.one_of(&[0, 512, 4096]),
        block_size: script.one_of(&[4096, 0, 512, u32::MAX]),
        ..Default::default()
    };
    let mut bytes = header.to_bytes().to_vec();
    let damage = script.word();
    if damage != 0 {
        bytes[usize::from(damage >> 7)] ^= (damage & 0x7f) as u8;
    }
    bytes.truncate(512 - usize::from(script.byte() == 0xff));
    bytes
}
