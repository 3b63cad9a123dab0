//! Frames as they leave: headers before payloads that are read in place, and trains of messages behind one header.

use std::net::SocketAddrV4;
use std::ops::Range;

use super::Client;
use super::window::{Chunk, Sequence};
use crate::link::{Frame, GuestPiece};
use crate::wire::arp::{ArpOperation, ArpPacket};
use crate::wire::checksum::Checksum;
use crate::wire::datagram::HEADERS_LEN;
use crate::wire::ethernet::{EtherType, EthernetHeader};
use crate::wire::message::{self, HEADER_LEN};
use crate::wire::udp::UdpChecksum;
use crate::wire::{MacAddr, MessageKind, Route};
use crate::{ReadAt, ReadError};

/// Where the first message's payload begins in its frame.
pub const PAYLOAD_AT: usize = HEADERS_LEN + HEADER_LEN;
/// Most bytes of UDP payload behind one IPv4 header.
const MAX_UDP: usize = 65_535 - 20 - 8;

/// What a frame from [`Client::poll_transmit`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// A question or an answer.
    Arp(ArpOperation),
    /// A message, or the first one of a train.
    Message {
        /// What it carries.
        kind: MessageKind,
        /// Its number.
        sequence: Sequence,
        /// Position of its payload in the object that this kind writes.
        offset: u64,
        /// Bytes of payload.
        len: usize,
        /// Sent before, or for the first time; all of a train are the same.
        attempt: Attempt,
    },
}

/// Whether a message was sent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// It was not. First attempts go in order of their offsets.
    First,
    /// It was, and counts as lost.
    Again,
}

/// A frame to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// What it is.
    pub sending: Sending,
    /// Messages in it: more than one in a train.
    pub messages: usize,
    /// The bytes of the core in it, when they are sent for the first time; they lie in a row.
    pub fresh: Option<Range<u64>>,
}

/// A frame that is being put together. The buffers are used again and again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packet {
    bytes: Vec<u8>,
    guest: Vec<GuestPiece>,
    segment: Option<u16>,
}

impl Packet {
    /// For a link.
    pub fn frame(&self) -> Frame<'_> {
        Frame { bytes: &self.bytes, guest: &self.guest, segment: self.segment }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.guest.clear();
        self.segment = None;
    }
}

impl Client {
    /// Writes an ARP packet's frame.
    pub(super) fn emit_arp(&self, arp: &ArpPacket, packet: &mut Packet) {
        let destination = match arp.operation {
            ArpOperation::Request => MacAddr::BROADCAST,
            ArpOperation::Reply => arp.target_mac,
        };
        let ethernet = EthernetHeader { destination, source: self.config.mac, ethertype: EtherType::ARP };
        packet.clear();
        packet.bytes.extend_from_slice(&ethernet.to_bytes());
        arp.emit(&mut packet.bytes);
    }

    /// Begins a frame: room for its headers.
    pub(super) fn begin(packet: &mut Packet) {
        packet.clear();
        packet.bytes.resize(HEADERS_LEN, 0);
    }

    /// Most messages in a frame whose first one has `len` bytes of payload.
    pub(super) fn train_limit(&self, len: usize) -> usize {
        self.config.offloads.segments.min(MAX_UDP / (HEADER_LEN + len)).max(1)
    }

    /// Adds a message, its payload from where it belongs; the core is read again for each resend. After an error the
    /// packet is as it was.
    pub(super) fn add_message<I: ReadAt + ?Sized>(
        &self,
        sequence: Sequence,
        chunk: Chunk,
        image: &I,
        packet: &mut Packet,
    ) -> Result<(), ReadError> {
        let Chunk { kind, offset, len } = chunk;
        let start = packet.bytes.len();
        let aux = if kind == MessageKind::Herald { self.config.dump_id } else { 0 };
        packet.bytes.extend_from_slice(&message::header(kind, sequence.0, offset, len, aux));
        match kind {
            MessageKind::Herald => packet.bytes.extend_from_slice(&self.path),
            MessageKind::EkcdKey => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                packet.bytes.extend_from_slice(&self.key[from..from + len]);
            }
            MessageKind::Vmcore => {
                if let Err(error) = self.add_core(offset, len, image, packet) {
                    packet.bytes.truncate(start);
                    return Err(error);
                }
            }
            MessageKind::Kdh => packet.bytes.extend_from_slice(&self.header),
            MessageKind::Finished => {}
        }
        Ok(())
    }

    fn add_core<I: ReadAt + ?Sized>(
        &self,
        offset: u64,
        len: usize,
        image: &I,
        packet: &mut Packet,
    ) -> Result<(), ReadError> {
        let at = packet.bytes.len();
        if self.config.offloads.gather
            && let Some(address) = image.locate(offset, len)
        {
            packet.guest.push(GuestPiece { at, address, len });
            return Ok(());
        }
        packet.bytes.resize(at + len, 0);
        image.read_at(offset, &mut packet.bytes[at..])
    }

    /// Completes a frame of `messages` messages, the first of which has `len` bytes of payload.
    pub(super) fn finish(&self, next_hop: MacAddr, messages: usize, len: usize, packet: &mut Packet) {
        packet.segment = (messages > 1).then(|| u16::try_from(HEADER_LEN + len).unwrap_or(u16::MAX));
        let checksum = if self.config.offloads.checksum {
            UdpChecksum::Partial
        } else {
            UdpChecksum::Complete(Checksum::of(&packet.bytes[HEADERS_LEN..]))
        };
        let server_port = self.learned_port.unwrap_or(self.config.server_port);
        let route = Route {
            source_mac: self.config.mac,
            destination_mac: next_hop,
            source: SocketAddrV4::new(self.config.client, self.config.client_port),
            destination: SocketAddrV4::new(self.config.server, server_port),
        };
        let payload_len = packet.frame().len() - HEADERS_LEN;
        packet.bytes[..HEADERS_LEN].copy_from_slice(&route.headers(payload_len, checksum));
    }
}
