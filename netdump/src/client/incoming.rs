//! What a frame from the link is: every check that needs nothing but the frame and our configuration, in the order of
//! the layers. FreeBSD's client made some of these; all of them together are what an ack or an ARP packet must pass.

use std::net::SocketAddrV4;

use super::config::ClientConfig;
use super::ignored::Ignored;
use super::window::Sequence;
use crate::wire::arp::ArpPacket;
use crate::wire::ethernet::{EtherType, EthernetHeader};
use crate::wire::icmp::{PROTOCOL_ICMP, Unreachable};
use crate::wire::ipv4::{Ipv4Header, PROTOCOL_UDP};
use crate::wire::udp::UdpHeader;
use crate::wire::{Ack, MacAddr};

/// A frame that may mean something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Incoming<'a> {
    /// Question or answer, for whomever.
    Arp(ArpPacket),
    /// From the server's address to our port; whether the port is right depends on the state of the dump.
    Acks {
        /// The server's port.
        port: u16,
        /// The messages acknowledged.
        acks: Acks<'a>,
    },
    /// The server's host says that nobody has this port, to which we sent.
    ClosedPort(u16),
}

/// A frame as it came from the link ([`crate::link::Received`]).
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) segment: Option<u16>,
    pub(super) checked: bool,
}

/// The acks in a datagram, or in each of a train of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acks<'a> {
    payload: Option<&'a [u8]>,
    segment: usize,
}

impl Iterator for Acks<'_> {
    type Item = Result<Sequence, Ignored>;

    fn next(&mut self) -> Option<Self::Item> {
        let payload = self.payload.take()?;
        let (datagram, rest) = payload.split_at_checked(self.segment).unwrap_or((payload, &[]));
        self.payload = Some(rest).filter(|rest| !rest.is_empty());
        Some(Ack::parse(datagram).map(|Ack(number)| Sequence(number)).map_err(|_| Ignored::NotAnAck))
    }
}

impl<'a> Incoming<'a> {
    /// Tells what `frame` is, or why it is nothing.
    pub(super) fn parse(config: &ClientConfig, frame: Arrival<'a>) -> Result<Self, Ignored> {
        let (ethernet, packet) = EthernetHeader::parse(frame.bytes).map_err(|_| Ignored::Runt)?;
        if ethernet.source == config.mac {
            return Err(Ignored::OwnFrame);
        }
        let for_everyone = ethernet.destination == MacAddr::BROADCAST && ethernet.ethertype == EtherType::ARP;
        if ethernet.destination != config.mac && !for_everyone {
            return Err(Ignored::OtherStation);
        }
        match ethernet.ethertype {
            EtherType::ARP => Ok(Self::Arp(ArpPacket::parse(packet)?)),
            EtherType::IPV4 => Self::parse_ip(config, packet, &frame),
            _ => Err(Ignored::OtherProtocol),
        }
    }

    fn parse_ip(config: &ClientConfig, packet: &'a [u8], frame: &Arrival<'_>) -> Result<Self, Ignored> {
        let (ip, datagram) = Ipv4Header::parse(packet)?;
        if ip.protocol == PROTOCOL_ICMP && ip.destination == config.client {
            return Self::parse_icmp(config, &ip, datagram);
        }
        if ip.source != config.server {
            return Err(Ignored::OtherSource);
        }
        if ip.destination != config.client {
            return Err(Ignored::OtherDestination);
        }
        if ip.protocol != PROTOCOL_UDP {
            return Err(Ignored::NotUdp);
        }
        let (udp, payload) = if frame.checked {
            UdpHeader::parse_checked(datagram)?
        } else {
            UdpHeader::parse(&ip, datagram)?
        };
        if udp.destination != config.client_port {
            return Err(Ignored::OtherPort);
        }
        if udp.source == 0 {
            return Err(Ignored::OtherServerPort);
        }
        let segment = frame.segment.filter(|segment| *segment > 0).map_or(payload.len(), usize::from);
        Ok(Self::Acks { port: udp.source, acks: Acks { payload: Some(payload), segment } })
    }

    /// Only the host of the server can know that a port of it is closed; that there is no way to it any router may say, and
    /// it may be wrong the next moment.
    fn parse_icmp(config: &ClientConfig, ip: &Ipv4Header, message: &[u8]) -> Result<Self, Ignored> {
        let unreachable = Unreachable::parse(message).ok_or(Ignored::NotUdp)?;
        let Unreachable { is_port, source, destination } = unreachable;
        if source != SocketAddrV4::new(config.client, config.client_port)
            || *destination.ip() != config.server
        {
            return Err(Ignored::OtherUnreachable);
        }
        if is_port && ip.source == config.server {
            Ok(Self::ClosedPort(destination.port()))
        } else {
            Err(Ignored::Unreachable)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::wire::Route;
    use crate::wire::arp::ArpOperation;
    use crate::wire::checksum::Checksum;

    const OUR_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const THEIR_MAC: MacAddr = MacAddr([0xe2, 0x90, 0x34, 0x67, 0x40, 0xff]);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 2);
    const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 66);

    /// The server's port and the message acknowledged.
    fn parse(frame: &[u8]) -> Result<(u16, Sequence), Ignored> {
        let config = ClientConfig::new(SERVER, CLIENT, OUR_MAC, 1500);
        match Incoming::parse(&config, Arrival { bytes: frame, segment: None, checked: false })? {
            Incoming::Acks { port, mut acks } => Ok((port, acks.next().unwrap()?)),
            other => panic!("no ack: {other:?}"),
        }
    }

    fn route() -> Route {
        Route {
            source_mac: THEIR_MAC,
            destination_mac: OUR_MAC,
            source: SocketAddrV4::new(SERVER, 42260),
            destination: SocketAddrV4::new(CLIENT, 20024),
        }
    }

    fn frame(route: Route, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        route.emit(payload, &mut frame);
        frame
    }

    const ACK: [u8; 4] = [0, 0, 0xa1, 0x22];

    /// A good ack with bytes of its IPv4 header changed, and the header's checksum put right again.
    fn with_ip(changes: &[(usize, u8)]) -> Result<(u16, Sequence), Ignored> {
        let mut bytes = frame(route(), &ACK);
        for &(at, to) in changes {
            bytes[14 + at] = to;
        }
        bytes[24..26].fill(0);
        let sum = Checksum::of(&bytes[14..34]).complete();
        bytes[24..26].copy_from_slice(&sum);
        parse(&bytes)
    }

    #[test]
    fn acks_pass_with_and_without_padding_and_checksum() {
        let want = Ok((42260, Sequence(41250)));
        let mut bytes = frame(route(), &ACK);
        assert_eq!(parse(&bytes), want);
        bytes.resize(60, 0xee);
        assert_eq!(parse(&bytes), want);
        bytes[40..42].fill(0);
        assert_eq!(parse(&bytes), want);
        bytes[40] = 1;
        assert_eq!(parse(&bytes), Err(Ignored::UdpChecksum));
    }

    #[test]
    fn other_stations_and_protocols_are_ignored() {
        let to = |destination_mac| parse(&frame(Route { destination_mac, ..route() }, &ACK));
        assert_eq!(to(THEIR_MAC), Err(Ignored::OtherStation));
        assert_eq!(to(MacAddr::BROADCAST), Err(Ignored::OtherStation));
        assert_eq!(parse(&frame(Route { source_mac: OUR_MAC, ..route() }, &ACK)), Err(Ignored::OwnFrame));
        let mut tagged = frame(route(), &ACK);
        tagged[12..14].copy_from_slice(&[0x81, 0]);
        assert_eq!(parse(&tagged), Err(Ignored::OtherProtocol));
        assert_eq!(parse(&tagged[..13]), Err(Ignored::Runt));
    }

    #[test]
    fn other_hosts_and_ports_are_ignored() {
        let from = |source| parse(&frame(Route { source, ..route() }, &ACK));
        assert_eq!(from(SocketAddrV4::new(STRANGER, 42260)), Err(Ignored::OtherSource));
        assert_eq!(from(SocketAddrV4::new(SERVER, 0)), Err(Ignored::OtherServerPort));
        let to = |destination| parse(&frame(Route { destination, ..route() }, &ACK));
        assert_eq!(to(SocketAddrV4::new(STRANGER, 20024)), Err(Ignored::OtherDestination));
        assert_eq!(to(SocketAddrV4::new(CLIENT, 20023)), Err(Ignored::OtherPort));
    }

    #[test]
    fn odd_ip_packets_are_ignored() {
        assert_eq!(with_ip(&[(0, 0x46)]), Err(Ignored::IpOptions));
        assert_eq!(with_ip(&[(0, 0x44)]), Err(Ignored::MalformedIp));
        assert_eq!(with_ip(&[(0, 0x65)]), Err(Ignored::MalformedIp));
        assert_eq!(with_ip(&[(3, 33)]), Err(Ignored::MalformedIp));
        assert_eq!(with_ip(&[(6, 0x20)]), Err(Ignored::IpFragment));
        assert_eq!(with_ip(&[(7, 8)]), Err(Ignored::IpFragment));
        assert_eq!(with_ip(&[(9, 6)]), Err(Ignored::NotUdp));
        let mut damaged = frame(route(), &ACK);
        damaged[22] ^= 1;
        assert_eq!(parse(&damaged), Err(Ignored::IpChecksum));
    }

    /// What the server's host, or another, says of a datagram that was sent between these.
    fn unreachable(
        from: Ipv4Addr,
        code: u8,
        (source, destination): (SocketAddrV4, SocketAddrV4),
    ) -> Result<u16, Ignored> {
        let datagram = Route { source, destination, ..route() };
        let mut icmp = vec![3, code, 0, 0, 0, 0, 0, 0];
        icmp.extend_from_slice(&frame(datagram, &[0; 100])[14..42]);
        let sum = Checksum::of(&icmp).complete();
        icmp[2..4].copy_from_slice(&sum);
        let mut bytes = frame(Route { source: SocketAddrV4::new(from, 1), ..route() }, &[0; 28]);
        bytes[23] = 1;
        bytes[24..26].fill(0);
        let sum = Checksum::of(&bytes[14..34]).complete();
        bytes[24..26].copy_from_slice(&sum);
        bytes[34..].copy_from_slice(&icmp);
        let config = ClientConfig::new(SERVER, CLIENT, OUR_MAC, 1500);
        match Incoming::parse(&config, Arrival { bytes: &bytes, segment: None, checked: false })? {
            Incoming::ClosedPort(port) => Ok(port),
            other => panic!("no ICMP: {other:?}"),
        }
    }

    #[test]
    fn only_the_server_can_say_that_its_port_is_closed() {
        let [us, them] = [SocketAddrV4::new(CLIENT, 20024), SocketAddrV4::new(SERVER, 42260)];
        assert_eq!(unreachable(SERVER, 3, (us, them)), Ok(42260));
        assert_eq!(unreachable(STRANGER, 3, (us, them)), Err(Ignored::Unreachable));
        assert_eq!(unreachable(SERVER, 1, (us, them)), Err(Ignored::Unreachable));
        assert_eq!(unreachable(STRANGER, 0, (us, them)), Err(Ignored::Unreachable));
        let other = SocketAddrV4::new(CLIENT, 99);
        assert_eq!(unreachable(SERVER, 3, (other, them)), Err(Ignored::OtherUnreachable));
        let other = SocketAddrV4::new(STRANGER, 42260);
        assert_eq!(unreachable(SERVER, 3, (us, other)), Err(Ignored::OtherUnreachable));
    }

    #[test]
    fn acks_of_other_sizes_are_ignored() {
        for len in [0, 3, 5, 24] {
            assert_eq!(parse(&frame(route(), &vec![0; len])), Err(Ignored::NotAnAck), "{len} bytes");
        }
        let mut lying = frame(route(), &ACK);
        lying[39] = 13;
        assert_eq!(parse(&lying), Err(Ignored::MalformedUdp));
    }

    #[test]
    fn arp_is_taken_for_us_and_for_everyone() {
        let arp = ArpPacket {
            operation: ArpOperation::Request,
            sender_mac: THEIR_MAC,
            sender_ip: SERVER,
            target_mac: MacAddr::ZERO,
            target_ip: CLIENT,
        };
        for destination in [OUR_MAC, MacAddr::BROADCAST] {
            let ethernet = EthernetHeader { destination, source: THEIR_MAC, ethertype: EtherType::ARP };
            let mut bytes = ethernet.to_bytes().to_vec();
            arp.emit(&mut bytes);
            let config = ClientConfig::new(SERVER, CLIENT, OUR_MAC, 1500);
            let arrival = Arrival { bytes: &bytes, segment: None, checked: false };
            assert_eq!(Incoming::parse(&config, arrival), Ok(Incoming::Arp(arp)));
            bytes[18] = 255;
            assert_eq!(parse(&bytes), Err(Ignored::MalformedArp));
        }
    }
}
