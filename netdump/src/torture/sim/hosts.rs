//! Who is who on the wire, ARP, and a gateway.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::datagram::Datagram;
use super::{Keeper, Station};
use crate::torture::judge::Stored;
use crate::wire::MacAddr;
use crate::wire::arp::{ArpOperation, ArpPacket};
use crate::wire::checksum::Checksum;
use crate::wire::icmp::PROTOCOL_ICMP;
use crate::wire::ipv4::Ipv4Header;

/// The client's hardware address.
pub const CLIENT_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
/// The server's.
pub const SERVER_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 9]);
/// The gateway's.
pub const GATEWAY_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
/// The client's address.
pub const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The server's.
pub const SERVER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
/// The gateway's.
pub const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// A router with a server behind it: the wire sees the router only, the server sees frames from it.
#[derive(Debug)]
pub struct Gateway<S> {
    /// The server behind it.
    pub server: S,
    answers: VecDeque<ArpPacket>,
}

impl<S: Station> Gateway<S> {
    /// Before this server.
    pub fn before(server: S) -> Self {
        Self { server, answers: VecDeque::new() }
    }
}

impl<S: Station> Station for Gateway<S> {
    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        if let Some(question) = question_for(GATEWAY_IP, frame) {
            self.answers.push_back(question.reply_from(GATEWAY_MAC));
        } else if frame[..6] == GATEWAY_MAC.0 && frame[12..14] == [8, 0] {
            self.server.handle_frame(now, &forwarded(frame, SERVER_MAC, GATEWAY_MAC));
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.server.handle_timeout(now);
    }

    fn poll_transmit(&mut self, now: Instant, frame: &mut Vec<u8>) -> bool {
        if let Some(answer) = self.answers.pop_front() {
            put_arp(&answer, frame);
            return true;
        }
        if !self.server.poll_transmit(now, frame) {
            return false;
        }
        *frame = forwarded(frame, CLIENT_MAC, GATEWAY_MAC);
        true
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.server.poll_timeout()
    }
}

impl<S: Keeper> Keeper for Gateway<S> {
    fn close(&mut self, now: Instant) {
        self.server.close(now);
    }

    fn stored(&self) -> Vec<Stored<'_>> {
        self.server.stored()
    }
}

/// What a router makes of a frame: new hardware addresses, one hop less to live.
fn forwarded(frame: &[u8], to: MacAddr, from: MacAddr) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame[22] -= 1;
    frame[24..26].fill(0);
    let words = frame[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded twice");
    frame[24..26].copy_from_slice(&(!folded).to_be_bytes());
    frame
}

/// An ARP request for that address, if the frame is one.
pub(in crate::torture) fn question_for(address: Ipv4Addr, frame: &[u8]) -> Option<ArpPacket> {
    let packet = ArpPacket::parse(frame.get(14..)?).ok().filter(|_| frame[12..14] == [8, 6])?;
    (packet.operation == ArpOperation::Request && packet.target_ip == address).then_some(packet)
}

/// A frame with this packet for whom it is meant.
pub(in crate::torture) fn put_arp(packet: &ArpPacket, frame: &mut Vec<u8>) {
    let to = if packet.target_mac == MacAddr::ZERO { MacAddr::BROADCAST } else { packet.target_mac };
    frame.clear();
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&packet.sender_mac.0);
    frame.extend_from_slice(&[8, 6]);
    packet.emit(frame);
}

/// What a host answers to a datagram for a port that nobody has (RFC 792): ICMP with the datagram's headers.
pub(in crate::torture) fn port_unreachable(frame: &[u8]) -> Option<Vec<u8>> {
    let Datagram { source, destination, .. } = Datagram::of(frame)?;
    let mut icmp = vec![3, 3, 0, 0, 0, 0, 0, 0];
    icmp.extend_from_slice(&frame[14..42]);
    let sum = Checksum::of(&icmp).complete();
    icmp[2..4].copy_from_slice(&sum);
    let (source, destination) = (*destination.ip(), *source.ip());
    let ip = Ipv4Header { source, destination, protocol: PROTOCOL_ICMP };
    let header = ip.to_bytes(icmp.len());
    Some([&frame[6..12], &frame[..6], &[8, 0], &header, &icmp].concat())
}

/// A round number of milliseconds.
pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
