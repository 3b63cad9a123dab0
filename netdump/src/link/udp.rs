//! Host sockets dressed as a link, for hosts where routing is the host's business: frames are unwrapped to datagrams
//! and datagrams wrapped into frames, and the client's ARP is answered here. So is what the host learns by ICMP of
//! datagrams that did not arrive: it becomes the frame that it was.
//!
//! Trains go and come whole where the kernel knows how; where not they are sent one by one.

mod socket;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};

use self::socket::{Datagrams, MAX_SEGMENTS, Socket, Undelivered, address_of};
use super::{Frame, Link, LinkError, Offloads, Received, Sent};
use crate::wire::arp::{ArpOperation, ArpPacket};
use crate::wire::checksum::Checksum;
use crate::wire::ethernet::{EtherType, EthernetHeader, HEADER_LEN as ETHERNET_LEN};
use crate::wire::ipv4::Ipv4Header;
use crate::wire::udp::UdpChecksum;
use crate::wire::{CLIENT_PORT, MacAddr, Route};

/// What frames call the client's side; locally administered, as is the next.
const OUR_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 1]);
/// What frames call everything beyond the host.
const FAR_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 2]);
/// Frames made here that wait to be received; a client has one question open at a time.
const MAX_ANSWERS: usize = 4;
/// Where the kernel does not tell the route's MTU.
const USUAL_MTU: u32 = 1500;
/// Protocol number of ICMP.
const PROTOCOL_ICMP: u8 = 1;

/// A UDP socket as a link.
#[derive(Debug)]
pub struct UdpLink {
    socket: Socket,
    server: SocketAddrV4,
    local_ip: Ipv4Addr,
    /// The client's address in frames, as its own frames have it.
    client: SocketAddrV4,
    /// Frames made here.
    answers: VecDeque<Vec<u8>>,
}

impl UdpLink {
    /// Binds `local`, or port 20024 on every address: stock servers acknowledge to that port only.
    pub fn open(server: SocketAddrV4, local: Option<SocketAddrV4>) -> Result<Self, LinkError> {
        let local = local.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT));
        let socket = Socket::bind(local).map_err(|source| {
            let why = if source.kind() == ErrorKind::AddrInUse {
                " (is another dump being sent from here?)"
            } else {
                ""
            };
            LinkError::Io { doing: format!("taking UDP address {local} to send from{why}"), source }
        })?;
        let bound = socket.local_addr().map_err(|source| {
            let doing = format!("asking for the address of the socket at {local}");
            LinkError::Io { doing, source }
        })?;
        let route = address_of(&route_to(server)?)
            .map_err(|source| LinkError::Io { doing: format!("finding the route to {server}"), source })?;
        let local_ip = [*bound.ip(), *route.ip()].into_iter().find(|ip| !ip.is_unspecified());
        let local_ip = apart_from(*server.ip(), local_ip.unwrap_or_else(|| *route.ip()));
        Ok(Self {
            socket,
            server,
            local_ip,
            client: SocketAddrV4::new(local_ip, bound.port()),
            answers: VecDeque::with_capacity(MAX_ANSWERS),
        })
    }

    /// The address to give the client: the one that the host sends from. When that is the server's own, as on loopback,
    /// it is a neighbour of it, as a client and its server cannot share one; only frames ever hold it.
    pub fn local_ip(&self) -> Ipv4Addr {
        self.local_ip
    }

    /// The UDP port that is sent from.
    pub fn local_port(&self) -> u16 {
        self.client.port()
    }

    fn take_arp(&mut self, packet: &[u8]) {
        if let Ok(question) = ArpPacket::parse(packet)
            && question.operation == ArpOperation::Request
        {
            self.answer(EtherType::ARP, |frame| question.reply_from(FAR_MAC).emit(frame));
        }
    }

    /// Has a frame received that is made here, if not too many wait already.
    fn answer(&mut self, ethertype: EtherType, emit: impl FnOnce(&mut Vec<u8>)) {
        if self.answers.len() < MAX_ANSWERS {
            let ethernet = EthernetHeader { destination: OUR_MAC, source: FAR_MAC, ethertype };
            let mut frame = ethernet.to_bytes().to_vec();
            emit(&mut frame);
            self.answers.push_back(frame);
        }
    }

    fn send_datagrams(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        let Ok((route, payload)) = Route::parse_checked(frame.bytes) else { return Ok(Sent::Yes) };
        if let Some(segment) = frame.segment
            && (segment == 0 || payload.len().div_ceil(segment.into()) > MAX_SEGMENTS)
        {
            return Err(LinkError::Unfit {
                link: "udp".into(),
                problem: "takes trains of 1 to 64 datagrams",
            });
        }
        self.client = route.source;
        let sent = self.socket.send(payload, frame.segment, route.destination);
        sent.map_err(|source| LinkError::Io { doing: format!("sending to {}", route.destination), source })
    }

    /// The next datagrams as a frame, if any are there.
    fn take_received(&mut self, received: &mut Received) -> Result<bool, LinkError> {
        let came = self
            .socket
            .receive()
            .map_err(|source| LinkError::Io { doing: format!("receiving at {}", self.client), source })?;
        let Some(Datagrams { source, payload, segment }) = came else { return Ok(false) };
        let route = Route { source_mac: FAR_MAC, destination_mac: OUR_MAC, source, destination: self.client };
        let frame = received.clear();
        frame.extend_from_slice(&route.headers(payload.len(), UdpChecksum::Partial));
        frame.extend_from_slice(payload);
        received.segment = segment;
        received.checked = true;
        Ok(true)
    }

    /// Turns what the host learned by ICMP back into frames.
    fn take_errors(&mut self) {
        while let Some(Undelivered { from, icmp_type, icmp_code, destination }) = self.socket.undelivered() {
            let ip = Ipv4Header { source: from, destination: self.local_ip, protocol: PROTOCOL_ICMP };
            let route =
                Route { source_mac: OUR_MAC, destination_mac: FAR_MAC, source: self.client, destination };
            // IPv4 and UDP headers of the datagram; how long it was, nobody asks.
            let headers = route.headers(0, UdpChecksum::Partial);
            let quote = headers.get(ETHERNET_LEN..).unwrap_or_default();
            self.answer(EtherType::IPV4, |frame| emit_icmp(&ip, icmp_type, icmp_code, quote, frame));
        }
    }

    fn take_answer(&mut self, received: &mut Received) -> bool {
        self.answers.pop_front().is_some_and(|frame| {
            received.put(&frame);
            true
        })
    }
}

impl Link for UdpLink {
    fn mtu(&self) -> Result<u32, LinkError> {
        let mtu = getsockopt(&route_to(self.server)?, sockopt::IpMtu);
        Ok(mtu.ok().and_then(|mtu| u32::try_from(mtu).ok()).unwrap_or(USUAL_MTU))
    }

    fn mac(&self) -> MacAddr {
        OUR_MAC
    }

    /// The host makes its own checksums. It copies what is sent, so gathering would gain nothing.
    fn offloads(&self) -> Offloads {
        Offloads { gather: false, checksum: true, segments: self.socket.segments() }
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        if !frame.guest.is_empty() {
            return Err(LinkError::Unfit { link: "udp".into(), problem: "takes no pieces of guest memory" });
        }
        match EthernetHeader::parse(frame.bytes) {
            Ok((EthernetHeader { ethertype: EtherType::ARP, .. }, packet)) => {
                self.take_arp(packet);
                Ok(Sent::Yes)
            }
            _ => self.send_datagrams(frame),
        }
    }

    fn receive(&mut self, received: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        let failed = |client| move |source| LinkError::Io { doing: format!("waiting at {client}"), source };
        self.socket.flush().map_err(failed(self.client))?;
        if self.take_answer(received) || self.take_received(received)? {
            return Ok(true);
        }
        if wait.is_zero() {
            return Ok(false);
        }
        let ready = self.socket.wait(wait).map_err(failed(self.client))?;
        if ready.errors {
            self.take_errors();
        }
        Ok(self.take_answer(received) || ready.datagrams && self.take_received(received)?)
    }
}

/// Appends an ICMP message that quotes the start of an undelivered datagram (RFC 792) as an IPv4 packet.
fn emit_icmp(ip: &Ipv4Header, icmp_type: u8, icmp_code: u8, quote: &[u8], out: &mut Vec<u8>) {
    let mut message = [&[icmp_type, icmp_code, 0, 0, 0, 0, 0, 0][..], quote].concat();
    let checksum = Checksum::of(&message).complete();
    message.splice(2..4, checksum);
    out.extend_from_slice(&ip.to_bytes(message.len()));
    out.extend_from_slice(&message);
}

/// A socket that knows the way to the server; nothing is sent by it.
fn route_to(server: SocketAddrV4) -> Result<UdpSocket, LinkError> {
    let connect = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(server)?;
        Ok(socket)
    };
    connect().map_err(|source| LinkError::Io { doing: format!("finding the route to {server}"), source })
}

/// `local`, or the address beside it when it is the server's.
fn apart_from(server: Ipv4Addr, local: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, d] = local.octets();
    if local == server { Ipv4Addr::new(a, b, c, d ^ 3) } else { local }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::setsockopt;

    use super::*;
    use crate::link::GuestPiece;

    const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

    /// A link to a server on loopback, and the server's socket.
    fn link() -> (UdpLink, UdpSocket) {
        let server = UdpSocket::bind(ANY).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (UdpLink::open(v4(&server), Some(ANY)).unwrap(), server)
    }

    fn v4(socket: &UdpSocket) -> SocketAddrV4 {
        address_of(socket).unwrap()
    }

    fn send(link: &mut UdpLink, bytes: &[u8]) -> Sent {
        link.send(&Frame::plain(bytes)).unwrap()
    }

    fn route(link: &UdpLink, destination: SocketAddrV4) -> Route {
        let source = SocketAddrV4::new(link.local_ip(), link.local_port());
        Route { source_mac: OUR_MAC, destination_mac: FAR_MAC, source, destination }
    }

    #[test]
    fn arp_is_answered_for_whoever_is_asked() {
        let (mut link, _server) = link();
        let question = ArpPacket {
            operation: ArpOperation::Request,
            sender_mac: OUR_MAC,
            sender_ip: link.local_ip(),
            target_mac: MacAddr::ZERO,
            target_ip: Ipv4Addr::new(10, 0, 0, 9),
        };
        let ethernet =
            EthernetHeader { destination: MacAddr::BROADCAST, source: OUR_MAC, ethertype: EtherType::ARP };
        let mut frame = ethernet.to_bytes().to_vec();
        question.emit(&mut frame);
        for _ in 0..10 {
            assert_eq!(send(&mut link, &frame), Sent::Yes);
        }
        let mut answers = 0;
        let mut received = Received::default();
        while link.receive(&mut received, Duration::ZERO).unwrap() {
            let (_, packet) = EthernetHeader::parse(&received.bytes).unwrap();
            assert_eq!(ArpPacket::parse(packet), Ok(question.reply_from(FAR_MAC)));
            answers += 1;
        }
        assert_eq!(answers, MAX_ANSWERS);
    }

    #[test]
    fn datagrams_go_out_and_come_back_as_frames() {
        let (mut link, server) = link();
        assert_eq!(link.local_ip(), Ipv4Addr::new(127, 0, 0, 2), "the server has 127.0.0.1");
        let way = route(&link, v4(&server));
        let (mut frame, mut received) = (Vec::new(), Received::default());
        way.emit(b"message", &mut frame);
        assert_eq!(send(&mut link, &frame), Sent::Yes);
        let mut buffer = [0; 100];
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from.port()), (&b"message"[..], link.local_port()));

        server.send_to(&[0, 0, 0, 1], from).unwrap();
        assert!(link.receive(&mut received, Duration::from_secs(5)).unwrap());
        assert!(received.checked);
        assert_eq!(Route::parse_checked(&received.bytes), Ok((way.reversed(), &[0, 0, 0, 1][..])));
        assert!(!link.receive(&mut received, Duration::from_millis(1)).unwrap());
    }

    /// A train of datagrams, each of `segment` bytes but for the last, and what they carry.
    fn train(way: &Route, segment: u16, len: usize) -> (Vec<u8>, Vec<u8>) {
        let payload: Vec<u8> = (0..=250).cycle().take(len).collect();
        let frame = [&way.headers(len, UdpChecksum::Partial)[..], &payload].concat();
        assert!(len > segment.into());
        (frame, payload)
    }

    #[test]
    fn trains_arrive_as_datagrams() {
        let (mut link, server) = link();
        assert_eq!(link.offloads(), Offloads { gather: false, checksum: true, segments: 64 });
        let (bytes, payload) = train(&route(&link, v4(&server)), 1000, 63_500);
        let sent = link.send(&Frame { segment: Some(1000), ..Frame::plain(&bytes) });
        assert_eq!(sent.unwrap(), Sent::Yes);
        let mut buffer = [0; 2000];
        for datagram in payload.chunks(1000) {
            let len = server.recv(&mut buffer).unwrap();
            assert!(buffer[..len] == *datagram);
        }
    }

    #[test]
    fn trains_of_acks_arrive_whole() {
        let (mut link, server) = link();
        let mut received = Received::default();
        setsockopt(&server, sockopt::UdpGsoSegment, &4).unwrap();
        let acks: Vec<u8> = (0..64_u32).flat_map(u32::to_be_bytes).collect();
        server.send_to(&acks, (Ipv4Addr::LOCALHOST, link.local_port())).unwrap();
        assert!(link.receive(&mut received, Duration::from_secs(5)).unwrap());
        assert_eq!((received.segment, received.checked), (Some(4), true));
        let (_, payload) = Route::parse_checked(&received.bytes).unwrap();
        assert_eq!(payload, acks);
        server.send_to(&acks[..4], (Ipv4Addr::LOCALHOST, link.local_port())).unwrap();
        assert!(link.receive(&mut received, Duration::from_secs(5)).unwrap());
        assert_eq!(received.segment, None);
    }

    #[test]
    fn what_is_no_train_is_refused() {
        let (mut link, server) = link();
        let (bytes, _) = train(&route(&link, v4(&server)), 10, 650);
        let mut send = |segment| link.send(&Frame { segment: Some(segment), ..Frame::plain(&bytes) });
        assert!(send(0).is_err());
        assert!(send(10).is_err(), "65 datagrams");
        assert_eq!(send(11).unwrap(), Sent::Yes);
        let piece = GuestPiece { at: 50, address: 0, len: 1 };
        assert!(link.send(&Frame { guest: &[piece], ..Frame::plain(&bytes) }).is_err());
    }

    #[test]
    fn a_closed_server_port_is_told_by_icmp_and_is_no_failure() {
        let (mut link, server) = link();
        let way = route(&link, v4(&server));
        drop(server);
        let (mut frame, mut received) = (Vec::new(), Received::default());
        way.emit(b"message", &mut frame);
        for _ in 0..100 {
            assert_eq!(send(&mut link, &frame), Sent::Yes);
        }
        assert!(link.receive(&mut received, Duration::from_secs(5)).unwrap());
        let (ethernet, packet) = EthernetHeader::parse(&received.bytes).unwrap();
        assert_eq!((ethernet.destination, ethernet.ethertype), (OUR_MAC, EtherType::IPV4));
        let (ip, message) = Ipv4Header::parse(packet).unwrap();
        let icmp = Ipv4Header { source: *way.destination.ip(), destination: link.local_ip(), protocol: 1 };
        assert_eq!(ip, icmp);
        assert_eq!((&message[..2], Checksum::of(message).complete()), (&[3, 3][..], [0, 0]));
        assert_eq!(message[8..], way.headers(0, UdpChecksum::Partial)[14..]);
        // Only few of them wait, and then there is silence.
        let told =
            (0..100).filter(|_| link.receive(&mut received, Duration::from_millis(1)).unwrap()).count();
        assert_eq!(told, MAX_ANSWERS - 1);
    }

    #[test]
    fn a_taken_port_is_named() {
        let (link, server) = link();
        let taken = SocketAddrV4::new(Ipv4Addr::LOCALHOST, link.local_port());
        let error = UdpLink::open(v4(&server), Some(taken)).unwrap_err();
        let want = format!("taking UDP address {taken} to send from (is another dump being sent from here?)");
        assert_eq!(error.to_string(), want);
    }

    #[test]
    fn mtu_is_that_of_the_route() {
        let (link, _server) = link();
        assert!(link.mtu().unwrap() >= 1500);
    }

    #[test]
    fn frames_that_hold_no_datagram_vanish() {
        let (mut link, _server) = link();
        for len in 0..100 {
            assert_eq!(send(&mut link, &vec![0x45; len]), Sent::Yes);
        }
    }
}
