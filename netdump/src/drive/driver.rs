//! The loop: takes what has come, sends what may go, sleeps when there is neither.

use std::error::Error;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::Progress;
use super::source::Source;
use crate::client::{
    Client, ClientConfig, ClientEvent, ConfigError, DumpPlan, Ending, FailReason, Packet, WindowChoice,
};
use crate::link::{Link, Received, Sent};
use crate::report::{DumpReport, Outcome};

/// How often the caller is told, and asked, at most.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// How long to wait for room on a busy link before trying again.
const BUSY_WAIT: Duration = Duration::from_millis(1);
/// Frames received in a row before sending has its turn.
const RECEIVE_BATCH: usize = 64;
/// Frames sent in a row before receiving has its turn.
const SEND_BATCH: usize = 16;
/// Missing ranges that a report lists.
const MAX_MISSING: usize = 1000;

pub(super) struct Driver<'a> {
    client: Client,
    source: Source<'a>,
    link: &'a mut dyn Link,
    control: &'a mut dyn FnMut(&Progress) -> ControlFlow<String>,
    path: Option<String>,
    /// What was asked for of the window, and the rate.
    window: Option<String>,
    rate: Option<NonZeroU64>,
    started: Instant,
    /// After this time nothing is waited for any more.
    deadline: Option<Duration>,
    /// When the caller was told last.
    told: Option<Instant>,
    /// The frame to send, and to keep while the link is busy.
    outgoing: Packet,
    /// Whether the link has not taken it yet.
    is_pending: bool,
    incoming: Received,
    ending: Option<Ending>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        config: ClientConfig,
        plan: DumpPlan,
        source: Source<'a>,
        link: &'a mut dyn Link,
        control: &'a mut dyn FnMut(&Progress) -> ControlFlow<String>,
    ) -> Result<Self, ConfigError> {
        let started = Instant::now();
        let path = plan.path.clone();
        let (deadline, rate) = (config.deadline, config.rate);
        let window = (config.window != WindowChoice::default()).then(|| config.window.to_string());
        Ok(Self {
            client: Client::new(ClientConfig { offloads: link.offloads(), ..config }, plan, started)?,
            source,
            link,
            control,
            path,
            window,
            rate,
            started,
            deadline,
            told: None,
            outgoing: Packet::default(),
            is_pending: false,
            incoming: Received::default(),
            ending: None,
        })
    }

    pub(super) fn run(mut self) -> DumpReport {
        let ending = self.until_closed();
        let seconds = self.started.elapsed().as_secs_f64();
        if ending.outcome() != Outcome::Failed {
            self.await_digest();
        }
        self.report(&ending, seconds)
    }

    fn until_closed(&mut self) -> Ending {
        let mut now = Instant::now();
        loop {
            self.client.handle_timeout(now);
            self.source.update(&mut self.client);
            let sent = self.send_some(now);
            self.take_events(now);
            if self.told.is_none_or(|told| now - told >= TELL_EVERY) {
                self.tell(now);
                self.take_events(now);
            }
            if let Some(ending) = self.ending.take() {
                return ending;
            }
            let wait = match sent {
                Stopped::InBetween => Duration::ZERO,
                Stopped::Busy => self.wait(now).min(BUSY_WAIT),
                Stopped::AllSent => self.wait(now),
            };
            now = self.receive_all(wait);
        }
    }

    /// Sends until the client has nothing more or the link no room, or it is time to look at what has come.
    fn send_some(&mut self, now: Instant) -> Stopped {
        for _ in 0..SEND_BATCH {
            if !self.is_pending {
                match self.client.poll_transmit(now, self.source.bytes(), &mut self.outgoing) {
                    Ok(Some(transmit)) => tracing::trace!(?transmit, "send"),
                    Ok(None) => return Stopped::AllSent,
                    Err(error) => {
                        self.client.abort(FailReason::Read(error));
                        return Stopped::AllSent;
                    }
                }
            }
            match self.link.send(&self.outgoing.frame()) {
                Ok(Sent::Yes) => self.is_pending = false,
                Ok(Sent::Busy) => {
                    self.is_pending = true;
                    return Stopped::Busy;
                }
                Err(source) => {
                    self.client.abort(FailReason::Link { phase: self.client.phase(), source });
                    return Stopped::AllSent;
                }
            }
        }
        Stopped::InBetween
    }

    /// How long there is nothing to do, unless a frame comes.
    fn wait(&self, now: Instant) -> Duration {
        let client = self.client.poll_timeout().map_or(TELL_EVERY, |at| at.saturating_duration_since(now));
        let caller = self.told.map_or(TELL_EVERY, |told| (told + TELL_EVERY).saturating_duration_since(now));
        self.source.wait(&self.client, client.min(caller))
    }

    /// Waits for a frame, then takes what else has come; the time behind the wait.
    fn receive_all(&mut self, mut wait: Duration) -> Instant {
        let mut now = None;
        for _ in 0..RECEIVE_BATCH {
            match self.link.receive(&mut self.incoming, wait) {
                Ok(true) => {
                    let now = *now.get_or_insert_with(Instant::now);
                    let taken = self.client.handle(now, &self.incoming);
                    tracing::trace!(len = self.incoming.bytes.len(), ?taken, "received");
                    wait = Duration::ZERO;
                }
                Ok(false) => break,
                Err(source) => {
                    self.client.abort(FailReason::Link { phase: self.client.phase(), source });
                    break;
                }
            }
        }
        now.unwrap_or_else(Instant::now)
    }

    /// Waits for the digest, as long as the caller and the deadline allow.
    fn await_digest(&mut self) {
        self.source.hurry();
        let mut wait = TELL_EVERY.saturating_sub(self.told.map_or(Duration::ZERO, |told| told.elapsed()));
        while !self.source.wait_for_digest(wait) {
            let is_late = self.deadline.is_some_and(|deadline| self.started.elapsed() >= deadline);
            if is_late || self.show(Instant::now()).is_break() {
                return;
            }
            wait = TELL_EVERY;
        }
    }

    fn take_events(&mut self, now: Instant) {
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Resolved { hop, mac } => tracing::debug!(?hop, %mac, "next hop"),
                ClientEvent::Accepted { port } => {
                    tracing::info!(port, bytes = self.source.total(), "dump accepted")
                }
                ClientEvent::Resumed { port } => tracing::warn!(port, "the server was silent and goes on"),
                ClientEvent::Restarted { port } => {
                    tracing::warn!(port, "the server was started anew; everything is sent again");
                }
                ClientEvent::Reached(phase) => {
                    tracing::debug!(%phase);
                    self.tell(now);
                }
                ClientEvent::AddressConflict { mac } => {
                    tracing::warn!(%mac, "another host uses the guest's address");
                }
                ClientEvent::Closed(ending) => self.ending = Some(ending),
            }
        }
    }

    fn tell(&mut self, now: Instant) {
        if let ControlFlow::Break(why) = self.show(now) {
            self.client.abort(FailReason::Stopped { phase: self.client.phase(), why });
        }
    }

    fn show(&mut self, now: Instant) -> ControlFlow<String> {
        self.told = Some(now);
        let progress = Progress {
            phase: self.client.phase(),
            done: self.source.settled(&self.client),
            total: self.source.total(),
            resends: self.client.stats().resends,
            elapsed: now - self.started,
        };
        (self.control)(&progress)
    }

    fn report(self, ending: &Ending, seconds: f64) -> DumpReport {
        let stats = self.client.stats();
        let (length, digest, packing) = self.source.finish(&self.client);
        let mut missing = self.client.missing();
        // The padding of a stream is not stored.
        missing.retain_mut(|(start, end)| {
            *end = length.min(*end);
            start < end
        });
        missing.truncate(MAX_MISSING);
        let report = DumpReport {
            filter: None,
            outcome: ending.outcome(),
            reason: ending.reason().map(|reason| with_causes(reason)),
            server: self.client.server().to_string(),
            path: self.path,
            length,
            digest,
            packing,
            bytes_sent: stats.bytes_sent,
            bytes_untouched: stats.bytes_untouched,
            bytes_zero: stats.bytes_zero,
            missing,
            messages: stats.messages,
            resends: stats.resends,
            resumes: stats.resumes,
            restarts: stats.restarts,
            window: self.window,
            rate: self.rate.map(NonZeroU64::get),
            ignored: stats.ignored.iter().map(|(reason, count)| (reason.to_string(), count)).collect(),
            bad_pages: 0,
            seconds,
            digest_seconds: self.started.elapsed().as_secs_f64() - seconds,
        };
        let DumpReport { outcome, bytes_sent, resends, seconds, .. } = &report;
        let reason = report.reason.as_deref().unwrap_or("all acknowledged");
        tracing::info!(?outcome, reason, bytes_sent, resends, seconds, "dump ended");
        report
    }
}

/// Why sending stopped.
enum Stopped {
    /// The client has nothing to send now.
    AllSent,
    /// The link has no room.
    Busy,
    /// There is more to send.
    InBetween,
}

/// An error and its causes in one line.
fn with_causes(error: &dyn Error) -> String {
    std::iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
