//! The IPv4 header without options (RFC 791).
//!
//! ```text
//!  0  u8 version 4, header words 5     1  u8 service (0)    2  u16 total length    4  u16 id (0)
//!  6  u16 flags and fragment offset    8  u8 time to live   9  u8 protocol        10  u16 header checksum
//! 12  4 source address                16  4 destination address
//! ```
//!
//! Sent as FreeBSD's netdump sends it: id 0, don't-fragment, time to live 255. Read strictly: options and fragments are
//! refused, and the header checksum is always judged.

use std::net::Ipv4Addr;

use thiserror::Error;

use super::checksum::Checksum;

/// Bytes in a header.
pub const HEADER_LEN: usize = 20;
/// Protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;

const TIME_TO_LIVE: u8 = 255;
const DONT_FRAGMENT: u16 = 0x4000;
/// Every bit of the flags and offset word but don't-fragment and the reserved one.
const FRAGMENT_MASK: u16 = 0x3fff;

/// Why bytes are not an IPv4 packet that can be used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Ipv4Error {
    /// Fewer bytes than a header.
    #[error("{0} bytes are too short for an IPv4 header of 20")]
    Short(usize),
    /// Another version.
    #[error("IP version {0}, not 4")]
    Version(u8),
    /// A header that is not 20 bytes long.
    #[error("IPv4 header of {0} bytes; only headers without options, of 20, are taken")]
    Options(usize),
    /// Damage in the header.
    #[error("the IPv4 header checksum is wrong")]
    Checksum,
    /// The total length is shorter than the header or longer than the frame.
    #[error("IPv4 total length {total}, but {present} bytes are present")]
    Length {
        /// The header's total length.
        total: u16,
        /// Bytes in the frame, from the header on.
        present: usize,
    },
    /// Part of a larger packet.
    #[error("IPv4 fragment (flags and offset {0:#06x})")]
    Fragment(u16),
}

/// One header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Header {
    /// Who sent the packet.
    pub source: Ipv4Addr,
    /// Whom it is for.
    pub destination: Ipv4Addr,
    /// What follows: [`PROTOCOL_UDP`] or another.
    pub protocol: u8,
}

impl Ipv4Header {
    /// Takes a packet apart into header and payload; Ethernet padding behind the total length is cut.
    pub fn parse(packet: &[u8]) -> Result<(Self, &[u8]), Ipv4Error> {
        let (header, rest) =
            packet.split_first_chunk::<HEADER_LEN>().ok_or(Ipv4Error::Short(packet.len()))?;
        let [version, _, l0, l1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
        if version >> 4 != 4 {
            return Err(Ipv4Error::Version(version >> 4));
        }
        let header_len = usize::from(version & 0xf) * 4;
        if header_len != HEADER_LEN {
            return Err(Ipv4Error::Options(header_len));
        }
        if Checksum::of(header).complete() != [0, 0] {
            return Err(Ipv4Error::Checksum);
        }
        let total = u16::from_be_bytes([l0, l1]);
        let payload = usize::from(total).checked_sub(HEADER_LEN).and_then(|len| rest.get(..len));
        let payload = payload.ok_or(Ipv4Error::Length { total, present: packet.len() })?;
        let fragment = u16::from_be_bytes([f0, f1]);
        if fragment & FRAGMENT_MASK != 0 {
            return Err(Ipv4Error::Fragment(fragment));
        }
        let source = Ipv4Addr::new(s0, s1, s2, s3);
        let destination = Ipv4Addr::new(d0, d1, d2, d3);
        Ok((Self { source, destination, protocol }, payload))
    }

    /// The header as bytes, for a payload of `payload_len` bytes (at most 65,515).
    pub fn to_bytes(&self, payload_len: usize) -> [u8; HEADER_LEN] {
        let total = u16::try_from(HEADER_LEN + payload_len).unwrap_or(u16::MAX);
        let [l0, l1] = total.to_be_bytes();
        let [f0, f1] = DONT_FRAGMENT.to_be_bytes();
        let [s0, s1, s2, s3] = self.source.octets();
        let [d0, d1, d2, d3] = self.destination.octets();
        let with_checksum = |[c0, c1]: [u8; 2]| {
            [
                0x45,
                0,
                l0,
                l1,
                0,
                0,
                f0,
                f1,
                TIME_TO_LIVE,
                self.protocol,
                c0,
                c1,
                s0,
                s1,
                s2,
                s3,
                d0,
                d1,
                d2,
                d3,
            ]
        };
        with_checksum(Checksum::of(&with_checksum([0, 0])).complete())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a FINISHED message from a FreeBSD guest: 32 bytes of UDP, header checksum 0x55b6.
    const BYTES: [u8; 20] =
        [0x45, 0, 0, 0x34, 0, 0, 0x40, 0, 0xff, 0x11, 0x55, 0xb6, 10, 0, 9, 2, 10, 0, 9, 1];
    const HEADER: Ipv4Header = Ipv4Header {
        source: Ipv4Addr::new(10, 0, 9, 2),
        destination: Ipv4Addr::new(10, 0, 9, 1),
        protocol: PROTOCOL_UDP,
    };

    fn packet() -> Vec<u8> {
        let mut packet = BYTES.to_vec();
        packet.extend(0..32);
        packet
    }

    /// Changes bytes and puts the header checksum right again.
    fn change(changes: &[(usize, u8)]) -> Vec<u8> {
        let mut packet = packet();
        for &(at, to) in changes {
            packet[at] = to;
        }
        packet[10..12].fill(0);
        let sum = Checksum::of(&packet[..20]).complete();
        packet[10..12].copy_from_slice(&sum);
        packet
    }

    #[test]
    fn header_and_payload_are_told_apart_and_padding_is_cut() {
        let mut padded = packet();
        padded.extend_from_slice(&[0; 7]);
        assert_eq!(Ipv4Header::parse(&padded), Ok((HEADER, &packet()[20..])));
    }

    #[test]
    fn header_is_put_together_as_freebsd_does() {
        assert_eq!(HEADER.to_bytes(32), BYTES);
    }

    #[test]
    fn every_truncation_is_refused() {
        let packet = packet();
        for len in 0..packet.len() {
            assert!(Ipv4Header::parse(&packet[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        for bit in 0..160 {
            let mut packet = packet();
            packet[bit / 8] ^= 1 << (bit % 8);
            assert!(Ipv4Header::parse(&packet).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn options_fragments_and_lying_lengths_are_refused() {
        assert_eq!(Ipv4Header::parse(&change(&[(0, 0x65)])), Err(Ipv4Error::Version(6)));
        assert_eq!(Ipv4Header::parse(&change(&[(0, 0x46)])), Err(Ipv4Error::Options(24)));
        assert_eq!(Ipv4Header::parse(&change(&[(0, 0x44)])), Err(Ipv4Error::Options(16)));
        assert_eq!(Ipv4Header::parse(&change(&[(6, 0x20)])), Err(Ipv4Error::Fragment(0x2000)));
        assert_eq!(Ipv4Header::parse(&change(&[(7, 1)])), Err(Ipv4Error::Fragment(0x4001)));
        for total in [19, 53] {
            let error = Ipv4Error::Length { total, present: 52 };
            assert_eq!(Ipv4Header::parse(&change(&[(3, u8::try_from(total).unwrap())])), Err(error));
        }
    }
}
