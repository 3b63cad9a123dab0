//! ARP for IPv4 over Ethernet (RFC 826).
//!
//! ```text
//!  0  u16 hardware (1)   2  u16 protocol (0x0800)   4  u8 hlen (6)   5  u8 plen (4)   6  u16 operation
//!  8  6 sender MAC      14  4 sender IP            18  6 target MAC 24  4 target IP
//! ```
//!
//! Lengths other than 6 and 4 are refused: FreeBSD's first client believed them and read and wrote past the packet.

use std::net::Ipv4Addr;

use thiserror::Error;

use super::MacAddr;

/// Bytes in a packet.
pub const PACKET_LEN: usize = 28;

const HARDWARE_ETHERNET: u16 = 1;
const PROTOCOL_IPV4: u16 = 0x0800;

/// Question or answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArpOperation {
    /// Who has the target IP?
    Request = 1,
    /// The sender has it.
    Reply = 2,
}

/// Why bytes are not an ARP packet for IPv4 over Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ArpError {
    /// Fewer bytes than a packet.
    #[error("{0} bytes are too short for an ARP packet of 28")]
    Short(usize),
    /// Not Ethernet and IPv4.
    #[error("ARP for hardware {hardware} and protocol {protocol:#06x}, not Ethernet and IPv4")]
    Kind {
        /// Hardware type.
        hardware: u16,
        /// Protocol type.
        protocol: u16,
    },
    /// Address lengths that do not belong to Ethernet and IPv4.
    #[error("ARP addresses of {hardware} and {protocol} bytes, not 6 and 4")]
    Lengths {
        /// Hardware address length.
        hardware: u8,
        /// Protocol address length.
        protocol: u8,
    },
    /// Neither request nor reply.
    #[error("unknown ARP operation {0}")]
    Operation(u16),
}

/// One packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArpPacket {
    /// Question or answer.
    pub operation: ArpOperation,
    /// Hardware address of who speaks.
    pub sender_mac: MacAddr,
    /// IP address of who speaks.
    pub sender_ip: Ipv4Addr,
    /// Hardware address of who is meant; zero in a request.
    pub target_mac: MacAddr,
    /// IP address asked for, or of who asked.
    pub target_ip: Ipv4Addr,
}

impl ArpPacket {
    /// Takes a packet apart; what follows it is padding.
    pub fn parse(bytes: &[u8]) -> Result<Self, ArpError> {
        let (packet, _padding) =
            bytes.split_first_chunk::<PACKET_LEN>().ok_or(ArpError::Short(bytes.len()))?;
        let [h0, h1, p0, p1, hardware_len, protocol_len, o0, o1, addresses @ ..] = *packet;
        let hardware = u16::from_be_bytes([h0, h1]);
        let protocol = u16::from_be_bytes([p0, p1]);
        if (hardware, protocol) != (HARDWARE_ETHERNET, PROTOCOL_IPV4) {
            return Err(ArpError::Kind { hardware, protocol });
        }
        if (hardware_len, protocol_len) != (6, 4) {
            return Err(ArpError::Lengths { hardware: hardware_len, protocol: protocol_len });
        }
        let operation = match u16::from_be_bytes([o0, o1]) {
            1 => ArpOperation::Request,
            2 => ArpOperation::Reply,
            other => return Err(ArpError::Operation(other)),
        };
        let [s0, s1, s2, s3, s4, s5, a, b, c, d, t0, t1, t2, t3, t4, t5, e, f, g, h] = addresses;
        Ok(Self {
            operation,
            sender_mac: MacAddr([s0, s1, s2, s3, s4, s5]),
            sender_ip: Ipv4Addr::new(a, b, c, d),
            target_mac: MacAddr([t0, t1, t2, t3, t4, t5]),
            target_ip: Ipv4Addr::new(e, f, g, h),
        })
    }

    /// Appends the packet to `out`.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&HARDWARE_ETHERNET.to_be_bytes());
        out.extend_from_slice(&PROTOCOL_IPV4.to_be_bytes());
        out.extend_from_slice(&[6, 4]);
        out.extend_from_slice(&(self.operation as u16).to_be_bytes());
        out.extend_from_slice(&self.sender_mac.0);
        out.extend_from_slice(&self.sender_ip.octets());
        out.extend_from_slice(&self.target_mac.0);
        out.extend_from_slice(&self.target_ip.octets());
    }

    /// The answer to this request from the host at `mac`.
    pub fn reply_from(&self, mac: MacAddr) -> Self {
        Self {
            operation: ArpOperation::Reply,
            sender_mac: mac,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A FreeBSD guest at 10.0.9.2 asking for the server at 10.0.9.1.
    const REQUEST: [u8; 28] =
        [0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 10, 0, 9, 2, 0, 0, 0, 0, 0, 0, 10, 0, 9, 1];
    /// The server's answer.
    const REPLY: [u8; 28] = [
        0, 1, 8, 0, 6, 4, 0, 2, 0xe2, 0x90, 0x34, 0x67, 0x40, 0xff, 10, 0, 9, 1, 0x52, 0x54, 0, 0x12, 0x34,
        0x56, 10, 0, 9, 2,
    ];

    fn request() -> ArpPacket {
        ArpPacket {
            operation: ArpOperation::Request,
            sender_mac: MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            sender_ip: Ipv4Addr::new(10, 0, 9, 2),
            target_mac: MacAddr::ZERO,
            target_ip: Ipv4Addr::new(10, 0, 9, 1),
        }
    }

    #[test]
    fn request_is_taken_apart_and_padding_dropped() {
        let mut padded = REQUEST.to_vec();
        padded.resize(46, 0);
        assert_eq!(ArpPacket::parse(&REQUEST), Ok(request()));
        assert_eq!(ArpPacket::parse(&padded), Ok(request()));
    }

    #[test]
    fn packets_are_put_together_behind_what_is_there() {
        let mut out = vec![0xaa];
        request().emit(&mut out);
        assert_eq!(out[1..], REQUEST);
        out.clear();
        request().reply_from(MacAddr([0xe2, 0x90, 0x34, 0x67, 0x40, 0xff])).emit(&mut out);
        assert_eq!(out, REPLY);
    }

    #[test]
    fn every_truncation_is_refused() {
        for len in 0..REQUEST.len() {
            assert_eq!(ArpPacket::parse(&REQUEST[..len]), Err(ArpError::Short(len)));
        }
    }

    #[test]
    fn other_hardware_protocol_lengths_and_operations_are_refused() {
        let change = |at: usize, to: u8| {
            let mut bytes = REQUEST;
            bytes[at] = to;
            ArpPacket::parse(&bytes)
        };
        assert_eq!(change(1, 6), Err(ArpError::Kind { hardware: 6, protocol: 0x0800 }));
        assert_eq!(change(2, 0x86), Err(ArpError::Kind { hardware: 1, protocol: 0x8600 }));
        assert_eq!(change(4, 255), Err(ArpError::Lengths { hardware: 255, protocol: 4 }));
        assert_eq!(change(5, 16), Err(ArpError::Lengths { hardware: 6, protocol: 16 }));
        assert_eq!(change(7, 3), Err(ArpError::Operation(3)));
    }
}
