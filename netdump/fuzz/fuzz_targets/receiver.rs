//! Datagrams of several clients, in any order, into a receiver whose store fails at times: nothing is acknowledged that
//! is not stored, nothing is stored that the dump's own client has not sent to the dump's own port, and every dump of
//! which something came ends, and is told of, once.
//!
//! An input is steps (see `World::step`).

#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use netdump::receiver::{
    Arrived, Endpoint, MAX_TRAIN, Receiver, ReceiverConfig, ReceiverEvent, Reply, SessionId,
};
use netdump::vmcore::KernelDumpHeader;
use netdump::vmcore::kdh::Compression;
use netdump::wire::message::MAX_PAYLOAD;
use netdump::wire::{Ack, Message, MessageKind};
use netdump_fuzz::Script;
use netdump_fuzz::store::{Delivery, Fate, Faults, Watched};

const PEERS: [SocketAddrV4; 4] = [
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 20024),
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 20025),
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 20024),
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 4), 20024),
];
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
    sessions: BTreeMap<u64, Told>,
    /// HERALDs that came: from whom, to which address, and their numbers.
    heralds: BTreeMap<(SocketAddrV4, Ipv4Addr), Vec<u32>>,
}

/// One datagram or a train, on its way to a port.
struct Datagrams {
    to: Endpoint,
    from: SocketAddrV4,
    bytes: Vec<u8>,
    segment: Option<u16>,
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

/// What the receiver has told of a session.
struct Told {
    id: SessionId,
    ended: bool,
    closed: bool,
    acks: Vec<u32>,
}

impl World {
    fn new() -> Self {
        let store = Watched::default();
        store.faults.set(Faults { limit: LIMIT, ..Faults::default() });
        let config = ReceiverConfig { max_sessions: 3, max_ranges: 6, ..ReceiverConfig::default() };
        Self {
            receiver: Receiver::new(config, store.clone()),
            store,
            now: Instant::now(),
            arrived: Vec::new(),
            sessions: BTreeMap::new(),
            heralds: BTreeMap::new(),
        }
    }

    /// One thing happens. Datagrams are handed over together, as they wait at a socket, before anything else happens.
    fn step(&mut self, script: &mut Script<'_>) {
        let what = script.byte() % 8;
        if what > 3 {
            self.hand_over();
        }
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
            5 => {
                let bits = script.byte();
                let is_set = |bit: u8| bits & (1 << bit) != 0;
                self.store.faults.set(Faults {
                    limit: LIMIT,
                    create: is_set(0),
                    write: is_set(1),
                    header: is_set(2),
                    commit: is_set(3),
                    pending: bits >> 6,
                });
            }
            6 if script.byte() == 0xff => self.receiver.shut_down(self.now),
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

    /// Hands over what has arrived: one by its own call, which says what became of it, several as a batch.
    fn hand_over(&mut self) {
        let arrived = std::mem::take(&mut self.arrived);
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
                    Endpoint::Herald { .. } => true,
                };
                assert!(is_own || taken.is_err() || one.bytes.is_empty(), "a stranger's words count");
            }
            many => {
                let batch: Vec<_> = many.iter().map(Datagrams::arrived).collect();
                self.receiver.handle_batch(self.now, &batch);
            }
        }
    }

    /// Enters what a dump's own client says.
    fn note(&mut self, datagrams: &Datagrams) {
        for message in datagrams.messages() {
            match datagrams.to {
                Endpoint::Herald { local } if message.kind == MessageKind::Herald => {
                    self.heralds.entry((datagrams.from, local)).or_default().push(message.sequence);
                }
                Endpoint::Session(session) if self.is_own(session, datagrams.from) => {
                    self.store.records.borrow_mut()[session.number() as usize].deliveries.push(Delivery {
                        kind: message.kind,
                        sequence: message.sequence,
                        offset: message.offset,
                        payload: message.payload.to_vec(),
                    });
                }
                Endpoint::Herald { .. } | Endpoint::Session(_) => {}
            }
        }
    }

    fn is_own(&self, session: SessionId, from: SocketAddrV4) -> bool {
        self.store.records.borrow()[session.number() as usize].request.peer == from
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
        let mut train = Vec::new();
        loop {
            if let Some(event) = self.receiver.poll_event() {
                self.hear(event);
            } else if let Some(reply) = self.receiver.poll_transmit(&mut train) {
                self.check_reply(reply, &train);
            } else {
                break;
            }
        }
        assert!(self.receiver.poll_event().is_none(), "to ask for acks is no news");
        for (id, peer, bytes) in self.receiver.progress() {
            let record = &self.store.records.borrow()[id.number() as usize];
            assert_eq!((peer, record.fate), (record.request.peer, Fate::Open));
            assert!(bytes <= LIMIT);
        }
    }

    fn hear(&mut self, event: ReceiverEvent<usize>) {
        let records = self.store.records.borrow();
        match event {
            ReceiverEvent::Opened { session, local, peer } => {
                let request = &records[session.number() as usize].request;
                assert_eq!((peer, local), (request.peer, request.local));
                let told = Told { id: session, ended: false, closed: false, acks: Vec::new() };
                assert!(self.sessions.insert(session.number(), told).is_none(), "opened twice");
            }
            ReceiverEvent::Refused { peer, .. } => assert!(PEERS.contains(&peer)),
            ReceiverEvent::Header { session, header } => {
                assert!(records[session.number() as usize].headers.contains(&header));
            }
            ReceiverEvent::Ended { session, ending, stored, .. } => {
                let told = self.sessions.get_mut(&session.number()).expect("it was opened");
                assert!(!told.ended && !told.closed, "ended twice, or after it was closed");
                told.ended = true;
                let fate = records[session.number() as usize].fate;
                assert_eq!(fate, if ending.is_complete() { Fate::Committed } else { Fate::Abandoned });
                assert!(stored.map_or(!ending.is_complete(), |number| number as u64 == session.number()));
            }
            ReceiverEvent::Closed { session } => {
                let told = self.sessions.get_mut(&session.number()).expect("it was opened");
                assert!(!told.closed, "closed twice");
                told.closed = true;
            }
        }
    }

    /// Acks go to the dump's own client, each number as often at most as it was sent, and only for what is stored.
    fn check_reply(&mut self, Reply { session, to }: Reply, train: &[u8]) {
        assert!(!train.is_empty() && train.len().is_multiple_of(4) && train.len() <= 4 * MAX_TRAIN);
        let told = self.sessions.get_mut(&session.number()).expect("it was opened");
        let record = &self.store.records.borrow()[session.number() as usize];
        assert_eq!(to, record.request.peer);
        for ack in train.chunks(4) {
            let number = Ack::parse(ack).expect("an ack").0;
            told.acks.push(number);
            let count = |numbers: &[u32]| numbers.iter().filter(|known| **known == number).count();
            let heralds = self.heralds.get(&(to, record.request.local)).map_or(0, |numbers| count(numbers));
            let messages = record.deliveries.iter().filter(|delivery| delivery.sequence == number);
            let acks = count(&told.acks);
            assert!(acks <= heralds + messages.clone().count(), "{number} is acknowledged too often");
            let is_stored = messages.clone().any(|message| record.has_stored(message));
            assert!(is_stored || acks <= heralds, "{number} is not stored");
        }
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
        assert_eq!(self.receiver.progress().count(), 0);
        assert!(self.sessions.keys().copied().eq(opened), "a dump began by itself");
        let records = self.store.records.borrow();
        assert_eq!(records.len(), self.sessions.len());
        for (record, told) in records.iter().zip(self.sessions.values()) {
            assert!(told.closed && record.fate != Fate::Open);
            assert_eq!(told.ended, record.fate != Fate::Discarded, "{:?}", record.fate);
        }
    }
}

/// A message whose length fits: kind, number, aux word, place, and how many bytes of what.
fn message(script: &mut Script<'_>) -> Vec<u8> {
    let kind = script.one_of(&KINDS);
    let (sequence, aux) = (u32::from(script.byte()), u32::from(script.byte()));
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
