//! Finding a server again that has fallen silent: it may have been started anew, and has another port for this dump then.
//!
//! A new HERALD asks it (to the well-known port, each second with the same number `s`, while resends to the old port go
//! on). Our receiver knows the dump by the id in the HERALD's padding and answers
//!
//! - by an ack of `!s`: it has kept everything; what is not acknowledged goes on to the port that this comes from;
//! - by acks of `s` and of `s ^ ABLE`, like any HERALD that begins a dump: it has nothing, and everything is sent again.
//!
//! A stock server acknowledges `s` only, and drops what it has of the dump to begin anew. So it is asked only when
//! nothing else is left to try, or when its host says that the old port is closed and no ack contradicts; and never when
//! only FINISHED is open, as it closes the port when the core is stored.
//!
//! Once asked, the question stays open until it is answered, and so does the dump: an ack may come from a new session that
//! has got the port of the old one by chance.

use std::time::{Duration, Instant};

use super::phase::{ClientEvent, Ending, FailReason, Phase};
use super::window::Sequence;
use super::{Client, Ignored};

/// Marks the second ack of a HERALD, by which a server says that it knows ids of dumps.
const ABLE: u32 = 0x8000_0000;
/// How often a HERALD goes, and how long an able server may be silent before.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is known of the server's memory.
#[derive(Debug, Default)]
pub(super) struct Resume {
    /// Number of the HERALD that began the dump.
    opened_by: Option<Sequence>,
    /// Whether it knows ids of dumps.
    pub(super) is_able: bool,
    /// When its host last said that the dump's port is closed.
    closed_at: Option<Instant>,
    question: Option<Question>,
    /// When it last said that it has the dump.
    resumed_at: Option<Instant>,
    /// Questions so far.
    asked: u32,
    /// When the last HERALD of a question was sent.
    sent_at: Option<Instant>,
}

/// A HERALD that waits for an answer.
#[derive(Debug, Clone, Copy)]
struct Question {
    sequence: Sequence,
    since: Instant,
    is_unsent: bool,
    was_sent: bool,
}

/// What an ack says that answers a HERALD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The first HERALD's, in other words than the plain ones.
    Accepted,
    /// Ids of dumps are known.
    Able,
    /// The dump is known; it goes on.
    GoesOn,
    /// The dump begins anew.
    Anew { is_able: bool },
}

impl Resume {
    /// The dump was begun by this HERALD.
    pub(super) fn opened(&mut self, now: Instant, herald: Sequence) {
        self.opened_by = Some(herald);
        self.resumed_at = Some(now);
    }

    /// Whether a HERALD waits for an answer.
    pub(super) fn is_open(&self) -> bool {
        self.question.is_some()
    }

    /// Since when, if one does.
    pub(super) fn open_since(&self) -> Option<Instant> {
        self.question.map(|question| question.since)
    }

    /// Whether the dump's port was said to be closed since then.
    pub(super) fn is_closed_since(&self, since: Option<Instant>) -> bool {
        self.closed_at.is_some_and(|at| since.is_none_or(|since| since <= at))
    }

    /// The HERALD to send now, if any, which counts as sent.
    pub(super) fn take_herald(&mut self, now: Instant) -> Option<Sequence> {
        let question = self.question.as_mut().filter(|question| question.is_unsent)?;
        question.is_unsent = false;
        question.was_sent = true;
        self.sent_at = Some(now);
        Some(question.sequence)
    }
}

impl Client {
    /// The host of the server says that nobody has this port.
    pub(super) fn take_closed_port(&mut self, now: Instant, port: u16) -> Result<(), Ignored> {
        if port != self.learned_port.unwrap_or(self.config.server_port) {
            return Err(Ignored::OtherServerPort);
        }
        self.resume.closed_at = Some(now);
        self.ask(now);
        Ok(())
    }

    /// When [`Self::ask`] has something to do.
    pub(super) fn asks_at(&self) -> Option<Instant> {
        if !self.may_ask() {
            return None;
        }
        let again = self.resume.sent_at.map(|at| at + INTERVAL);
        match self.resume.question {
            Some(question) if question.is_unsent => None,
            Some(_) => again,
            None => self.loses_faith_at().map(|at| again.map_or(at, |again| again.max(at))),
        }
    }

    /// Sends a HERALD if it is time.
    pub(super) fn ask(&mut self, now: Instant) {
        if self.asks_at().is_none_or(|at| at > now) {
            return;
        }
        let sequence = self.question_number();
        let new = Question { sequence, since: now, is_unsent: true, was_sent: false };
        match &mut self.resume.question {
            Some(question) => question.is_unsent = true,
            None => {
                self.resume.question = Some(new);
                self.resume.asked = self.resume.asked.wrapping_add(1);
            }
        }
    }

    /// Whether the server may be asked in this phase if it is silent.
    pub(super) fn may_ask(&self) -> bool {
        let is_phase = match self.phase {
            Phase::Resolve | Phase::Herald | Phase::Closed => false,
            Phase::Key | Phase::Data | Phase::Header => true,
            Phase::Finish => self.resume.is_able || self.resume.is_open(),
        };
        is_phase && self.config.dump_id != 0
    }

    /// When the server has been silent for too long to be alive.
    fn loses_faith_at(&self) -> Option<Instant> {
        let since = self.window.silent_since()?.max(self.resume.resumed_at?);
        let wait = self.window.usual_wait();
        let by_silence = match self.phase {
            // Bringing a core to stable storage takes its time.
            Phase::Finish => self.config.patience(),
            _ if self.resume.is_able => INTERVAL.max(wait * 4),
            _ => self.patience(),
        };
        let closed_at = self.resume.closed_at.filter(|at| *at >= since);
        // An ack that is still on its way would contradict.
        let by_word = closed_at.map(|at| at.max(since + wait));
        by_word.into_iter().chain([since + by_silence]).min()
    }

    /// A number that is far from those of messages on their way or acknowledged lately, in each way in which it can be
    /// answered, and which a stranger who sees nothing of the dump cannot guess.
    fn question_number(&self) -> Sequence {
        const NEAR: u32 = 1 << 27;
        let next = self.window.next_sequence().0;
        let own = (self.config.dump_id & (2 * NEAR - 1)).wrapping_add(self.resume.asked);
        let numbers =
            [1 << 30, (1 << 30) + 2 * NEAR].map(|far: u32| next.wrapping_add(far).wrapping_add(own));
        let is_far = |number: u32| (!number).wrapping_sub(next).wrapping_add(NEAR) >= 2 * NEAR;
        Sequence(if is_far(numbers[0]) { numbers[0] } else { numbers[1] })
    }

    /// Takes an ack that answers a HERALD in our server's way. `None`: it is none, but an ack of a message.
    pub(super) fn take_answer(
        &mut self,
        now: Instant,
        port: u16,
        sequence: Sequence,
    ) -> Option<Result<(), Ignored>> {
        match self.answer(port, sequence)? {
            Answer::Accepted => {
                self.resume.is_able = true;
                return Some(self.take_message_ack(now, port, Sequence::FIRST));
            }
            Answer::Able => self.resume.is_able = true,
            Answer::GoesOn => self.go_on(now, port),
            Answer::Anew { is_able } => self.begin_anew(now, port, is_able),
        }
        Some(Ok(()))
    }

    fn answer(&self, port: u16, Sequence(number): Sequence) -> Option<Answer> {
        if let Some(Question { sequence: Sequence(asked), was_sent: true, .. }) = self.resume.question {
            return match number {
                n if n == asked => Some(Answer::Anew { is_able: false }),
                n if n == asked ^ ABLE => Some(Answer::Anew { is_able: true }),
                n if n == !asked => Some(Answer::GoesOn),
                _ => None,
            };
        }
        match self.resume.opened_by {
            None => {
                let Sequence(first) = Sequence::FIRST;
                let is_waited_for = self.phase == Phase::Herald && !self.window.is_empty();
                (is_waited_for && [first ^ ABLE, !first].contains(&number)).then_some(Answer::Accepted)
            }
            Some(Sequence(herald)) => {
                let is_able = !self.resume.is_able && number == herald ^ ABLE;
                (is_able && self.learned_port == Some(port)).then_some(Answer::Able)
            }
        }
    }

    /// The server has kept what it acknowledged.
    fn go_on(&mut self, now: Instant, port: u16) {
        self.resume.question = None;
        self.resume.is_able = true;
        self.resume.closed_at = None;
        self.resume.resumed_at = Some(now);
        let has_moved = self.learned_port.replace(port) != Some(port);
        self.window.resume(now, has_moved);
        self.stats.resumes += 1;
        self.events.push_back(ClientEvent::Resumed { port });
        self.advance();
    }

    /// The server has nothing of the dump.
    fn begin_anew(&mut self, now: Instant, port: u16, is_able: bool) {
        let question = self.resume.question.take();
        let (phase, kept_from) = (self.phase, self.acked_to());
        let is_growing = self.core_grows;
        self.resume = Resume {
            opened_by: question.map(|question| question.sequence),
            is_able,
            resumed_at: Some(now),
            asked: self.resume.asked,
            sent_at: self.resume.sent_at,
            ..Resume::default()
        };
        self.learned_port = Some(port);
        self.window.restart();
        self.spans.restart();
        self.stats.bytes_acked = 0;
        (self.stats.bytes_untouched, self.stats.bytes_zero) = (0, 0);
        self.stats.restarts += 1;
        if is_growing && kept_from > 0 {
            let reason = FailReason::Forgotten { server: self.server(), phase, missing: self.lacking() };
            return self.close(Ending::Failed(reason));
        }
        let restarts = self.stats.restarts;
        if restarts > u64::from(self.config.retries) + 1 {
            let missing = self.lacking();
            return self.close(Ending::Failed(FailReason::Restarts {
                server: self.server(),
                restarts,
                missing,
            }));
        }
        self.events.push_back(ClientEvent::Restarted { port });
        // As if the first HERALD had been acknowledged.
        self.phase = Phase::Herald;
        self.queued = 1;
        self.advance();
    }
}
