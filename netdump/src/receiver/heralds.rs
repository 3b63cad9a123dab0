//! What a HERALD is: the beginning of a dump, a repetition because its ack was lost, a late duplicate, or a client that
//! goes on with a dump after it has lost its receiver.
//!
//! Stock clients do not say which (`aux` is 0); then time tells, see [`HeraldAgain`]. Our client names its dump in every
//! HERALD. That is answered
//!
//! - of a new dump with number `s`: by acks of `s` and of `s ^ ABLE`, the latter to say that dump ids are known here;
//! - of a dump of which something has come, be it from another port of the client: by an ack of `!s`, from that dump's
//!   port. What was acknowledged of it stays so, in a receiver that was started anew too.
//!
//! Neither number can be that of a message of a client which has sent less than 2^31 of them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use super::path::DumpPath;
use super::row::Arrived;
use super::session::{HeraldAgain, Session};
use super::{
    Cause, DumpStore, Ignored, NewDump, Receiver, ReceiverEvent, Restored, SessionId, StoreError, count,
};
use crate::wire::{Message, MessageKind};

impl<S: DumpStore> Receiver<S> {
    /// Takes the dumps up again that an earlier receiver on this store left unfinished, and says how many.
    pub fn restore_unfinished(&mut self, now: Instant) -> usize {
        let unfinished = self.store.unfinished();
        let count = unfinished.len();
        for restored in unfinished {
            self.restore(now, restored);
        }
        count
    }

    /// Takes one dump up again. It has a port, and takes part in the count of sessions, as soon as its client asks for it.
    pub fn restore(&mut self, now: Instant, restored: Restored<S::Dump>) -> SessionId {
        let id = self.new_id();
        self.sessions.insert(id, Session::restored(now, restored, &self.config));
        id
    }

    /// The port that [`ReceiverEvent::Opened`] or [`ReceiverEvent::Resumed`] asks for cannot be had. Of a dump that would
    /// have begun nothing is kept; any other waits for its client to ask again.
    pub fn no_socket(&mut self, now: Instant, id: SessionId, source: std::io::Error) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let peer = session.request().peer;
        if session.is_unused() {
            self.make_way(now, id);
        } else {
            session.lose_port();
        }
        let error = Arc::new(StoreError::Socket { source });
        self.events.push_back(ReceiverEvent::Refused { peer, error });
    }

    /// Takes what came to the well-known port; says why the last of it was ignored.
    pub(super) fn heralds(
        &mut self,
        now: Instant,
        local: Ipv4Addr,
        arrived: &Arrived<'_>,
    ) -> Result<(), Ignored> {
        let mut last = Ok(());
        for datagram in arrived.datagrams() {
            last = self.herald(now, local, arrived.from, datagram);
            count(&mut self.ignored, arrived.from, last);
        }
        last
    }

    fn herald(
        &mut self,
        now: Instant,
        local: Ipv4Addr,
        from: SocketAddrV4,
        bytes: &[u8],
    ) -> Result<(), Ignored> {
        if !self.config.allows(*from.ip()) {
            return Err(Ignored::NotAllowed);
        }
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
        if let Some(id) = self.same_dump(&request) {
            return self.go_on(now, id, message.sequence, from);
        }
        let Some((id, session)) = self.same_client(&request) else {
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
                self.supersede(now, id);
                self.open(now, message.sequence, request)
            }
        }
    }

    /// The session of the dump that this HERALD names.
    fn same_dump(&self, request: &NewDump) -> Option<SessionId> {
        let name = |dump: &NewDump| Some((dump.dump_id?, *dump.peer.ip(), dump.local));
        let wanted = name(request)?;
        self.sessions.iter().find(|(_, session)| name(session.request()) == Some(wanted)).map(|(&id, _)| id)
    }

    /// The session that the client has, or has had last.
    fn same_client(&mut self, request: &NewDump) -> Option<(SessionId, &mut Session<S::Dump>)> {
        let of_client = self.sessions.iter_mut().filter(|(_, session)| {
            let known = session.request();
            known.peer == request.peer && known.local == request.local
        });
        of_client.max_by_key(|(_, session)| (session.is_open(), session.heard())).map(|(&id, it)| (id, it))
    }

    fn open(&mut self, now: Instant, sequence: u32, request: NewDump) -> Result<(), Ignored> {
        if self.stopping {
            return Err(Ignored::Stopping);
        }
        self.make_room(now)?;
        let dump = match self.store.create(&request) {
            Ok(dump) => dump,
            Err(error) => {
                let error = Arc::new(error);
                self.events.push_back(ReceiverEvent::Refused { peer: request.peer, error });
                return Err(Ignored::NotStored);
            }
        };
        let id = self.new_id();
        let (local, peer) = (request.local, request.peer);
        self.sessions.insert(id, Session::new(now, request, sequence, dump, &self.config));
        self.events.push_back(ReceiverEvent::Opened { session: id, local, peer });
        self.follow(id, None);
        Ok(())
    }

    /// The client asks for a dump that is known: it has lost its receiver, or thinks so.
    fn go_on(
        &mut self,
        now: Instant,
        id: SessionId,
        sequence: u32,
        peer: SocketAddrV4,
    ) -> Result<(), Ignored> {
        if self.sessions.get(&id).is_some_and(|session| !session.has_port()) {
            self.make_room(now)?;
        }
        let session = self.sessions.get_mut(&id).ok_or(Ignored::NoSession)?;
        let needs_port = session.go_on(now, sequence, peer);
        let needs_port = needs_port.inspect_err(|_| session.count_ignored())?;
        if needs_port {
            let (local, bytes) = (session.request().local, session.bytes());
            self.events.push_back(ReceiverEvent::Resumed { session: id, local, peer, bytes });
        }
        self.follow(id, None);
        Ok(())
    }

    /// Sees to it that one more session can have a port.
    fn make_room(&mut self, now: Instant) -> Result<(), Ignored> {
        if self.sessions.values().filter(|session| session.has_port()).count() < self.config.max_sessions {
            return Ok(());
        }
        let known = self.sessions.iter().filter(|(_, session)| session.is_dispensable(now));
        let oldest = known.min_by_key(|(_, session)| (session.is_open(), session.heard()));
        let oldest = oldest.map(|(&id, _)| id).ok_or(Ignored::TooManySessions)?;
        self.make_way(now, oldest);
        Ok(())
    }

    /// Ends a session because its client has begun another dump. One with a name is remembered for a while, so that a
    /// HERALD of it that the network delivers late is known for what it is.
    fn supersede(&mut self, now: Instant, id: SessionId) {
        let session = self.sessions.get(&id);
        // A commit cannot be stopped: it goes on beside the new dump.
        if session.is_some_and(Session::is_committing) {
            return;
        }
        if session.is_some_and(|session| session.request().dump_id.is_some() && !session.is_unused()) {
            self.abandon(now, id, Cause::Restarted);
        } else {
            self.make_way(now, id);
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

    fn new_id(&mut self) -> SessionId {
        let id = SessionId(self.next_session);
        self.next_session += 1;
        id
    }
}
