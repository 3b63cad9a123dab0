//! Several clients at one end of the wire, whose end is that of the last.

use std::time::Instant;

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
