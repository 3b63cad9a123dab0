//! A server that follows netdumpd's observable behaviour, in its good manners and in bad ones. It shares no code with
//! the product's receiver.
//!
//! As netdumpd: each HERALD after data begins a new dump at a new port and forgets the old one, a dump's port closes
//! with the first FINISHED, messages are told apart by nothing but their offsets. With [`Writes::Behind`] it also
//! acknowledges data before it writes it, and loses what it had not written when a dump ends otherwise than by FINISHED:
//! because its client begins anew, because it is told to stop, because the disk is full.

mod disk;
mod manner;

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use self::disk::Disk;
pub use self::disk::Writes;
pub use self::manner::Manner;
use crate::torture::judge::Stored;
use crate::torture::sim::hosts::{
    CLIENT_IP, GATEWAY_IP, SERVER_IP, SERVER_MAC, port_unreachable, put_arp, question_for,
};
use crate::torture::sim::{Keeper, Station};
use crate::wire::arp::{ArpOperation, ArpPacket};
use crate::wire::{Ack, MacAddr, Message, MessageKind, Route};

/// Memory that Linux charges a socket of 128 KiB (doubled, as it does): about 113 datagrams of 1440 bytes or 31 of 4096.
const BUFFER: usize = 2 * 128 * 1024;

/// No core of a simulation is larger.
const MAX_CORE: usize = 1 << 30;
/// No key block is larger, and no more headers are kept.
const MAX_KEY: usize = 1 << 20;
const MAX_HEADERS: usize = 16;

/// Port of the first dump; each further one has the next.
const FIRST_PORT: u16 = 40_000;

/// How long [`Manner::ReversedAcks`] holds an ack back at most.
const HELD_BACK: Duration = Duration::from_millis(2);
/// What is added to a number for an ack of what was not sent, however large the window.
const FUTURE: u32 = 1 << 24;

/// A server on the wire, for one client at a time.
#[derive(Debug)]
pub struct FakeServer {
    manner: Manner,
    writes: Writes,
    room: usize,
    /// Data messages before it is told to stop.
    stops_after: u64,
    is_stopped: bool,
    /// Whether its host answers for closed ports.
    refuses: bool,
    /// The core as it was written.
    disk: Disk,
    /// Cores of dumps that were given up for a new HERALD, or followed by one, and whether they were finished.
    pub earlier: Vec<(Vec<u8>, bool)>,
    key: Disk,
    /// Every dump header that came.
    pub headers: Vec<Vec<u8>>,
    /// The kinds of messages in order of arrival, repetitions of a kind left out.
    pub order: Vec<MessageKind>,
    /// Whether FINISHED came.
    pub finished: bool,
    /// Datagrams for which the buffer had no room.
    pub overflows: u64,
    port: Option<u16>,
    next_port: u16,
    data_messages: u64,
    acks: u64,
    buffer: VecDeque<Vec<u8>>,
    buffered: usize,
    /// When the first datagram in `buffer` is done with.
    served_at: Option<Instant>,
    neighbor: Option<MacAddr>,
    unaddressed: VecDeque<Vec<u8>>,
    asks_again: Option<Instant>,
    /// Of one that goes silent, or has gone: until when.
    silent_until: Option<Instant>,
    /// Acks for [`Manner::ReversedAcks`], and when they are sent at the latest.
    held_back: Vec<(Instant, Vec<u8>)>,
    /// Frames to send, each from its time on.
    out: VecDeque<(Instant, Vec<u8>)>,
}

impl FakeServer {
    /// With these manners.
    pub fn new(manner: Manner) -> Self {
        Self {
            manner,
            writes: Writes::BeforeAck,
            room: MAX_CORE,
            stops_after: u64::MAX,
            is_stopped: false,
            refuses: false,
            disk: Disk::new(Writes::BeforeAck, MAX_CORE),
            earlier: Vec::new(),
            key: Disk::new(Writes::BeforeAck, MAX_KEY),
            headers: Vec::new(),
            order: Vec::new(),
            finished: false,
            overflows: 0,
            port: None,
            next_port: FIRST_PORT,
            data_messages: 0,
            acks: 0,
            buffer: VecDeque::new(),
            buffered: 0,
            served_at: None,
            neighbor: None,
            unaddressed: VecDeque::new(),
            asks_again: None,
            silent_until: None,
            held_back: Vec::new(),
            out: VecDeque::new(),
        }
    }

    /// When it writes, and on how large a disk.
    pub fn writing(self, writes: Writes, room: usize) -> Self {
        Self { writes, room, disk: Disk::new(writes, room), ..self }
    }

    /// It is told to stop when so many data messages of a dump have come.
    pub fn stopping_after(self, messages: u64) -> Self {
        Self { stops_after: messages, ..self }
    }

    /// Its host says by ICMP that a port is closed.
    pub fn refusing(self) -> Self {
        Self { refuses: true, ..self }
    }

    /// The core as it was written.
    pub fn core(&self) -> &[u8] {
        &self.disk.file
    }

    fn take_datagram(&mut self, now: Instant, frame: &[u8]) {
        let Ok((route, payload)) = Route::parse(frame) else { return };
        if *route.destination.ip() != SERVER_IP || *route.source.ip() != CLIENT_IP {
            return;
        }
        let Ok(message) = Message::parse(payload) else { return };
        self.neighbor.get_or_insert(route.source_mac);
        match route.destination.port() {
            20023 if message.kind == MessageKind::Herald => self.take_herald(now, route, &message),
            20023 => {}
            port if Some(port) == self.port => self.take_message(now, route, &message),
            _ => self.refuse(now, frame),
        }
    }

    /// Its host says that nobody has the port.
    fn refuse(&mut self, now: Instant, frame: &[u8]) {
        if self.refuses && self.neighbor.is_some() {
            self.out.extend(port_unreachable(frame).map(|answer| (now, answer)));
        }
    }

    fn take_herald(&mut self, now: Instant, route: Route, message: &Message<'_>) {
        if self.port.is_none() || self.data_messages > 0 {
            if self.next_port > FIRST_PORT {
                self.end_dump();
            }
            self.port = Some(self.next_port);
            self.next_port += 1;
            self.data_messages = 0;
            self.finished = false;
            self.headers.clear();
        }
        self.note(MessageKind::Herald);
        self.acknowledge(now, route, message.sequence);
    }

    fn take_message(&mut self, now: Instant, route: Route, message: &Message<'_>) {
        self.note(message.kind);
        match message.kind {
            MessageKind::Herald => return,
            MessageKind::Vmcore => {
                self.data_messages += 1;
                if self.disk.put(message).is_err() {
                    return self.drop_client();
                }
                self.act_on_count(now);
            }
            MessageKind::EkcdKey => {
                if self.key.put(message).is_err() {
                    return;
                }
            }
            MessageKind::Kdh => {
                self.headers.push(message.payload.to_vec());
                self.headers.truncate(MAX_HEADERS);
            }
            MessageKind::Finished => {
                if self.disk.flush().is_err() {
                    return self.drop_client();
                }
                self.finished = true;
                if self.manner != Manner::NeverAcksFinished {
                    self.port = None;
                }
                if matches!(self.manner, Manner::NeverAcksFinished | Manner::LosesLastAck) {
                    return;
                }
            }
        }
        self.acknowledge(now, route, message.sequence);
    }

    /// What it does when so much data has come.
    fn act_on_count(&mut self, now: Instant) {
        match self.manner {
            Manner::GoesSilent { after, time } if self.data_messages == after => {
                self.silent_until.get_or_insert(now + time);
            }
            Manner::Restarts { after } if self.data_messages == after => self.drop_client(),
            _ => {}
        }
        if self.data_messages >= self.stops_after {
            self.is_stopped = true;
            self.drop_client();
        }
    }

    /// The client's port is closed, whatever came of its dump.
    fn drop_client(&mut self) {
        self.port = None;
        self.data_messages = 0;
    }

    /// What is not on disk now is lost.
    fn end_dump(&mut self) {
        let disk = std::mem::replace(&mut self.disk, Disk::new(self.writes, self.room));
        self.earlier.push((disk.file, self.finished));
    }

    fn note(&mut self, kind: MessageKind) {
        if self.order.last() != Some(&kind) {
            self.order.push(kind);
        }
    }

    fn acknowledge(&mut self, now: Instant, route: Route, sequence: u32) {
        self.acks += 1;
        let mut back = route.reversed();
        if back.source.port() == 20023 {
            back.source.set_port(self.port.unwrap_or(20023));
        }
        match self.manner {
            Manner::MovesPort { after } if self.data_messages > after => back.source.set_port(999),
            Manner::AcksFromAnotherHost if self.data_messages > 0 => {
                back.source = SocketAddrV4::new(GATEWAY_IP, back.source.port());
            }
            Manner::ForgetsNeighbor { every } if self.acks.is_multiple_of(every) => {
                self.neighbor = None;
                self.asks_again = Some(now);
            }
            _ => {}
        }
        let late = match self.manner {
            Manner::LateAcks { every, by } if self.acks.is_multiple_of(every) => by,
            _ => Duration::ZERO,
        };
        self.answer(now + late, back, &Ack(sequence).to_bytes());
        match self.manner {
            Manner::AcksTheFuture => self.answer(now, back, &Ack(sequence.wrapping_add(FUTURE)).to_bytes()),
            Manner::OddAcks => {
                self.answer(now, back, &Ack(sequence.wrapping_add(FUTURE)).to_bytes()[..3]);
                self.answer(now, back, &[Ack(sequence.wrapping_add(FUTURE)).to_bytes(), [0; 4]].concat());
            }
            _ => {}
        }
    }

    fn answer(&mut self, at: Instant, route: Route, payload: &[u8]) {
        let mut frame = Vec::new();
        route.emit(payload, &mut frame);
        if self.neighbor.is_none() {
            self.unaddressed.push_back(frame);
        } else if let Manner::ReversedAcks { of } = self.manner {
            self.held_back.push((at + HELD_BACK, frame));
            if self.held_back.len() >= of {
                self.release(at);
            }
        } else {
            self.out.push_back((at, frame));
        }
    }

    /// Sends what was held back, the last first.
    fn release(&mut self, now: Instant) {
        self.out.extend(self.held_back.drain(..).rev().map(|(_, frame)| (now, frame)));
    }

    /// Into the socket's buffer, or lost.
    fn buffer(&mut self, now: Instant, frame: &[u8]) {
        if self.buffered + charge(frame) > BUFFER {
            self.overflows += 1;
            return;
        }
        self.buffered += charge(frame);
        self.buffer.push_back(frame.to_vec());
        self.served_at.get_or_insert_with(|| now + service(frame));
    }

    fn serve_buffered(&mut self, now: Instant) {
        while let Some(at) = self.served_at.filter(|at| *at <= now) {
            let Some(frame) = self.buffer.pop_front() else { break };
            self.buffered -= charge(&frame);
            self.take_datagram(at, &frame);
            self.served_at = self.buffer.front().map(|next| at + service(next));
        }
    }

    fn ask(&mut self, now: Instant) {
        let question = ArpPacket {
            operation: ArpOperation::Request,
            sender_mac: SERVER_MAC,
            sender_ip: SERVER_IP,
            target_mac: MacAddr::ZERO,
            target_ip: CLIENT_IP,
        };
        let mut frame = Vec::new();
        put_arp(&question, &mut frame);
        self.out.push_back((now, frame));
        self.asks_again = Some(now + Duration::from_secs(1));
    }

    fn take_arp(&mut self, now: Instant, frame: &[u8]) {
        if let Some(question) = question_for(SERVER_IP, frame) {
            let mut answer = Vec::new();
            put_arp(&question.reply_from(SERVER_MAC), &mut answer);
            self.out.push_back((now, answer));
        } else if let Ok(answer) = ArpPacket::parse(&frame[14..])
            && (answer.operation, answer.sender_ip) == (ArpOperation::Reply, CLIENT_IP)
        {
            self.neighbor = Some(answer.sender_mac);
            self.asks_again = None;
            self.out.extend(self.unaddressed.drain(..).map(|frame| (now, frame)));
        }
    }
}

impl Station for FakeServer {
    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        let for_us = frame[..6] == SERVER_MAC.0;
        let is_deaf = self.is_stopped || self.manner == Manner::Deaf;
        let hears = for_us && self.silent_until.is_none_or(|until| until <= now);
        if frame[12..14] == [8, 6] && (for_us || frame[..6] == MacAddr::BROADCAST.0) {
            self.take_arp(now, frame);
        } else if hears && is_deaf {
            self.refuse(now, frame);
        } else if hears {
            match self.manner {
                Manner::StockBuffer => self.buffer(now, frame),
                _ => self.take_datagram(now, frame),
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.serve_buffered(now);
        if self.held_back.first().is_some_and(|(at, _)| *at <= now) {
            self.release(now);
        }
        if self.asks_again.is_some_and(|at| at <= now) {
            self.ask(now);
        }
    }

    fn poll_transmit(&mut self, now: Instant, frame: &mut Vec<u8>) -> bool {
        let due = self.out.iter().position(|(at, _)| *at <= now);
        due.and_then(|index| self.out.remove(index)).map(|(_, due)| *frame = due).is_some()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let out = self.out.iter().map(|(at, _)| *at).min();
        let held_back = self.held_back.first().map(|(at, _)| *at);
        [out, held_back, self.served_at, self.asks_again].into_iter().flatten().min()
    }
}

impl Keeper for FakeServer {
    fn close(&mut self, _now: Instant) {}

    fn stored(&self) -> Vec<Stored<'_>> {
        let earlier =
            self.earlier.iter().map(|(core, is_complete)| Stored { core, is_complete: *is_complete });
        earlier.chain([Stored { core: &self.disk.file, is_complete: self.finished }]).collect()
    }
}

/// What a datagram takes of the socket's buffer, bookkeeping included.
fn charge(frame: &[u8]) -> usize {
    if frame.len() <= 1600 { 2320 } else { 8456 }
}

/// How long a stock server is busy with a datagram: it stores about 270 MB/s of small and 500 MB/s of large ones.
fn service(frame: &[u8]) -> Duration {
    Duration::from_nanos(if frame.len() <= 1600 { 5_300 } else { 8_200 })
}
