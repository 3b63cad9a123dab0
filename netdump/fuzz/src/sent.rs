//! What a client has sent, as the wire saw it, and what was acknowledged: every frame is judged when it is sent, by what
//! was sent and acknowledged before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

use netdump::client::{Attempt, ClientConfig, Packet, Sending, Transmit, WindowChoice};
use netdump::link::{Frame, Received};
use netdump::vmcore::kdh::KDH_LEN;
use netdump::wire::checksum::Checksum;
use netdump::wire::{Ack, MacAddr, Message, MessageKind, Route};

use crate::image::Image;
use crate::pcap;

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

/// Everything that was sent.
#[derive(Debug)]
pub struct Ledger {
    config: ClientConfig,
    payloads: Payloads,
    messages: BTreeMap<u32, Content>,
    acked: BTreeSet<u32>,
    /// Where the HERALD's ack came from.
    pub port: Option<u16>,
    /// Hardware addresses that an ARP answer offered.
    pub offered: BTreeSet<MacAddr>,
    next_hop: Option<MacAddr>,
}

impl Ledger {
    /// Nothing yet.
    pub fn new(config: ClientConfig, payloads: Payloads) -> Self {
        Self {
            config,
            payloads,
            messages: BTreeMap::new(),
            acked: BTreeSet::new(),
            port: None,
            offered: BTreeSet::new(),
            next_hop: None,
        }
    }

    /// Judges a frame that the client sends.
    pub fn send(&mut self, packet: &Packet, transmit: &Transmit, image: &Image) {
        let frame = packet.frame();
        let whole = gathered(&frame, image);
        assert_eq!(frame.len(), whole.len());
        match transmit.sending {
            Sending::Arp(_) => self.send_arp(&whole),
            Sending::Message { .. } => self.send_messages(whole, frame.segment, transmit, image),
        }
    }

    /// Takes note of a frame that the client gets: whether it acknowledges anything.
    pub fn receive(&mut self, received: &Received) {
        let Received { mut bytes, segment, checked } = received.clone();
        if checked && bytes.len() >= 42 {
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
        let Some(content) = self.messages.get(&number) else { return };
        let is_herald = content.kind == MessageKind::Herald;
        if self.port.map_or(is_herald, |learned| learned == port) {
            self.port = Some(port);
            self.acked.insert(number);
        }
    }

    fn send_arp(&self, frame: &[u8]) {
        let arp = pcap::arp(frame).expect("an ARP packet for Ethernet and IPv4");
        assert_eq!((MacAddr(arp.sender_mac), arp.sender), (self.config.mac, self.config.client));
        let askable = [Some(self.config.server), self.config.gateway, Some(self.config.client)];
        assert!(arp.operation == 2 || askable.contains(&Some(arp.target)), "it asks for {}", arp.target);
    }

    fn send_messages(&mut self, mut frame: Vec<u8>, segment: Option<u16>, told: &Transmit, image: &Image) {
        if self.config.offloads.checksum {
            // What the device makes of the sum of the pseudo header.
            let sum = Checksum::of(&frame[34..]).complete();
            frame[40..42].copy_from_slice(if sum == [0, 0] { &[0xff, 0xff] } else { &sum });
        }
        let datagram = pcap::datagram(&frame).expect("a UDP datagram");
        assert!(datagram.ip_sum && datagram.udp_sum, "a checksum is wrong");
        assert_eq!((datagram.flags, datagram.ttl), (0x4000, 255));
        assert_eq!(MacAddr(datagram.from_mac), self.config.mac);
        assert_eq!(datagram.from, SocketAddrV4::new(self.config.client, self.config.client_port));
        let port = self.port.unwrap_or(self.config.server_port);
        assert_eq!(datagram.to, SocketAddrV4::new(self.config.server, port));
        let to = MacAddr(datagram.to_mac);
        assert!(self.offered.contains(&to), "nobody answered for {to}");
        assert_eq!(*self.next_hop.get_or_insert(to), to);

        let segment = segment.map_or(datagram.payload.len(), usize::from);
        let room = usize::try_from(self.config.mtu).expect("64 bits") - 28;
        let messages: Vec<_> = datagram.payload.chunks(segment).collect();
        assert!(segment <= room, "{segment} bytes do not fit");
        assert!(messages.len() <= self.config.offloads.segments.max(1), "{} in a train", messages.len());
        assert_eq!(messages.len(), told.messages);
        let mut fresh = told.fresh.clone();
        for message in messages {
            let message = Message::parse(message).expect("a message");
            let is_new = self.send_message(&message, image);
            let Sending::Message { attempt, kind, .. } = told.sending else { unreachable!("it is one") };
            assert_eq!((is_new, message.kind), (attempt == Attempt::First, kind));
            if let Some(fresh) = &mut fresh {
                assert!(is_new && fresh.start == message.offset);
                fresh.start += message.payload.len() as u64;
            }
        }
        assert!(fresh.is_none_or(|fresh| fresh.is_empty()));
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
        assert_eq!(sequence, self.messages.keys().next_back().map_or(1, |last| last + 1));
        self.check_turn(kind, image);
        self.messages.insert(sequence, content);
        assert!(self.open().count() <= self.limit(kind), "{} messages on their way", self.open().count());
        true
    }

    /// Whether it is this kind's turn.
    fn check_turn(&self, kind: MessageKind, image: &Image) {
        let ready = match kind {
            MessageKind::Herald => self.messages.is_empty(),
            MessageKind::EkcdKey => self.has(MessageKind::Herald),
            MessageKind::Vmcore => self.has(MessageKind::Herald) && self.has_key(),
            MessageKind::Kdh => self.has(MessageKind::Herald) && self.has_key() && self.has_core(image),
            MessageKind::Finished => self.has(MessageKind::Kdh),
        };
        assert!(ready, "{kind:?} comes too early");
    }

    fn limit(&self, kind: MessageKind) -> usize {
        match (kind, self.config.window) {
            (MessageKind::Vmcore, WindowChoice::Adaptive { cap }) => cap.max(1) as usize,
            (MessageKind::Vmcore, WindowChoice::Classic) => 64 * 1024 / self.config.payload_limit() + 1,
            _ => 1,
        }
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
