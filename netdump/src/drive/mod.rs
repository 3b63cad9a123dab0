//! The one loop that sleeps and reads a clock: joins a [`Client`], a [`Link`] and a core, and reports how it went. A core
//! that is packed on its way is packed by other threads ([`crate::stream`]) while this one sends.

mod hash;
mod source;

use std::error::Error;
use std::fmt;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use self::hash::CoreHash;
use self::source::{Source, Stream};
use crate::client::{
    Client, ClientConfig, ClientEvent, ConfigError, CorePlan, DumpPlan, Ending, FailReason, Packet, Phase,
};
use crate::ekcd::{DumpKey, DumpKeyError, StreamCipher, SysRng};
use crate::link::{Link, Received, Sent};
use crate::report::DumpReport;
use crate::stream::backlog::Backlog;
use crate::stream::{self, Packing, StreamError};
use crate::vmcore::KernelDumpHeader;
use crate::vmcore::kdh::Compression;
use crate::{ReadAt, ReadError};

/// How often the caller is told, and asked, at most.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// How long to wait for room on a busy link before trying again.
const BUSY_WAIT: Duration = Duration::from_millis(1);
/// Frames received in a row before sending has its turn.
const RECEIVE_BATCH: usize = 64;
/// Missing ranges that a report lists.
const MAX_MISSING: usize = 1000;

/// How far a dump is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Core bytes that need no more care: acknowledged, or left out as untouched zeros. Of a core that is packed on its
    /// way, the bytes before packing; with zstd they are some MiB ahead.
    pub done: u64,
    /// Bytes of the core, before packing.
    pub total: u64,
    /// Messages sent again so far.
    pub resends: u64,
    /// Time since the start.
    pub elapsed: Duration,
}

/// What is dumped.
#[derive(Clone, Copy)]
pub struct Dump<'a> {
    /// The directory asked for, below the receiver's own.
    pub path: Option<&'a str>,
    /// The header, but for its lengths, block size, compression and key size, which are put in here.
    pub header: &'a KernelDumpHeader,
    /// The core.
    pub image: &'a (dyn ReadAt + Sync),
    /// What becomes of the core on its way.
    pub packing: &'a Packing,
}

/// Why a dump cannot even begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The client refuses what it was given.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no key to encrypt the core with.
    #[error(transparent)]
    Key(#[from] DumpKeyError),
}

/// Sends a dump over `link` and says how it ended; only what can be refused before the first frame is an error.
///
/// `control` is told of the progress ten times a second and at each new phase, and ends the dump by breaking with the
/// reason. Whether the core is gathered from guest memory is the link's to decide, whatever `config` says.
pub fn run(
    config: ClientConfig,
    dump: &Dump<'_>,
    link: &mut dyn Link,
    control: &mut dyn FnMut(&Progress) -> ControlFlow<String>,
) -> Result<DumpReport, RunError> {
    let _span = tracing::info_span!("client", server = %config.server).entered();
    if dump.packing.is_plain() {
        let core = CorePlan::Known { length: dump.image.length(), header: dump.header(0).to_bytes() };
        let source = Source::Core { image: dump.image, hash: CoreHash::new() };
        return Ok(Drive::new(config, dump.plan(core, None), source, link, control)?.run());
    }
    let (block, cipher) = dump.key()?.map(|key| (key.block, key.stream)).unzip();
    let backlog = Backlog::default();
    let source = Source::Stream(Stream {
        backlog: &backlog,
        packing: dump.packing,
        header: dump.header(block.as_ref().map_or(0, Vec::len)),
        total: dump.image.length(),
        end: None,
        told: 0,
    });
    let drive = Drive::new(config, dump.plan(CorePlan::Growing, block), source, link, control)?;
    Ok(run_packing(dump, cipher, &backlog, drive))
}

/// Runs a dump while another thread packs the core. The two end together.
fn run_packing(
    dump: &Dump<'_>,
    cipher: Option<StreamCipher>,
    backlog: &Backlog,
    drive: Drive<'_>,
) -> DumpReport {
    let compressor = dump.packing.compressor();
    thread::scope(|scope| {
        let packer = thread::Builder::new().name("pack".into());
        let packer = packer.spawn_scoped(scope, || stream::pack(dump.image, compressor, cipher, backlog));
        let packer = packer.map_err(|error| backlog.end(Err(StreamError::Thread(error)))).ok();
        // Also when the caller's own code panics: the packer would wait for room for ever, and the scope for the packer.
        let leaving = AbandonOnDrop(backlog);
        let report = drive.run();
        drop(leaving);
        // That it panicked, it has told the backlog, and thus the report.
        let _ = packer.map(thread::ScopedJoinHandle::join);
        report
    })
}

/// The driver's end of a backlog.
struct AbandonOnDrop<'a>(&'a Backlog);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Dump<'_> {
    fn plan(&self, core: CorePlan, key: Option<Vec<u8>>) -> DumpPlan {
        DumpPlan { path: self.path.map(str::to_owned), core, key }
    }

    /// A fresh key for a core that is encrypted.
    fn key(&self) -> Result<Option<DumpKey>, DumpKeyError> {
        let encryption = self.packing.encryption();
        encryption.map(|with| DumpKey::generate(&with.public_key, with.cipher, &mut SysRng)).transpose()
    }

    /// The header with everything that is known before the core is packed.
    fn header(&self, key_len: usize) -> KernelDumpHeader {
        let length = self.image.length();
        KernelDumpHeader {
            dump_length: length,
            dump_extent: length,
            block_size: stream::BLOCK_SIZE,
            compression: self.packing.compressor().map_or(Compression::None, |used| used.method.into()),
            key_size: u32::try_from(key_len).expect("a key block has a few KiB"),
            ..self.header.clone()
        }
    }
}

impl fmt::Debug for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dump")
            .field("path", &self.path)
            .field("packing", &self.packing)
            .finish_non_exhaustive()
    }
}

struct Drive<'a> {
    client: Client,
    source: Source<'a>,
    link: &'a mut dyn Link,
    control: &'a mut dyn FnMut(&Progress) -> ControlFlow<String>,
    path: Option<String>,
    started: Instant,
    /// When the caller was told last.
    told: Option<Instant>,
    /// The frame to send, and to keep while the link is busy.
    outgoing: Packet,
    /// Whether the link has not taken it yet.
    is_pending: bool,
    incoming: Received,
    ending: Option<Ending>,
}

impl<'a> Drive<'a> {
    fn new(
        config: ClientConfig,
        plan: DumpPlan,
        source: Source<'a>,
        link: &'a mut dyn Link,
        control: &'a mut dyn FnMut(&Progress) -> ControlFlow<String>,
    ) -> Result<Self, ConfigError> {
        let started = Instant::now();
        let path = plan.path.clone();
        Ok(Self {
            client: Client::new(ClientConfig { offloads: link.offloads(), ..config }, plan, started)?,
            source,
            link,
            control,
            path,
            started,
            told: None,
            outgoing: Packet::default(),
            is_pending: false,
            incoming: Received::default(),
            ending: None,
        })
    }

    fn run(mut self) -> DumpReport {
        let ending = self.until_closed();
        self.report(&ending)
    }

    fn until_closed(&mut self) -> Ending {
        loop {
            let now = Instant::now();
            self.client.handle_timeout(now);
            self.source.update(&mut self.client);
            self.send_all(now);
            self.take_events(now);
            if self.told.is_none_or(|told| now - told >= TELL_EVERY) {
                self.tell(now);
                self.take_events(now);
            }
            if let Some(ending) = self.ending.take() {
                return ending;
            }
            self.receive_all(now);
        }
    }

    /// Sends until the client has nothing more or the link no room.
    fn send_all(&mut self, now: Instant) {
        loop {
            if !self.is_pending {
                match self.next_frame(now) {
                    Ok(true) => self.is_pending = true,
                    Ok(false) => return,
                    Err(error) => return self.client.abort(FailReason::Read(error)),
                }
            }
            match self.link.send(&self.outgoing.frame()) {
                Ok(Sent::Yes) => self.is_pending = false,
                Ok(Sent::Busy) => return,
                Err(source) => {
                    return self.client.abort(FailReason::Link { phase: self.client.phase(), source });
                }
            }
        }
    }

    /// Puts the client's next frame into `outgoing`; whether there is one.
    fn next_frame(&mut self, now: Instant) -> Result<bool, ReadError> {
        let Some(transmit) = self.client.poll_transmit(now, self.source.bytes(), &mut self.outgoing)? else {
            return Ok(false);
        };
        tracing::trace!(?transmit, "send");
        self.source.note(&transmit)?;
        Ok(true)
    }

    /// Waits for a frame until the client or the caller wants to act, then takes what else has come.
    fn receive_all(&mut self, now: Instant) {
        let client = self.client.poll_timeout().map_or(TELL_EVERY, |at| at.saturating_duration_since(now));
        let caller = self.told.map_or(TELL_EVERY, |told| (told + TELL_EVERY).saturating_duration_since(now));
        let link = if self.is_pending { BUSY_WAIT } else { TELL_EVERY };
        let mut wait = self.source.wait(&self.client, client.min(caller).min(link));
        for _ in 0..RECEIVE_BATCH {
            match self.link.receive(&mut self.incoming, wait) {
                Ok(true) => {
                    let taken = self.client.handle(Instant::now(), &self.incoming);
                    tracing::trace!(len = self.incoming.bytes.len(), ?taken, "received");
                    wait = Duration::ZERO;
                }
                Ok(false) => return,
                Err(source) => {
                    return self.client.abort(FailReason::Link { phase: self.client.phase(), source });
                }
            }
        }
    }

    fn take_events(&mut self, now: Instant) {
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Resolved { hop, mac } => tracing::debug!(?hop, %mac, "next hop"),
                ClientEvent::Accepted { port } => {
                    tracing::info!(port, bytes = self.source.total(), "dump accepted")
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
        self.told = Some(now);
        let progress = Progress {
            phase: self.client.phase(),
            done: self.source.settled(&self.client),
            total: self.source.total(),
            resends: self.client.stats().resends,
            elapsed: now - self.started,
        };
        if let ControlFlow::Break(why) = (self.control)(&progress) {
            self.client.abort(FailReason::Stopped { phase: progress.phase, why });
        }
    }

    fn report(self, ending: &Ending) -> DumpReport {
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
            ignored: stats.ignored.iter().map(|(reason, count)| (reason.to_string(), count)).collect(),
            bad_pages: 0,
            seconds: self.started.elapsed().as_secs_f64(),
        };
        let DumpReport { outcome, bytes_sent, resends, seconds, .. } = &report;
        let reason = report.reason.as_deref().unwrap_or("all acknowledged");
        tracing::info!(?outcome, reason, bytes_sent, resends, seconds, "dump ended");
        report
    }
}

/// An error and its causes in one line.
fn with_causes(error: &dyn Error) -> String {
    std::iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
mod tests;
