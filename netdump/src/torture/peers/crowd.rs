//! Several clients at one end of the wire; the run ends with the last of them.

use std::net::SocketAddrV4;
use std::time::Instant;

use super::Dumps;
use crate::torture::sim::{Party, Station};

/// Clients side by side.
#[derive(Debug)]
pub struct Crowd<C> {
    /// The clients.
    pub clients: Vec<C>,
    /// Who is asked next for a frame.
    turn: usize,
}

impl<C: Party> Crowd<C> {
    /// These, at least one, all of which begin at the same time.
    pub fn of(clients: Vec<C>) -> Self {
        Self { clients, turn: 0 }
    }
}

impl<C: Party> Station for Crowd<C> {
    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        // Each looks whether it is for him.
        for client in &mut self.clients {
            client.handle_frame(now, frame);
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        for client in &mut self.clients {
            if client.poll_timeout().is_some_and(|at| at <= now) {
                client.handle_timeout(now);
            }
        }
    }

    fn poll_transmit(&mut self, now: Instant, frame: &mut Vec<u8>) -> bool {
        (0..self.clients.len()).any(|_| {
            self.turn = (self.turn + 1) % self.clients.len();
            self.clients[self.turn].poll_transmit(now, frame)
        })
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.clients.iter().filter_map(Station::poll_timeout).min()
    }
}

impl<C: Party> Party for Crowd<C> {
    type Ending = C::Ending;

    fn ending(&self) -> Option<&C::Ending> {
        let all = self.clients.iter().all(|client| client.ending().is_some());
        self.clients.last().filter(|_| all).and_then(Party::ending)
    }

    fn started(&self) -> Instant {
        self.clients[0].started()
    }
}

/// Two clients of different kinds.
#[derive(Debug)]
pub struct Both<A, B> {
    /// One, which makes the end.
    pub first: A,
    /// The other.
    pub second: B,
}

impl<A: Party, B: Party> Station for Both<A, B> {
    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        self.first.handle_frame(now, frame);
        self.second.handle_frame(now, frame);
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.first.poll_timeout().is_some_and(|at| at <= now) {
            self.first.handle_timeout(now);
        }
        if self.second.poll_timeout().is_some_and(|at| at <= now) {
            self.second.handle_timeout(now);
        }
    }

    fn poll_transmit(&mut self, now: Instant, frame: &mut Vec<u8>) -> bool {
        self.first.poll_transmit(now, frame) || self.second.poll_transmit(now, frame)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.first.poll_timeout().into_iter().chain(self.second.poll_timeout()).min()
    }
}

impl<A: Party, B: Party> Party for Both<A, B> {
    type Ending = A::Ending;

    fn ending(&self) -> Option<&A::Ending> {
        self.first.ending().filter(|_| self.second.ending().is_some())
    }

    fn started(&self) -> Instant {
        self.first.started()
    }
}

impl<C: Dumps> Dumps for Crowd<C> {
    fn cores(&self) -> Vec<(SocketAddrV4, &[u8])> {
        self.clients.iter().flat_map(Dumps::cores).collect()
    }
}

impl<A: Dumps, B: Dumps> Dumps for Both<A, B> {
    fn cores(&self) -> Vec<(SocketAddrV4, &[u8])> {
        [self.first.cores(), self.second.cores()].concat()
    }
}
