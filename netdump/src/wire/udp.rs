//! The UDP header (RFC 768) with its checksum over the pseudo header, which is where UDP needs to know of IPv4.
//!
//! ```text
//!  0  u16 source port      2  u16 destination port      4  u16 length, header included      6  u16 checksum
//! ```

use thiserror::Error;

use super::checksum::Checksum;
use super::ipv4::{Ipv4Header, PROTOCOL_UDP};

/// Bytes in a header.
pub const HEADER_LEN: usize = 8;

/// Why bytes are not a UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UdpError {
    /// Fewer bytes than a header.
    #[error("{0} bytes are too short for a UDP header of 8")]
    Short(usize),
    /// The length field is shorter than the header or longer than the packet.
    #[error("UDP length {length}, but {present} bytes are present")]
    Length {
        /// The header's length.
        length: u16,
        /// Bytes in the packet, from the header on.
        present: usize,
    },
    /// Damage.
    #[error("the UDP checksum is wrong")]
    Checksum,
}

/// What the checksum field shall hold.
#[derive(Debug, Clone, Copy)]
pub enum UdpChecksum {
    /// The checksum, made from the sum of the payload.
    Complete(Checksum),
    /// The folded sum of the pseudo header, which a device completes (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    Partial,
}

/// One header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpHeader {
    /// Port it comes from.
    pub source: u16,
    /// Port it is for.
    pub destination: u16,
}

impl UdpHeader {
    /// Takes the payload of an IPv4 packet apart into header and payload; what is behind the UDP length is cut. A
    /// checksum of 0 means that the sender made none.
    pub fn parse<'a>(ip: &Ipv4Header, datagram: &'a [u8]) -> Result<(Self, &'a [u8]), UdpError> {
        let (header, payload) = Self::parse_checked(datagram)?;
        let datagram = &datagram[..HEADER_LEN + payload.len()];
        if datagram.get(6..HEADER_LEN) != Some(&[0, 0]) {
            let mut sum = pseudo_header(ip, u16::try_from(datagram.len()).unwrap_or(u16::MAX));
            sum.add(datagram);
            if sum.complete() != [0, 0] {
                return Err(UdpError::Checksum);
            }
        }
        Ok((header, payload))
    }

    /// The same without a look at the checksum, which another has checked.
    pub fn parse_checked(datagram: &[u8]) -> Result<(Self, &[u8]), UdpError> {
        let present = datagram.len();
        let [s0, s1, d0, d1, l0, l1, ..] =
            *datagram.first_chunk::<HEADER_LEN>().ok_or(UdpError::Short(present))?;
        let length = u16::from_be_bytes([l0, l1]);
        let datagram = datagram.get(..usize::from(length)).ok_or(UdpError::Length { length, present })?;
        let payload = datagram.get(HEADER_LEN..).ok_or(UdpError::Length { length, present })?;
        let header = Self { source: u16::from_be_bytes([s0, s1]), destination: u16::from_be_bytes([d0, d1]) };
        Ok((header, payload))
    }

    /// The header as bytes, for a payload of `payload_len` bytes (at most 65,507).
    pub fn to_bytes(&self, ip: &Ipv4Header, payload_len: usize, checksum: UdpChecksum) -> [u8; HEADER_LEN] {
        let length = u16::try_from(HEADER_LEN + payload_len).unwrap_or(u16::MAX);
        let [s0, s1] = self.source.to_be_bytes();
        let [d0, d1] = self.destination.to_be_bytes();
        let [l0, l1] = length.to_be_bytes();
        let mut sum = pseudo_header(ip, length);
        let [c0, c1] = match checksum {
            UdpChecksum::Partial => sum.partial(),
            UdpChecksum::Complete(payload) => {
                sum.add(&[s0, s1, d0, d1, l0, l1]);
                sum.join(payload);
                // 0 would say that there is no checksum; 0xffff is the other zero of this arithmetic.
                match sum.complete() {
                    [0, 0] => [0xff, 0xff],
                    checksum => checksum,
                }
            }
        };
        [s0, s1, d0, d1, l0, l1, c0, c1]
    }
}

fn pseudo_header(ip: &Ipv4Header, length: u16) -> Checksum {
    let mut sum = Checksum::of(&ip.source.octets());
    sum.add(&ip.destination.octets());
    sum.add(&[0, PROTOCOL_UDP]);
    sum.add(&length.to_be_bytes());
    sum
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const IP: Ipv4Header = Ipv4Header {
        source: Ipv4Addr::new(10, 0, 9, 2),
        destination: Ipv4Addr::new(10, 0, 9, 1),
        protocol: PROTOCOL_UDP,
    };
    const HEADER: UdpHeader = UdpHeader { source: 20024, destination: 42260 };
    /// A whole FINISHED from a FreeBSD guest: sequence number 41250.
    const FINISHED: [u8; 32] = [
        0x4e, 0x38, 0xa5, 0x14, 0, 0x20, 0x45, 0x3a, 0, 0, 0, 2, 0, 0, 0xa1, 0x22, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0,
    ];

    fn complete(payload: &[u8]) -> UdpChecksum {
        UdpChecksum::Complete(Checksum::of(payload))
    }

    #[test]
    fn header_and_payload_are_told_apart_and_surplus_is_cut() {
        let mut long = FINISHED.to_vec();
        long.push(1);
        assert_eq!(UdpHeader::parse(&IP, &long), Ok((HEADER, &FINISHED[8..])));
    }

    #[test]
    fn header_is_put_together_as_freebsd_does() {
        assert_eq!(HEADER.to_bytes(&IP, 24, complete(&FINISHED[8..])), FINISHED[..8]);
    }

    #[test]
    fn partial_checksum_is_the_sum_of_the_pseudo_header() {
        // A Linux server's ack as its offloading interface shows it.
        let ip = Ipv4Header { source: IP.destination, destination: IP.source, ..IP };
        let ack = UdpHeader { source: 42260, destination: 20024 };
        let bytes = [0xa5, 0x14, 0x4e, 0x38, 0, 0x0c, 0x26, 0x20];
        assert_eq!(ack.to_bytes(&ip, 4, UdpChecksum::Partial), bytes);
    }

    #[test]
    fn every_truncation_is_refused() {
        for len in 0..FINISHED.len() {
            assert!(UdpHeader::parse(&IP, &FINISHED[..len]).is_err(), "{len} bytes");
        }
        let mut lying = FINISHED;
        lying[5] = 7;
        assert_eq!(UdpHeader::parse(&IP, &lying), Err(UdpError::Length { length: 7, present: 32 }));
    }

    #[test]
    fn a_flipped_bit_is_noticed_and_no_checksum_is_taken() {
        for bit in (0..256).filter(|bit| !(32..48).contains(bit)) {
            let mut bytes = FINISHED;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(UdpHeader::parse(&IP, &bytes), Err(UdpError::Checksum), "bit {bit}");
        }
        let mut none = FINISHED;
        none[6..8].fill(0);
        assert!(UdpHeader::parse(&IP, &none).is_ok());
    }

    #[test]
    fn checksum_of_zero_is_sent_as_ffff() {
        // The payload is chosen so that everything sums up to 0xffff.
        let sum = UdpHeader { source: 1, destination: 2 };
        let [.., c0, c1] = sum.to_bytes(&IP, 2, complete(&[0, 0]));
        let payload = [c0, c1];
        assert_eq!(sum.to_bytes(&IP, 2, complete(&payload))[6..], [0xff, 0xff]);
    }
}
