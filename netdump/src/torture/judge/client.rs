//! What a client may do, judged from its datagrams and from the acks that reached it.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::Fault;
use super::server::ABLE;
use crate::wire::{Ack, Message, MessageKind, SERVER_PORT};

/// Messages that a client may have unacknowledged: far more than any server has room for, and few enough that a client
/// which does not look at acks is told from one with a large window.
const MAX_IN_FLIGHT: usize = 1 << 16;

/// Messages that are remembered, to know them when they are sent again.
const MAX_KNOWN: usize = 4 * MAX_IN_FLIGHT;

/// Which acks count for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcksFrom {
    /// Those from the port that acknowledged the HERALD.
    LearnedPort,
    /// Those from any port of the server: FreeBSD's client looks at the address only.
    AnyPort,
}

/// Watches one client.
#[derive(Debug)]
pub struct ClientJudge {
    server: Ipv4Addr,
    acks_from: AcksFrom,
    /// Messages of the present attempt, by number: all from `oldest` on.
    sent: HashMap<u32, Sent>,
    oldest: u32,
    /// Its data messages that are not acknowledged.
    in_flight: usize,
    /// Data that was acknowledged, as start and end, in any order.
    acked: Vec<(u64, u64)>,
    /// Ports of the server from which something came in this attempt.
    ports: BTreeSet<u16>,
    /// The one that acknowledged the HERALD.
    learned: Option<u16>,
    /// The HERALD's last word, by which our client names a dump that goes on.
    dump: u32,
    /// Numbers of the HERALDs by which it asks a silent server for that dump.
    questions: BTreeSet<u32>,
    header: Option<u32>,
    /// Whether FINISHED was sent.
    finished: bool,
    faults: Vec<Fault>,
}

/// A message that was sent, and what of it must stay the same when it is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sent {
    kind: MessageKind,
    offset: u64,
    len: usize,
    checksum: u32,
    is_acked: bool,
}

impl ClientJudge {
    /// A judge of a client of this server.
    pub fn new(server: Ipv4Addr, acks_from: AcksFrom) -> Self {
        Self {
            server,
            acks_from,
            sent: HashMap::new(),
            oldest: 0,
            in_flight: 0,
            acked: Vec::new(),
            ports: BTreeSet::new(),
            learned: None,
            dump: 0,
            questions: BTreeSet::new(),
            header: None,
            finished: false,
            faults: Vec::new(),
        }
    }

    /// The client sent this to the server.
    pub fn sent(&mut self, port: u16, payload: &[u8]) {
        let message = match Message::parse(payload) {
            Ok(message) => message,
            Err(error) => return self.accuse(Fault::Malformed(error)),
        };
        if message.kind == MessageKind::Herald {
            return self.herald(port, &message);
        }
        if !self.ports.contains(&port) {
            return self.accuse(Fault::UnlearnedPort { port, kind: message.kind });
        }
        if message.sequence < self.oldest {
            return;
        }
        let sent = Sent {
            kind: message.kind,
            offset: message.offset,
            len: message.payload.len(),
            checksum: crc32fast::hash(message.payload),
            is_acked: false,
        };
        match self.sent.get(&message.sequence) {
            Some(before) => {
                if let Some(fault) = again(message.sequence, before, &sent) {
                    self.accuse(fault);
                }
            }
            None => self.first(message.sequence, sent),
        }
    }

    /// This reached the client.
    pub fn arrived(&mut self, source: SocketAddrV4, payload: &[u8]) {
        if *source.ip() != self.server {
            return;
        }
        self.ports.insert(source.port());
        let Ok(Ack(number)) = Ack::parse(payload) else { return };
        let answers = |question: &&u32| [**question, **question ^ ABLE, !**question].contains(&number);
        if let Some(&question) = self.questions.iter().find(answers) {
            return self.answered(question, number, source.port());
        }
        let other = self.learned.is_some_and(|learned| learned != source.port());
        if other && self.acks_from == AcksFrom::LearnedPort {
            return;
        }
        let Some(sent) = self.sent.get_mut(&number).filter(|sent| !sent.is_acked) else { return };
        sent.is_acked = true;
        match sent.kind {
            MessageKind::Herald => self.learned = Some(source.port()),
            MessageKind::Vmcore => {
                let (start, end) = (sent.offset, sent.offset.saturating_add(sent.len as u64));
                match self.acked.last_mut().filter(|last| last.1 == start) {
                    Some(last) => last.1 = end,
                    None => self.acked.push((start, end)),
                }
                self.in_flight -= 1;
            }
            MessageKind::Kdh | MessageKind::EkcdKey | MessageKind::Finished => {}
        }
    }

    /// What the client has done so far that it must not, but the repetitions of it.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Whether it has sent FINISHED.
    pub fn has_finished(&self) -> bool {
        self.finished
    }

    /// The first HERALD, its repetition, or a new attempt at the dump.
    fn herald(&mut self, port: u16, message: &Message<'_>) {
        if port != SERVER_PORT {
            self.accuse(Fault::HeraldTo(port));
        }
        let is_repetition = self.sent.len() == 1 && self.sent.contains_key(&message.sequence);
        if is_repetition && message.aux == self.dump {
            return;
        }
        if message.aux != 0 && message.aux == self.dump {
            // Our client asks whether the dump goes on, and goes on with it until it is told.
            self.questions.insert(message.sequence);
            return;
        }
        self.begin(message.sequence);
        self.dump = message.aux;
    }

    /// The server has said whether the dump goes on.
    fn answered(&mut self, question: u32, number: u32, port: u16) {
        if number == !question {
            self.questions.clear();
        } else {
            self.begin(question);
            self.ports.insert(port);
            self.sent.values_mut().for_each(|herald| herald.is_acked = true);
        }
        self.learned = Some(port);
    }

    /// The dump begins with this HERALD: nothing is acknowledged.
    fn begin(&mut self, herald: u32) {
        self.acked.clear();
        self.sent.clear();
        self.oldest = 0;
        self.ports.clear();
        self.questions.clear();
        (self.in_flight, self.learned, self.header, self.finished) = (0, None, None, false);
        let sent = Sent { kind: MessageKind::Herald, offset: 0, len: 0, checksum: 0, is_acked: false };
        self.sent.insert(herald, sent);
    }

    /// A message that was not sent before.
    fn first(&mut self, sequence: u32, sent: Sent) {
        match sent.kind {
            MessageKind::Vmcore => {
                if self.header.is_some() {
                    self.accuse(Fault::DataBehindHeader);
                }
                self.in_flight += 1;
                if self.in_flight > MAX_IN_FLIGHT {
                    self.accuse(Fault::AheadOfAcks(self.in_flight));
                }
            }
            MessageKind::Kdh => {
                if self.header.is_some() {
                    self.accuse(Fault::SecondHeader);
                }
                if let Some(hole) = self.first_hole() {
                    self.accuse(Fault::HeaderBeforeAcks(hole));
                }
                self.header = Some(sequence);
            }
            MessageKind::Finished => {
                self.finished = true;
                if let Some(hole) = self.first_hole() {
                    self.accuse(Fault::FinishedWithHole(hole));
                }
                for kind in [MessageKind::Kdh, MessageKind::EkcdKey] {
                    if self.sent.values().any(|sent| sent.kind == kind && !sent.is_acked) {
                        self.accuse(Fault::FinishedBefore(kind));
                    }
                }
            }
            MessageKind::EkcdKey | MessageKind::Herald => {}
        }
        self.sent.insert(sequence, sent);
        if self.sent.len() > MAX_KNOWN {
            self.forget(sequence);
        }
    }

    /// Forgets messages that were acknowledged long ago: a dump may be larger than this machine.
    fn forget(&mut self, newest: u32) {
        self.oldest = newest.saturating_sub(u32::try_from(MAX_IN_FLIGHT).unwrap_or(u32::MAX));
        let oldest = self.oldest;
        self.sent.retain(|number, sent| *number >= oldest || !sent.is_acked);
        self.acked.sort_unstable();
        self.acked.dedup_by(|next, last| {
            let joins = next.0 <= last.1;
            if joins {
                last.1 = last.1.max(next.1);
            }
            joins
        });
    }

    /// Data that was sent and never acknowledged.
    fn first_hole(&mut self) -> Option<(u64, u64)> {
        if self.in_flight == 0 {
            return None;
        }
        let mut open: Vec<_> = self.unacked().collect();
        open.sort_unstable();
        self.acked.sort_unstable();
        // What one attempt had cut into messages one way, the next may have acknowledged cut another way.
        let mut acked = self.acked.iter().peekable();
        let mut covered = 0;
        for (start, end) in open {
            covered = start.max(covered);
            while let Some((_, reach)) = acked.next_if(|(from, _)| *from <= covered) {
                covered = covered.max(*reach);
            }
            if covered < end {
                return Some((covered, end));
            }
        }
        None
    }

    fn unacked(&self) -> impl Iterator<Item = (u64, u64)> {
        let data = self.sent.values().filter(|sent| sent.kind == MessageKind::Vmcore && !sent.is_acked);
        data.map(|sent| (sent.offset, sent.offset.saturating_add(sent.len as u64)))
    }

    fn accuse(&mut self, fault: Fault) {
        Fault::note(&mut self.faults, fault);
    }
}

/// What is wrong with a message that has the number of one before.
fn again(sequence: u32, before: &Sent, now: &Sent) -> Option<Fault> {
    let place = |sent: &Sent| (sent.kind, sent.offset, sent.len);
    if place(before) != place(now) {
        Some(Fault::NumberReused(sequence))
    } else if before.checksum != now.checksum {
        Some(Fault::ResendDiffers { sequence, offset: now.offset })
    } else if before.is_acked && now.kind == MessageKind::Kdh {
        Some(Fault::SecondHeader)
    } else {
        None
    }
}
