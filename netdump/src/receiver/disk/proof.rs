//! The manifest of a dump that has ended: the stored core is read back and hashed.
//!
//! That happens after FINISHED is acknowledged. The guest does not wait for it, no transfer shares its core with a hash,
//! and what is proven is the file, not a buffer that once had the same bytes. One thread with low priority does it for all
//! dumps of a store, one after the other, each with as many helpers as there are cores.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use super::dump::Origin;
use super::files::{Files, Settled};
use super::journal::Journal;
use crate::calendar::rfc3339;
use crate::digest_file::digest_of;
use crate::manifest::{self, ClientFacts, GapList, HeaderFacts, Manifest, StoredKey};
use crate::receiver::summary::{DumpSummary, Ending};
use crate::vmcore::CoreFile;

/// How much lower than the receiver's own this work's priority is, as in nice(1).
const NICE: i32 = 10;
/// Longest key that is hashed: more than a session takes.
const MAX_KEY: usize = 1 << 20;

/// What becomes of the proof of a dump; clones tell of the same one.
#[derive(Debug, Clone, Default)]
pub struct Proof(Arc<OnceLock<Result<Proven, Arc<io::Error>>>>);

/// A dump with a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// Where it is.
    pub manifest: PathBuf,
    /// Root of the core's digest in hexadecimal; a core that is too long has none.
    pub digest: Option<String>,
}

impl PartialEq for Proof {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Proof {}

impl Proof {
    /// `None` as long as the core is being read.
    pub fn outcome(&self) -> Option<&Result<Proven, Arc<io::Error>>> {
        self.0.get()
    }
}

/// A dump that has ended.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) files: Arc<Files>,
    /// What they are called now.
    pub(super) names: Settled,
    pub(super) summary: DumpSummary,
    pub(super) ending: Ending,
    pub(super) origin: Origin,
    pub(super) ended: SystemTime,
    /// Removed when all is done.
    pub(super) journal: Journal,
    pub(super) promise: Promise,
}

/// Keeps those who look at a proof from waiting for ever.
#[derive(Debug, Default)]
pub(super) struct Promise(Proof);

impl Promise {
    pub(super) fn proof(&self) -> Proof {
        self.0.clone()
    }

    fn keep(&self, outcome: io::Result<Proven>) {
        let _ = self.0.0.set(outcome.map_err(Arc::new));
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.keep(Err(io::Error::other("the thread that makes manifests has failed")));
    }
}

/// The thread that proves. Dropped, it first does what it was asked for.
#[derive(Debug, Default)]
pub(super) struct Prover(Mutex<Option<(Sender<Job>, JoinHandle<()>)>>);

impl Prover {
    /// Orders a proof. Without a thread for it, it is made at once.
    pub(super) fn order(&self, job: Job) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none() {
            let (orders, waiting) = channel::<Job>();
            let thread = std::thread::Builder::new().name("netdump-proof".into()).spawn(move || {
                // Without the right to that, which a system may well withhold, it is done as fast.
                let _ = rustix::process::nice(NICE);
                waiting.iter().for_each(Job::run);
            });
            *running = thread.ok().map(|thread| (orders, thread));
        }
        match &*running {
            Some((orders, _)) => {
                if let Err(refused) = orders.send(job) {
                    refused.0.run();
                }
            }
            None => job.run(),
        }
    }
}

impl Drop for Prover {
    fn drop(&mut self) {
        let running = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((orders, thread)) = running {
            drop(orders);
            let _ = thread.join();
        }
    }
}

impl Job {
    fn run(self) {
        let made = self.manifest().and_then(|manifest| {
            let path = self.files.put_manifest(self.names.complete, |file| write(file, &manifest))?;
            Ok(Proven { manifest: path, digest: manifest.digest.map(|digest| digest.root_hex()) })
        });
        if let Err(error) = &made {
            let core = self.files.directory.path_of(&self.names.core);
            tracing::warn!(core = %core.display(), %error, "the dump has no manifest");
        }
        self.journal.remove(&self.files.directory);
        self.promise.keep(made);
    }

    fn manifest(&self) -> io::Result<Manifest> {
        let core = CoreFile::of(self.files.core.try_clone()?)?;
        let digest = digest_of(&core, &mut |_, _| {})?;
        let summary = &self.summary;
        let no_digest = digest.is_none().then(|| "the core is longer than 4 TiB".to_owned());
        Ok(Manifest {
            manifest: manifest::VERSION,
            receiver: concat!("netdump ", env!("CARGO_PKG_VERSION")).to_owned(),
            core: self.names.core.clone(),
            info: self.names.info.clone(),
            key: self.key().transpose()?,
            complete: self.names.complete,
            ending: self.ending.to_string(),
            length: core.length(),
            digest,
            no_digest,
            gaps: GapList::from(&summary.gaps),
            bytes: summary.bytes,
            messages: summary.messages,
            repeated: summary.repeated,
            ignored: summary.ignored,
            resumed: summary.resumed,
            began: rfc3339(self.origin.began),
            ended: rfc3339(self.ended),
            seconds: summary.elapsed.as_secs_f64(),
            bytes_per_second: manifest::rate(summary),
            client: ClientFacts {
                address: summary.peer,
                name: self.files.host.clone(),
                local: summary.local,
                path: self.origin.path.clone(),
            },
            header: HeaderFacts::of(&summary.header),
        })
    }

    fn key(&self) -> Option<io::Result<StoredKey>> {
        let (file, key) = (self.names.key.clone()?, self.files.key.get()?);
        let read = key.try_clone().and_then(CoreFile::of).and_then(|key| key.read_up_to(0, MAX_KEY));
        Some(read.map(|bytes| StoredKey {
            file,
            length: bytes.len() as u64,
            blake3: blake3::hash(&bytes).to_hex().to_string(),
        }))
    }
}

fn write(file: &File, manifest: &Manifest) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(1 << 16, file);
    serde_json::to_writer_pretty(&mut out, manifest)?;
    out.write_all(b"\n")?;
    out.flush()
}
