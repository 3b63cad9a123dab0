//! The dumper: a paused guest becomes a core image, the netdump client sends it over a link, and a report tells how it
//! went. Nothing here keeps a copy of guest memory: the client, or what packs the core for it, reads the image as it goes.

use std::fs::File;
use std::io::BufWriter;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netdump::ReadAt;
use netdump::client::ClientConfig;
use netdump::drive::{self, Dense, Dump, Progress, Zeros};
use netdump::link::LinkError;
use netdump::link::pcap::{PcapFile, PcapWriter};
use netdump::linux::filter::{self, FilteredMemory};
use netdump::report::{DumpReport, Outcome};
use netdump::vmcore::kdh::AMD64_ARCHITECTURE_VERSION;
use netdump::vmcore::{
    CoreNotes, DumpImage, KernelDumpHeader, KernelSymbols, PhysicalMemory, PlanError, StoppedGuest,
};
use thiserror::Error;

use crate::config::{DumpConfig, Target};
use crate::link::{OpenError, OpenLink, TapRoute};
use crate::memory::GuestMemory;
use crate::nic::Nic;
use crate::vm::PausedGuest;

/// How long to wait for another dump of this host that uses the client port, and how often to look.
const PORT_PATIENCE: Duration = Duration::from_secs(600);
const PORT_POLL: Duration = Duration::from_millis(100);

/// What is dumped and where to.
pub(crate) struct Job<'a> {
    /// Options.
    pub(crate) config: &'a DumpConfig,
    /// Where it goes.
    pub(crate) target: &'a Target,
    /// The symbols of the guest's kernel.
    pub(crate) symbols: &'a KernelSymbols,
    /// What the core's own notes tell.
    pub(crate) notes: CoreNotes,
    /// The guest's name.
    pub(crate) host_name: String,
    /// When it panicked, for the dump header, in seconds since 1970.
    pub(crate) time: u64,
    /// The way over a tap that was found good before the guest started.
    pub(crate) route: Option<&'a TapRoute>,
    /// The guest's network card, stopped.
    pub(crate) nic: Option<&'a Nic>,
    /// Whether the user wants the dump to end.
    pub(crate) interrupted: &'a dyn Fn() -> bool,
}

/// A dump that has ended.
#[derive(Debug)]
pub(crate) struct Dumped {
    /// How it went.
    pub(crate) report: DumpReport,
    /// The core's format, when one could be planned.
    pub(crate) format: Option<&'static str>,
    /// What a person should know of the core.
    pub(crate) remarks: Vec<String>,
    /// The core, when the embedded receiver stored it.
    pub(crate) core: Option<PathBuf>,
}

/// Why a dump could not even begin.
#[derive(Debug, Error)]
pub(crate) enum DumpError {
    /// The guest's memory makes no core.
    #[error("planning the core")]
    Plan(#[from] PlanError),
    /// The link cannot be used.
    #[error("opening the link")]
    Link(#[from] OpenError),
    /// Its MTU cannot be asked.
    #[error("asking the link for its MTU")]
    Mtu(#[source] LinkError),
    /// Nobody knows the guest's address.
    #[error(
        "the guest's IPv4 address is not known: give --netdump-client, or set net.dump.client in the guest's kernel \
         environment"
    )]
    NoClient,
    /// It cannot be sent as it is configured.
    #[error(transparent)]
    Run(#[from] drive::RunError),
}

/// Dumps the guest. `watch` is told how far it is and how long the core is, and may stop it with a reason.
///
/// The dump degrades and never fails silently: what cannot even begin is a failed dump in the report.
pub(crate) fn run(
    job: &Job<'_>,
    guest: &PausedGuest<'_>,
    watch: &mut dyn FnMut(&Progress) -> ControlFlow<String>,
) -> Dumped {
    let filtered = filter::for_dump(guest, Some(job.symbols), job.config.filter);
    let (filtered, unfiltered) =
        filtered.map_or_else(|error| (None, Some(error)), |filtered| (filtered, None));
    let memory: &dyn PhysicalMemory = filtered.as_ref().map_or(guest, |filtered| filtered);
    let stopped = StoppedGuest { memory, symbols: Some(job.symbols), notes: &job.notes };
    let core = match job.config.format.plan(&stopped) {
        Ok(mut core) => {
            core.remarks.extend(unfiltered.map(|error| error.to_string()));
            core
        }
        Err(error) => return job.not_begun(&error.into(), 0),
    };
    let counts = filtered.as_ref().map(FilteredMemory::counts);
    counts.iter().for_each(|counts| tracing::info!(level = counts.level, "{counts}"));
    core.remarks.iter().for_each(|remark| tracing::warn!(format = core.format, "{remark}"));
    let length = core.image.length();
    let mut sent = job.send(&core.image, guest, watch).unwrap_or_else(|error| job.not_begun(&error, length));
    sent.report.filter = counts;
    Dumped { format: Some(core.format), remarks: core.remarks, ..sent }
}

impl Job<'_> {
    fn send(
        &self,
        image: &DumpImage<'_>,
        guest: &PausedGuest<'_>,
        watch: &mut dyn FnMut(&Progress) -> ControlFlow<String>,
    ) -> Result<Dumped, DumpError> {
        let memory = guest.guest_memory();
        let mut link = self.open_link(memory)?;
        let config = self.client_config(&mut link)?;
        let (path, header) = (self.target.path.as_deref(), self.header());
        let dense = Dense::new(image);
        // What is packed has no holes anyway.
        let core: &(dyn ReadAt + Sync) = match self.config.zeros {
            Zeros::Send if self.target.packing.is_plain() => &dense,
            _ => image,
        };
        let dump = Dump { path, header: &header, image: core, packing: &self.target.packing };
        let recording = self.config.pcap.as_deref().and_then(recording);
        let mut report = match recording {
            None => drive::run(config, &dump, link.as_link(), watch)?,
            Some(file) => drive::run(config, &dump, &mut PcapWriter::new(link.as_link(), file), watch)?,
        };
        report.bad_pages = image.bad_pages();
        Ok(Dumped { report, format: None, remarks: Vec::new(), core: link.close() })
    }

    /// Opens the link. The udp link's port can be another VMM's on this host, which dumps as well: one failed disk may
    /// panic many guests at once. That one's dump will end.
    fn open_link(&self, memory: &GuestMemory) -> Result<OpenLink, OpenError> {
        let until = Instant::now() + self.config.deadline.unwrap_or(PORT_PATIENCE).min(PORT_PATIENCE);
        let mut told = false;
        loop {
            match OpenLink::open(self.target, self.route, &self.config.crash_dir, memory, self.nic) {
                Err(error) if error.is_port_in_use() && Instant::now() < until && !(self.interrupted)() => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!("another dump of this host uses the client port; waiting for its end");
                    }
                    std::thread::sleep(PORT_POLL);
                }
                opened => return opened,
            }
        }
    }

    fn client_config(&self, link: &mut OpenLink) -> Result<ClientConfig, DumpError> {
        let server = link.server();
        let client = link.client().or(self.target.client).ok_or(DumpError::NoClient)?;
        let wire = link.as_link();
        let mtu = wire.mtu().map_err(DumpError::Mtu)?;
        Ok(ClientConfig {
            server_port: server.port(),
            gateway: self.target.gateway,
            polls: self.config.polls,
            retries: self.config.retries,
            arp_retries: self.config.arp_retries,
            deadline: self.config.deadline,
            window: self.config.window,
            rate: self.config.rate,
            dump_id: drive::random_dump_id(),
            ..ClientConfig::new(*server.ip(), client, wire.mac(), mtu)
        })
    }

    fn header(&self) -> KernelDumpHeader {
        KernelDumpHeader {
            architecture: "amd64".into(),
            architecture_version: AMD64_ARCHITECTURE_VERSION,
            dump_time: self.time,
            host_name: self.host_name.clone(),
            version_string: self.notes.facts.version.clone().unwrap_or_default(),
            panic_string: self.notes.best_panic_text().unwrap_or_default().to_owned(),
            ..KernelDumpHeader::default()
        }
    }

    /// The report of a dump of which nothing was sent.
    fn not_begun(&self, error: &DumpError, length: u64) -> Dumped {
        let reason = format!("{:#}", Chain(error));
        tracing::error!(reason, "the dump cannot begin");
        Dumped {
            report: DumpReport {
                outcome: Outcome::Failed,
                reason: Some(reason),
                server: self.target.server.map_or_else(String::new, |server| server.to_string()),
                path: self.target.path.clone(),
                length,
                missing: vec![(0, length)],
                ..DumpReport::default()
            },
            format: None,
            remarks: Vec::new(),
            core: None,
        }
    }
}

/// The file that frames are recorded in. The dump matters more: without the file it goes on.
fn recording(path: &Path) -> Option<PcapFile<BufWriter<File>>> {
    let created = PcapFile::create(path);
    created.map_err(|error| tracing::warn!(path = %path.display(), %error, "frames are not recorded")).ok()
}

/// An error with its causes, on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
