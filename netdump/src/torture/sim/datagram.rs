//! A look into frames, for judges and mischief-makers, without the checks that a host makes.

use std::net::{Ipv4Addr, SocketAddrV4};

/// A UDP datagram in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Who sends it.
    pub source: SocketAddrV4,
    /// To whom.
    pub destination: SocketAddrV4,
    /// What it carries.
    pub payload: &'a [u8],
}

const ETHERTYPE_AT: usize = 12;
const IP_AT: usize = 14;
const UDP_AT: usize = IP_AT + 20;

impl<'a> Datagram<'a> {
    /// The datagram of a frame that is one: IPv4 without options, not a fragment, lengths that fit. Checksums are not
    /// looked at.
    pub fn of(frame: &'a [u8]) -> Option<Self> {
        let (ip, udp) = (frame.get(IP_AT..UDP_AT)?, frame.get(UDP_AT..)?);
        let is_udp = frame[ETHERTYPE_AT..IP_AT] == [8, 0] && ip[0] == 0x45 && ip[9] == 17;
        let &[s0, s1, d0, d1, l0, l1, ..] = udp else { return None };
        let payload = udp.get(8..usize::from(u16::from_be_bytes([l0, l1])))?;
        let address = |at: usize, port| {
            let address = Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
            SocketAddrV4::new(address, u16::from_be_bytes(port))
        };
        is_udp.then(|| Self { source: address(12, [s0, s1]), destination: address(16, [d0, d1]), payload })
    }
}
