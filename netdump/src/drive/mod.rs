//! The one loop that sleeps and reads a clock: joins a [`crate::client::Client`], a [`Link`] and a core, and reports how
//! it went. A core that is sent as it is is hashed, and one that is packed on its way is packed ([`crate::stream`]), by
//! other threads while this one sends.

mod dense;
mod driver;
mod hash;
mod source;

use std::fmt;
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

pub use self::dense::{Dense, Zeros};
use self::driver::Driver;
use self::source::{Source, Stream};
use crate::ReadAt;
use crate::client::{ClientConfig, ConfigError, CorePlan, DumpPlan, Phase};
use crate::ekcd::{DumpKey, DumpKeyError, StreamCipher, SysRng};
use crate::link::Link;
use crate::report::DumpReport;
use crate::stream::backlog::Backlog;
use crate::stream::{self, Packing, StreamError};
use crate::vmcore::KernelDumpHeader;
use crate::vmcore::kdh::Compression;

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

/// A number for [`ClientConfig::dump_id`] that no other dump of this client has, in all likelihood; 0, which is none, if
/// the system has no random numbers.
pub fn random_dump_id() -> u32 {
    getrandom::u32().unwrap_or(0)
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
    let config = named(config);
    if dump.packing.is_plain() {
        return Ok(run_hashing(config, dump, link, control)?);
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
    let driver = Driver::new(config, dump.plan(CorePlan::Growing, block), source, link, control)?;
    Ok(run_packing(dump, cipher, &backlog, driver))
}

/// Runs a dump of a core as it is while other threads hash it. They end together.
fn run_hashing(
    config: ClientConfig,
    dump: &Dump<'_>,
    link: &mut dyn Link,
    control: &mut dyn FnMut(&Progress) -> ControlFlow<String>,
) -> Result<DumpReport, ConfigError> {
    let core = CorePlan::Known { length: dump.image.length(), header: dump.header(0).to_bytes() };
    let work = hash::Work::new(dump.image);
    thread::scope(|scope| {
        let source = Source::Core { image: dump.image, hashing: work.start(scope) };
        Driver::new(config, dump.plan(core, None), source, link, control).map(Driver::run)
    })
}

/// Gives the dump a name of its own, unless it has one: of a dump without a name a receiver takes what is not sent for lost.
fn named(config: ClientConfig) -> ClientConfig {
    match config.dump_id {
        0 => ClientConfig { dump_id: getrandom::u32().unwrap_or(1).max(1), ..config },
        _ => config,
    }
}

/// Runs a dump while another thread packs the core. The two end together.
fn run_packing(
    dump: &Dump<'_>,
    cipher: Option<StreamCipher>,
    backlog: &Backlog,
    driver: Driver<'_>,
) -> DumpReport {
    let compressor = dump.packing.compressor();
    thread::scope(|scope| {
        let packer = thread::Builder::new().name("pack".into());
        let packer = packer.spawn_scoped(scope, || stream::pack(dump.image, compressor, cipher, backlog));
        let packer = packer.map_err(|error| backlog.end(Err(StreamError::Thread(error)))).ok();
        // Also when the caller's own code panics: the packer would wait for room for ever, and the scope for the packer.
        let leaving = AbandonOnDrop(backlog);
        let report = driver.run();
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

#[cfg(test)]
mod tests;
