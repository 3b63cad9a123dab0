//! People on the wire who mean no good, or know no better.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use crate::wire::arp::{ArpOperation, ArpPacket};
use crate::wire::{Ack, MacAddr, Message, MessageKind, Route};

use super::core::header;
use crate::torture::sim::Rng;
use crate::torture::sim::Station;
use crate::torture::sim::hosts::{CLIENT_IP, CLIENT_MAC, GATEWAY_IP, SERVER_IP, SERVER_MAC, put_arp};

/// A vandal's hardware address.
const VANDAL_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0x66]);

/// Sends every frame of the client back to it, as a looping switch does.
#[derive(Debug, Default)]
pub struct Echo(VecDeque<Vec<u8>>);

impl Station for Echo {
    fn handle_frame(&mut self, _now: Instant, frame: &[u8]) {
        if frame[6..12] == CLIENT_MAC.0 {
            self.0.push_back(frame.to_vec());
        }
    }

    fn handle_timeout(&mut self, _now: Instant) {}

    fn poll_transmit(&mut self, _now: Instant, frame: &mut Vec<u8>) -> bool {
        self.0.pop_front().map(|echo| *frame = echo).is_some()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

/// Repeats the client's HERALD once, when so many more messages of the client have passed.
#[derive(Debug)]
pub struct Replay {
    herald: Option<Vec<u8>>,
    left: u64,
}

impl Replay {
    /// Waits for this many messages behind the HERALD.
    pub fn herald_after(messages: u64) -> Self {
        Self { herald: None, left: messages }
    }
}

impl Station for Replay {
    fn handle_frame(&mut self, _now: Instant, frame: &[u8]) {
        if frame[12..14] != [8, 0] || frame[6..12] != CLIENT_MAC.0 {
            return;
        }
        match &self.herald {
            None => self.herald = Some(frame.to_vec()),
            Some(_) => self.left = self.left.saturating_sub(1),
        }
    }

    fn handle_timeout(&mut self, _now: Instant) {}

    fn poll_transmit(&mut self, _now: Instant, frame: &mut Vec<u8>) -> bool {
        match &self.herald {
            Some(herald) if self.left == 0 => {
                frame.clone_from(herald);
                self.left = u64::MAX;
                true
            }
            _ => false,
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

/// Floods the client with lies that it can see through: whatever this one does, the dump must be the same. Once the
/// HERALD was sent, as nobody can tell a forged ARP answer from a real one before.
#[derive(Debug)]
pub struct Vandal {
    rng: Rng,
    lies: VecDeque<Vec<u8>>,
    saw_herald: bool,
}

impl Vandal {
    /// With lies of its own.
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), lies: VecDeque::new(), saw_herald: false }
    }

    fn lie(&mut self) -> Vec<u8> {
        let rng = &mut self.rng;
        let mut frame = Vec::new();
        match rng.below(5) {
            // Another place for the server.
            0 => put_arp(
                &arp(ArpOperation::Reply, (VANDAL_MAC, SERVER_IP), (CLIENT_MAC, CLIENT_IP)),
                &mut frame,
            ),
            // The client's own address.
            1 => put_arp(
                &arp(ArpOperation::Request, (VANDAL_MAC, CLIENT_IP), (MacAddr::ZERO, SERVER_IP)),
                &mut frame,
            ),
            // Acks from another host, or from another port of the server.
            2 => ack(SocketAddrV4::new(GATEWAY_IP, 49_152), rng, &mut frame),
            3 => ack(SocketAddrV4::new(SERVER_IP, 999), rng, &mut frame),
            // Noise.
            _ => {
                frame.extend_from_slice(&CLIENT_MAC.0);
                frame.extend_from_slice(&VANDAL_MAC.0);
                frame.extend_from_slice(&[8, rng.number().to_le_bytes()[0] & 6]);
                for _ in 0..rng.below(20) {
                    frame.extend_from_slice(&rng.number().to_le_bytes());
                }
            }
        }
        frame
    }
}

fn arp(operation: ArpOperation, sender: (MacAddr, Ipv4Addr), target: (MacAddr, Ipv4Addr)) -> ArpPacket {
    ArpPacket {
        operation,
        sender_mac: sender.0,
        sender_ip: sender.1,
        target_mac: target.0,
        target_ip: target.1,
    }
}

/// An ack of some early message, which may well be on its way.
fn ack(source: SocketAddrV4, rng: &mut Rng, frame: &mut Vec<u8>) {
    let route = Route {
        source_mac: VANDAL_MAC,
        destination_mac: CLIENT_MAC,
        source,
        destination: SocketAddrV4::new(CLIENT_IP, 20024),
    };
    let number = u32::try_from(2 + rng.below(300)).expect("small");
    route.emit(&Ack(number).to_bytes(), frame);
}

impl Station for Vandal {
    fn handle_frame(&mut self, _now: Instant, frame: &[u8]) {
        self.saw_herald |= frame[12..14] == [8, 0] && frame[6..12] == SERVER_MAC.0;
        if self.saw_herald && frame[6..12] == CLIENT_MAC.0 {
            let lie = self.lie();
            self.lies.push_back(lie);
        }
    }

    fn handle_timeout(&mut self, _now: Instant) {}

    fn poll_transmit(&mut self, _now: Instant, frame: &mut Vec<u8>) -> bool {
        self.lies.pop_front().map(|lie| *frame = lie).is_some()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

/// Speaks to the server for the client, from another address or another port: nothing of it may change what is stored.
#[derive(Debug)]
pub struct Stranger {
    rng: Rng,
    forgeries: VecDeque<Vec<u8>>,
}

/// Where strangers live.
const STRANGER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 66);

impl Stranger {
    /// With forgeries of its own.
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::new(!seed), forgeries: VecDeque::new() }
    }

    /// A message as the client's own next ones could be, but for its bytes and for where it comes from.
    fn forge(&mut self, seen: &Route, like: &Message<'_>) -> Vec<u8> {
        let (kind, payload): (_, &[u8]) = match self.rng.below(4) {
            0 => (MessageKind::Finished, &[]),
            1 => (MessageKind::Kdh, &header(1)),
            2 => (MessageKind::EkcdKey, b"evil"),
            _ => (MessageKind::Vmcore, &[0x66; 512]),
        };
        let sequence = like.sequence.wrapping_add(u32::try_from(self.rng.below(3)).expect("small"));
        let offset = if kind == MessageKind::Vmcore { like.offset } else { 0 };
        let mut message = Vec::new();
        Message { kind, sequence, offset, payload, aux: 0 }.emit(&mut message);
        let source = match self.rng.below(2) {
            0 => SocketAddrV4::new(STRANGER_IP, seen.source.port()),
            _ => SocketAddrV4::new(*seen.source.ip(), seen.source.port() + 7),
        };
        let route = Route {
            source_mac: VANDAL_MAC,
            destination_mac: SERVER_MAC,
            source,
            destination: seen.destination,
        };
        let mut frame = Vec::new();
        route.emit(&message, &mut frame);
        frame
    }
}

impl Station for Stranger {
    fn handle_frame(&mut self, _now: Instant, frame: &[u8]) {
        let Ok((seen, payload)) = Route::parse(frame) else { return };
        let Ok(message) = Message::parse(payload) else { return };
        let is_to_server = *seen.destination.ip() == SERVER_IP;
        if is_to_server && message.kind != MessageKind::Herald && self.rng.chance(200) {
            let forgery = self.forge(&seen, &message);
            self.forgeries.push_back(forgery);
        }
    }

    fn handle_timeout(&mut self, _now: Instant) {}

    fn poll_transmit(&mut self, _now: Instant, frame: &mut Vec<u8>) -> bool {
        self.forgeries.pop_front().map(|forgery| *frame = forgery).is_some()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}
