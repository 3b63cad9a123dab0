//! A host for peers that speak UDP only: it does their ARP and packs their datagrams into frames. Peers of this kind run
//! in simulations and, as they know nothing of frames, could run on any socket.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::torture::sim::hosts::{put_arp, question_for};
use crate::torture::sim::{Party, Station};
use crate::wire::arp::{ArpOperation, ArpPacket};
use crate::wire::{MacAddr, Route};

/// ARP requests before the server counts as unreachable, one a second.
const ARP_TRIES: u32 = 10;
const ARP_WAIT: Duration = Duration::from_secs(1);

/// Ports of a datagram to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The client's.
    pub from: u16,
    /// The server's.
    pub to: u16,
}

/// A client that speaks UDP, sans-IO.
pub trait Talker {
    /// How it can end.
    type Ending;

    /// A datagram has come.
    fn handle(&mut self, now: Instant, source: SocketAddrV4, payload: &[u8]);

    /// Time has passed.
    fn handle_timeout(&mut self, now: Instant);

    /// The server is not to be found.
    fn no_route(&mut self);

    /// The next datagram for the server, its payload put behind what is in `payload`.
    fn poll_transmit(&mut self, now: Instant, payload: &mut Vec<u8>) -> Option<Ports>;

    /// When [`Self::handle_timeout`] has something to do.
    fn poll_timeout(&self) -> Option<Instant>;

    /// How it has ended.
    fn ending(&self) -> Option<&Self::Ending>;
}

/// Where a client lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
    /// The server's address.
    pub server: Ipv4Addr,
}

/// A talker on a wire.
#[derive(Debug)]
pub struct Wired<T> {
    /// The talker.
    pub talker: T,
    home: Home,
    started: Instant,
    next_hop: Option<MacAddr>,
    /// Questions asked, and when the next one is due.
    tries: u32,
    asks_at: Instant,
    answers: VecDeque<ArpPacket>,
    payload: Vec<u8>,
}

impl<T: Talker> Wired<T> {
    /// A talker that lives there and begins now.
    pub fn new(started: Instant, home: Home, talker: T) -> Self {
        Self {
            talker,
            home,
            started,
            next_hop: None,
            tries: 0,
            asks_at: started,
            answers: VecDeque::new(),
            payload: Vec::new(),
        }
    }

    /// Where it lives.
    pub fn address(&self) -> Ipv4Addr {
        self.home.address
    }

    fn question(&self) -> ArpPacket {
        ArpPacket {
            operation: ArpOperation::Request,
            sender_mac: self.home.mac,
            sender_ip: self.home.address,
            target_mac: MacAddr::ZERO,
            target_ip: self.home.server,
        }
    }
}

impl<T: Talker> Station for Wired<T> {
    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        if let Some(question) = question_for(self.home.address, frame) {
            self.answers.push_back(question.reply_from(self.home.mac));
        } else if frame[..6] != self.home.mac.0 {
        } else if let Ok((route, payload)) = Route::parse(frame) {
            if *route.destination.ip() == self.home.address {
                self.talker.handle(now, route.source, payload);
            }
        } else if let Ok(answer) = ArpPacket::parse(&frame[14..])
            && (answer.operation, answer.sender_ip) == (ArpOperation::Reply, self.home.server)
        {
            self.next_hop.get_or_insert(answer.sender_mac);
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.next_hop.is_some() {
            self.talker.handle_timeout(now);
        } else if self.tries == ARP_TRIES && self.asks_at <= now {
            self.talker.no_route();
        }
    }

    fn poll_transmit(&mut self, now: Instant, frame: &mut Vec<u8>) -> bool {
        frame.clear();
        if let Some(answer) = self.answers.pop_front() {
            put_arp(&answer, frame);
            return true;
        }
        let Some(next_hop) = self.next_hop else {
            let due = self.asks_at <= now && self.tries < ARP_TRIES;
            if due {
                self.tries += 1;
                self.asks_at = now + ARP_WAIT;
                put_arp(&self.question(), frame);
            }
            return due;
        };
        self.payload.clear();
        let Some(Ports { from, to }) = self.talker.poll_transmit(now, &mut self.payload) else {
            return false;
        };
        let route = Route {
            source_mac: self.home.mac,
            destination_mac: next_hop,
            source: SocketAddrV4::new(self.home.address, from),
            destination: SocketAddrV4::new(self.home.server, to),
        };
        route.emit(&self.payload, frame);
        true
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self.next_hop {
            _ if self.talker.ending().is_some() => None,
            None => Some(self.asks_at),
            Some(_) => self.talker.poll_timeout(),
        }
    }
}

impl<T: Talker> Party for Wired<T> {
    type Ending = T::Ending;

    fn ending(&self) -> Option<&T::Ending> {
        self.talker.ending()
    }

    fn started(&self) -> Instant {
        self.started
    }
}
