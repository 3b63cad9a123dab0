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
    /// Where the train's bytes lie.
    row: Option<Row>,
}

/// Bytes of the core that lie in a row in guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    offsets: Range<u64>,
    /// Of the first of them.
    address: u64,
}

impl Packet {
    /// For a link.
    pub fn frame(&self) -> Frame<'_> {
        Frame { bytes: &self.bytes, guest: &self.guest, segment: self.segment }
    }

    /// Bytes of the frames that it is cut into, if it has so many messages.
    pub(super) fn wire_len(&self, messages: usize) -> usize {
        self.frame().len() + messages.saturating_sub(1) * HEADERS_LEN
    }

    /// Guest-physical address of the message's `len` bytes at `offset`. The others of a train lie behind them as a rule,
    /// up to `row_end` at most, so it is asked for all at once.
    fn locate<I: ReadAt + ?Sized>(
        &mut self,
        offset: u64,
        len: usize,
        row_end: impl FnOnce() -> u64,
        image: &I,
    ) -> Option<u64> {
        let end = offset + len as u64;
        if let Some(Row { offsets, address }) = &self.row
            && offsets.start <= offset
            && end <= offsets.end
        {
            return Some(address + (offset - offsets.start));
        }
        let row_end = row_end();
        let row_len = usize::try_from(row_end - offset).unwrap_or(usize::MAX);
        if let Some(address) = image.locate(offset, row_len) {
            self.row = Some(Row { offsets: offset..row_end, address });
            return Some(address);
        }
        image.locate(offset, len)
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.guest.clear();
        self.segment = None;
        self.row = None;
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
        let limit = self.config.offloads.segments.min(MAX_UDP / (HEADER_LEN + len));
        limit.min(self.pacer.train_limit(len)).min(self.window.train_limit()).max(1)
    }

    /// Writes the frame of a HERALD that asks for a dump which was begun before.
    pub(super) fn emit_herald(&self, next_hop: MacAddr, sequence: Sequence, packet: &mut Packet) -> Transmit {
        let len = self.path.len();
        Self::begin(packet);
        self.add_herald(sequence, packet);
        self.finish(next_hop, self.config.server_port, 1, len, packet);
        let kind = MessageKind::Herald;
        let sending = Sending::Message { kind, sequence, offset: 0, len, attempt: Attempt::Again };
        Transmit { sending, messages: 1, fresh: None }
    }

    /// Where everything but a HERALD goes, and that too as long as the server has not answered.
    pub(super) fn session_port(&self) -> u16 {
        self.learned_port.unwrap_or(self.config.server_port)
    }

    fn add_herald(&self, sequence: Sequence, packet: &mut Packet) {
        let (len, aux) = (self.path.len(), self.config.dump_id);
        packet.bytes.extend_from_slice(&message::header(MessageKind::Herald, sequence.0, 0, len, aux));
        packet.bytes.extend_from_slice(&self.path);
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
        if kind == MessageKind::Herald {
            self.add_herald(sequence, packet);
            return Ok(());
        }
        let start = packet.bytes.len();
        packet.bytes.extend_from_slice(&message::header(kind, sequence.0, offset, len, 0));
        match kind {
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
            MessageKind::Herald | MessageKind::Finished => {}
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
            && let Some(address) = packet.locate(offset, len, || self.row_end(offset, len), image)
        {
            packet.guest.push(GuestPiece { at, address, len });
            return Ok(());
        }
        packet.bytes.resize(at + len, 0);
        image.read_at(offset, &mut packet.bytes[at..])
    }

    /// Where a train that begins with the message of `len` bytes at `offset` ends at most; not behind what there is of a
    /// core that grows.
    fn row_end(&self, offset: u64, len: usize) -> u64 {
        (offset + (len * self.train_limit(len)) as u64).min(self.spans.length())
    }

    /// Completes a frame of `messages` messages for this port, the first of which has `len` bytes of payload.
    pub(super) fn finish(
        &self,
        next_hop: MacAddr,
        server_port: u16,
        messages: usize,
        len: usize,
        packet: &mut Packet,
    ) {
        packet.segment = (messages > 1).then(|| u16::try_from(HEADER_LEN + len).unwrap_or(u16::MAX));
        let checksum = if self.config.offloads.checksum {
            UdpChecksum::Partial
        } else {
            UdpChecksum::Complete(Checksum::of(&packet.bytes[HEADERS_LEN..]))
        };
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
