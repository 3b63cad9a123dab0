//! A receiver as a host on an Ethernet: answers ARP for its one address, takes UDP datagrams for the well-known port
//! and for a port of each session's own, and sends their acks. Frames go in and out; nothing else of an IP stack is
//! here. For wires that are no sockets: the in-memory link and simulations.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use super::{ACK_SEGMENT, Arrived, DumpStore, Endpoint, Ignored, Receiver, ReceiverEvent, SessionId};
use crate::link::{Frame, Received};
use crate::wire::arp::{ArpError, ArpOperation, ArpPacket};
use crate::wire::datagram::{DatagramError, Route};
use crate::wire::ethernet::{EtherType, EthernetHeader, RuntFrame};
use crate::wire::message::ACK_LEN;
use crate::wire::udp::UdpChecksum;
use crate::wire::{MacAddr, SERVER_PORT};

/// Ports for sessions: IANA's dynamic ones.
const FIRST_PORT: u16 = 49_152;
/// ARP replies that may wait to be sent; further requests are dropped, and asked again.
const MAX_REPLIES: usize = 16;

/// Who the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostConfig {
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its only IP address.
    pub address: Ipv4Addr,
}

/// Why a frame changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameIgnored {
    /// Not even an Ethernet header.
    #[error(transparent)]
    Ethernet(#[from] RuntFrame),
    /// For another hardware address.
    #[error("for {0}")]
    OtherMac(MacAddr),
    /// Malformed ARP.
    #[error(transparent)]
    Arp(#[from] ArpError),
    /// ARP that asks nothing of this host.
    #[error("ARP, but no request for this host")]
    OtherArp,
    /// More ARP requests than replies can wait.
    #[error("too many ARP requests at a time")]
    TooManyRequests,
    /// Not a UDP datagram, or damaged.
    #[error(transparent)]
    Datagram(#[from] DatagramError),
    /// For another IP address.
    #[error("for {0}")]
    OtherAddress(Ipv4Addr),
    /// Nobody listens there.
    #[error("UDP port {0} is closed")]
    ClosedPort(u16),
    /// The receiver ignored the datagram.
    #[error(transparent)]
    Message(#[from] Ignored),
}

/// A host that runs a [`Receiver`]. The law is the receiver's.
#[derive(Debug)]
pub struct Host<S: DumpStore> {
    config: HostConfig,
    receiver: Receiver<S>,
    sessions: BTreeMap<SessionId, Place>,
    ports: BTreeMap<u16, SessionId>,
    next_port: u16,
    arp_replies: VecDeque<ArpPacket>,
    acks: Acks,
    events: VecDeque<ReceiverEvent<S::Stored>>,
}

/// Acks to one client, some of which may have been sent.
#[derive(Debug, Default)]
struct Acks {
    train: Vec<u8>,
    sent: usize,
    route: Option<Route>,
}

/// Where a session's frames come to and go to.
#[derive(Debug, Clone, Copy)]
struct Place {
    port: u16,
    /// Where the client's last frame came from: the client, or a gateway.
    next_hop: MacAddr,
}

impl<S: DumpStore> Host<S> {
    /// A host with this receiver.
    pub fn new(config: HostConfig, receiver: Receiver<S>) -> Self {
        Self {
            config,
            receiver,
            sessions: BTreeMap::new(),
            ports: BTreeMap::new(),
            next_port: FIRST_PORT,
            arp_replies: VecDeque::new(),
            acks: Acks::default(),
            events: VecDeque::new(),
        }
    }

    /// The receiver, for what it counts.
    pub fn receiver(&self) -> &Receiver<S> {
        &self.receiver
    }

    /// Takes a frame from the wire.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) -> Result<(), FrameIgnored> {
        self.handle(now, frame, |frame| Ok((Route::parse(frame)?, None)))
    }

    /// Takes a frame, or a train, whose UDP checksum was never made as it has not left this host.
    pub fn handle_unchecked(&mut self, now: Instant, frame: &Frame<'_>) -> Result<(), FrameIgnored> {
        self.handle(now, frame.bytes, |bytes| Ok((Route::parse_checked(bytes)?, frame.segment)))
    }

    fn handle<'a>(
        &mut self,
        now: Instant,
        frame: &'a [u8],
        parse: impl FnOnce(&'a [u8]) -> Result<Parsed<'a>, DatagramError>,
    ) -> Result<(), FrameIgnored> {
        let (ethernet, payload) = EthernetHeader::parse(frame)?;
        let to_us = ethernet.destination == self.config.mac;
        let to_all = ethernet.destination == MacAddr::BROADCAST;
        match ethernet.ethertype {
            EtherType::ARP if to_us || to_all => self.handle_arp(payload),
            _ if !to_us => Err(FrameIgnored::OtherMac(ethernet.destination)),
            _ => self.handle_ip(now, parse(frame)?),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.receiver.handle_timeout(now);
        self.take_events(MacAddr::BROADCAST);
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.receiver.poll_timeout()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ReceiverEvent<S::Stored>> {
        self.events.pop_front()
    }

    /// Puts the next frame to send into `frame`, replacing what is there; `false` when there is none. There may be new
    /// events then.
    pub fn poll_transmit(&mut self, frame: &mut Vec<u8>) -> bool {
        frame.clear();
        if let Some(reply) = self.arp_replies.pop_front() {
            let header = EthernetHeader {
                destination: reply.target_mac,
                source: self.config.mac,
                ethertype: EtherType::ARP,
            };
            frame.extend_from_slice(&header.to_bytes());
            reply.emit(frame);
            return true;
        }
        if self.acks.sent == self.acks.train.len() {
            self.poll_acks();
        }
        let Acks { train, sent, route } = &mut self.acks;
        let ack = train.get(*sent..).and_then(<[u8]>::first_chunk::<ACK_LEN>);
        let (Some(ack), Some(route)) = (ack, route) else { return false };
        route.emit(ack, frame);
        *sent += ACK_LEN;
        true
    }

    /// As [`Self::poll_transmit`], but acks come as trains, and without a checksum.
    pub fn poll_train(&mut self, received: &mut Received) -> bool {
        if !self.arp_replies.is_empty() {
            return self.poll_transmit(received.clear());
        }
        self.poll_acks();
        let Acks { train, sent, route: Some(route) } = &mut self.acks else { return false };
        let frame = received.clear();
        frame.extend_from_slice(&route.headers(train.len(), UdpChecksum::Partial));
        frame.extend_from_slice(train);
        received.checked = true;
        received.segment = (train.len() > ACK_LEN).then_some(ACK_SEGMENT);
        *sent = train.len();
        true
    }

    /// Asks the receiver for acks to send.
    fn poll_acks(&mut self) {
        let Acks { train, sent, route } = &mut self.acks;
        (*sent, *route) = (0, None);
        while let Some(reply) = self.receiver.poll_transmit(train) {
            // A session can be closed with its last ack on the way: who wants it asks again, in vain.
            let Some(place) = self.sessions.get(&reply.session) else { continue };
            *route = Some(Route {
                source_mac: self.config.mac,
                destination_mac: place.next_hop,
                source: SocketAddrV4::new(self.config.address, place.port),
                destination: reply.to,
            });
            return;
        }
    }

    /// As [`Receiver::shut_down`].
    pub fn shut_down(&mut self, now: Instant) {
        self.receiver.shut_down(now);
        self.take_events(MacAddr::BROADCAST);
    }

    fn handle_arp(&mut self, packet: &[u8]) -> Result<(), FrameIgnored> {
        let request = ArpPacket::parse(packet)?;
        let asks_us = request.operation == ArpOperation::Request && request.target_ip == self.config.address;
        if !asks_us || request.sender_mac.is_group() {
            return Err(FrameIgnored::OtherArp);
        }
        if self.arp_replies.len() >= MAX_REPLIES {
            return Err(FrameIgnored::TooManyRequests);
        }
        self.arp_replies.push_back(request.reply_from(self.config.mac));
        Ok(())
    }

    fn handle_ip(
        &mut self,
        now: Instant,
        ((route, payload), segment): Parsed<'_>,
    ) -> Result<(), FrameIgnored> {
        let (local, port) = (*route.destination.ip(), route.destination.port());
        if local != self.config.address {
            return Err(FrameIgnored::OtherAddress(local));
        }
        let to = match self.ports.get(&port) {
            _ if port == SERVER_PORT => Endpoint::Herald { local },
            Some(&session) => Endpoint::Session(session),
            None => return Err(FrameIgnored::ClosedPort(port)),
        };
        let arrived = Arrived { to, from: route.source, bytes: payload, segment };
        let taken = self.receiver.handle_arrived(now, &arrived);
        if let (Ok(()), Endpoint::Session(session)) = (taken, to)
            && let Some(place) = self.sessions.get_mut(&session)
        {
            place.next_hop = route.source_mac;
        }
        self.take_events(route.source_mac);
        Ok(taken?)
    }

    /// Opens and closes ports as sessions come and go. `next_hop` is where a new session's HERALD came from.
    fn take_events(&mut self, next_hop: MacAddr) {
        while let Some(event) = self.receiver.poll_event() {
            match event {
                ReceiverEvent::Opened { session, .. } => self.give_port(session, next_hop),
                ReceiverEvent::Resumed { session, .. } => match self.sessions.get_mut(&session) {
                    Some(place) => place.next_hop = next_hop,
                    None => self.give_port(session, next_hop),
                },
                ReceiverEvent::Closed { session } => {
                    if let Some(place) = self.sessions.remove(&session) {
                        self.ports.remove(&place.port);
                    }
                }
                _ => {}
            }
            self.events.push_back(event);
        }
    }

    fn give_port(&mut self, session: SessionId, next_hop: MacAddr) {
        let port = self.free_port();
        self.ports.insert(port, session);
        self.sessions.insert(session, Place { port, next_hop });
    }

    /// The port longest unused, so that stragglers of an old session do not come to a new one.
    fn free_port(&mut self) -> u16 {
        // There are far fewer sessions than ports.
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.ports.contains_key(&port) {
                return port;
            }
        }
    }
}

/// Where a datagram, or a train, comes from and goes to, its payload, and how long a train's datagrams are.
type Parsed<'a> = ((Route, &'a [u8]), Option<u16>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receiver::{MemoryStore, ReceiverConfig};
    use crate::wire::{Message, MessageKind};

    const HOST: HostConfig =
        HostConfig { mac: MacAddr([2, 0, 0, 0, 0, 9]), address: Ipv4Addr::new(10, 0, 0, 9) };
    const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    const GUEST_ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 20024);

    fn host() -> Host<MemoryStore> {
        let receiver = Receiver::new(ReceiverConfig::default(), MemoryStore::with_limit(1 << 20));
        Host::new(HOST, receiver)
    }

    fn frame(port: u16, kind: MessageKind, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let route = Route {
            source_mac: GUEST,
            destination_mac: HOST.mac,
            source: GUEST_ADDRESS,
            destination: SocketAddrV4::new(HOST.address, port),
        };
        let (mut message, mut frame) = (Vec::new(), Vec::new());
        Message { kind, sequence, offset: 0, payload, aux: 0 }.emit(&mut message);
        route.emit(&message, &mut frame);
        frame
    }

    /// Where the acks come from, by sequence number.
    fn acks(host: &mut Host<MemoryStore>) -> Vec<(Route, u32)> {
        let mut frame = Vec::new();
        std::iter::from_fn(|| {
            host.poll_transmit(&mut frame).then(|| {
                let (route, ack) = Route::parse(&frame).unwrap();
                (route, u32::from_be_bytes(ack.try_into().unwrap()))
            })
        })
        .collect()
    }

    #[test]
    fn arp_requests_for_its_address_are_answered() {
        let mut host = host();
        let request = ArpPacket {
            operation: ArpOperation::Request,
            sender_mac: GUEST,
            sender_ip: *GUEST_ADDRESS.ip(),
            target_mac: MacAddr::ZERO,
            target_ip: HOST.address,
        };
        let ask = |host: &mut Host<MemoryStore>, request: ArpPacket| {
            let header =
                EthernetHeader { destination: MacAddr::BROADCAST, source: GUEST, ethertype: EtherType::ARP };
            let mut frame = header.to_bytes().to_vec();
            request.emit(&mut frame);
            host.handle_frame(Instant::now(), &frame)
        };
        ask(&mut host, request).unwrap();
        let mut frame = Vec::new();
        assert!(host.poll_transmit(&mut frame));
        let (header, packet) = EthernetHeader::parse(&frame).unwrap();
        assert_eq!((header.destination, header.source), (GUEST, HOST.mac));
        assert_eq!(ArpPacket::parse(packet), Ok(request.reply_from(HOST.mac)));

        let other = ArpPacket { target_ip: Ipv4Addr::new(10, 0, 0, 8), ..request };
        assert_eq!(ask(&mut host, other), Err(FrameIgnored::OtherArp));
        let forged = ArpPacket { sender_mac: MacAddr::BROADCAST, ..request };
        assert_eq!(ask(&mut host, forged), Err(FrameIgnored::OtherArp));
        for _ in 0..MAX_REPLIES {
            ask(&mut host, request).unwrap();
        }
        assert_eq!(ask(&mut host, request), Err(FrameIgnored::TooManyRequests));
    }

    #[test]
    fn a_session_has_a_port_of_its_own() {
        let (mut host, now) = (host(), Instant::now());
        host.handle_frame(now, &frame(SERVER_PORT, MessageKind::Herald, 1, b"")).unwrap();
        let [(route, 1)] = acks(&mut host)[..] else { panic!() };
        assert_eq!((route.destination_mac, route.destination), (GUEST, GUEST_ADDRESS));
        assert_eq!(*route.source.ip(), HOST.address);
        let port = route.source.port();
        assert_ne!(port, SERVER_PORT);
        host.handle_frame(now, &frame(port, MessageKind::Vmcore, 2, b"core")).unwrap();
        host.handle_frame(now, &frame(port, MessageKind::Finished, 3, b"")).unwrap();
        assert_eq!(acks(&mut host).iter().map(|(_, ack)| *ack).collect::<Vec<_>>(), [2, 3]);
        let ended = std::iter::from_fn(|| host.poll_event()).find_map(|event| match event {
            ReceiverEvent::Ended { stored, .. } => Some(stored.unwrap().core),
            _ => None,
        });
        assert_eq!(ended, Some(b"core".to_vec()));
    }

    #[test]
    fn acks_take_the_way_that_the_client_took_last() {
        let (mut host, now) = (host(), Instant::now());
        host.handle_frame(now, &frame(SERVER_PORT, MessageKind::Herald, 1, b"")).unwrap();
        let port = acks(&mut host)[0].0.source.port();
        let mut by_gateway = frame(port, MessageKind::Vmcore, 2, b"core");
        by_gateway[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        host.handle_frame(now, &by_gateway).unwrap();
        assert_eq!(acks(&mut host)[0].0.destination_mac, MacAddr([2, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn what_is_damaged_or_for_others_is_ignored() {
        let (mut host, now) = (host(), Instant::now());
        let herald = frame(SERVER_PORT, MessageKind::Herald, 1, b"");
        let closed = frame(FIRST_PORT, MessageKind::Vmcore, 2, b"core");
        assert_eq!(host.handle_frame(now, &closed), Err(FrameIgnored::ClosedPort(FIRST_PORT)));
        for byte in 0..herald.len() {
            let mut damaged = herald.clone();
            damaged[byte] ^= 0x10;
            let taken = host.handle_frame(now, &damaged);
            // Only the sender's hardware address is not protected by anything.
            assert_eq!(taken.is_ok(), (6..12).contains(&byte), "byte {byte}");
        }
        for len in 0..herald.len() {
            assert!(host.handle_frame(now, &herald[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn port_is_closed_when_the_session_is_forgotten() {
        let (mut host, now) = (host(), Instant::now());
        host.handle_frame(now, &frame(SERVER_PORT, MessageKind::Herald, 1, b"")).unwrap();
        let port = acks(&mut host)[0].0.source.port();
        let end = now + ReceiverConfig::default().timeout;
        host.handle_timeout(end);
        host.handle_timeout(end + ReceiverConfig::default().linger);
        assert_eq!(host.poll_timeout(), None);
        let late = frame(port, MessageKind::Vmcore, 2, b"core");
        assert_eq!(host.handle_frame(end, &late), Err(FrameIgnored::ClosedPort(port)));
    }
}
