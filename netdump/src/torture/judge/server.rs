//! What a server may do, judged from the datagrams that were sent to it, from its acks, and from what it has stored.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddrV4;

use thiserror::Error;

use super::Fault;
use crate::vmcore::KernelDumpHeader;
use crate::vmcore::kdh::{Compression, KDH_LEN};
use crate::wire::message::MessageError;
use crate::wire::{Ack, Message, MessageKind, SERVER_PORT};

/// The longest file there is.
const MAX_FILE: u64 = i64::MAX as u64;
/// No key block is longer (FreeBSD's `KERNELDUMP_ENCKEY_MAX_SIZE` and its head), so no offset in one is larger.
const MAX_KEY: u64 = 1 << 20;

/// Makes of the number of a HERALD that names its dump the one that says that the server knows of such names.
pub(super) const ABLE: u32 = 1 << 31;

/// A message that no server can take for what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Strange {
    /// Its header and its length do not fit.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// No HERALD, to the well-known port.
    #[error("{0:?} at the port for HERALDs")]
    NotAHerald(MessageKind),
    /// Data where no file has any.
    #[error("data at offset {0:#x}")]
    DataBeyondFiles(u64),
    /// A key where no key block has any.
    #[error("part of a key at offset {0:#x}")]
    KeyBeyondFiles(u64),
    /// A header that is not one.
    #[error("a dump header of {len} bytes at offset {offset:#x}")]
    HeaderInParts {
        /// Its length.
        len: usize,
        /// Its offset.
        offset: u64,
    },
}

/// A dump as the server has stored it.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// The core.
    pub core: &'a [u8],
    /// Whether it is stored as whole.
    pub is_complete: bool,
}

/// Watches a server.
#[derive(Debug, Default)]
pub struct ServerJudge {
    clients: BTreeMap<SocketAddrV4, Client>,
    faults: Vec<Fault>,
}

#[derive(Debug, Default)]
struct Client {
    /// Numbers of HERALDs, and further numbers that acknowledge those which name their dump.
    heralds: BTreeSet<u32>,
    /// What it has sent, by port of the server. A server that was started anew may give a dump a port that one had before,
    /// so this stays.
    ports: BTreeMap<u16, Port>,
    /// Dumps by port.
    sessions: BTreeMap<u16, Session>,
    /// Dumps of which a server that was started anew knows nothing.
    earlier: Vec<Session>,
}

/// What was sent to a port.
#[derive(Debug, Default)]
struct Port {
    sent: HashMap<u32, Sent>,
    strange: HashMap<u32, Strange>,
    /// Data and key bytes, as start and end, in any order.
    data: Vec<(u64, u64)>,
    key: Vec<(u64, u64)>,
    header: Option<KernelDumpHeader>,
}

/// What was acknowledged from a port.
#[derive(Debug, Default)]
struct Session {
    acked: Vec<(u64, u64)>,
    is_finished: bool,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    kind: MessageKind,
    offset: u64,
    len: usize,
}

impl ServerJudge {
    /// A datagram was sent to the server.
    pub fn takes(&mut self, client: SocketAddrV4, port: u16, payload: &[u8]) {
        let client = self.clients.entry(client).or_default();
        let to = client.ports.entry(port).or_default();
        match judge(port, payload) {
            Ok(herald) if port == SERVER_PORT => client.heralds.extend(numbers_of(&herald)),
            Ok(message) => to.take(&message),
            Err(strange) => to.remember(payload, strange),
        }
    }

    /// The server has sent a datagram.
    pub fn sends(&mut self, port: u16, client: SocketAddrV4, payload: &[u8]) {
        if let Some(fault) = self.judge_ack(port, client, payload) {
            Fault::note(&mut self.faults, fault);
        }
    }

    /// The server was started again and gives the clients that it had ports anew.
    pub fn restarted(&mut self) {
        for client in self.clients.values_mut() {
            client.earlier.extend(std::mem::take(&mut client.sessions).into_values());
        }
    }

    /// What the server has done so far that it must not, but the repetitions of it.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Compares what was acknowledged to `client`, whose core this is, with all that the server has stored.
    pub fn compare(&mut self, client: SocketAddrV4, core: &[u8], stored: &[Stored<'_>]) {
        let Some(known) = self.clients.get(&client) else { return };
        let core = core.get(..known.length().min(core.len())).unwrap_or(core);
        for session in known.sessions.values().chain(&known.earlier) {
            if let Some(fault) = session.compare(client, core, stored) {
                Fault::note(&mut self.faults, fault);
            }
        }
    }

    fn judge_ack(&mut self, port: u16, client: SocketAddrV4, payload: &[u8]) -> Option<Fault> {
        let Ok(Ack(sequence)) = Ack::parse(payload) else { return Some(Fault::OddAck(payload.len())) };
        let nothing = Fault::AckOfNothing { client, port, sequence };
        let Some(known) = self.clients.get_mut(&client) else { return Some(nothing) };
        if !known.sessions.contains_key(&port) {
            return known.open(client, port, sequence);
        }
        let to = known.ports.get(&port);
        match to.and_then(|to| to.sent.get(&sequence)) {
            Some(&sent) => known.acknowledge(port, sent),
            None if known.heralds.contains(&sequence) => None,
            None => {
                let strange = to.and_then(|to| to.strange.get(&sequence));
                Some(strange.map_or(nothing, |strange| Fault::AckOfStrange(*strange)))
            }
        }
    }
}

impl Client {
    /// The first ack from this port.
    fn open(&mut self, client: SocketAddrV4, port: u16, sequence: u32) -> Option<Fault> {
        let strange = self.ports.get(&SERVER_PORT).and_then(|to| to.strange.get(&sequence));
        if let Some(strange) = strange {
            return Some(Fault::AckOfStrange(*strange));
        }
        if !self.heralds.contains(&sequence) {
            return Some(Fault::OtherPort { client, port });
        }
        // One that got data may begin another dump.
        let is_unused = |port| self.ports.get(port).is_none_or(|to| to.sent.is_empty());
        let unused = self.sessions.keys().find(|port| is_unused(port));
        let fault = unused.map(|&first| Fault::TwoPorts { client, first, second: port });
        self.sessions.insert(port, Session::default());
        fault
    }

    fn acknowledge(&mut self, port: u16, sent: Sent) -> Option<Fault> {
        let session = self.sessions.get_mut(&port)?;
        match sent.kind {
            MessageKind::Vmcore => add(&mut session.acked, (sent.offset, sent.offset + sent.len as u64)),
            MessageKind::Finished => {
                session.is_finished = true;
                return self.lack(self.ports.get(&port)?.header.as_ref()?);
            }
            _ => {}
        }
        None
    }

    /// Where its core ends if it is packed; what follows is padding, which a server may cut off.
    fn length(&self) -> usize {
        let headers = self.ports.values().filter_map(|to| to.header.as_ref());
        let packed = headers.filter(|header| header.compression != Compression::None);
        packed.map(|header| index(header.dump_length)).min().unwrap_or(usize::MAX)
    }

    /// What a packed dump lacks to be read, by its header. A dump may have gone on from one port to the next.
    fn lack(&self, header: &KernelDumpHeader) -> Option<Fault> {
        if header.compression == Compression::None && header.key_size == 0 {
            return None;
        }
        let data = self.ports.values().flat_map(|to| &to.data);
        let (announced, sent) = (header.dump_length, bytes_of(data, header.dump_length));
        if sent < announced {
            return Some(Fault::FinishedShort { announced, sent });
        }
        let key = self.ports.values().flat_map(|to| &to.key);
        let announced = u64::from(header.key_size);
        let sent = bytes_of(key, announced);
        (sent < announced).then_some(Fault::FinishedWithoutKey { announced, sent })
    }
}

impl Port {
    fn take(&mut self, message: &Message<'_>) {
        let &Message { kind, sequence, offset, payload, .. } = message;
        let range = (offset, offset + payload.len() as u64);
        match kind {
            MessageKind::Vmcore => add(&mut self.data, range),
            MessageKind::EkcdKey => add(&mut self.key, range),
            MessageKind::Kdh => {
                let header = payload.first_chunk::<KDH_LEN>();
                self.header = header.and_then(|bytes| KernelDumpHeader::parse(bytes).ok());
            }
            MessageKind::Herald | MessageKind::Finished => {}
        }
        self.sent.insert(sequence, Sent { kind, offset, len: payload.len() });
    }

    /// Under the number that an ack of this would have, were there one.
    fn remember(&mut self, payload: &[u8], strange: Strange) {
        if let Some(number) = payload.get(4..8).and_then(|bytes| bytes.first_chunk()) {
            self.strange.insert(u32::from_be_bytes(*number), strange);
        }
    }
}

impl Session {
    /// What of its acked data is in none of the stored dumps. All of it must be in one.
    fn compare(&self, client: SocketAddrV4, core: &[u8], stored: &[Stored<'_>]) -> Option<Fault> {
        let lost = |stored: &Stored<'_>| {
            let same = |&(start, end): &(u64, u64)| {
                let range = index(start)..index(end).min(core.len());
                range.is_empty()
                    || stored.core.get(range.clone()).is_some_and(|bytes| core.get(range) == Some(bytes))
            };
            self.acked.iter().find(|range| !same(range)).copied()
        };
        let candidates = stored.iter().filter(|stored| stored.is_complete || !self.is_finished);
        let mut best = None;
        for candidate in candidates {
            best = Some(lost(candidate)?);
        }
        match best {
            Some(range) => Some(Fault::AckedAndLost { client, range }),
            None if self.is_finished => Some(Fault::FinishedAndLost { client }),
            None => self.acked.first().map(|&range| Fault::AckedAndLost { client, range }),
        }
    }
}

/// What acknowledges a HERALD: its number, and where it names its dump ([`crate::receiver`]) one that says so, and one
/// that says that the dump goes on.
fn numbers_of(herald: &Message<'_>) -> impl Iterator<Item = u32> {
    let number = herald.sequence;
    let named = [number ^ ABLE, !number].into_iter().filter(|_| herald.aux != 0);
    named.chain([number])
}

/// Whether a server can take a datagram for what it says.
fn judge(port: u16, payload: &[u8]) -> Result<Message<'_>, Strange> {
    let message = Message::parse(payload)?;
    let len = message.payload.len() as u64;
    let ends_by = |limit: u64| message.offset.checked_add(len).is_some_and(|end| end <= limit);
    match message.kind {
        kind if port == SERVER_PORT && kind != MessageKind::Herald => Err(Strange::NotAHerald(kind)),
        MessageKind::Vmcore if !ends_by(MAX_FILE) => Err(Strange::DataBeyondFiles(message.offset)),
        MessageKind::EkcdKey if !ends_by(MAX_KEY) => Err(Strange::KeyBeyondFiles(message.offset)),
        MessageKind::Kdh if message.payload.len() < KDH_LEN || message.offset != 0 => {
            Err(Strange::HeaderInParts { len: message.payload.len(), offset: message.offset })
        }
        _ => Ok(message),
    }
}

fn add(ranges: &mut Vec<(u64, u64)>, range: (u64, u64)) {
    match ranges.last_mut().filter(|last| last.1 == range.0) {
        Some(last) => last.1 = range.1,
        None => ranges.push(range),
    }
}

/// How many bytes below `limit` lie in these ranges, each counted once.
fn bytes_of<'a>(ranges: impl Iterator<Item = &'a (u64, u64)>, limit: u64) -> u64 {
    let mut ranges: Vec<_> = ranges.copied().collect();
    ranges.sort_unstable();
    let (mut bytes, mut covered) = (0, 0);
    for (start, end) in ranges {
        let (start, end) = (start.max(covered), end.min(limit));
        bytes += end.saturating_sub(start);
        covered = covered.max(end);
    }
    bytes
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
