//! The sans-IO netdump receiver: datagrams and time go in, acks and events come out, bytes go to a [`DumpStore`].
//!
//! It is compatible with FreeBSD's client and with netdumpd's files, and unlike netdumpd it acknowledges a message only
//! after the store has taken its bytes, FINISHED only after the dump is on stable storage.
//!
//! Law: any number of `handle_*` calls, the more datagrams in a batch the longer the writes to the store; then drain
//! [`Receiver::poll_event`] (a new session needs its socket before its first ack can be sent) and
//! [`Receiver::poll_transmit`] until both are empty; then wait for a datagram or [`Receiver::poll_timeout`].
//!
//! Clients are told apart by address and port, and by which of our addresses they speak to. A client's session is
//! opened by a HERALD to the well-known port and has a port of its own, on the address that the HERALD was sent to.
#![warn(clippy::indexing_slicing)]

pub mod disk;
pub mod embedded;
mod heralds;
pub mod host;
mod ignored;
mod info;
pub mod names;
pub mod path;
pub mod ranges;
mod row;
pub mod server;
mod session;
pub mod store;
pub mod summary;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use disk::{DiskStore, Leftover, Proof, Proven, StoredDump};
pub use embedded::EmbeddedLink;
pub use host::{Host, HostConfig};
pub use ignored::Ignored;
pub use ipnet::Ipv4Net;
pub use names::HostNames;
pub use row::Arrived;
use row::Row;
pub use server::Server;
use session::{Ended, News, Session};
pub use store::{DumpStore, MemoryStore, NewDump, OpenDump, Restored, StoreError, StoreLimits};
pub use summary::{Cause, DumpSummary, Ending, HeaderSeen};

/// Most acks in a train: as many segments as the kernel sends at once (`UDP_MAX_SEGMENTS`, linux/udp.h).
pub const MAX_TRAIN: usize = 128;
/// Bytes of each ack in a train: [`ACK_LEN`](crate::wire::message::ACK_LEN), in the type of `UDP_SEGMENT`.
const ACK_SEGMENT: u16 = 4;

/// Names one session for as long as the receiver lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

impl SessionId {
    /// How many sessions were opened before this one.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// The port that a datagram came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// The well-known port.
    Herald {
        /// The address of ours that the datagram was sent to.
        local: Ipv4Addr,
    },
    /// A session's own port.
    Session(SessionId),
}

/// Times and limits.
#[derive(Debug, Clone)]
pub struct ReceiverConfig {
    /// A client that is silent for this long is given up.
    pub timeout: Duration,
    /// How long after a dump's end repeated messages are acknowledged again. A stock client repeats for 12 seconds. One that
    /// names its dumps may come back much later: it is waited for as long as `timeout`.
    pub linger: Duration,
    /// Most sessions at a time. When all are taken, one that has ended makes room, or one to which nothing came.
    pub max_sessions: usize,
    /// Whose HERALDs are taken; everyone's when there are none.
    pub allow: Vec<Ipv4Net>,
    /// When the receiver is stopped, dumps that can go on are left so that the next one can
    /// [take them up](Receiver::restore_unfinished).
    pub resume: bool,
    /// Most separate ranges of received bytes in one session, at about 32 bytes of memory each: a bound on the holes
    /// of a sparse core. A message that would exceed it is not acknowledged.
    pub max_ranges: usize,
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(600),
            linger: Duration::from_secs(15),
            max_sessions: 64,
            allow: Vec::new(),
            resume: false,
            max_ranges: 1 << 20,
        }
    }
}

impl ReceiverConfig {
    fn allows(&self, client: Ipv4Addr) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|network| network.contains(&client))
    }
}

/// Which way a train of acks goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Whose port to send from.
    pub session: SessionId,
    /// Where to.
    pub to: SocketAddrV4,
}

/// What the program around may want to know, and what it must do about sockets.
#[derive(Debug, Clone)]
pub enum ReceiverEvent<T> {
    /// A dump begins. It needs a port on `local`.
    Opened {
        /// The new session.
        session: SessionId,
        /// The address that the HERALD was sent to.
        local: Ipv4Addr,
        /// The client.
        peer: SocketAddrV4,
    },
    /// A client goes on with a dump: one of an earlier receiver, or from another port. The dump needs a port on `local` if
    /// it has none, and sends to `peer` from now on.
    Resumed {
        /// The session.
        session: SessionId,
        /// The address that its first HERALD was sent to.
        local: Ipv4Addr,
        /// The client.
        peer: SocketAddrV4,
        /// Core bytes received so far.
        bytes: u64,
    },
    /// The receiver is being stopped, and the dump can go on when there is one again ([`ReceiverConfig::resume`]).
    Suspended {
        /// Its session.
        session: SessionId,
    },
    /// A HERALD asked for a dump that could not be stored, or had no socket; it was not acknowledged.
    Refused {
        /// The client.
        peer: SocketAddrV4,
        /// Why.
        error: Arc<StoreError>,
    },
    /// A dump's header came.
    Header {
        /// Its session.
        session: SessionId,
        /// The header.
        header: HeaderSeen,
    },
    /// A dump has ended. The session stays for a while.
    Ended {
        /// Its session.
        session: SessionId,
        /// How.
        ending: Ending,
        /// What came.
        summary: Box<DumpSummary>,
        /// Where the store has put it, or why it could not be kept.
        stored: Result<T, Arc<StoreError>>,
    },
    /// The session is forgotten; its port is of no more use. One to which nothing came may be closed without having
    /// ended.
    Closed {
        /// The session.
        session: SessionId,
    },
}

/// The receiver.
#[derive(Debug)]
pub struct Receiver<S: DumpStore> {
    config: ReceiverConfig,
    store: S,
    sessions: BTreeMap<SessionId, Session<S::Dump>>,
    next_session: u64,
    /// Sessions that may have something to acknowledge.
    busy: BTreeSet<SessionId>,
    stopping: bool,
    events: VecDeque<ReceiverEvent<S::Stored>>,
    ignored: BTreeMap<&'static str, u64>,
}

impl<S: DumpStore> Receiver<S> {
    /// A receiver without sessions.
    pub fn new(config: ReceiverConfig, store: S) -> Self {
        Self {
            config,
            store,
            sessions: BTreeMap::new(),
            next_session: 0,
            busy: BTreeSet::new(),
            stopping: false,
            events: VecDeque::new(),
            ignored: BTreeMap::new(),
        }
    }

    /// Takes datagrams that came to our ports. What they carry is stored before this returns; data of one client that
    /// lies in a row is stored at once. Best is a batch from one socket.
    pub fn handle_batch(&mut self, now: Instant, batch: &[Arrived<'_>]) {
        let mut row = Row::for_batch(batch);
        let mut owner = None;
        for arrived in batch {
            if let Some(before) = owner.take_if(|owner| arrived.to != Endpoint::Session(*owner)) {
                self.store_row(now, before, &mut row);
            }
            match arrived.to {
                // What is ignored is counted.
                Endpoint::Herald { local } => drop(self.heralds(now, local, arrived)),
                Endpoint::Session(session) => {
                    owner = Some(session);
                    let _ = self.messages(now, session, arrived, &mut row);
                }
            }
        }
        if let Some(owner) = owner {
            self.store_row(now, owner, &mut row);
        }
    }

    /// As [`Self::handle_batch`], for one datagram; says why it was ignored.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        to: Endpoint,
        from: SocketAddrV4,
        bytes: &[u8],
    ) -> Result<(), Ignored> {
        self.handle_arrived(now, &Arrived { to, from, bytes, segment: None })
    }

    /// As [`Self::handle_batch`], for one datagram or train; says why the last datagram of it was ignored.
    pub fn handle_arrived(&mut self, now: Instant, arrived: &Arrived<'_>) -> Result<(), Ignored> {
        match arrived.to {
            Endpoint::Herald { local } => self.heralds(now, local, arrived),
            Endpoint::Session(session) => {
                let mut row = Row::for_batch(std::slice::from_ref(arrived));
                let taken = self.messages(now, session, arrived, &mut row);
                self.store_row(now, session, &mut row);
                taken
            }
        }
    }

    /// Does what is due: gives up silent clients, follows commits, forgets sessions.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<SessionId> = self.due(now).collect();
        for id in due {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            if session.is_open() {
                let news = session.handle_timeout(now, self.config.timeout);
                self.follow(id, news);
            } else {
                self.close(id);
            }
        }
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.sessions.values().map(|session| session.deadline(&self.config)).min()
    }

    /// Puts the next acks to one client, [`MAX_TRAIN`] at most, into `train` in the place of what is there: 4 bytes each,
    /// and a datagram each, as `UDP_SEGMENT` makes them of one buffer.
    pub fn poll_transmit(&mut self, train: &mut Vec<u8>) -> Option<Reply> {
        train.clear();
        while let Some(&id) = self.busy.first() {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.take_acks(MAX_TRAIN, train);
                if !train.is_empty() {
                    return Some(Reply { session: id, to: session.request().peer });
                }
            }
            self.busy.remove(&id);
        }
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ReceiverEvent<S::Stored>> {
        self.events.pop_front()
    }

    /// Ends all dumps and opens no more. Commits under way go on: see [`Self::is_settled`].
    pub fn shut_down(&mut self, now: Instant) {
        self.stopping = true;
        let all: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in all {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let news = match self.config.resume && session.request().dump_id.is_some() {
                true => session.suspend(now),
                false => session.abandon(now, Cause::Stopped),
            };
            self.follow(id, news);
        }
    }

    /// Whether no dump is open or being committed.
    pub fn is_settled(&self) -> bool {
        !self.sessions.values().any(Session::is_open)
    }

    /// The open sessions: the client and how many bytes of its core were received.
    pub fn progress(&self) -> impl Iterator<Item = (SessionId, SocketAddrV4, u64)> {
        let open = self.sessions.iter().filter(|(_, session)| session.is_open());
        open.map(|(&id, session)| (id, session.request().peer, session.bytes()))
    }

    /// How many datagrams were ignored, by [`Ignored::name`].
    pub fn ignored(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.ignored.iter().map(|(&name, &count)| (name, count))
    }

    /// Takes what came to a session's port; says why the last of it was ignored.
    fn messages<'a>(
        &mut self,
        now: Instant,
        id: SessionId,
        arrived: &Arrived<'a>,
        row: &mut Row<'a>,
    ) -> Result<(), Ignored> {
        let mut session = self.sessions.get_mut(&id);
        let mut last = Ok(());
        for datagram in arrived.datagrams() {
            let handled = match &mut session {
                Some(session) => session.handle_datagram(now, arrived.from, datagram, row),
                None => Err(Ignored::NoSession),
            };
            last = handled.map(|news| self.events.extend(news.map(|news| event(id, news))));
            count(&mut self.ignored, arrived.from, last);
        }
        self.busy.insert(id);
        last
    }

    /// Stores what a session's client has sent in a row.
    fn store_row(&mut self, now: Instant, id: SessionId, row: &mut Row<'_>) {
        let failed = self.sessions.get_mut(&id).and_then(|session| session.store(now, row));
        self.follow(id, failed);
    }

    /// Does what follows when a session was touched.
    fn follow(&mut self, session: SessionId, news: Option<News<S::Stored>>) {
        self.busy.insert(session);
        self.events.extend(news.map(|news| event(session, news)));
    }

    /// Ends one dump before its time.
    fn abandon(&mut self, now: Instant, session: SessionId, cause: Cause) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        let news = known.abandon(now, cause);
        self.follow(session, news);
    }

    fn close(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        self.events.push_back(ReceiverEvent::Closed { session });
    }

    fn due(&self, now: Instant) -> impl Iterator<Item = SessionId> {
        let due = self.sessions.iter().filter(move |(_, session)| session.deadline(&self.config) <= now);
        due.map(|(&id, _)| id)
    }
}

fn event<T>(session: SessionId, news: News<T>) -> ReceiverEvent<T> {
    match news {
        News::Header(header) => ReceiverEvent::Header { session, header },
        News::Suspended => ReceiverEvent::Suspended { session },
        News::Ended(Ended { ending, summary, stored }) => {
            ReceiverEvent::Ended { session, ending, summary, stored }
        }
    }
}

/// Counts what is ignored.
fn count(ignored: &mut BTreeMap<&'static str, u64>, from: SocketAddrV4, taken: Result<(), Ignored>) {
    if let Err(reason) = taken {
        tracing::trace!(%from, %reason, "ignored");
        *ignored.entry(reason.name()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests;
