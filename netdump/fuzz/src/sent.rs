//! What a client has sent, as the wire saw it, and what was acknowledged: every frame is judged when it is sent, by what
//! was sent and acknowledged before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use netdump::client::{Attempt, ClientConfig, MAX_WINDOW, Packet, Sending, Transmit, WindowChoice};
use netdump::link::{Frame, Received};
use netdump::vmcore::kdh::KDH_LEN;
use netdump::wire::checksum::Checksum;
use netdump::wire::{Ack, MacAddr, Message, MessageKind, Route};

use crate::image::Image;
use crate::pcap::{self, Datagram};

/// Number of a dump's first HERALD.
const FIRST: u32 = 1;
/// In the second ack of a HERALD, from a receiver that knows ids of dumps.
pub const ABLE: u32 = 0x8000_0000;
/// How far ahead of its rate a client may be.
const BURST: Duration = Duration::from_millis(3);
/// Bytes before the UDP payload of a frame.
const HEADERS: usize = 42;

/// The payloads that are no core.
#[derive(Debug)]
pub struct Payloads {
    /// The HERALD's.
    pub path: Vec<u8>,
    /// The key block.
    pub key: Vec<u8>,
    /// The dump header.
    pub header: [u8; KDH_LEN],
}

/// A message by its number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    kind: MessageKind,
    offset: u64,
    len: usize,
}

/// Everything that was sent since the server, as far as the client can know, began the dump.
#[derive(Debug)]
pub struct Ledger {
    config: ClientConfig,
    payloads: Payloads,
    messages: BTreeMap<u32, Content>,
    acked: BTreeSet<u32>,
    /// Number of the next message.
    next: u32,
    /// Whether a HERALD was acknowledged.
    is_open: bool,
    /// Number of the HERALD that asks for the dump while it runs, as long as it is not answered.
    pub question: Option<u32>,
    /// Where the HERALD's ack came from.
    pub port: Option<u16>,
    /// Hardware addresses that an ARP answer offered.
    pub offered: BTreeSet<MacAddr>,
    next_hop: Option<MacAddr>,
    /// Its questions by ARP since then of which none led it to another address.
    questions: u32,
    /// The core before this offset was sent.
    sent_to: u64,
    /// When the first frame went that the rate holds for, and how many bytes since then.
    paced: Option<(Instant, u64)>,
}

impl Ledger {
    /// Nothing yet.
    pub fn new(config: ClientConfig, payloads: Payloads) -> Self {
        Self {
            config,
            payloads,
            messages: BTreeMap::new(),
            acked: BTreeSet::new(),
            next: FIRST,
            is_open: false,
            question: None,
            port: None,
            offered: BTreeSet::new(),
            next_hop: None,
            questions: 0,
            sent_to: 0,
            paced: None,
        }
    }

    /// Judges a frame that the client sends.
    pub fn send(&mut self, now: Instant, packet: &Packet, transmit: &Transmit, image: &Image) {
        let frame = packet.frame();
        let mut whole = gathered(&frame, image);
        assert_eq!(frame.len(), whole.len());
        let Sending::Message { kind, sequence, .. } = transmit.sending else {
            return self.check_arp(&whole);
        };
        if self.config.offloads.checksum {
            // What the device makes of the sum of the pseudo header.
            let sum = Checksum::of(&whole[34..]).complete();
            whole[40..42].copy_from_slice(if sum == [0, 0] { &[0xff, 0xff] } else { &sum });
        }
        let datagram = pcap::datagram(&whole).expect("a UDP datagram");
        self.check_headers(&datagram, kind);
        if kind == MessageKind::Herald && sequence.0 != FIRST {
            self.ask(&datagram);
        } else {
            self.check_rate(now, whole.len() + (transmit.messages - 1) * HEADERS);
            self.send_messages(&datagram, frame.segment, transmit, image);
        }
    }

    /// Takes note of a frame that the client gets: whether it acknowledges anything.
    pub fn receive(&mut self, received: &Received) {
        let Received { mut bytes, segment, checked } = received.clone();
        if checked && bytes.len() >= HEADERS {
            bytes[40..42].fill(0);
        }
        let Ok((route, payload)) = Route::parse(&bytes) else { return };
        let expected = SocketAddrV4::new(self.config.client, self.config.client_port);
        let is_ours = route.destination_mac == self.config.mac && route.source_mac != self.config.mac;
        let (source, port) = (*route.source.ip(), route.source.port());
        if !is_ours || source != self.config.server || port == 0 || route.destination != expected {
            return;
        }
        let segment = segment.filter(|segment| *segment > 0).map_or(payload.len().max(1), usize::from);
        for ack in payload.chunks(segment).filter_map(|datagram| Ack::parse(datagram).ok()) {
            self.acknowledge(port, ack.0);
        }
    }

    /// Numbers of the messages that are not acknowledged, oldest first.
    pub fn open(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.messages.keys().copied().filter(|number| !self.acked.contains(number))
    }

    /// Core bytes acknowledged.
    pub fn acked_bytes(&self) -> u64 {
        self.acked(MessageKind::Vmcore).map(|content| content.len as u64).sum()
    }

    /// The core's parts that the server has, or that are zeros, ascending and joined.
    pub fn settled(&self, image: &Image) -> Vec<(u64, u64)> {
        let acked = self.acked(MessageKind::Vmcore).map(|c| (c.offset, c.offset + c.len as u64));
        let mut all: Vec<_> = acked.chain([(image.hole.start, image.hole.end)]).collect();
        all.retain(|(start, end)| start < end);
        all.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (start, end) in all {
            match joined.last_mut() {
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        joined
    }

    /// Whether the server has all of the core, the last byte for certain, as it gives the file its length.
    pub fn has_core(&self, image: &Image) -> bool {
        let ends = self.acked(MessageKind::Vmcore).any(|c| c.offset + c.len as u64 == image.length);
        image.length == 0 || (ends && self.settled(image) == [(0, image.length)])
    }

    /// Whether a message of this kind was acknowledged.
    pub fn has(&self, kind: MessageKind) -> bool {
        self.acked(kind).next().is_some()
    }

    fn acked(&self, kind: MessageKind) -> impl Iterator<Item = &Content> {
        self.acked.iter().map(|number| &self.messages[number]).filter(move |content| content.kind == kind)
    }

    fn has_key(&self) -> bool {
        self.acked(MessageKind::EkcdKey).map(|content| content.len).sum::<usize>() == self.payloads.key.len()
    }

    fn acknowledge(&mut self, port: u16, number: u32) {
        if let Some(asked) = self.question
            && [asked, asked ^ ABLE, !asked].contains(&number)
        {
            self.port = Some(port);
            self.question = None;
            if number != !asked {
                self.messages.clear();
                self.acked.clear();
            }
            return;
        }
        let is_herald = !self.is_open && [FIRST, FIRST ^ ABLE, !FIRST].contains(&number);
        let number = if is_herald { FIRST } else { number };
        // At the end, an ack may be of a new session that is at the old port by chance.
        let is_doubtful = self.question.is_some() && self.has(MessageKind::Kdh);
        let is_known = self.messages.contains_key(&number) && !is_doubtful;
        if is_known && self.port.map_or(is_herald, |learned| learned == port) {
            self.is_open = true;
            self.port = Some(port);
            self.acked.insert(number);
        }
    }

    fn check_arp(&mut self, frame: &[u8]) {
        let arp = pcap::arp(frame).expect("an ARP packet for Ethernet and IPv4");
        self.questions += u32::from(arp.operation == 1);
        assert_eq!((MacAddr(arp.sender_mac), arp.sender), (self.config.mac, self.config.client));
        let askable = [Some(self.config.server), self.config.gateway, Some(self.config.client)];
        assert!(arp.operation == 2 || askable.contains(&Some(arp.target)), "it asks for {}", arp.target);
    }

    fn check_headers(&mut self, datagram: &Datagram<'_>, kind: MessageKind) {
        assert!(datagram.ip_sum && datagram.udp_sum, "a checksum is wrong");
        assert_eq!((datagram.flags, datagram.ttl), (0x4000, 255));
        assert_eq!(MacAddr(datagram.from_mac), self.config.mac);
        assert_eq!(datagram.from, SocketAddrV4::new(self.config.client, self.config.client_port));
        let port = self.port.filter(|_| kind != MessageKind::Herald).unwrap_or(self.config.server_port);
        assert_eq!(datagram.to, SocketAddrV4::new(self.config.server, port));
        let to = MacAddr(datagram.to_mac);
        assert!(self.offered.contains(&to), "nobody answered for {to}");
        match self.next_hop {
            None => self.questions = 0,
            Some(before) if before != to => {
                // Of a server that fell silent it is asked again; nothing else may lead the dump elsewhere.
                let left = self.questions.checked_sub(1);
                self.questions = left.unwrap_or_else(|| panic!("it was not asked where {to} is"));
            }
            Some(_) => {}
        }
        self.next_hop = Some(to);
    }

    /// The first frame may go at any time, each other one when the rate has room for those before it.
    fn check_rate(&mut self, now: Instant, len: usize) {
        let Some(rate) = self.config.rate else { return };
        let (start, sent) = self.paced.get_or_insert((now, 0));
        let due = Duration::from_nanos(*sent * 1_000_000_000 / rate);
        assert!(due <= now - *start + BURST, "{sent} bytes in {:?}", now - *start);
        *sent += len as u64;
    }

    /// A HERALD that asks for the dump while it runs.
    fn ask(&mut self, datagram: &Datagram<'_>) {
        let message = Message::parse(datagram.payload).expect("a message");
        assert_eq!((message.kind, message.offset), (MessageKind::Herald, 0));
        assert_eq!((message.payload, message.aux), (&self.payloads.path[..], self.config.dump_id));
        assert!(self.is_open && message.aux != 0, "nothing is there to ask for");
        assert_eq!(*self.question.get_or_insert(message.sequence), message.sequence, "two questions");
        for answer in [message.sequence, message.sequence ^ ABLE, !message.sequence] {
            let distance = answer.wrapping_sub(self.next).min(self.next.wrapping_sub(answer));
            assert!(distance > 1 << 20, "the answer {answer} looks like an ack");
        }
    }

    fn send_messages(&mut self, sent: &Datagram<'_>, segment: Option<u16>, told: &Transmit, image: &Image) {
        let segment = segment.map_or(sent.payload.len(), usize::from);
        let room = usize::try_from(self.config.mtu).expect("64 bits") - 28;
        let messages: Vec<_> = sent.payload.chunks(segment).collect();
        assert!(segment <= room, "{segment} bytes do not fit");
        assert!(messages.len() <= self.config.offloads.segments.max(1), "{} in a train", messages.len());
        assert_eq!(messages.len(), told.messages);
        let Sending::Message { attempt, kind, .. } = told.sending else { unreachable!("it is one") };
        let mut row = None;
        for message in messages {
            let message = Message::parse(message).expect("a message");
            let is_new = self.send_message(&message, image);
            assert_eq!((is_new, message.kind), (attempt == Attempt::First, kind));
            if is_new && kind == MessageKind::Vmcore {
                let (start, end) = row.unwrap_or((message.offset, message.offset));
                assert_eq!(end, message.offset, "a train of new data is a row");
                row = Some((start, end + message.payload.len() as u64));
            }
        }
        let fresh = row.map(|(start, end)| start.max(self.sent_to)..end).filter(|fresh| !fresh.is_empty());
        assert_eq!(told.fresh, fresh);
        self.sent_to = self.sent_to.max(fresh.map_or(0, |fresh| fresh.end));
    }

    /// Whether it is new.
    fn send_message(&mut self, message: &Message<'_>, image: &Image) -> bool {
        let Message { kind, sequence, offset, payload, aux } = *message;
        let content = Content { kind, offset, len: payload.len() };
        let end = offset + payload.len() as u64;
        let expected = match kind {
            MessageKind::Herald => self.payloads.path.clone(),
            MessageKind::EkcdKey => self.payloads.key[offset as usize..end as usize].to_vec(),
            MessageKind::Vmcore => image.bytes(offset..end).collect(),
            MessageKind::Kdh => self.payloads.header.to_vec(),
            MessageKind::Finished => Vec::new(),
        };
        assert!(expected == payload, "{content:?} holds something else");
        assert_eq!(aux, if kind == MessageKind::Herald { self.config.dump_id } else { 0 });
        if let Some(known) = self.messages.get(&sequence) {
            assert_eq!(known, &content, "message {sequence} has become another");
            return false;
        }
        assert_eq!(sequence, self.next);
        self.next += 1;
        self.check_turn(kind, image);
        self.messages.insert(sequence, content);
        self.check_window(kind);
        true
    }

    /// Whether it is this kind's turn.
    fn check_turn(&self, kind: MessageKind, image: &Image) {
        let is_ready = match kind {
            MessageKind::Herald => self.messages.is_empty(),
            MessageKind::EkcdKey => self.is_open,
            MessageKind::Vmcore => self.is_open && self.has_key(),
            MessageKind::Kdh => self.is_open && self.has_key() && self.has_core(image),
            MessageKind::Finished => self.has(MessageKind::Kdh) && self.question.is_none(),
        };
        assert!(is_ready, "{kind:?} comes too early");
    }

    /// Whether no more is on its way than may be.
    fn check_window(&self, kind: MessageKind) {
        let open: Vec<_> = self.open().collect();
        let bytes: usize = open.iter().map(|number| self.messages[number].len).sum();
        let fits = match (kind, self.config.window) {
            (MessageKind::Vmcore, WindowChoice::Adaptive { cap }) => {
                open.len() <= cap.clamp(1, MAX_WINDOW) as usize
            }
            (MessageKind::Vmcore, WindowChoice::Classic) => bytes <= 64 * 1024,
            _ => open.len() == 1,
        };
        assert!(fits, "{} messages of {bytes} bytes are on their way", open.len());
    }
}

/// A frame with what lies in guest memory.
fn gathered(frame: &Frame<'_>, image: &Image) -> Vec<u8> {
    let mut whole = Vec::with_capacity(frame.len());
    let mut at = 0;
    for piece in frame.guest {
        whole.extend_from_slice(&frame.bytes[at..piece.at]);
        at = piece.at;
        whole.extend(image.guest_bytes(piece.address, piece.len));
    }
    whole.extend_from_slice(&frame.bytes[at..]);
    whole
}
