//! One dump from one client: what its messages do, and when they are acknowledged.
//!
//! Every message may come late, repeatedly and in any order. An ack goes out only when the store has taken what the
//! message carries. A session outlives its dump for a while, so that messages repeated because an ack was lost are
//! acknowledged again; they change nothing then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ranges::RangeSet;
use super::store::{Commit, NewDump, OpenDump, StoreError};
use super::summary::{Cause, DumpSummary, Ending, HeaderSeen};
use super::{Ignored, ReceiverConfig};
use crate::vmcore::kdh::KDH_LEN;
use crate::wire::{Message, MessageKind};

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
/// How often the store is asked whether a commit is done.
const COMMIT_POLL: Duration = Duration::from_millis(5);
/// Where key bytes must end: FreeBSD's key block (a header and at most 2,048 bytes, padded to a disk block) is far
/// smaller.
const MAX_KEY_END: u64 = 64 * 1024;

/// One dump, open or recently ended.
#[derive(Debug)]
pub(super) struct Session<D> {
    request: NewDump,
    herald: u32,
    state: State<D>,
    opened: Instant,
    /// When the last message was taken.
    heard: Instant,
    /// When, since then, a HERALD came that was not acknowledged.
    herald_again: Option<Instant>,
    header: HeaderSeen,
    received: RangeSet,
    key_end: u64,
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

/// What follows from a message or from time.
#[derive(Debug)]
pub(super) struct Step<T> {
    /// Acknowledge this message.
    pub(super) ack: Option<u32>,
    /// Tell the program around.
    pub(super) news: Option<News<T>>,
}

/// What a step brings that is worth telling.
#[derive(Debug)]
pub(super) enum News<T> {
    Header(HeaderSeen),
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

impl<T> Step<T> {
    const NOTHING: Self = Self { ack: None, news: None };

    fn ack(sequence: u32) -> Self {
        Self { ack: Some(sequence), news: None }
    }
}

impl<D: OpenDump> Session<D> {
    pub(super) fn new(now: Instant, request: NewDump, herald: u32, dump: D, config: &ReceiverConfig) -> Self {
        Self {
            request,
            herald,
            state: State::Receiving(dump),
            opened: now,
            heard: now,
            herald_again: None,
            header: HeaderSeen::Missing,
            received: RangeSet::with_cap(config.max_ranges),
            key_end: 0,
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

    /// Core bytes received so far, each counted once.
    pub(super) fn bytes(&self) -> u64 {
        self.received.bytes()
    }

    pub(super) fn count_ignored(&mut self) {
        self.ignored += 1;
    }

    /// Judges another HERALD from the same client.
    pub(super) fn herald_again(&mut self, now: Instant, sequence: u32, request: &NewDump) -> HeraldAgain {
        if self.messages == 0 && self.is_open() {
            let same = sequence == self.herald && *request == self.request;
            return if same { HeraldAgain::Repeated } else { HeraldAgain::NewDump };
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

    /// Takes a message that came to the session's own port.
    pub(super) fn handle(&mut self, now: Instant, message: &Message<'_>) -> Result<Step<D::Stored>, Ignored> {
        let step = match message.kind {
            MessageKind::Herald => Err(Ignored::LateHerald),
            MessageKind::Vmcore => self.data(now, message),
            MessageKind::Kdh => self.kdh(now, message),
            MessageKind::EkcdKey => self.key(now, message),
            MessageKind::Finished => self.finished(now, message.sequence),
        }?;
        if step.ack.is_some() {
            self.heard = now;
            self.herald_again = None;
            self.messages += 1;
        }
        Ok(step)
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant, timeout: Duration) -> Step<D::Stored> {
        match &mut self.state {
            State::Receiving(_) if now >= self.heard + timeout => self.abandon(now, Cause::TimedOut),
            State::Committing { ask, .. } if now >= *ask => self.commit(now),
            _ => Step::NOTHING,
        }
    }

    /// When [`Self::handle_timeout`] is due; for an ended session, when it is to be forgotten.
    pub(super) fn deadline(&self, config: &ReceiverConfig) -> Instant {
        match self.state {
            State::Receiving(_) => self.heard + config.timeout,
            State::Committing { ask, .. } => ask,
            State::Committed | State::Abandoned => self.heard + config.linger,
        }
    }

    /// Ends the dump before its time. Does nothing when it has ended, or is being committed: that cannot be stopped.
    pub(super) fn abandon(&mut self, now: Instant, cause: Cause) -> Step<D::Stored> {
        match std::mem::replace(&mut self.state, State::Abandoned) {
            State::Receiving(dump) => {
                let summary = self.summary(now);
                keep_incomplete(dump, summary, cause)
            }
            other => {
                self.state = other;
                Step::NOTHING
            }
        }
    }

    fn data(&mut self, now: Instant, message: &Message<'_>) -> Result<Step<D::Stored>, Ignored> {
        let range = message.offset..message.offset.saturating_add(message.payload.len() as u64);
        if i64::try_from(range.end).is_err() {
            return Err(Ignored::OffsetTooLarge);
        }
        match &mut self.state {
            State::Receiving(dump) => {
                if !self.received.admits(&range) {
                    return Err(Ignored::TooManyRanges);
                }
                if let Err(error) = dump.write_at(range.start, message.payload) {
                    return Ok(self.fail(now, error));
                }
                if self.received.insert(range) == 0 {
                    self.repeated += 1;
                }
                Ok(Step::ack(message.sequence))
            }
            State::Committing { .. } | State::Committed if self.received.contains(&range) => {
                Ok(Step::ack(message.sequence))
            }
            _ => Err(Ignored::AfterTheEnd),
        }
    }

    fn kdh(&mut self, now: Instant, message: &Message<'_>) -> Result<Step<D::Stored>, Ignored> {
        let bytes = message.payload.first_chunk::<KDH_LEN>().filter(|_| message.offset == 0);
        let header = HeaderSeen::judge(bytes.ok_or(Ignored::HeaderInParts)?);
        match &mut self.state {
            State::Receiving(_) | State::Committing { .. } | State::Committed if header == self.header => {
                Ok(Step::ack(message.sequence))
            }
            State::Receiving(dump) => {
                if let Err(error) = dump.header(&header) {
                    return Ok(self.fail(now, error));
                }
                self.header = header.clone();
                Ok(Step { ack: Some(message.sequence), news: Some(News::Header(header)) })
            }
            _ => Err(Ignored::AfterTheEnd),
        }
    }

    fn key(&mut self, now: Instant, message: &Message<'_>) -> Result<Step<D::Stored>, Ignored> {
        let end = message.offset.saturating_add(message.payload.len() as u64);
        if end > MAX_KEY_END {
            return Err(Ignored::OffsetTooLarge);
        }
        match &mut self.state {
            State::Receiving(dump) => {
                if let Err(error) = dump.key_at(message.offset, message.payload) {
                    return Ok(self.fail(now, error));
                }
                self.key_end = self.key_end.max(end);
                Ok(Step::ack(message.sequence))
            }
            State::Committing { .. } | State::Committed if end <= self.key_end => {
                Ok(Step::ack(message.sequence))
            }
            _ => Err(Ignored::AfterTheEnd),
        }
    }

    fn finished(&mut self, now: Instant, sequence: u32) -> Result<Step<D::Stored>, Ignored> {
        match std::mem::replace(&mut self.state, State::Abandoned) {
            State::Receiving(dump) => {
                let summary = self.summary(now);
                self.state = State::Committing { dump, summary, finished: sequence, ask: now };
                Ok(self.commit(now))
            }
            State::Committing { dump, summary, ask, .. } => {
                self.state = State::Committing { dump, summary, finished: sequence, ask };
                Ok(Step::NOTHING)
            }
            State::Committed => {
                self.state = State::Committed;
                Ok(Step::ack(sequence))
            }
            State::Abandoned => Err(Ignored::AfterTheEnd),
        }
    }

    /// Begins a commit or asks how far it is.
    fn commit(&mut self, now: Instant) -> Step<D::Stored> {
        let State::Committing { dump, summary, finished, ask } = &mut self.state else {
            return Step::NOTHING;
        };
        match dump.commit(summary) {
            Ok(Commit::Pending) => {
                *ask = now + COMMIT_POLL;
                Step::NOTHING
            }
            Ok(Commit::Done(stored)) => {
                let (ack, summary) = (Some(*finished), summary.clone());
                self.state = State::Committed;
                self.heard = now;
                let ended = Ended { ending: Ending::Complete, summary, stored: Ok(stored) };
                Step { ack, news: Some(News::Ended(ended)) }
            }
            Err(error) => self.fail(now, error),
        }
    }

    /// Ends the dump because the store failed.
    fn fail(&mut self, now: Instant, error: StoreError) -> Step<D::Stored> {
        let cause = Cause::Store(Arc::new(error));
        match std::mem::replace(&mut self.state, State::Abandoned) {
            State::Receiving(dump) => {
                let summary = self.summary(now);
                keep_incomplete(dump, summary, cause)
            }
            State::Committing { dump, summary, .. } => keep_incomplete(dump, summary, cause),
            State::Committed | State::Abandoned => Step::NOTHING,
        }
    }

    fn summary(&self, now: Instant) -> Box<DumpSummary> {
        let end = self.received.end();
        let length = self.header.file_length(end);
        Box::new(DumpSummary {
            peer: self.request.peer,
            local: self.request.local,
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

fn keep_incomplete<D: OpenDump>(mut dump: D, summary: Box<DumpSummary>, cause: Cause) -> Step<D::Stored> {
    let ending = Ending::Incomplete(cause);
    let stored = dump.abandon(&summary, &ending).map_err(Arc::new);
    Step { ack: None, news: Some(News::Ended(Ended { ending, summary, stored })) }
}
