//! Host sockets dressed as a link, for hosts where routing is the host's business: frames are unwrapped to datagrams
//! and datagrams wrapped into frames, and the client's ARP is answered here.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::time::TimeSpec;

use super::{Frame, Link, LinkError, Received, Sent};
use crate::wire::arp::{ArpOperation, ArpPacket};
use crate::wire::ethernet::{EtherType, EthernetHeader};
use crate::wire::{CLIENT_PORT, MacAddr, Route};

/// What frames call the client's side; locally administered, as is the next.
const OUR_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 1]);
/// What frames call everything beyond the host.
const FAR_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 2]);
/// Acks have 4 bytes; anything longer than this is cut, and is no ack either way.
const RECEIVE_LEN: usize = 2048;
/// ARP answers that wait to be received; a client has one question open at a time.
const MAX_ANSWERS: usize = 4;
/// Where the kernel does not tell the route's MTU.
const USUAL_MTU: u32 = 1500;

/// A UDP socket as a link.
#[derive(Debug)]
pub struct UdpLink {
    socket: UdpSocket,
    server: SocketAddrV4,
    local_ip: Ipv4Addr,
    /// The client's address in frames, as its own frames have it.
    client: SocketAddrV4,
    answers: VecDeque<ArpPacket>,
    buffer: [u8; RECEIVE_LEN],
}

impl UdpLink {
    /// Binds `local`, or port 20024 on every address: stock servers acknowledge to that port only.
    pub fn open(server: SocketAddrV4, local: Option<SocketAddrV4>) -> Result<Self, LinkError> {
        let local = local.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT));
        let socket = UdpSocket::bind(local).map_err(|source| {
            let why = if source.kind() == ErrorKind::AddrInUse {
                " (is another dump being sent from here?)"
            } else {
                ""
            };
            LinkError::Io { doing: format!("taking UDP address {local} to send from{why}"), source }
        })?;
        let bound = address_of(&socket, || format!("asking for the address of the socket at {local}"))?;
        socket
            .set_nonblocking(true)
            .map_err(|source| LinkError::Io { doing: format!("preparing the socket at {bound}"), source })?;
        let route = address_of(&route_to(server)?, || format!("finding the route to {server}"))?;
        let local_ip = [*bound.ip(), *route.ip()].into_iter().find(|ip| !ip.is_unspecified());
        let local_ip = apart_from(*server.ip(), local_ip.unwrap_or_else(|| *route.ip()));
        Ok(Self {
            socket,
            server,
            local_ip,
            client: SocketAddrV4::new(local_ip, bound.port()),
            answers: VecDeque::with_capacity(MAX_ANSWERS),
            buffer: [0; RECEIVE_LEN],
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
            && self.answers.len() < MAX_ANSWERS
        {
            self.answers.push_back(question.reply_from(FAR_MAC));
        }
    }

    fn take_datagram(&mut self, frame: &[u8]) -> Result<Sent, LinkError> {
        let Ok((route, payload)) = Route::parse(frame) else { return Ok(Sent::Yes) };
        self.client = route.source;
        match self.socket.send_to(payload, route.destination) {
            Ok(_) => Ok(Sent::Yes),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(Sent::Busy)
            }
            Err(error) if is_loss(&error) => Ok(Sent::Yes),
            Err(source) => Err(LinkError::Io { doing: format!("sending to {}", route.destination), source }),
        }
    }

    /// One datagram as a frame, if one is there.
    fn take_received(&mut self, frame: &mut Vec<u8>) -> Result<bool, LinkError> {
        loop {
            match self.socket.recv_from(&mut self.buffer) {
                Ok((len, SocketAddr::V4(source))) => {
                    let route = Route {
                        source_mac: FAR_MAC,
                        destination_mac: OUR_MAC,
                        source,
                        destination: self.client,
                    };
                    frame.clear();
                    route.emit(self.buffer.get(..len).unwrap_or_default(), frame);
                    return Ok(true);
                }
                Ok((_, SocketAddr::V6(_))) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted || is_loss(&error) => {}
                Err(source) => {
                    return Err(LinkError::Io { doing: format!("receiving at {}", self.client), source });
                }
            }
        }
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

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        if !frame.is_plain() {
            return Err(LinkError::Unfit { link: "udp".into(), problem: "takes plain frames only" });
        }
        match EthernetHeader::parse(frame.bytes) {
            Ok((EthernetHeader { ethertype: EtherType::ARP, .. }, packet)) => {
                self.take_arp(packet);
                Ok(Sent::Yes)
            }
            _ => self.take_datagram(frame.bytes),
        }
    }

    fn receive(&mut self, received: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        let frame = received.clear();
        if let Some(answer) = self.answers.pop_front() {
            let ethernet =
                EthernetHeader { destination: OUR_MAC, source: FAR_MAC, ethertype: EtherType::ARP };
            frame.extend_from_slice(&ethernet.to_bytes());
            answer.emit(frame);
            return Ok(true);
        }
        if self.take_received(frame)? {
            return Ok(true);
        }
        if wait.is_zero() {
            return Ok(false);
        }
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None) {
            Ok(0) | Err(nix::Error::EINTR) => Ok(false),
            Ok(_) => self.take_received(frame),
            Err(error) => {
                Err(LinkError::Io { doing: format!("waiting at {}", self.client), source: error.into() })
            }
        }
    }
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

fn address_of(socket: &UdpSocket, doing: impl Fn() -> String) -> Result<SocketAddrV4, LinkError> {
    match socket.local_addr() {
        Ok(SocketAddr::V4(address)) => Ok(address),
        Ok(SocketAddr::V6(_)) => Err(LinkError::Io { doing: doing(), source: ErrorKind::Unsupported.into() }),
        Err(source) => Err(LinkError::Io { doing: doing(), source }),
    }
}

/// `local`, or the address beside it when it is the server's.
fn apart_from(server: Ipv4Addr, local: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, d] = local.octets();
    if local == server { Ipv4Addr::new(a, b, c, d ^ 3) } else { local }
}

/// What ICMP or a firewall said of an earlier datagram, or a full queue: datagrams may be lost, and a server that is
/// restarting says such things too.
fn is_loss(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, PermissionDenied};
    let kinds = [ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, PermissionDenied];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(nix::Error::ENOBUFS as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

    /// A link to a server on loopback, and the server's socket.
    fn link() -> (UdpLink, UdpSocket) {
        let server = UdpSocket::bind(ANY).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (UdpLink::open(v4(&server), Some(ANY)).unwrap(), server)
    }

    fn v4(socket: &UdpSocket) -> SocketAddrV4 {
        address_of(socket, String::new).unwrap()
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
        assert_eq!(Route::parse(&received.bytes), Ok((way.reversed(), &[0, 0, 0, 1][..])));
        assert!(!link.receive(&mut received, Duration::from_millis(1)).unwrap());
    }

    #[test]
    fn a_closed_server_port_is_no_failure() {
        let (mut link, server) = link();
        let way = route(&link, v4(&server));
        drop(server);
        let (mut frame, mut received) = (Vec::new(), Received::default());
        for _ in 0..3 {
            frame.clear();
            way.emit(b"message", &mut frame);
            assert_eq!(send(&mut link, &frame), Sent::Yes);
            assert!(!link.receive(&mut received, Duration::from_millis(5)).unwrap());
        }
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
