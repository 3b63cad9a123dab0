//! Frames as they leave: headers before a payload that is read in place.

use std::net::SocketAddrV4;

use super::Client;
use super::window::{Chunk, Sequence};
use crate::wire::arp::{ArpOperation, ArpPacket};
use crate::wire::checksum::Checksum;
use crate::wire::datagram::HEADERS_LEN;
use crate::wire::ethernet::{EtherType, EthernetHeader};
use crate::wire::message::{self, HEADER_LEN};
use crate::wire::udp::UdpChecksum;
use crate::wire::{MacAddr, MessageKind, Route};
use crate::{ReadAt, ReadError};

/// Where a message's payload begins in its frame.
pub const PAYLOAD_AT: usize = HEADERS_LEN + HEADER_LEN;

/// What a frame from [`Client::poll_transmit`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// A question or an answer.
    Arp(ArpOperation),
    /// A message.
    Message {
        /// What it carries.
        kind: MessageKind,
        /// Its number.
        sequence: Sequence,
        /// Position of its payload in the object that this kind writes.
        offset: u64,
        /// Bytes of payload.
        len: usize,
        /// Sent before, or for the first time.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// What it is.
    pub sending: Sending,
    /// Offset and length of the core's bytes that follow the frame's own; only when
    /// [`ClientConfig::gather`](super::ClientConfig::gather) is set.
    pub body: Option<(u64, usize)>,
}

impl Client {
    /// Describes a message that was emitted.
    pub(super) fn transmit(&self, sequence: Sequence, chunk: Chunk, attempt: Attempt) -> Transmit {
        let Chunk { kind, offset, len } = chunk;
        let body = (self.config.gather && kind == MessageKind::Vmcore).then_some((offset, len));
        Transmit { sending: Sending::Message { kind, sequence, offset, len, attempt }, body }
    }

    /// Writes an ARP packet's frame.
    pub(super) fn emit_arp(&self, packet: &ArpPacket, frame: &mut Vec<u8>) {
        let destination = match packet.operation {
            ArpOperation::Request => MacAddr::BROADCAST,
            ArpOperation::Reply => packet.target_mac,
        };
        let ethernet = EthernetHeader { destination, source: self.config.mac, ethertype: EtherType::ARP };
        frame.clear();
        frame.extend_from_slice(&ethernet.to_bytes());
        packet.emit(frame);
    }

    /// Writes a message's frame, its payload from where it belongs; the core is read again for each resend.
    pub(super) fn emit_message<I: ReadAt + ?Sized>(
        &self,
        next_hop: MacAddr,
        sequence: Sequence,
        chunk: Chunk,
        image: &I,
        frame: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let Chunk { kind, offset, len } = chunk;
        let elsewhere = self.config.gather && kind == MessageKind::Vmcore;
        // Frames of one size follow one another, so this rarely writes a byte.
        frame.resize(PAYLOAD_AT + if elsewhere { 0 } else { len }, 0);
        frame[HEADERS_LEN..PAYLOAD_AT].copy_from_slice(&message::header(kind, sequence.0, offset, len));
        let payload = &mut frame[PAYLOAD_AT..];
        match kind {
            MessageKind::Herald => payload.copy_from_slice(&self.path),
            MessageKind::EkcdKey => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                payload.copy_from_slice(&self.key[start..start + len]);
            }
            MessageKind::Vmcore if elsewhere => {}
            MessageKind::Vmcore => image.read_at(offset, payload)?,
            MessageKind::Kdh => payload.copy_from_slice(&self.header),
            MessageKind::Finished => {}
        }
        let checksum = if self.config.gather {
            UdpChecksum::Partial
        } else {
            UdpChecksum::Complete(Checksum::of(&frame[HEADERS_LEN..]))
        };
        let server_port = self.learned_port.unwrap_or(self.config.server_port);
        let route = Route {
            source_mac: self.config.mac,
            destination_mac: next_hop,
            source: SocketAddrV4::new(self.config.client, self.config.client_port),
            destination: SocketAddrV4::new(self.config.server, server_port),
        };
        frame[..HEADERS_LEN].copy_from_slice(&route.headers(HEADER_LEN + len, checksum));
        Ok(())
    }
}
