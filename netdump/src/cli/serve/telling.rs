//! What the operator is told: lines on standard error, and paths or JSON on standard output.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netdump::receiver::server::RECEIVE_BUFFER;
use netdump::receiver::{
    DumpStore, HeaderSeen, Leftover, Receiver, ReceiverEvent, SessionId, StoreError, StoredDump,
};
use serde_json::{Value, json};

use super::ended::EndedDump;
use super::hook::Hook;
use super::options::Started;
use crate::cli::{megabytes, rate};

/// How often progress is told, in JSON only.
const PROGRESS: Duration = Duration::from_secs(1);
/// A client whose dumps cannot be stored asks again and again: it is told of once in this time.
const QUIET: Duration = Duration::from_secs(60);

/// How often is looked whether a manifest is made.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Teller {
    json: bool,
    /// The store's.
    directory: PathBuf,
    others: Started,
    next_progress: Option<Instant>,
    /// When a refusal was told of last.
    refused: Option<Instant>,
    peers: BTreeMap<SessionId, String>,
    /// Dumps that have ended and whose manifests are being made.
    unsettled: Vec<EndedDump>,
    /// Bytes of all dumps that have ended.
    bytes_ended: u64,
}

impl Teller {
    pub(super) fn new(json: bool, directory: &Path, others: Started) -> Self {
        Self {
            json,
            directory: directory.to_owned(),
            others,
            next_progress: None,
            refused: None,
            peers: BTreeMap::new(),
            unsettled: Vec::new(),
            bytes_ended: 0,
        }
    }

    /// `buffer` is what the kernel gives each socket, in bytes.
    pub(super) fn listening(&self, address: SocketAddr, buffer: usize) {
        tracing::info!(%address, directory = %self.directory.display(), buffer, "listening");
        if buffer < RECEIVE_BUFFER {
            tracing::warn!(
                "sockets have {buffer}B of receive buffer, less than the {RECEIVE_BUFFER}B asked for: a fast client loses \
                 messages and sends them again; as root: sysctl net.core.rmem_max={RECEIVE_BUFFER}"
            );
        }
        let metrics = self.others.metrics;
        if let Some(address) = metrics {
            tracing::info!(%address, "metrics");
        }
        let (address, metrics) = (address.to_string(), metrics.map(|address| address.to_string()));
        let listening = json!({
            "event": "listening", "address": address, "receive_buffer": buffer, "metrics": metrics
        });
        self.emit(&listening);
    }

    /// A dump that a dead receiver left.
    pub(super) fn leftover(&mut self, leftover: Leftover) {
        self.end(leftover.into());
    }

    pub(super) fn tell(&mut self, now: Instant, event: &ReceiverEvent<StoredDump>) {
        self.others.counters.count(event);
        match event {
            ReceiverEvent::Opened { session, local, peer } => {
                tracing::info!(%peer, "dump begins");
                self.peers.insert(*session, peer.to_string());
                self.next_progress.get_or_insert(now + PROGRESS);
                let (local, peer) = (local.to_string(), peer.to_string());
                self.emit(
                    &json!({ "event": "opened", "session": session.number(), "peer": peer, "local": local }),
                );
            }
            ReceiverEvent::Resumed { session, peer, bytes, .. } => {
                tracing::info!(%peer, "dump goes on, {} are there", megabytes(*bytes));
                self.peers.insert(*session, peer.to_string());
                self.next_progress.get_or_insert(now + PROGRESS);
                let (session, peer) = (session.number(), peer.to_string());
                self.emit(&json!({ "event": "resumed", "session": session, "peer": peer, "bytes": bytes }));
            }
            ReceiverEvent::Suspended { session } => {
                let peer = self.peers.remove(session);
                tracing::warn!(peer, "dump is left for the next receiver");
                self.emit(&json!({ "event": "suspended", "session": session.number(), "peer": peer }));
            }
            ReceiverEvent::Refused { peer, error } => {
                if self.refused.is_none_or(|told| now >= told + QUIET) {
                    self.refused = Some(now);
                    tracing::error!(%peer, "dump refused: {}", chain(error));
                    let (peer, error) = (peer.to_string(), chain(error));
                    self.emit(&json!({ "event": "refused", "peer": peer, "error": error }));
                }
            }
            ReceiverEvent::Header { session, header } => self.header(*session, header),
            ReceiverEvent::Ended { session, ending, summary, stored } => {
                self.peers.remove(session);
                let stored = stored.clone().map_err(|error| chain(&error));
                let (ending, summary) = (ending.clone(), summary.clone());
                self.end(EndedDump { session: Some(*session), ending, summary, stored });
            }
            ReceiverEvent::Closed { session } => {
                if let Some(peer) = self.peers.remove(session) {
                    tracing::trace!(peer, "nothing came");
                    self.emit(&json!({ "event": "discarded", "session": session.number(), "peer": peer }));
                }
            }
        }
    }

    /// When [`Self::progress`] is due.
    pub(super) fn due<S: DumpStore>(&self, now: Instant, receiver: &Receiver<S>) -> Option<Instant> {
        let progress = self.next_progress.filter(|_| self.json && !receiver.is_settled());
        progress.into_iter().chain((!self.is_settled()).then(|| now + LOOK)).min()
    }

    /// Whether all dumps that have ended have been told of, also to the hook, and that has ended, too.
    pub(super) fn is_settled(&self) -> bool {
        self.unsettled.is_empty() && self.others.hook.as_ref().is_none_or(Hook::is_idle)
    }

    pub(super) fn progress<S: DumpStore>(&mut self, now: Instant, receiver: &Receiver<S>) {
        self.others.counters.observe(receiver, self.bytes_ended);
        for dump in self.unsettled.extract_if(.., |dump| dump.is_settled()).collect::<Vec<_>>() {
            self.ended(&dump);
        }
        if self.next_progress.is_none_or(|due| due > now) {
            return;
        }
        self.next_progress = (!receiver.is_settled()).then(|| now + PROGRESS);
        for (session, peer, bytes) in receiver.progress() {
            let peer = peer.to_string();
            self.emit(
                &json!({ "event": "progress", "session": session.number(), "peer": peer, "bytes": bytes }),
            );
        }
    }

    /// What was ignored in all, once.
    pub(super) fn ending<S: DumpStore>(&self, receiver: &Receiver<S>) {
        let ignored: BTreeMap<_, _> = receiver.ignored().collect();
        if !ignored.is_empty() {
            tracing::info!(?ignored, "datagrams ignored");
        }
    }

    fn header(&self, session: SessionId, header: &HeaderSeen) {
        let (fields, parity) = match header {
            HeaderSeen::Valid(fields) => (Some(fields), "pass"),
            HeaderSeen::BadParity(fields) => (Some(fields), "fail"),
            HeaderSeen::Missing | HeaderSeen::Unreadable { .. } => (None, "fail"),
        };
        let peer = self.peers.get(&session);
        match fields {
            Some(fields) => tracing::trace!(peer, panic = ?fields.panic_string, parity, "dump header"),
            None => tracing::trace!(peer, ?header, "dump header not usable"),
        }
        self.emit(&json!({
            "event": "header",
            "session": session.number(),
            "parity": parity,
            "architecture": fields.map(|fields| &fields.architecture),
            "length": fields.map(|fields| fields.dump_length),
            "host_name": fields.map(|fields| &fields.host_name),
            "version": fields.map(|fields| &fields.version_string),
            "panic": fields.map(|fields| &fields.panic_string),
        }));
    }

    /// Counts a dump that has ended; it is told of when its manifest is made.
    fn end(&mut self, dump: EndedDump) {
        self.others.counters.ended(&dump.ending, &dump.summary);
        self.bytes_ended = self.bytes_ended.saturating_add(dump.summary.bytes);
        self.unsettled.push(dump);
    }

    fn ended(&self, dump: &EndedDump) {
        let EndedDump { ending, summary, stored, .. } = dump;
        let peer = summary.peer;
        let seconds = summary.elapsed.as_secs_f64();
        let sizes = format!(
            "{} in {seconds:.2} s, {:.1} MB/s",
            megabytes(summary.bytes),
            rate(summary.bytes, seconds)
        );
        let holes = summary.gaps.bytes;
        let panic = summary.header.valid().map(|header| header.panic_string.as_str());
        let panic = panic.filter(|text| !text.is_empty());
        if ending.is_complete() {
            tracing::info!(%peer, holes, repeated = summary.repeated, panic, "{ending}: {sizes}");
        } else {
            tracing::warn!(%peer, gaps = summary.gaps.count, missing = holes, "{ending}; received {sizes}");
        }
        if let Err(error) = stored {
            tracing::error!(%peer, error, "the dump could not be kept");
        }
        if let (false, Ok(stored)) = (self.json, stored) {
            print(&stored.core.display().to_string());
        }
        self.emit(&dump.describe());
        if let Some(hook) = &self.others.hook {
            hook.run(dump.run(&self.directory));
        }
    }

    fn emit(&self, event: &Value) {
        if self.json {
            print(&event.to_string());
        }
    }
}

/// A line on standard output. A reader that has gone is no reason to stop receiving.
fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

pub(super) fn chain(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
