//! `netdump send`: a file as a dump, over the host's own UDP sockets.

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use netdump::ReadAt;
use netdump::client::{ClientConfig, WindowChoice, parse_rate};
use netdump::drive::{self, Dense, Dump};
use netdump::ekcd::Cipher;
use netdump::link::pcap::PcapFile;
use netdump::link::{Link, PcapWriter, UdpLink};
use netdump::linux::filter::DumpFilter;
use netdump::progress::{ProgressStyle, Reporter};
use netdump::report::{DumpReport, Outcome};
use netdump::stream::{CompressOption, Packing};
use netdump::vmcore::kdh::AMD64_ARCHITECTURE_VERSION;
use netdump::vmcore::{self, CoreFile, KernelDumpHeader};
use netdump::wire::CLIENT_PORT;

use super::signals::Signals;
use super::{Exit, convert};

/// Send a file as a dump: to try a receiver, ours or another, without a virtual machine.
#[derive(Debug, Args)]
pub(super) struct Send {
    /// The core, or any file.
    file: PathBuf,
    /// The receiver.
    #[arg(long, value_name = "IP[:PORT]", value_parser = super::socket_address)]
    server: SocketAddrV4,
    /// Directory to ask for, below the receiver's.
    #[arg(long)]
    path: Option<String>,
    /// Address to send from.
    #[arg(long, value_name = "IP")]
    client: Option<Ipv4Addr>,
    /// Port to send from. A stock netdumpd acknowledges to 20024 only.
    #[arg(long, value_name = "PORT", default_value_t = CLIENT_PORT)]
    client_port: u16,
    /// Name of the host in the dump's header; else the core's own, if it tells one.
    #[arg(long, value_name = "HOST")]
    name: Option<String>,
    /// Send the core in another format, such as elf or kdump.
    #[arg(long, value_name = "NAME", value_parser = dump_format())]
    dump_format: Option<&'static str>,
    /// Leave out of a Linux guest's core: zero, free, cache and user pages, separated by commas, or makedumpfile's
    /// number for it.
    #[arg(long, value_name = "LIST|0-31")]
    dump_filter: Option<DumpFilter>,
    /// Compress the core: gzip or zstd, with a level as in zstd:3 (6 otherwise).
    #[arg(long, value_name = "NAME[:LEVEL]")]
    compress: Option<CompressOption>,
    /// Encrypt the core for the holder of the private key: an RSA public key in PEM.
    #[arg(long, value_name = "FILE")]
    pubkey: Option<PathBuf>,
    /// What encrypts it: chacha20 (otherwise) or aes-cbc, which cannot be used with --compress.
    #[arg(long, value_name = "NAME", requires = "pubkey", value_parser = cipher())]
    cipher: Option<Cipher>,
    /// Record what is sent and received.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Write a JSON report, for `netdump verify`.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// How long one try waits for its acknowledgement, in units of 0.5 ms.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    polls: u32,
    /// How often a message is sent again before the dump fails.
    #[arg(long, value_name = "N", default_value_t = 10)]
    retries: u32,
    /// The longest that the whole dump may take.
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
    /// Most messages on their way, or `classic`: FreeBSD's own, which waits after each 64 KiB [default: 16384, and no
    /// more than path and receiver bear].
    #[arg(long, value_name = "N|classic", default_value_t, hide_default_value = true)]
    window: WindowChoice,
    /// Most bytes to send in a second, frames with their headers, such as 500M; K, M and G are 10^3, 10^6 and 10^9.
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate: Option<NonZeroU64>,
    /// Send zeros like everything else, for a receiver whose storage does not read as zeros where nothing was written.
    #[arg(long, conflicts_with_all = ["compress", "pubkey"])]
    send_zeros: bool,
    /// Events as JSON, a line each, on standard output.
    #[arg(long)]
    json: bool,
}

impl Send {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let file = &self.file;
        let core = CoreFile::open(file).with_context(|| format!("reading {}", file.display()))?;
        ensure!(core.length() > 0, "{} is empty: there is nothing to send", file.display());
        let signals = Signals::take().context("preparing to be interrupted")?;

        let local = SocketAddrV4::new(self.client.unwrap_or(Ipv4Addr::UNSPECIFIED), self.client_port);
        let link = UdpLink::open(self.server, Some(local)).context("opening a socket")?;
        let config = ClientConfig {
            server_port: self.server.port(),
            client_port: link.local_port(),
            polls: self.polls,
            retries: self.retries,
            deadline: self.deadline.map(Duration::from_secs),
            window: self.window,
            rate: self.rate,
            dump_id: drive::random_dump_id(),
            ..ClientConfig::new(*self.server.ip(), link.local_ip(), link.mac(), link.mtu()?)
        };
        let packing = Packing::from_options(self.compress, self.pubkey.as_deref(), self.cipher)?;
        let header = self.header();
        let opened = match self.dump_format.is_some() || self.dump_filter.is_some() {
            true => Some(vmcore::open(file).with_context(|| format!("reading {}", file.display()))?),
            false => None,
        };
        let source = opened.as_ref().map(|core| convert::Source::new(core, self.dump_filter)).transpose()?;
        let planned = source.as_ref().map(|source| source.plan(self.dump_format)).transpose()?;
        let core: &(dyn ReadAt + Sync) = planned.as_ref().map_or(&core, |planned| &planned.image);
        let dense = Dense::new(core);
        let image: &(dyn ReadAt + Sync) = if self.send_zeros { &dense } else { core };
        let dump = Dump { path: self.path.as_deref(), header: &header, image, packing: &packing };

        let mut reporter = Reporter::new(match self.json {
            true => ProgressStyle::Json,
            false if std::io::stderr().is_terminal() => ProgressStyle::Bar,
            false => ProgressStyle::Lines,
        });
        let mut control = |progress: &drive::Progress| {
            reporter.update(progress);
            match signals.received() {
                Some(signal) => ControlFlow::Break(format!("stopped by {signal}")),
                None => ControlFlow::Continue(()),
            }
        };
        let mut report = match &self.pcap {
            None => send_over(link, config, &dump, &mut control),
            Some(path) => {
                let pcap =
                    PcapFile::create(path).with_context(|| format!("recording to {}", path.display()))?;
                send_over(PcapWriter::new(link, pcap), config, &dump, &mut control)
            }
        }?;
        report.filter = source.as_ref().and_then(convert::Source::counts);
        reporter.finish(&report);
        if let Some(path) = &self.report {
            write_report(path, &report).with_context(|| format!("writing the report {}", path.display()))?;
        }
        Ok(Exit::when(report.outcome == Outcome::Complete))
    }

    /// What the core says of itself, as far as it is one that can be read.
    fn header(&self) -> KernelDumpHeader {
        let known = vmcore::inspect(&self.file, None).ok();
        let guest = known.as_ref().map(|core| &core.guest);
        let panic = known.as_ref().map(|core| &core.panic);
        let now =
            || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let architecture = architecture(&self.file);
        KernelDumpHeader {
            architecture: architecture.name.into(),
            architecture_version: architecture.version,
            dump_time: panic.and_then(|panic| panic.time).unwrap_or_else(now),
            host_name: (self.name.clone())
                .or_else(|| guest.and_then(|guest| guest.host_name.clone()))
                .unwrap_or_default(),
            version_string: guest.and_then(|guest| guest.version.clone()).unwrap_or_default(),
            panic_string: panic.and_then(|panic| panic.text.clone()).unwrap_or_default(),
            ..KernelDumpHeader::default()
        }
    }
}

fn dump_format() -> impl TypedValueParser<Value = &'static str> {
    let names = PossibleValuesParser::new(vmcore::ALL.iter().map(|format| format.name()));
    names.map(|name| vmcore::format(&name).expect("it is one of their names").name())
}

fn cipher() -> impl TypedValueParser<Value = Cipher> {
    let names = PossibleValuesParser::new(Cipher::ALL.map(Cipher::name));
    names.map(|name| Cipher::by_name(&name).expect("it is one of their names"))
}

fn send_over<L: Link>(
    mut link: L,
    config: ClientConfig,
    dump: &Dump<'_>,
    control: &mut dyn FnMut(&drive::Progress) -> ControlFlow<String>,
) -> anyhow::Result<DumpReport> {
    Ok(drive::run(config, dump, &mut link, control)?)
}

/// The report in the shape that `netdump verify` reads: as part of an object, like the VMM's.
fn write_report(path: &Path, report: &DumpReport) -> anyhow::Result<()> {
    let mut file = std::fs::File::create(path)?;
    serde_json::to_writer_pretty(&mut file, &serde_json::json!({ "dump": report }))?;
    writeln!(file)?;
    Ok(())
}

/// FreeBSD's `MACHINE_ARCH`, with the version of that architecture's core layout.
struct Architecture {
    name: &'static str,
    version: u32,
}

const AMD64: Architecture = Architecture { name: "amd64", version: AMD64_ARCHITECTURE_VERSION };

/// By the machine of an ELF file; what is none, or of a machine not listed here, is taken for amd64.
fn architecture(file: &Path) -> Architecture {
    let head = CoreFile::open(file).and_then(|file| file.read_up_to(0, 20)).unwrap_or_default();
    let machine = match head.as_slice() {
        [0x7f, b'E', b'L', b'F', _, 1, .., low, high] if head.len() == 20 => {
            u16::from_le_bytes([*low, *high])
        }
        _ => return AMD64,
    };
    match machine {
        3 => Architecture { name: "i386", version: 2 },
        183 => Architecture { name: "aarch64", version: 1 },
        243 => Architecture { name: "riscv64", version: 1 },
        _ => AMD64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architecture_is_that_of_the_elf_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let with = |machine: u8| {
            let mut head = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\0\0";
            head[18] = machine;
            std::fs::write(file.path(), head).unwrap();
            architecture(file.path()).name
        };
        assert_eq!([62, 3, 183, 243, 99].map(with), ["amd64", "i386", "aarch64", "riscv64", "amd64"]);
        std::fs::write(file.path(), "text").unwrap();
        assert_eq!(architecture(file.path()).name, "amd64");
    }
}
