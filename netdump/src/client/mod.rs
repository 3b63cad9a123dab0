//! The netdump client: frames and time in, frames and events out. It owns no socket, no clock and no memory of the
//! guest.
//!
//! ```text
//! Resolve -> Herald -> Key (encrypted dumps) -> Data -> Header -> Finish -> Closed
//! ```
//!
//! Law for callers: after each [`Client::handle_frame`], [`Client::handle_timeout`] or [`Client::abort`], call
//! [`Client::poll_transmit`] and [`Client::poll_event`] until both give `None`, then wait for a frame or for
//! [`Client::poll_timeout`]. [`crate::drive`] does that over a [`crate::link::Link`].
//!
//! The wire follows FreeBSD's `sys/netinet/netdump/netdump_client.c`, so stock servers understand it; how messages are
//! acknowledged and resent is this client's own (`window.rs`), as the protocol leaves it to the sender.

mod air;
mod classic;
mod config;
mod congestion;
mod flight;
mod ignored;
mod incoming;
mod neighbor;
mod options;
mod outgoing;
mod pacing;
mod phase;
mod resume;
mod silence;
mod spans;
mod timers;
mod train;
mod window;

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::Instant;

pub use config::{
    ClientConfig, ConfigError, CorePlan, DumpPlan, MAX_WINDOW, MIN_MTU, WindowChoice, check_path,
};
pub use ignored::{Ignored, IgnoredCounts};
pub use neighbor::NextHop;
pub use options::{ParseRateError, ParseWindowError, parse_rate};
pub use outgoing::{Attempt, PAYLOAD_AT, Packet, Sending, Transmit};
pub use phase::{ClientEvent, Ending, FailReason, Missing, Phase};
pub use silence::Suspicion;
pub use window::Sequence;

use self::incoming::{Arrival, Incoming};
use self::neighbor::{ArpNews, Neighbor};
use self::pacing::Pacer;
use self::resume::Resume;
use self::spans::Spans;
use self::train::Train;
use self::window::{AckError, AckWindow, Chunk, Pace};
use crate::link::Received;
use crate::vmcore::kdh::KDH_LEN;
use crate::wire::arp::ArpPacket;
use crate::wire::{MacAddr, MessageKind};
use crate::{ReadAt, ReadError};

/// What was sent and received so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Messages sent for the first time.
    pub messages: u64,
    /// Messages sent again.
    pub resends: u64,
    /// Core bytes sent at least once.
    pub bytes_sent: u64,
    /// Core bytes left out, as they are untouched zeros.
    pub bytes_untouched: u64,
    /// Core bytes left out, as they are zeros all the same.
    pub bytes_zero: u64,
    /// Core bytes acknowledged.
    pub bytes_acked: u64,
    /// How often a server that had fallen silent was found again and had kept what it had.
    pub resumes: u64,
    /// How often a server that had fallen silent was found again and had nothing.
    pub restarts: u64,
    /// Frames received and ignored.
    pub ignored: IgnoredCounts,
}

/// Whether new messages are begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// As the window allows.
    Open,
    /// None; what is on its way is still acknowledged and sent again, and ARP answered.
    Held,
}

/// One dump, from the first ARP request to its end.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    /// The HERALD's payload.
    path: Vec<u8>,
    /// Of a growing core, zeros until its end is known, as long as which nothing asks for it.
    header: [u8; KDH_LEN],
    key: Vec<u8>,
    payload_limit: usize,
    neighbor: Neighbor,
    window: AckWindow,
    pacer: Pacer,
    spans: Spans,
    /// Whether the core is kept only as long as it is not acknowledged.
    core_grows: bool,
    /// The core before this offset was sent at least once, or left out.
    sent_to: u64,
    /// When data to send was looked for last.
    searched: Option<Instant>,
    flow: Flow,
    phase: Phase,
    /// Of the present phase's object: bytes of the key, or messages, that were sent at least once.
    queued: usize,
    /// Where the HERALD's ack came from: the only port that later acks count from.
    learned_port: Option<u16>,
    resume: Resume,
    /// What is ready to be sent may go from then on.
    ready_at: Option<Instant>,
    /// When the dump fails whatever it does.
    deadline: Option<Instant>,
    /// Who else uses our address.
    conflict: Option<MacAddr>,
    /// Payload bytes of the longest data message that was acknowledged.
    longest_acked: usize,
    events: VecDeque<ClientEvent>,
    stats: ClientStats,
}

impl Client {
    /// Begins a dump: the first ARP request is ready to be sent.
    pub fn new(config: ClientConfig, plan: DumpPlan, now: Instant) -> Result<Self, ConfigError> {
        config.check(&plan)?;
        let (spans, header, core_grows) = match plan.core {
            CorePlan::Known { length, header } => (Spans::new(length), header, false),
            CorePlan::Growing => (Spans::growing(), [0; KDH_LEN], true),
        };
        let path = plan.path.filter(|path| !path.is_empty()).map(|path| [path.as_bytes(), b"\0"].concat());
        Ok(Self {
            path: path.unwrap_or_default(),
            header,
            key: plan.key.unwrap_or_default(),
            payload_limit: config.payload_limit(),
            neighbor: Neighbor::new(&config, now),
            window: AckWindow::new(config.payload_limit(), config.window, config.try_wait()),
            pacer: Pacer::new(config.rate),
            spans,
            core_grows,
            sent_to: 0,
            searched: None,
            flow: Flow::Open,
            phase: Phase::Resolve,
            queued: 0,
            learned_port: None,
            resume: Resume::default(),
            ready_at: None,
            deadline: config.deadline().map(|limit| now + limit),
            conflict: None,
            longest_acked: 0,
            events: VecDeque::from([ClientEvent::Reached(Phase::Resolve)]),
            stats: ClientStats::default(),
            config,
        })
    }

    /// Takes a frame from the link. One that changes nothing is counted and its reason returned; it is no failure.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) -> Result<(), Ignored> {
        self.take_frame(now, Arrival { bytes: frame, segment: None, checked: false })
    }

    /// Takes a frame, or a train of acks, from the link. Of a train each ack counts for itself; the first reason to
    /// ignore one is returned.
    pub fn handle(&mut self, now: Instant, received: &Received) -> Result<(), Ignored> {
        let Received { bytes, segment, checked } = received;
        self.take_frame(now, Arrival { bytes, segment: *segment, checked: *checked })
    }

    /// Acts on the time: resends, asks again, gives up.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.phase == Phase::Closed {
            return;
        }
        if let Some(limit) = self.config.deadline().filter(|_| self.deadline.is_some_and(|at| at <= now)) {
            self.end(FailReason::Deadline { limit, phase: self.phase, missing: self.lacking() });
            return;
        }
        self.neighbor.handle_timeout(now);
        if self.neighbor.is_silent() {
            let gateway = self.config.gateway.filter(|gateway| *gateway != self.config.server);
            self.end(FailReason::NoNeighbor { server: self.config.server, gateway });
            return;
        }
        if self.gives_up_at().is_some_and(|at| at <= now) {
            self.end(self.silence());
            return;
        }
        self.neighbor.ask_again(now, self.doubts_at().is_some_and(|at| at <= now));
        self.window.expire(now);
        self.ask(now);
    }

    /// Puts the next frame, or train, to send into `packet`, replacing what is there; `None` when there is nothing to send
    /// now. An error leaves everything as it was.
    pub fn poll_transmit<I: ReadAt + ?Sized>(
        &mut self,
        now: Instant,
        image: &I,
        packet: &mut Packet,
    ) -> Result<Option<Transmit>, ReadError> {
        if self.phase == Phase::Closed {
            return Ok(None);
        }
        if let Some(arp) = self.neighbor.poll_transmit() {
            self.emit_arp(&arp, packet);
            return Ok(Some(Transmit { sending: Sending::Arp(arp.operation), messages: 0, fresh: None }));
        }
        let Some(next_hop) = self.neighbor.next_hop() else { return Ok(None) };
        if let Some(sequence) = self.resume.take_herald(now) {
            return Ok(Some(self.emit_herald(next_hop, sequence, packet)));
        }
        self.ready_at = None;
        self.begin_train(now, next_hop, image, packet)
    }

    /// Puts the messages that may go now behind one header.
    fn begin_train<I: ReadAt + ?Sized>(
        &mut self,
        now: Instant,
        next_hop: MacAddr,
        image: &I,
        packet: &mut Packet,
    ) -> Result<Option<Transmit>, ReadError> {
        let sent_to = self.sent_to;
        self.searched = Some(now);
        let mut train = Train::default();
        Self::begin(packet);
        while let Some((sequence, chunk, attempt)) = self.peek_next(image) {
            if !train.takes(chunk, attempt) || train.is_empty() && !self.may_begin(now, chunk, attempt) {
                break;
            }
            match self.add_message(sequence, chunk, image, packet) {
                Ok(()) => {}
                Err(error) if train.is_empty() => return Err(error),
                Err(_) => break,
            }
            train.add(sequence, chunk, attempt, || self.train_limit(chunk.len));
            match attempt {
                Attempt::First => self.take_new(now, chunk),
                Attempt::Again => self.take_resend(now),
            }
        }
        let Some(transmit) = train.transmit(sent_to) else { return Ok(None) };
        self.finish(next_hop, self.session_port(), train.messages, train.len, packet);
        self.pacer.sent(now, packet.wire_len(transmit.messages));
        Ok(Some(transmit))
    }

    /// What happened since it was asked last, oldest first.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`] at the latest; `None` when the dump is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.phase == Phase::Closed {
            return None;
        }
        let times = [
            self.deadline,
            self.neighbor.poll_timeout(),
            self.doubts_at().filter(|_| !self.neighbor.is_in_doubt()),
            self.window.next_expiry(),
            self.ready_at,
            self.asks_at(),
            self.gives_up_at(),
            self.searches_on_at(),
        ];
        times.into_iter().flatten().min()
    }

    /// There are `available` bytes of a growing core. Those before [`Self::acked_to`] are not asked for any more.
    pub fn supply(&mut self, available: u64) {
        self.spans.grow(available);
    }

    /// A growing core ends after `length` bytes, with this header.
    pub fn end_of_core(&mut self, length: u64, header: [u8; KDH_LEN]) {
        if self.spans.is_growing() {
            self.spans.grow(length);
            self.spans.end();
            self.header = header;
            self.advance();
        }
    }

    /// Whether a message could be sent if there were more of a growing core.
    pub fn is_starved(&self) -> bool {
        self.phase == Phase::Data && self.spans.is_starved(self.payload_limit) && self.window.has_room()
    }

    /// Whether nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.window.is_empty()
    }

    /// When [`Self::poll_transmit`] gave nothing only because it had looked at enough zeros for once.
    fn searches_on_at(&self) -> Option<Instant> {
        self.searched.filter(|_| self.spans.is_searching() && self.window.has_room())
    }

    /// The core before this offset is acknowledged or was left out.
    pub fn acked_to(&self) -> u64 {
        match self.window.front() {
            Some(chunk) if chunk.kind == MessageKind::Vmcore => chunk.offset,
            Some(_) | None => self.spans.position(),
        }
    }

    /// Ends the dump, unless it is over, as unconfirmed where only FINISHED was not acknowledged, else as failed.
    pub fn abort(&mut self, reason: FailReason) {
        if self.phase != Phase::Closed {
            self.end(reason);
        }
    }

    /// Holds new messages back, or lets them go again, for a caller that has something else to do in between.
    pub fn set_flow(&mut self, flow: Flow) {
        self.flow = flow;
    }

    /// Where the dump is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The server's address with the port that it gave this dump; port 0 as long as it gave none.
    pub fn server(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.config.server, self.learned_port.unwrap_or(0))
    }

    /// What was sent and received so far.
    pub fn stats(&self) -> &ClientStats {
        &self.stats
    }

    /// Core bytes that need no more care: acknowledged, or left out as zeros.
    pub fn bytes_settled(&self) -> u64 {
        self.stats.bytes_acked + self.stats.bytes_untouched + self.stats.bytes_zero
    }

    /// The parts of the core that were not acknowledged, in ascending order: on their way, lost, or not sent yet. Of a
    /// growing core only what there is of it counts.
    pub fn missing(&self) -> Vec<(u64, u64)> {
        let on_their_way = self
            .window
            .unacknowledged()
            .filter(|chunk| chunk.kind == MessageKind::Vmcore)
            .map(|chunk| (chunk.offset, chunk.offset + chunk.len as u64));
        let unsent = (self.spans.position(), self.spans.length());
        let mut missing: Vec<(u64, u64)> = Vec::new();
        for (start, end) in on_their_way.chain((unsent.0 < unsent.1).then_some(unsent)) {
            match missing.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => missing.push((start, end)),
            }
        }
        missing
    }

    fn take_frame(&mut self, now: Instant, frame: Arrival<'_>) -> Result<(), Ignored> {
        if self.phase == Phase::Closed {
            return self.ignore(Ignored::Closed);
        }
        match Incoming::parse(&self.config, frame) {
            Ok(Incoming::Arp(packet)) => self.take_arp(now, &packet).or_else(|reason| self.ignore(reason)),
            Ok(Incoming::ClosedPort(port)) => {
                self.take_closed_port(now, port).or_else(|reason| self.ignore(reason))
            }
            Ok(Incoming::Acks { port, acks }) => {
                let mut first = Ok(());
                for ack in acks {
                    if let Err(reason) = ack.and_then(|ack| self.take_ack(now, port, ack)) {
                        let ignored = self.ignore(reason);
                        first = first.and(ignored);
                    }
                }
                // Round trips that prove shorter than expected may end the wait for others.
                self.window.expire(now);
                first
            }
            Err(reason) => self.ignore(reason),
        }
    }

    fn ignore(&mut self, reason: Ignored) -> Result<(), Ignored> {
        self.stats.ignored.count(reason);
        Err(reason)
    }

    fn take_arp(&mut self, now: Instant, packet: &ArpPacket) -> Result<(), Ignored> {
        match self.neighbor.handle(now, packet)? {
            ArpNews::Asked | ArpNews::Confirmed => Ok(()),
            ArpNews::Moved(hop) => {
                self.events.push_back(ClientEvent::Resolved { hop, mac: packet.sender_mac });
                Ok(())
            }
            ArpNews::Resolved(hop) => {
                self.events.push_back(ClientEvent::Resolved { hop, mac: packet.sender_mac });
                self.advance();
                Ok(())
            }
            ArpNews::Conflict(mac) => {
                if self.conflict.replace(mac).is_none() {
                    self.events.push_back(ClientEvent::AddressConflict { mac });
                }
                Err(Ignored::AddressConflict)
            }
        }
    }

    fn take_ack(&mut self, now: Instant, port: u16, sequence: Sequence) -> Result<(), Ignored> {
        match self.take_answer(now, port, sequence) {
            Some(taken) => taken,
            None => self.take_message_ack(now, port, sequence),
        }
    }

    /// The port is learned only from the ack of the HERALD, of which the window knows whether it was sent.
    fn take_message_ack(&mut self, now: Instant, port: u16, sequence: Sequence) -> Result<(), Ignored> {
        if self.learned_port.is_some_and(|learned| learned != port) {
            return Err(Ignored::OtherServerPort);
        }
        if self.phase == Phase::Finish && self.resume.is_open() {
            // It may be of another session at the same port, which has nothing of the dump.
            return Err(Ignored::DoubtfulAck);
        }
        let chunk = self.window.acknowledge(now, sequence).map_err(|error| match error {
            AckError::Repeated => Ignored::RepeatedAck,
            AckError::Unknown => Ignored::UnknownAck,
        })?;
        match chunk.kind {
            MessageKind::Herald => {
                self.learned_port = Some(port);
                self.resume.opened(now, sequence);
                self.events.push_back(ClientEvent::Accepted { port });
            }
            MessageKind::Vmcore => {
                self.stats.bytes_acked += chunk.len as u64;
                self.longest_acked = self.longest_acked.max(chunk.len);
            }
            MessageKind::Kdh | MessageKind::EkcdKey | MessageKind::Finished => {}
        }
        self.advance();
        Ok(())
    }

    /// Goes on to the next phase when this one's messages are all acknowledged.
    fn advance(&mut self) {
        while self.window.is_empty() && self.is_all_queued() {
            let next = match self.phase {
                Phase::Resolve => Phase::Herald,
                Phase::Herald if !self.key.is_empty() => Phase::Key,
                Phase::Herald | Phase::Key => Phase::Data,
                Phase::Data => Phase::Header,
                Phase::Header => Phase::Finish,
                Phase::Finish | Phase::Closed => return self.close(Ending::Complete),
            };
            self.phase = next;
            self.queued = 0;
            self.window.set_pace(if next == Phase::Data { Pace::Stream } else { Pace::Single });
            self.events.push_back(ClientEvent::Reached(next));
        }
    }

    /// Whether every message of this phase was sent at least once.
    fn is_all_queued(&self) -> bool {
        match self.phase {
            Phase::Resolve => self.neighbor.next_hop().is_some(),
            Phase::Key => self.queued == self.key.len(),
            Phase::Data => self.spans.is_done(),
            Phase::Herald | Phase::Header | Phase::Finish => self.queued == 1,
            Phase::Closed => false,
        }
    }

    /// The next message to send, if any may be sent now: a lost one first.
    fn peek_next<I: ReadAt + ?Sized>(&mut self, image: &I) -> Option<(Sequence, Chunk, Attempt)> {
        if self.phase == Phase::Finish && self.resume.is_open() {
            return None;
        }
        if let Some((sequence, chunk)) = self.window.peek_resend() {
            return Some((sequence, chunk, Attempt::Again));
        }
        if self.flow == Flow::Held || !self.window.has_room() {
            return None;
        }
        let chunk = self.peek_new(image)?;
        Some((self.window.next_sequence(), chunk, Attempt::First))
    }

    /// Whether a train may be begun now with this message. Not before the rate allows it, nor as long as the acks are
    /// expected that make room for more than a small part of it.
    fn may_begin(&mut self, now: Instant, chunk: Chunk, attempt: Attempt) -> bool {
        let (opened_at, waiting) = match attempt {
            Attempt::First => (self.window.opened_at(), self.spans.messages_left(self.payload_limit)),
            Attempt::Again => (None, self.window.lost_count()),
        };
        self.ready_at = self.pacer.holds_until(now).max(opened_at.filter(|at| *at > now));
        let train = self.train_limit(chunk.len).min(waiting);
        self.ready_at.is_none() && (chunk.kind != MessageKind::Vmcore || self.window.is_worth_a_train(train))
    }

    fn take_resend(&mut self, now: Instant) {
        self.window.resent(now);
        self.stats.resends += 1;
    }

    /// The next message that was never sent, if this phase has one left.
    fn peek_new<I: ReadAt + ?Sized>(&mut self, image: &I) -> Option<Chunk> {
        if self.is_all_queued() {
            return None;
        }
        let (kind, offset, len) = match self.phase {
            Phase::Resolve | Phase::Closed => return None,
            Phase::Herald => (MessageKind::Herald, 0, self.path.len()),
            Phase::Key => {
                let len = (self.key.len() - self.queued).min(self.payload_limit);
                (MessageKind::EkcdKey, self.queued as u64, len)
            }
            Phase::Data => {
                let (offset, len) = self.spans.peek(image, self.window.fits(self.payload_limit))?;
                (MessageKind::Vmcore, offset, len)
            }
            Phase::Header => (MessageKind::Kdh, 0, KDH_LEN),
            Phase::Finish => (MessageKind::Finished, 0, 0),
        };
        Some(Chunk { kind, offset, len })
    }

    /// The message of [`Self::peek_new`] is on its way.
    fn take_new(&mut self, now: Instant, chunk: Chunk) {
        self.window.push(now, chunk);
        let end = chunk.offset + chunk.len as u64;
        if chunk.kind == MessageKind::Vmcore && end <= self.sent_to {
            self.stats.resends += 1;
        } else {
            self.stats.messages += 1;
        }
        match self.phase {
            Phase::Data => {
                self.spans.take(chunk.len);
                self.stats.bytes_sent += end.saturating_sub(self.sent_to.max(chunk.offset));
                let skipped = self.spans.skipped();
                (self.stats.bytes_untouched, self.stats.bytes_zero) = (skipped.untouched, skipped.zero);
                self.sent_to = self.sent_to.max(end);
            }
            Phase::Key => self.queued += chunk.len,
            Phase::Herald | Phase::Header | Phase::Finish => self.queued = 1,
            Phase::Resolve | Phase::Closed => {}
        }
    }

    fn lacking(&self) -> Missing {
        if self.spans.is_growing() {
            Missing::From(self.acked_to())
        } else {
            Missing::Bytes(self.spans.length() - self.bytes_settled())
        }
    }

    /// Once only FINISHED is open, the server very likely has the core, whatever ended the wait; but not one that was asked
    /// whether it still has the dump and has not answered: a stock server drops it for the new HERALD.
    fn end(&mut self, reason: FailReason) {
        self.close(match self.phase {
            Phase::Finish if !self.resume.is_open() => Ending::Unconfirmed(reason),
            _ => Ending::Failed(reason),
        });
    }

    fn close(&mut self, ending: Ending) {
        self.phase = Phase::Closed;
        self.events.push_back(ClientEvent::Closed(ending));
    }
}

#[cfg(test)]
mod tests;
