//! The sans-IO netdump receiver: datagrams and time go in, acks and events come out, bytes go to a [`DumpStore`].
//!
//! It is compatible with FreeBSD's client and with netdumpd's files, and unlike netdumpd it acknowledges a message only
//! after the store has taken its bytes, FINISHED only after the dump is on stable storage.
//!
//! Law: any number of `handle_*` calls, the more at a time the longer the writes to the store; then drain
//! [`Receiver::poll_event`] (a new session needs its socket before its first ack can be sent) and
//! [`Receiver::poll_transmit`] until both are empty; then wait for a datagram or [`Receiver::poll_timeout`].
//!
//! Clients are told apart by address and port, and by which of our addresses they speak to. A client's session is
//! opened by a HERALD to the well-known port and has a port of its own, on the address that the HERALD was sent to.
#![warn(clippy::indexing_slicing)]

pub mod disk;
pub mod embedded;
pub mod host;
mod ignored;
mod info;
pub mod names;
pub mod path;
pub mod ranges;
mod session;
pub mod store;
pub mod summary;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use disk::{DiskStore, StoredDump};
pub use embedded::EmbeddedLink;
pub use host::{Host, HostConfig};
pub use ignored::Ignored;
pub use names::HostNames;
use session::{Ended, HeraldAgain, News, Session};
pub use store::{DumpStore, MemoryStore, NewDump, OpenDump, Restored, StoreError, StoreLimits};
pub use summary::{Cause, DumpSummary, Ending, HeaderSeen};

use crate::wire::message::ACK_LEN;
use crate::wire::{Ack, Message, MessageKind};
use path::DumpPath;

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
    /// How long after a dump's end repeated messages are acknowledged again. A stock client repeats for 12 seconds.
    pub linger: Duration,
    /// Most sessions at a time. When all are taken, one that has ended makes room, or one to which nothing came.
    pub max_sessions: usize,
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
            max_ranges: 1 << 20,
        }
    }
}

/// An ack to send from the session's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Whose port to send from.
    pub session: SessionId,
    /// Where to.
    pub to: SocketAddrV4,
    /// The UDP payload.
    pub bytes: [u8; ACK_LEN],
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
    /// A HERALD asked for a dump that could not be stored; it was not acknowledged.
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
    /// Sessions that may have something to store or to acknowledge.
    busy: BTreeSet<SessionId>,
    stopping: bool,
    replies: VecDeque<Reply>,
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
            replies: VecDeque::new(),
            events: VecDeque::new(),
            ignored: BTreeMap::new(),
        }
    }

    /// Takes one datagram (UDP payload) that came from `from` to one of our ports.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        to: Endpoint,
        from: SocketAddrV4,
        bytes: &[u8],
    ) -> Result<(), Ignored> {
        let result = match to {
            Endpoint::Herald { local } => self.herald(now, local, from, bytes),
            Endpoint::Session(session) => self.message(now, session, from, bytes),
        };
        if let Err(reason) = result {
            tracing::trace!(%from, %reason, "ignored");
            *self.ignored.entry(reason.name()).or_default() += 1;
        }
        result
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

    /// The next ack to send. Before the first one, what was received since is stored: that can end sessions.
    pub fn poll_transmit(&mut self) -> Option<Reply> {
        if self.replies.is_empty() {
            self.store();
        }
        self.replies.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ReceiverEvent<S::Stored>> {
        self.events.pop_front()
    }

    /// Ends one dump before its time, such as when no socket can be had for it.
    pub fn abandon(&mut self, now: Instant, session: SessionId, cause: Cause) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        let news = known.abandon(now, cause);
        self.follow(session, news);
    }

    /// Ends all dumps and opens no more. Commits under way go on: see [`Self::is_settled`].
    pub fn shut_down(&mut self, now: Instant) {
        self.stopping = true;
        let all: Vec<SessionId> = self.sessions.keys().copied().collect();
        for session in all {
            self.abandon(now, session, Cause::Stopped);
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

    fn herald(
        &mut self,
        now: Instant,
        local: Ipv4Addr,
        from: SocketAddrV4,
        bytes: &[u8],
    ) -> Result<(), Ignored> {
        let message = Message::parse(bytes)?;
        if message.kind != MessageKind::Herald {
            return Err(Ignored::NotAHerald);
        }
        let request = NewDump {
            peer: from,
            local,
            path: DumpPath::from_herald(message.payload),
            dump_id: NonZeroU32::new(message.aux),
        };
        let of_client = |session: &Session<S::Dump>| {
            let known = session.request();
            known.peer == from && known.local == local
        };
        let Some((&id, session)) = self.sessions.iter_mut().find(|(_, session)| of_client(session)) else {
            return self.open(now, message.sequence, request);
        };
        match session.herald_again(now, message.sequence, &request) {
            HeraldAgain::Repeated => {
                self.follow(id, None);
                Ok(())
            }
            HeraldAgain::Doubtful => {
                session.count_ignored();
                Err(Ignored::LateHerald)
            }
            HeraldAgain::NewDump => {
                self.make_way(now, id);
                self.open(now, message.sequence, request)
            }
        }
    }

    fn open(&mut self, now: Instant, sequence: u32, request: NewDump) -> Result<(), Ignored> {
        if self.stopping {
            return Err(Ignored::Stopping);
        }
        if self.sessions.len() >= self.config.max_sessions {
            let known = self.sessions.iter().filter(|(_, session)| session.is_dispensable(now));
            let oldest = known.min_by_key(|(_, session)| (session.is_open(), session.heard()));
            let oldest = oldest.map(|(&id, _)| id).ok_or(Ignored::TooManySessions)?;
            self.make_way(now, oldest);
        }
        let dump = match self.store.create(&request) {
            Ok(dump) => dump,
            Err(error) => {
                let error = Arc::new(error);
                self.events.push_back(ReceiverEvent::Refused { peer: request.peer, error });
                return Err(Ignored::NotStored);
            }
        };
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let (local, peer) = (request.local, request.peer);
        self.sessions.insert(id, Session::new(now, request, sequence, dump, &self.config));
        self.events.push_back(ReceiverEvent::Opened { session: id, local, peer });
        self.follow(id, None);
        Ok(())
    }

    fn message(
        &mut self,
        now: Instant,
        id: SessionId,
        from: SocketAddrV4,
        bytes: &[u8],
    ) -> Result<(), Ignored> {
        let session = self.sessions.get_mut(&id).ok_or(Ignored::NoSession)?;
        if session.request().peer != from {
            return Err(Ignored::Stranger);
        }
        let parsed = Message::parse(bytes).map_err(Ignored::from);
        let handled = parsed.and_then(|message| session.handle(now, &message));
        let news = handled.inspect_err(|_| session.count_ignored())?;
        self.follow(id, news);
        Ok(())
    }

    /// Does what follows when a session was touched.
    fn follow(&mut self, session: SessionId, news: Option<News<S::Stored>>) {
        self.busy.insert(session);
        match news {
            Some(News::Header(header)) => self.events.push_back(ReceiverEvent::Header { session, header }),
            Some(News::Ended(Ended { ending, summary, stored })) => {
                self.events.push_back(ReceiverEvent::Ended { session, ending, summary, stored });
            }
            None => {}
        }
    }

    /// Stores what was gathered and collects the acks.
    fn store(&mut self) {
        while let Some(id) = self.busy.pop_first() {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let failed = session.flush();
            let to = session.request().peer;
            let acks = session.take_acks();
            let reply = |sequence| Reply { session: id, to, bytes: Ack(sequence).to_bytes() };
            self.replies.extend(acks.map(reply));
            if failed.is_some() {
                self.follow(id, failed);
            }
        }
    }

    /// Closes a session for another dump. Of one to which nothing came nothing is kept or told: a flood of HERALDs must
    /// not fill the disk with empty dumps.
    fn make_way(&mut self, now: Instant, id: SessionId) {
        match self.sessions.get_mut(&id) {
            Some(session) if session.is_unused() => session.discard(),
            _ => self.abandon(now, id, Cause::Restarted),
        }
        self.close(id);
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

#[cfg(test)]
mod tests;
