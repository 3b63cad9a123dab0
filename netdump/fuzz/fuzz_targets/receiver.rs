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
use netdump::receiver::{Endpoint, Receiver, ReceiverConfig, ReceiverEvent, Reply, SessionId};
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
    sessions: BTreeMap<u64, Told>,
    /// HERALDs that were taken: from whom, to which address, and their numbers.
    heralds: BTreeMap<(SocketAddrV4, Ipv4Addr), Vec<u32>>,
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
            sessions: BTreeMap::new(),
            heralds: BTreeMap::new(),
        }
    }

    /// One thing happens. What the receiver has to say is asked for only now and then, so that it can gather.
    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 8 {
            0..=2 => {
                let (to, from) = (self.endpoint(script), script.one_of(&PEERS));
                let datagram = message(script);
                self.deliver(to, from, &datagram);
            }
            3 => {
                let (to, from) = (self.endpoint(script), script.one_of(&PEERS));
                let len = usize::from(script.byte());
                let datagram = script.bytes(len).to_vec();
                self.deliver(to, from, &datagram);
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

    fn deliver(&mut self, to: Endpoint, from: SocketAddrV4, datagram: &[u8]) {
        let message = Message::parse(datagram).ok();
        let own = match to {
            Endpoint::Session(id) => {
                let number = id.number() as usize;
                Some(number).filter(|number| self.store.records.borrow()[*number].request.peer == from)
            }
            Endpoint::Herald { .. } => None,
        };
        // It may be stored while it is handled.
        if let (Some(number), Some(message)) = (own, message) {
            self.store.records.borrow_mut()[number].deliveries.push(Delivery {
                kind: message.kind,
                sequence: message.sequence,
                offset: message.offset,
                payload: message.payload.to_vec(),
            });
        }
        let taken = self.receiver.handle_datagram(self.now, to, from, datagram);
        match (to, taken) {
            (Endpoint::Herald { local }, Ok(())) => {
                let message = message.expect("it was taken");
                assert_eq!(message.kind, MessageKind::Herald);
                self.heralds.entry((from, local)).or_default().push(message.sequence);
            }
            (Endpoint::Herald { .. }, Err(_)) => {}
            (Endpoint::Session(_), Ok(())) => assert!(own.is_some() && message.is_some()),
            (Endpoint::Session(_), Err(_)) => {
                if let (Some(number), Some(_)) = (own, message) {
                    self.store.records.borrow_mut()[number].deliveries.pop();
                }
            }
        }
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

    fn settle(&mut self) {
        // What is stored while acks are asked for can end dumps.
        loop {
            if let Some(event) = self.receiver.poll_event() {
                self.hear(event);
            } else if let Some(reply) = self.receiver.poll_transmit() {
                self.check_reply(reply);
            } else if let Some(event) = self.receiver.poll_event() {
                self.hear(event);
            } else {
                break;
            }
        }
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

    /// An ack goes to the dump's own client, as often at most as it has sent that number, and only for what is stored.
    fn check_reply(&mut self, Reply { session, to, bytes, .. }: Reply) {
        let number = Ack::parse(&bytes).expect("an ack").0;
        let told = self.sessions.get_mut(&session.number()).expect("it was opened");
        let record = &self.store.records.borrow()[session.number() as usize];
        assert_eq!(to, record.request.peer);
        told.acks.push(number);
        let count = |numbers: &[u32]| numbers.iter().filter(|known| **known == number).count();
        let heralds = self.heralds.get(&(to, record.request.local)).map_or(0, |numbers| count(numbers));
        let messages = record.deliveries.iter().filter(|delivery| delivery.sequence == number);
        assert!(
            count(&told.acks) <= heralds + messages.clone().count(),
            "{number} is acknowledged too often"
        );
        let is_stored = messages.clone().any(|message| record.has_stored(message));
        assert!(is_stored || count(&told.acks) <= heralds, "{number} is not stored");
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
