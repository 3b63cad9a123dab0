//! One dump from one client: what its messages do, and when they are acknowledged.
//!
//! Every message may come late, repeatedly and in any order. An ack goes out only when the store has taken what the
//! message carries; data that lies in a row is one write, and its acks wait for that. A session outlives its dump for a
//! while, so that messages repeated because an ack was lost are acknowledged again; they change nothing then.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ranges::RangeSet;
use super::row::Row;
use super::store::{Commit, NewDump, OpenDump, Restored, StoreError};
use super::summary::{Cause, DumpSummary, Ending, HeaderSeen};
use super::{Ignored, ReceiverConfig};
use crate::ekcd::MAX_KEY_FILE;
use crate::vmcore::kdh::KDH_LEN;
use crate::wire::{Ack, Message, MessageKind};

/// A HERALD is taken for a new dump only when the session has heard nothing else for this long ...
///
/// A client that sends data has its HERALD's ack and does not repeat the HERALD. So once data was seen, a HERALD is
/// either a duplicate that the network delivers late, which must change nothing, or the client has begun anew,
/// which must not write into the old dump. Acknowledging neither is safe for both: who began anew repeats its HERALD
/// about every second until it is acknowledged, and what else it might send goes nowhere, as it does not know the port.
const RESTART_SILENCE: Duration = Duration::from_secs(2);
/// ... and when another HERALD came in that silence, at least this much earlier: a lone duplicate can be as late as
/// it likes.
const RESTART_REPEAT: Duration = Duration::from_millis(250);
/// A session to which nothing came in this time since its last HERALD gives its place to another client. A client that
/// has the HERALD's ack sends at once, and one that lacks it repeats the HERALD about every second.
const UNUSED: Duration = Duration::from_secs(3);
/// How often the store is asked whether a commit is done.
const COMMIT_POLL: Duration = Duration::from_millis(5);
/// Makes of a HERALD's number the ack that says that dump ids are known here.
pub(super) const ABLE: u32 = 0x8000_0000;
/// Most separate parts of a key block; it comes in a few messages, in order or nearly so.
const MAX_KEY_RANGES: usize = 32;

/// Openings of one dump that are remembered.
const MAX_OPENINGS: usize = 16;

/// One dump, open or recently ended.
#[derive(Debug)]
pub(super) struct Session<D> {
    request: NewDump,
    state: State<D>,
    /// Numbers of the HERALDs that were acknowledged as its opening, oldest first: the network may deliver any of them again.
    /// None was when the dump was begun in an earlier receiver.
    openings: Vec<u32>,
    /// Whether the client was given a port to send to.
    has_port: bool,
    /// How often the client went on with the dump, and the number of the HERALD by which it did last.
    resumed: u64,
    resumed_by: Option<u32>,
    opened: Instant,
    /// When the last message was taken, HERALDs that were acknowledged included.
    heard: Instant,
    /// When, since then, a HERALD came that was not acknowledged.
    herald_again: Option<Instant>,
    header: HeaderSeen,
    /// What the store has taken.
    received: RangeSet,
    /// What came of the key block.
    key: RangeSet,
    /// Messages to acknowledge.
    acks: VecDeque<u32>,
    messages: u64,
    repeated: u64,
    ignored: u64,
}

#[derive(Debug)]
enum State<D> {
    Receiving(D),
    /// FINISHED came, with this sequence number; `ask` is when to ask the store how far it is.
    Committing {
        dump: D,
        summary: Box<DumpSummary>,
        finished: u32,
        ask: Instant,
    },
    Committed,
    Abandoned,
}

/// What is worth telling the program around.
#[derive(Debug)]
pub(super) enum News<T> {
    Header(HeaderSeen),
    Suspended,
    Ended(Ended<T>),
}

/// The end of a dump.
#[derive(Debug)]
pub(super) struct Ended<T> {
    pub(super) ending: Ending,
    pub(super) summary: Box<DumpSummary>,
    pub(super) stored: Result<T, Arc<StoreError>>,
}

/// What a further HERALD from a session's client is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeraldAgain {
    /// Its ack was lost: acknowledge it again.
    Repeated,
    /// Perhaps a late duplicate: do nothing.
    Doubtful,
    /// The client has begun another dump.
    NewDump,
}

impl<D: OpenDump> Session<D> {
    /// A session whose HERALD is to be acknowledged.
    pub(super) fn new(now: Instant, request: NewDump, herald: u32, dump: D, config: &ReceiverConfig) -> Self {
        let mut session = Self::with_dump(now, request, dump, config);
        session.has_port = true;
        session.acknowledge_opening(herald);
        session
    }

    /// A dump of an earlier receiver, whose client has not asked for it yet.
    pub(super) fn restored(now: Instant, restored: Restored<D>, config: &ReceiverConfig) -> Self {
        let Restored { request, dump, received, key, header, elapsed } = restored;
        let mut session = Self::with_dump(now, request, dump, config);
        session.opened = now.checked_sub(elapsed).unwrap_or(now);
        session.header = header;
        for range in received {
            session.received.insert(range);
        }
        for range in key {
            session.key.insert(range);
        }
        session
    }

    fn with_dump(now: Instant, request: NewDump, dump: D, config: &ReceiverConfig) -> Self {
        Self {
            request,
            state: State::Receiving(dump),
            openings: Vec::new(),
            has_port: false,
            resumed: 0,
            resumed_by: None,
            opened: now,
            heard: now,
            herald_again: None,
            header: HeaderSeen::Missing,
            received: RangeSet::with_cap(config.max_ranges),
            key: RangeSet::with_cap(MAX_KEY_RANGES),
            acks: VecDeque::new(),
            messages: 0,
            repeated: 0,
            ignored: 0,
        }
    }

    pub(super) fn request(&self) -> &NewDump {
        &self.request
    }

    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    /// Whether the dump is neither committed nor abandoned.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Receiving(_) | State::Committing { .. })
    }

    /// Whether FINISHED came and the store brings the dump to stable storage.
    pub(super) fn is_committing(&self) -> bool {
        matches!(self.state, State::Committing { .. })
    }

    /// Core bytes stored so far, each counted once.
    pub(super) fn bytes(&self) -> u64 {
        self.received.bytes()
    }

    /// Whether nothing came but HERALDs, in this receiver or an earlier one.
    pub(super) fn is_unused(&self) -> bool {
        self.messages == 0 && !self.openings.is_empty() && matches!(self.state, State::Receiving(_))
    }

    /// Whether the client was given a port to send to.
    pub(super) fn has_port(&self) -> bool {
        self.has_port
    }

    /// The port could not be had.
    pub(super) fn lose_port(&mut self) {
        self.has_port = false;
        self.acks.clear();
    }

    /// Whether another client may have its place.
    pub(super) fn is_dispensable(&self, now: Instant) -> bool {
        !self.is_open() || (self.is_unused() && now.saturating_duration_since(self.heard) >= UNUSED)
    }

    pub(super) fn count_ignored(&mut self) {
        self.ignored += 1;
    }

    /// Takes a datagram that came to the session's own port.
    pub(super) fn handle_datagram<'a>(
        &mut self,
        now: Instant,
        from: SocketAddrV4,
        bytes: &'a [u8],
        row: &mut Row<'a>,
    ) -> Handled<D::Stored> {
        if self.request.peer != from {
            return Err(Ignored::Stranger);
        }
        let parsed = Message::parse(bytes).map_err(Ignored::from);
        let handled = parsed.and_then(|message| self.handle(now, &message, row));
        handled.inspect_err(|_| self.count_ignored())
    }

    /// Appends the acks of at most `most` messages to `train`.
    pub(super) fn take_acks(&mut self, most: usize, train: &mut Vec<u8>) {
        let most = most.min(self.acks.len());
        train.extend(self.acks.drain(..most).flat_map(|sequence| Ack(sequence).to_bytes()));
    }

    /// Judges another HERALD from the same client, and acknowledges a repeated one. Before data that is any for the same
    /// directory, as netdumpd sees it: whether the client has begun anew makes no difference then.
    ///
    /// Another dump by its name is another dump.
    pub(super) fn herald_again(&mut self, now: Instant, sequence: u32, request: &NewDump) -> HeraldAgain {
        if request.dump_id.is_some() {
            return HeraldAgain::NewDump;
        }
        if self.is_unused() && *request == self.request {
            self.heard = now;
            self.acks.push_back(sequence);
            return HeraldAgain::Repeated;
        }
        let since = |then: Instant| now.saturating_duration_since(then);
        let first = *self.herald_again.get_or_insert(now);
        let committing = matches!(self.state, State::Committing { .. });
        if !committing && since(self.heard) >= RESTART_SILENCE && since(first) >= RESTART_REPEAT {
            HeraldAgain::NewDump
        } else {
            HeraldAgain::Doubtful
        }
    }

    /// Answers a HERALD of this very dump: the client, which is at `peer` now, shall go on. `true`: it needs a port, or the
    /// port must know of the new `peer`.
    pub(super) fn go_on(&mut self, now: Instant, sequence: u32, peer: SocketAddrV4) -> Result<bool, Ignored> {
        // Also of a dump that has failed: as long as its client asks for it, it is remembered, and nothing is begun anew.
        self.heard = now;
        self.herald_again = None;
        if matches!(self.state, State::Abandoned) {
            return Err(Ignored::AfterTheEnd);
        }
        let needs_port = !self.has_port || peer != self.request.peer;
        self.has_port = true;
        self.request.peer = peer;
        // As long as nothing is stored the client may not know that the dump was begun here, perhaps anew: told to go on, it
        // would not send again what another receiver has acknowledged.
        let is_empty =
            self.received.bytes() == 0 && self.key.bytes() == 0 && self.header == HeaderSeen::Missing;
        let is_receiving = matches!(self.state, State::Receiving(_));
        if (is_receiving && is_empty) || self.openings.contains(&sequence) {
            self.acknowledge_opening(sequence);
            return Ok(needs_port);
        }
        if self.resumed_by.replace(sequence) != Some(sequence) {
            self.resumed += 1;
        }
        self.acks.push_back(!sequence);
        Ok(needs_port)
    }

    fn acknowledge_opening(&mut self, herald: u32) {
        if !self.openings.contains(&herald) {
            self.openings.truncate(MAX_OPENINGS - 1);
            self.openings.push(herald);
        }
        self.acks.push_back(herald);
        if self.request.dump_id.is_some() {
            self.acks.push_back(herald ^ ABLE);
        }
    }

    /// Takes a message. Its data goes to the row, which is [stored](Self::store) when it does not fit there.
    fn handle<'a>(&mut self, now: Instant, message: &Message<'a>, row: &mut Row<'a>) -> Handled<D::Stored> {
        let news = match message.kind {
            MessageKind::Herald => Err(Ignored::LateHerald),
            MessageKind::Vmcore => self.data(now, message, row),
            MessageKind::Kdh => self.kdh(now, message),
            MessageKind::EkcdKey => self.key(now, message),
            MessageKind::Finished => self.finished(now, message.sequence, row),
        }?;
        self.heard = now;
        self.herald_again = None;
        if message.kind != MessageKind::Finished {
            self.messages += 1;
        }
        Ok(news)
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant, timeout: Duration) -> Option<News<D::Stored>> {
        match &mut self.state {
            State::Receiving(_) if now >= self.heard + timeout => self.abandon(now, Cause::TimedOut),
            State::Committing { ask, .. } if now >= *ask => self.commit(now),
            _ => None,
        }
    }

    /// When [`Self::handle_timeout`] is due; for an ended session, when it is to be forgotten.
    pub(super) fn deadline(&self, config: &ReceiverConfig) -> Instant {
        match self.state {
            State::Receiving(_) => self.heard + config.timeout,
            State::Committing { ask, .. } => ask,
            State::Committed if self.request.dump_id.is_some() => {
                self.heard + config.linger.max(config.timeout)
            }
            State::Committed | State::Abandoned => self.heard + config.linger,
        }
    }

    /// Stores a row; then its messages are to be acknowledged.
    pub(super) fn store(&mut self, now: Instant, row: &mut Row<'_>) -> Option<News<D::Stored>> {
        let State::Receiving(dump) = &mut self.state else {
            row.clear();
            return None;
        };
        if row.is_empty() {
            return None;
        }
        let written = dump.write_at(row.range().start, row.pieces());
        if written.is_ok() {
            self.received.insert(row.range());
            self.acks.extend(row.sequences());
        }
        row.clear();
        written.err().and_then(|error| self.fail(now, error))
    }

    /// Ends the dump before its time. Does nothing when it has ended, or is being committed: that cannot be stopped.
    pub(super) fn abandon(&mut self, now: Instant, cause: Cause) -> Option<News<D::Stored>> {
        match std::mem::replace(&mut self.state, State::Abandoned) {
            State::Receiving(dump) => {
                let summary = self.summary(now);
                Some(keep_incomplete(dump, summary, cause))
            }
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Leaves the dump to the next receiver, unless it has ended or is being committed.
    pub(super) fn suspend(&mut self, now: Instant) -> Option<News<D::Stored>> {
        if self.is_unused() {
            self.discard();
            return None;
        }
        match std::mem::replace(&mut self.state, State::Abandoned) {
            State::Receiving(mut dump) => {
                dump.suspend(&self.summary(now));
                Some(News::Suspended)
            }
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Forgets a dump of which nothing came.
    pub(super) fn discard(&mut self) {
        if let State::Receiving(dump) = &mut self.state {
            dump.discard();
            self.state = State::Abandoned;
        }
    }

    fn data<'a>(&mut self, now: Instant, message: &Message<'a>, row: &mut Row<'a>) -> Handled<D::Stored> {
        let range = message.offset..message.offset.saturating_add(message.payload.len() as u64);
        if i64::try_from(range.end).is_err() {
            return Err(Ignored::OffsetTooLarge);
        }
        let is_known = self.received.contains(&range);
        match self.state {
            State::Receiving(_) if !message.payload.is_empty() => {}
            State::Receiving(_) | State::Committing { .. } | State::Committed if is_known => {
                self.acks.push_back(message.sequence);
                return Ok(None);
            }
            _ => return Err(Ignored::AfterTheEnd),
        }
        if !row.takes(range.start) {
            if let Some(failed) = self.store(now, row) {
                return Ok(Some(failed));
            }
            if !self.received.admits(&range) {
                return Err(Ignored::TooManyRanges);
            }
        }
        self.repeated += u64::from(is_known);
        row.push(message);
        Ok(None)
    }

    fn kdh(&mut self, now: Instant, message: &Message<'_>) -> Handled<D::Stored> {
        let bytes = message.payload.first_chunk::<KDH_LEN>().filter(|_| message.offset == 0);
        let header = HeaderSeen::judge(bytes.ok_or(Ignored::HeaderInParts)?);
        let news = match &mut self.state {
            State::Receiving(_) | State::Committing { .. } | State::Committed if header == self.header => {
                None
            }
            State::Receiving(dump) => match dump.header(&header) {
                Ok(()) => {
                    self.header = header.clone();
                    Some(News::Header(header))
                }
                Err(error) => return Ok(self.fail(now, error)),
            },
            _ => return Err(Ignored::AfterTheEnd),
        };
        self.acks.push_back(message.sequence);
        Ok(news)
    }

    fn key(&mut self, now: Instant, message: &Message<'_>) -> Handled<D::Stored> {
        let range = message.offset..message.offset.saturating_add(message.payload.len() as u64);
        if range.end > MAX_KEY_FILE {
            return Err(Ignored::OffsetTooLarge);
        }
        match &mut self.state {
            State::Receiving(_) if !self.key.admits(&range) => return Err(Ignored::TooManyRanges),
            State::Receiving(dump) => {
                if let Err(error) = dump.key_at(message.offset, message.payload) {
                    return Ok(self.fail(now, error));
                }
                self.key.insert(range);
            }
            State::Committing { .. } | State::Committed if self.key.contains(&range) => {}
            _ => return Err(Ignored::AfterTheEnd),
        }
        self.acks.push_back(message.sequence);
        Ok(None)
    }

    fn finished(&mut self, now: Instant, sequence: u32, row: &mut Row<'_>) -> Handled<D::Stored> {
        if let Some(failed) = self.store(now, row) {
            return Ok(Some(failed));
        }
        match std::mem::replace(&mut self.state, State::Abandoned) {
            State::Receiving(dump) => {
                let summary = self.summary(now);
                if let Some(cause) = self.lack(&summary) {
                    return Ok(Some(keep_incomplete(dump, summary, cause)));
                }
                self.state = State::Committing { dump, summary, finished: sequence, ask: now };
                Ok(self.commit(now))
            }
            State::Committing { dump, summary, ask, .. } => {
                self.state = State::Committing { dump, summary, finished: sequence, ask };
                Ok(None)
            }
            State::Committed => {
                self.state = State::Committed;
                self.acks.push_back(sequence);
                Ok(None)
            }
            State::Abandoned => Err(Ignored::AfterTheEnd),
        }
    }

    /// What a dump lacks although its client says that it has sent all. Then FINISHED is not acknowledged: the client
    /// must not believe that its core can be read.
    ///
    /// A stock client leaves nothing out, but it may believe that all was acknowledged when it was not: its mask of acks
    /// confuses messages that are 32 apart.
    fn lack(&self, summary: &DumpSummary) -> Option<Cause> {
        if self.request.dump_id.is_some() && !self.header.is_stream() {
            return None;
        }
        let header = self.header.valid();
        let announced = header.map_or(summary.length, |header| header.dump_length);
        // A length that no file has is not in the summary's.
        let beyond = summary.length..announced;
        let first = summary.gaps.listed.first().or_else(|| (!beyond.is_empty()).then_some(&beyond));
        if let Some(first) = first.cloned() {
            let bytes = summary.gaps.bytes.saturating_add(announced.saturating_sub(summary.length));
            return Some(Cause::Gap { first, bytes });
        }
        let announced = u64::from(header?.key_size);
        let came = announced - self.key.gaps(announced).bytes;
        (came < announced).then_some(Cause::Key { came, announced })
    }

    /// Begins a commit or asks how far it is.
    fn commit(&mut self, now: Instant) -> Option<News<D::Stored>> {
        let State::Committing { dump, summary, finished, ask } = &mut self.state else { return None };
        match dump.commit(summary) {
            Ok(Commit::Pending) => {
                *ask = now + COMMIT_POLL;
                None
            }
            Ok(Commit::Done(stored)) => {
                // A client that asks again is told by the answer to its HERALD; without a port it can be told nothing.
                if self.has_port {
                    self.acks.push_back(*finished);
                }
                let summary = summary.clone();
                self.state = State::Committed;
                self.heard = now;
                Some(News::Ended(Ended { ending: Ending::Complete, summary, stored: Ok(stored) }))
            }
            Err(error) => self.fail(now, error),
        }
    }

    /// Ends the dump because the store failed.
    fn fail(&mut self, now: Instant, error: StoreError) -> Option<News<D::Stored>> {
        let cause = Cause::Store(Arc::new(error));
        match std::mem::replace(&mut self.state, State::Abandoned) {
            State::Receiving(dump) => {
                let summary = self.summary(now);
                Some(keep_incomplete(dump, summary, cause))
            }
            State::Committing { dump, summary, .. } => Some(keep_incomplete(dump, summary, cause)),
            State::Committed | State::Abandoned => None,
        }
    }

    fn summary(&self, now: Instant) -> Box<DumpSummary> {
        let end = self.received.end();
        let length = self.header.file_length(end);
        Box::new(DumpSummary {
            peer: self.request.peer,
            local: self.request.local,
            dump_id: self.request.dump_id,
            resumed: self.resumed,
            header: self.header.clone(),
            bytes: self.received.bytes(),
            end,
            length,
            gaps: self.received.gaps(length),
            messages: self.messages,
            repeated: self.repeated,
            ignored: self.ignored,
            elapsed: now.saturating_duration_since(self.opened),
        })
    }
}

/// News of a message that was taken, or why it was not.
type Handled<T> = Result<Option<News<T>>, Ignored>;

fn keep_incomplete<D: OpenDump>(mut dump: D, summary: Box<DumpSummary>, cause: Cause) -> News<D::Stored> {
    let ending = Ending::Incomplete(cause);
    let stored = dump.abandon(&summary, &ending).map_err(Arc::new);
    News::Ended(Ended { ending, summary, stored })
}
