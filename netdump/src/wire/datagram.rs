//! A whole frame that carries one UDP datagram: the Ethernet, IPv4 and UDP headers together.

use std::net::{Ipv4Addr, SocketAddrV4};

use thiserror::Error;

use super::checksum::Checksum;
use super::ethernet::{self, EtherType, EthernetHeader, RuntFrame};
use super::ipv4::{self, Ipv4Error, Ipv4Header, PROTOCOL_UDP};
use super::udp::{self, UdpChecksum, UdpError, UdpHeader};
use super::{MacAddr, message};

/// Bytes before the UDP payload.
pub const HEADERS_LEN: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN + udp::HEADER_LEN;
/// Bytes of an IP packet that a netdump message's payload cannot have: IPv4, UDP and message headers.
pub const OVERHEAD: usize = ipv4::HEADER_LEN + udp::HEADER_LEN + message::HEADER_LEN;

/// Why a frame holds no UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DatagramError {
    /// Not even an Ethernet header.
    #[error(transparent)]
    Ethernet(#[from] RuntFrame),
    /// Neither is it IPv4.
    #[error("EtherType {:#06x}, not IPv4", .0.0)]
    NotIpv4(EtherType),
    /// The IPv4 header is refused.
    #[error(transparent)]
    Ipv4(#[from] Ipv4Error),
    /// Another protocol.
    #[error("IP protocol {0}, not UDP")]
    NotUdp(u8),
    /// The UDP header is refused.
    #[error(transparent)]
    Udp(#[from] UdpError),
}

/// From where to where a datagram goes, on this wire and beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Hardware address of the sender.
    pub source_mac: MacAddr,
    /// Hardware address of the next hop.
    pub destination_mac: MacAddr,
    /// Sender.
    pub source: SocketAddrV4,
    /// Receiver.
    pub destination: SocketAddrV4,
}

impl Route {
    /// Takes a frame apart into addresses and UDP payload.
    pub fn parse(frame: &[u8]) -> Result<(Self, &[u8]), DatagramError> {
        Self::parse_with(frame, UdpHeader::parse)
    }

    /// As [`Self::parse`], of a frame or train whose UDP checksum was checked already or never made.
    pub fn parse_checked(frame: &[u8]) -> Result<(Self, &[u8]), DatagramError> {
        Self::parse_with(frame, |_, datagram| UdpHeader::parse_checked(datagram))
    }

    fn parse_with<'a>(
        frame: &'a [u8],
        parse_udp: impl FnOnce(&Ipv4Header, &'a [u8]) -> Result<(UdpHeader, &'a [u8]), UdpError>,
    ) -> Result<(Self, &'a [u8]), DatagramError> {
        let (ethernet, packet) = EthernetHeader::parse(frame)?;
        if ethernet.ethertype != EtherType::IPV4 {
            return Err(DatagramError::NotIpv4(ethernet.ethertype));
        }
        let (ip, datagram) = Ipv4Header::parse(packet)?;
        if ip.protocol != PROTOCOL_UDP {
            return Err(DatagramError::NotUdp(ip.protocol));
        }
        let (udp, payload) = parse_udp(&ip, datagram)?;
        let route = Self {
            source_mac: ethernet.source,
            destination_mac: ethernet.destination,
            source: SocketAddrV4::new(ip.source, udp.source),
            destination: SocketAddrV4::new(ip.destination, udp.destination),
        };
        Ok((route, payload))
    }

    /// The headers of a frame whose UDP payload has `payload_len` bytes (at most 65,507).
    pub fn headers(&self, payload_len: usize, checksum: UdpChecksum) -> [u8; HEADERS_LEN] {
        let ethernet = EthernetHeader {
            destination: self.destination_mac,
            source: self.source_mac,
            ethertype: EtherType::IPV4,
        };
        let (source, destination) = (*self.source.ip(), *self.destination.ip());
        let ip = Ipv4Header { source, destination, protocol: PROTOCOL_UDP };
        let udp = UdpHeader { source: self.source.port(), destination: self.destination.port() };
        let mut headers = [0; HEADERS_LEN];
        let (to_ethernet, rest) = headers.split_at_mut(ethernet::HEADER_LEN);
        let (to_ip, to_udp) = rest.split_at_mut(ipv4::HEADER_LEN);
        to_ethernet.copy_from_slice(&ethernet.to_bytes());
        to_ip.copy_from_slice(&ip.to_bytes(udp::HEADER_LEN + payload_len));
        to_udp.copy_from_slice(&udp.to_bytes(&ip, payload_len, checksum));
        headers
    }

    /// Appends the whole frame to `out`.
    pub fn emit(&self, payload: &[u8], out: &mut Vec<u8>) {
        let checksum = UdpChecksum::Complete(Checksum::of(payload));
        out.extend_from_slice(&self.headers(payload.len(), checksum));
        out.extend_from_slice(payload);
    }

    /// The way back.
    pub fn reversed(&self) -> Self {
        Self {
            source_mac: self.destination_mac,
            destination_mac: self.source_mac,
            source: self.destination,
            destination: self.source,
        }
    }
}

/// The headers of datagram number `index` of a train, with `payload_len` bytes behind them: those of the whole train
/// with lengths and checksums of their own. The IP identification counts up from the train's, as Linux has it
/// (`inet_gso_segment`); with don't-fragment set it means nothing (RFC 6864).
pub fn segment_headers(
    train: &[u8; HEADERS_LEN],
    index: u16,
    payload_len: usize,
    checksum: UdpChecksum,
) -> [u8; HEADERS_LEN] {
    let mut headers = *train;
    let (_, packet) = headers.split_at_mut(ethernet::HEADER_LEN);
    let (ip, udp) = packet.split_at_mut(ipv4::HEADER_LEN);
    let total = ipv4::HEADER_LEN + udp::HEADER_LEN + payload_len;
    ip[2..4].copy_from_slice(&u16::try_from(total).unwrap_or(u16::MAX).to_be_bytes());
    let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(index);
    ip[4..6].copy_from_slice(&id.to_be_bytes());
    ip[10..12].fill(0);
    let sum = Checksum::of(ip).complete();
    ip[10..12].copy_from_slice(&sum);
    let source = Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]);
    let destination = Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]);
    let ip = Ipv4Header { source, destination, protocol: PROTOCOL_UDP };
    let ports = UdpHeader {
        source: u16::from_be_bytes([udp[0], udp[1]]),
        destination: u16::from_be_bytes([udp[2], udp[3]]),
    };
    udp.copy_from_slice(&ports.to_bytes(&ip, payload_len, checksum));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A whole FINISHED from a FreeBSD guest at 10.0.9.2 to a server at 10.0.9.1.
    const FRAME: [u8; 66] = [
        0xe2, 0x90, 0x34, 0x67, 0x40, 0xff, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x08, 0, // Ethernet
        0x45, 0, 0, 0x34, 0, 0, 0x40, 0, 0xff, 0x11, 0x55, 0xb6, 10, 0, 9, 2, 10, 0, 9, 1, // IPv4
        0x4e, 0x38, 0xa5, 0x14, 0, 0x20, 0x45, 0x3a, // UDP
        0, 0, 0, 2, 0, 0, 0xa1, 0x22, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // netdump
    ];
    const ROUTE: Route = Route {
        source_mac: MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
        destination_mac: MacAddr([0xe2, 0x90, 0x34, 0x67, 0x40, 0xff]),
        source: SocketAddrV4::new(Ipv4Addr::new(10, 0, 9, 2), 20024),
        destination: SocketAddrV4::new(Ipv4Addr::new(10, 0, 9, 1), 42260),
    };

    #[test]
    fn a_real_frame_is_taken_apart_and_put_together() {
        let (route, payload) = Route::parse(&FRAME).unwrap();
        assert_eq!((route, payload), (ROUTE, &FRAME[42..]));
        let mut out = vec![0xaa];
        ROUTE.emit(payload, &mut out);
        assert_eq!(out[1..], FRAME);
    }

    #[test]
    fn every_truncation_is_refused() {
        for len in 0..FRAME.len() {
            assert!(Route::parse(&FRAME[..len]).is_err(), "{len} bytes");
            assert!(Route::parse_checked(&FRAME[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_checksum_that_was_checked_is_not_looked_at() {
        let mut frame = FRAME;
        frame[40] ^= 1;
        assert_eq!(Route::parse(&frame), Err(DatagramError::Udp(UdpError::Checksum)));
        assert_eq!(Route::parse_checked(&frame), Ok((ROUTE, &FRAME[42..])));
    }

    #[test]
    fn datagrams_of_a_train_have_lengths_and_checksums_of_their_own() {
        let payload = &FRAME[42..];
        let train = ROUTE.headers(3 * payload.len(), UdpChecksum::Partial);
        let complete = UdpChecksum::Complete(Checksum::of(payload));
        assert_eq!(segment_headers(&train, 0, payload.len(), complete), FRAME[..42]);
        let mut third = segment_headers(&train, 2, payload.len(), complete);
        assert_eq!(third[18..20], [0, 2]);
        assert_eq!(Route::parse(&[&third[..], payload].concat()), Ok((ROUTE, payload)));
        third[18..20].fill(0);
        third[24..26].copy_from_slice(&FRAME[24..26]);
        assert_eq!(third, FRAME[..42], "nothing else differs");
        let left = segment_headers(&train, 0, payload.len(), UdpChecksum::Partial);
        assert_eq!(left, ROUTE.headers(payload.len(), UdpChecksum::Partial));
    }

    #[test]
    fn other_protocols_are_named() {
        let mut arp = FRAME;
        arp[13] = 6;
        assert_eq!(Route::parse(&arp), Err(DatagramError::NotIpv4(EtherType::ARP)));
        let mut icmp = FRAME;
        icmp[23] = 1;
        // 16 less in the protocol, 16 more in the checksum.
        icmp[24..26].copy_from_slice(&[0x55, 0xc6]);
        assert_eq!(Route::parse(&icmp), Err(DatagramError::NotUdp(1)));
    }
}
