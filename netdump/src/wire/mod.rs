//! The headers on the wire, one file each: take apart and put together. All integers are big-endian.
//!
//! Everything here is bytes in, values out, with every length checked: what the network sends cannot make it panic.

pub mod arp;
pub mod checksum;
pub mod datagram;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod mac;
pub mod message;
pub mod udp;

pub use datagram::Route;
pub use mac::MacAddr;
pub use message::{Ack, Message, MessageKind};

/// The receiver's well-known UDP port: HERALDs only (`NETDUMP_PORT`).
pub const SERVER_PORT: u16 = 20023;
/// The client's UDP port: source of everything sent, destination of every ack (`NETDUMP_ACKPORT`).
pub const CLIENT_PORT: u16 = 20024;
