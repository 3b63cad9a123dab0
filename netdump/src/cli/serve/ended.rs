//! Dumps that have ended: they are told of, and the hook runs, when their manifests are made.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use netdump::manifest::HeaderFacts;
use netdump::receiver::{DumpSummary, Ending, Leftover, SessionId, StoreError, StoredDump};
use serde_json::{Value, json};

use super::hook::{self, Run};
use super::telling::chain;

/// A dump that has ended.
#[derive(Debug)]
pub(super) struct EndedDump {
    /// Its session; a dump that a dead receiver left has none.
    pub(super) session: Option<SessionId>,
    pub(super) ending: Ending,
    pub(super) summary: Box<DumpSummary>,
    /// Where it is, or why it could not be kept.
    pub(super) stored: Result<StoredDump, String>,
}

impl From<Leftover> for EndedDump {
    fn from(Leftover { ending, summary, stored }: Leftover) -> Self {
        let stored = stored.map_err(|error: StoreError| chain(&error));
        Self { session: None, ending, summary: Box::new(summary), stored }
    }
}

impl EndedDump {
    /// Whether its manifest is there, or will never be.
    pub(super) fn is_settled(&self) -> bool {
        self.stored.as_ref().map_or(true, |stored| stored.proof.outcome().is_some())
    }

    /// All that is known of it.
    pub(super) fn describe(&self) -> Value {
        let Self { session, ending, summary, stored } = self;
        let stored = stored.as_ref().ok();
        let proven = stored.and_then(|stored| stored.proof.outcome()).and_then(|proven| proven.as_ref().ok());
        let path = |path: &PathBuf| path.display().to_string();
        json!({
            "event": "ended",
            "session": session.map(SessionId::number),
            "peer": summary.peer.to_string(),
            "complete": ending.is_complete(),
            "ending": ending.to_string(),
            "core": stored.map(|stored| path(&stored.core)),
            "info": stored.map(|stored| path(&stored.info)),
            "key": stored.and_then(|stored| stored.key.as_ref()).map(path),
            "manifest": proven.map(|proven| path(&proven.manifest)),
            "digest": proven.and_then(|proven| proven.digest.as_ref()),
            "bytes": summary.bytes,
            "length": summary.length,
            "gaps": { "count": summary.gaps.count, "bytes": summary.gaps.bytes },
            "messages": summary.messages,
            "repeated": summary.repeated,
            "resumed": summary.resumed,
            "ignored": summary.ignored,
            "seconds": summary.elapsed.as_secs_f64(),
            "header": HeaderFacts::of(&summary.header),
        })
    }

    /// What the hook is told, its paths relative to the store's `directory`.
    pub(super) fn run(&self, directory: &Path) -> Run {
        let relative = |path: &Path| path.strip_prefix(directory).unwrap_or(path).to_owned();
        let stored = self.stored.as_ref().ok();
        let client = *self.summary.peer.ip();
        Run {
            reason: hook::reason(&self.ending),
            client,
            host: stored.and_then(|stored| host(&stored.info)).unwrap_or_else(|| unnamed(client)),
            info: stored.map(|stored| relative(&stored.info)).unwrap_or_default(),
            core: stored.map(|stored| relative(&stored.core)).unwrap_or_default(),
            description: self.describe().to_string(),
        }
    }
}

/// HOST of `info.HOST.N`.
fn host(info: &Path) -> Option<String> {
    let name = info.file_name()?.to_str()?.strip_prefix("info.")?;
    Some(name.rsplit_once('.')?.0.to_owned())
}

fn unnamed(client: Ipv4Addr) -> String {
    client.to_string()
}
