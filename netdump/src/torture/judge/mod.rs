//! Judges: they watch the datagrams of a run, simulated or real, and say what a client or a server did that none may.
//!
//! They know the protocol and FreeBSD's manners, not how a peer is made, so they judge any: ours, a stock netdumpd, a
//! kernel's client.

mod client;
mod server;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use thiserror::Error;

pub use client::{AcksFrom, ClientJudge};
pub use server::{ServerJudge, Stored, Strange};

use super::sim::NoEnd;
use super::sim::datagram::Datagram;
use crate::wire::message::MessageError;
use crate::wire::{MessageKind, Route};

/// Most different faults noted of one peer; a broken one repeats itself.
const MAX_FAULTS: usize = 16;

/// What a peer did that it must not.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// Of a client: not a message.
    #[error("the client sent what is no message: {0}")]
    Malformed(MessageError),
    /// Of a client.
    #[error("the client sent a HERALD to port {0}, not to the server's well-known one")]
    HeraldTo(u16),
    /// Of a client.
    #[error("the client sent {kind:?} to port {port}, from which nothing had come")]
    UnlearnedPort {
        /// Where to.
        port: u16,
        /// What.
        kind: MessageKind,
    },
    /// Of a client.
    #[error("the client used number {0} for two messages")]
    NumberReused(u32),
    /// Of a client.
    #[error("the client sent message {sequence} again with other bytes (offset {offset:#x})")]
    ResendDiffers {
        /// Its number.
        sequence: u32,
        /// Its offset.
        offset: u64,
    },
    /// Of a client.
    #[error("the client has {0} messages unacknowledged: it does not look at acks")]
    AheadOfAcks(usize),
    /// Of a client.
    #[error("the client sent data behind the dump header")]
    DataBehindHeader,
    /// Of a client.
    #[error(
        "the client sent the dump header twice, although the first was acknowledged or as another message"
    )]
    SecondHeader,
    /// Of a client: start and end of the first such bytes.
    #[error("the client sent the dump header, though bytes {:#x} to {:#x} were never acknowledged", .0.0, .0.1)]
    HeaderBeforeAcks((u64, u64)),
    /// Of a client: start and end of the first such bytes.
    #[error("the client sent FINISHED, though bytes {:#x} to {:#x} were never acknowledged", .0.0, .0.1)]
    FinishedWithHole((u64, u64)),
    /// Of a client.
    #[error("the client sent FINISHED, though its {0:?} was never acknowledged")]
    FinishedBefore(MessageKind),

    /// Of a server.
    #[error("the server acknowledged message {sequence} to {client}, which never sent it to port {port}")]
    AckOfNothing {
        /// To whom.
        client: SocketAddrV4,
        /// The session's port.
        port: u16,
        /// The number.
        sequence: u32,
    },
    /// Of a server.
    #[error("the server acknowledged what it cannot have understood: {0}")]
    AckOfStrange(Strange),
    /// Of a server.
    #[error("the server sent an ack of {0} bytes; acks have 4")]
    OddAck(usize),
    /// Of a server.
    #[error("the server answered to {client} from port {port}, which is not that of its dump")]
    OtherPort {
        /// To whom.
        client: SocketAddrV4,
        /// Where from.
        port: u16,
    },
    /// Of a server.
    #[error("the server gave one dump of {client} the ports {first} and {second}")]
    TwoPorts {
        /// Whose dump.
        client: SocketAddrV4,
        /// The port of the HERALD's first ack.
        first: u16,
        /// The port of another, though nothing was sent to the first.
        second: u16,
    },
    /// Of a server.
    #[error(
        "the server acknowledged FINISHED, though of the {announced} bytes that the header announces it got {sent} at most"
    )]
    FinishedShort {
        /// Length in the dump header of a packed core.
        announced: u64,
        /// Bytes sent.
        sent: u64,
    },
    /// Of a server.
    #[error(
        "the server acknowledged FINISHED, though the header announces a key of {announced} bytes and {sent} were sent"
    )]
    FinishedWithoutKey {
        /// Length in the dump header.
        announced: u64,
        /// Bytes sent.
        sent: u64,
    },
    /// Of our client.
    #[error("the client says that its dump is complete, and the server has no such core")]
    CompleteUntrue,
    /// Of our client.
    #[error("the client says that all was acknowledged but FINISHED, and the server has no such core")]
    UnconfirmedUntrue,
    /// Of our client.
    #[error("the client failed, and what it calls missing is not all that the server lacks")]
    MissingUntrue,
    /// Of our client, which says why.
    #[error("the client did not finish although it could: {0}")]
    GaveUp(String),
    /// Of whom cannot be told.
    #[error("the run came to no end: {0}")]
    NoEnd(NoEnd),
    /// Of a server, or of the network.
    #[error("the server did not acknowledge message {0} of a client that had the right to it")]
    Unanswered(u32),
    /// Of a server.
    #[error("the server stored outside of its directory, in {0}")]
    Escaped(String),
    /// Of the program.
    #[error("the program panicked: {0}")]
    Panicked(String),

    /// Of a server: start and end of the first such bytes.
    #[error("the server acknowledged bytes {:#x} to {:#x} of {client} and has lost them", .range.0, .range.1)]
    AckedAndLost {
        /// Whose.
        client: SocketAddrV4,
        /// Start and end.
        range: (u64, u64),
    },
    /// Of a server.
    #[error("the server acknowledged FINISHED to {client} and has no such core")]
    FinishedAndLost {
        /// Whose.
        client: SocketAddrV4,
    },
}

impl Fault {
    fn note(faults: &mut Vec<Self>, fault: Self) {
        let alike = |known: &Self| std::mem::discriminant(known) == std::mem::discriminant(&fault);
        if faults.len() < MAX_FAULTS && !faults.iter().any(alike) {
            faults.push(fault);
        }
    }
}

/// Who sent a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The place of the clients.
    Client,
    /// The place of the server.
    Server,
    /// Somebody else, who may well lie about it.
    Other,
}

/// Judges every client and the server of a run from its frames.
#[derive(Debug)]
pub struct Judge {
    address: Ipv4Addr,
    acks_from: AcksFrom,
    /// By address.
    clients: BTreeMap<Ipv4Addr, ClientJudge>,
    /// The server's judge.
    pub server: ServerJudge,
    restart: Option<Duration>,
}

impl Judge {
    /// Of the server with this address and of its clients.
    pub fn new(server: Ipv4Addr, acks_from: AcksFrom) -> Self {
        let (clients, server_judge) = (BTreeMap::new(), ServerJudge::default());
        Self { address: server, acks_from, clients, server: server_judge, restart: None }
    }

    /// The server is to be started again at that time of the run, and then knows nothing of its clients.
    pub fn expecting_restart(self, at: Duration) -> Self {
        Self { restart: Some(at), ..self }
    }

    /// A frame as it was sent, at that time of the run.
    pub fn sent(&mut self, elapsed: Duration, from: From, frame: &[u8]) {
        if self.restart.take_if(|at| *at <= elapsed).is_some() {
            self.server.restarted();
        }
        let Some(Datagram { source, destination, payload }) = Datagram::of(frame) else { return };
        if *destination.ip() == self.address && from != From::Server {
            self.server.takes(source, destination.port(), payload);
            if from == From::Client {
                self.client(*source.ip()).sent(destination.port(), payload);
            }
        } else if *source.ip() == self.address && from == From::Server {
            self.server.sends(source.port(), destination, payload);
        }
    }

    /// A frame as it arrived at the place of the clients; what the weather has damaged nobody else takes either.
    pub fn arrived(&mut self, frame: &[u8], intact: bool) {
        if !intact && Route::parse(frame).is_err() {
            return;
        }
        let Some(Datagram { source, destination, payload }) = Datagram::of(frame) else { return };
        if let Some(client) = self.clients.get_mut(destination.ip()) {
            client.arrived(source, payload);
        }
    }

    /// What clients did that they must not.
    pub fn client_faults(&self) -> impl Iterator<Item = &Fault> {
        self.clients.values().flat_map(ClientJudge::faults)
    }

    /// A client's judge.
    pub fn client(&mut self, address: Ipv4Addr) -> &mut ClientJudge {
        let (server, acks_from) = (self.address, self.acks_from);
        self.clients.entry(address).or_insert_with(|| ClientJudge::new(server, acks_from))
    }
}
