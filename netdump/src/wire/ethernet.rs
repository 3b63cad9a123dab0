//! The Ethernet II header, untagged.
//!
//! ```text
//!  0  6 destination      6  6 source      12  u16 EtherType
//! ```

use thiserror::Error;

use super::MacAddr;

/// Bytes in a header.
pub const HEADER_LEN: usize = 14;

/// What a frame carries: the EtherType.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: Self = Self(0x0800);
    /// ARP.
    pub const ARP: Self = Self(0x0806);
}

/// Fewer bytes than a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a frame of {0} bytes is too short for an Ethernet header of 14")]
pub struct RuntFrame(pub usize);

/// One header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EthernetHeader {
    /// Who should take the frame.
    pub destination: MacAddr,
    /// Who sent it.
    pub source: MacAddr,
    /// What follows.
    pub ethertype: EtherType,
}

impl EthernetHeader {
    /// Takes a frame apart into header and payload; the payload may end in padding.
    pub fn parse(frame: &[u8]) -> Result<(Self, &[u8]), RuntFrame> {
        let (header, payload) = frame.split_first_chunk::<HEADER_LEN>().ok_or(RuntFrame(frame.len()))?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
        let header = Self {
            destination: MacAddr([d0, d1, d2, d3, d4, d5]),
            source: MacAddr([s0, s1, s2, s3, s4, s5]),
            ethertype: EtherType(u16::from_be_bytes([t0, t1])),
        };
        Ok((header, payload))
    }

    /// The header as bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let [d0, d1, d2, d3, d4, d5] = self.destination.0;
        let [s0, s1, s2, s3, s4, s5] = self.source.0;
        let [t0, t1] = self.ethertype.0.to_be_bytes();
        [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a FreeBSD guest begins its ARP request.
    const BYTES: [u8; 14] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x08, 0x06];
    const HEADER: EthernetHeader = EthernetHeader {
        destination: MacAddr::BROADCAST,
        source: MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
        ethertype: EtherType::ARP,
    };

    #[test]
    fn header_and_payload_are_told_apart() {
        let mut frame = BYTES.to_vec();
        frame.extend_from_slice(&[1, 2, 3]);
        assert_eq!(EthernetHeader::parse(&frame), Ok((HEADER, &[1_u8, 2, 3][..])));
    }

    #[test]
    fn header_is_put_together() {
        assert_eq!(HEADER.to_bytes(), BYTES);
    }

    #[test]
    fn every_truncation_is_refused() {
        for len in 0..BYTES.len() {
            assert_eq!(EthernetHeader::parse(&BYTES[..len]), Err(RuntFrame(len)));
        }
    }
}
