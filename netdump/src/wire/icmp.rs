//! The one ICMP message of interest (RFC 792): that a datagram could not be delivered, with the head of the datagram.
//!
//! ```text
//!  0  u8 type 3    1  u8 code    2  u16 checksum    4  u32 not used    8  IPv4 header and 8 or more bytes of the datagram
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};

use super::checksum::Checksum;
use super::ipv4::PROTOCOL_UDP;

/// Protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;

/// Destination unreachable.
const UNREACHABLE: u8 = 3;
/// Nobody has that port.
const PORT: u8 = 3;
/// Bytes before the quotation.
const HEADER_LEN: usize = 8;

/// A datagram that was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreachable {
    /// Whether its destination is up but has no such port; else the way there is broken, or forbidden.
    pub is_port: bool,
    /// Who sent the datagram.
    pub source: SocketAddrV4,
    /// Whom it was for.
    pub destination: SocketAddrV4,
}

impl Unreachable {
    /// Reads the payload of an IPv4 packet; `None` if it is another ICMP message, damaged, or not about UDP.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let (&[kind, code, ..], quoted) = message.split_first_chunk::<HEADER_LEN>()?;
        if kind != UNREACHABLE || Checksum::of(message).complete() != [0, 0] {
            return None;
        }
        // The quotation is cut, so its lengths say nothing; routers have changed its time to live and its checksum.
        let &[version, _, _, _, _, _, f0, f1, _, protocol, ..] = quoted.first_chunk::<20>()?;
        let is_first_fragment = u16::from_be_bytes([f0, f1]) & 0x1fff == 0;
        if version != 0x45 || protocol != PROTOCOL_UDP || !is_first_fragment {
            return None;
        }
        let address = |at: usize| Some(Ipv4Addr::from(*quoted.get(at..)?.first_chunk::<4>()?));
        let port = |at: usize| Some(u16::from_be_bytes(*quoted.get(at..)?.first_chunk::<2>()?));
        Some(Self {
            is_port: code == PORT,
            source: SocketAddrV4::new(address(12)?, port(20)?),
            destination: SocketAddrV4::new(address(16)?, port(22)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux 6.18 answers a datagram of 10.0.9.2:20024 to 10.0.9.1:42260, where nobody listens, with 8 bytes of it
    /// quoted.
    const ANSWER: [u8; 36] = [
        3, 3, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 0x34, 0, 0, 0x40, 0, 0xff, 0x11, 0x54, 0xb3, 10, 0, 9, 2, 10, 0,
        9, 1, 0x4e, 0x38, 0xa5, 0x14, 0, 0x20, 0, 0,
    ];

    fn answer(changes: &[(usize, u8)]) -> Vec<u8> {
        let mut bytes = ANSWER.to_vec();
        for &(at, to) in changes {
            bytes[at] = to;
        }
        let sum = Checksum::of(&bytes).complete();
        bytes[2..4].copy_from_slice(&sum);
        bytes
    }

    #[test]
    fn a_closed_port_is_told_with_the_datagram() {
        let want = Unreachable {
            is_port: true,
            source: "10.0.9.2:20024".parse().unwrap(),
            destination: "10.0.9.1:42260".parse().unwrap(),
        };
        assert_eq!(Unreachable::parse(&answer(&[])), Some(want));
        let host = Unreachable { is_port: false, ..want };
        assert_eq!(Unreachable::parse(&answer(&[(1, 1)])), Some(host));
    }

    #[test]
    fn other_messages_and_quotations_are_nothing() {
        for (at, to) in [(0, 0), (0, 11), (8, 0x46), (8, 0x65), (14, 0x20 | 1), (15, 1), (17, 6)] {
            assert_eq!(Unreachable::parse(&answer(&[(at, to)])), None, "{to} at {at}");
        }
        let mut damaged = answer(&[]);
        damaged[30] ^= 1;
        assert_eq!(Unreachable::parse(&damaged), None);
    }

    #[test]
    fn every_truncation_is_nothing() {
        for len in 0..32 {
            let mut bytes = answer(&[])[..len].to_vec();
            if len >= 4 {
                bytes[2..4].fill(0);
                let sum = Checksum::of(&bytes).complete();
                bytes[2..4].copy_from_slice(&sum);
            }
            assert_eq!(Unreachable::parse(&bytes), None, "{len} bytes");
        }
    }
}
