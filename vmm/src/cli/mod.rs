//! The command line: its options, and what they start. What clap can refuse by itself (exit code 2) it does, by the types'
//! parsers.

mod configure;
mod values;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use netdump::client::{WindowChoice, parse_rate};
use netdump::ekcd::Cipher;
use netdump::linux::filter::DumpFilter;
use netdump::stream::CompressOption;
use netdump::vmcore::{AUTO, FormatChoice};
use netdump::wire::MacAddr;
use vmm::boot::{Handover, KernelImage, ModuleSpec};
use vmm::boot_disk::{self, BootDisk};
use vmm::config::{Cidr, parse_server};
use vmm::devices::virtio::blk::{Access, DiskSpec};
use vmm::image::boot::Wishes;
use vmm::link::LinkSpec;
use vmm::machine::{self, Host};
use vmm::memory::MemorySize;
use vmm::nic::DEFAULT_MAC;
use vmm::panic::{SourceName, watcher};
use vmm::sys::interface::InterfaceName;
use vmm::vm::MAX_CPUS;
use vmm::x86_64::cpu_mask::MaskWord;

use self::configure::{check_combinations, check_outputs, dump_config, vm_config};
use self::values::{
    Boot, boot_help, boot_protocol, cipher, dump_format, path, seconds, sources_help, unicast, variable,
};
use crate::bench::Bench;
use crate::inspect_image::InspectImageOptions;
use crate::show::{Json, Text};

/// Runs guests on KVM and dumps their memory when their kernels panic.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a guest; when its kernel panics, send its memory to a netdump receiver.
    Run(Box<RunOptions>),
    /// Boot a built-in guest that panics, receive its dump in this process, verify it and show a report.
    Demo(DemoOptions),
    /// Show what is on a disk image, and what `run` would boot from it.
    InspectImage(InspectImageOptions),
    /// Measure what a start costs.
    #[command(subcommand)]
    Bench(Bench),
}

/// Options of `vmm demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// Guest RAM.
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub(crate) memory: MemorySize,
    /// Where the core goes.
    #[arg(long, value_name = "DIR", default_value = "crash")]
    pub(crate) crash_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    /// What to boot: a disk image (raw or qcow2) with a FreeBSD or Linux system; or a kernel: a Linux bzImage, a
    /// FreeBSD/amd64 kernel, or another 64-bit x86 ELF file with a PVH entry.
    image: PathBuf,
    /// Leave the disk image as it is: what the guest writes goes to a temporary file and is gone in the end.
    #[arg(long)]
    overlay: bool,
    /// Path in the disk image of the kernel to boot, for the one that its system would boot.
    #[arg(long, value_name = "PATH")]
    kernel: Option<String>,

    /// How to start it; auto takes the first that fits.
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = boot_protocol, long_help = boot_help())]
    boot: Boot,

    /// Guest RAM, in whole MiB.
    #[arg(long, short, value_name = "SIZE", default_value = "256M")]
    memory: MemorySize,
    /// vCPUs.
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_CPUS)))]
    cpus: u8,
    /// CPU features to hide from the guest, by their names in Linux's /proc/cpuinfo, separated by commas; a plus sign
    /// shows one that is hidden by default, which is la57 (five-level paging).
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    cpu_mask: Vec<MaskWord>,
    /// Kernel command line, in place of a disk image's own. For FreeBSD: boot flags such as -v, and variables of the
    /// kernel environment.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// More of the command line, behind --cmdline or a disk image's own.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// Variable of the kernel environment; may be given again.
    #[arg(long = "kernel-env", visible_alias = "kenv", value_name = "NAME=VALUE", value_parser = variable)]
    kernel_env: Vec<(String, String)>,
    /// Kernel module for a FreeBSD kernel, or any file with its type (such as root.img:md_image); may be given again.
    #[arg(long = "module", value_name = "FILE[:TYPE]")]
    modules: Vec<ModuleSpec>,
    /// A Linux kernel's first root file system (initramfs), in place of a disk image's own.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Host tap behind the guest's network interface; created if absent.
    #[arg(long, value_name = "NAME")]
    tap: Option<InterfaceName>,
    /// The guest's Ethernet address.
    #[arg(long, value_name = "MAC", default_value_t = DEFAULT_MAC, value_parser = unicast)]
    mac: MacAddr,
    /// How the guest finds its virtio devices [default: pci for Linux and for a FreeBSD kernel without virtio-mmio, else
    /// mmio].
    #[arg(long, value_enum, value_name = "TRANSPORT")]
    virtio: Option<VirtioOption>,
    /// Disk: a raw or qcow2 image or a block device; with `,ro` the guest may only read it, with `,overlay` what it
    /// writes goes to a temporary file (always so with qcow2); may be given again.
    #[arg(long = "disk", value_name = "FILE[,ro|,overlay]")]
    disks: Vec<DiskSpec>,
    /// The kernel's symbols, when the image is stripped: its unstripped twin, or its .debug file.
    #[arg(long, value_name = "FILE")]
    symbols: Option<PathBuf>,
    /// What follows a panic.
    #[arg(long, value_enum, default_value_t = OnPanicOption::Exit)]
    on_panic: OnPanicOption,
    /// Exit (with code 0) when the guest resets itself, instead of booting it again.
    #[arg(long)]
    no_reboot: bool,

    #[command(flatten)]
    panic: PanicOptions,
    #[command(flatten)]
    netdump: NetdumpOptions,
    #[command(flatten)]
    output: OutputOptions,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Seeing a panic")]
struct PanicOptions {
    /// Panic sources to use, separated by commas; all by default.
    #[arg(long = "panic-source", value_name = "NAME", value_delimiter = ',', long_help = sources_help())]
    sources: Vec<SourceName>,
    /// Dump although the guest's own crash kernel takes over (as pvpanic or its memory tells), or a FreeBSD guest has a
    /// dump device of its own. Without this such a guest is dumped only if it ends without having dumped, or on SIGUSR1.
    #[arg(long)]
    ignore_crashloaded: bool,
    /// Milliseconds that a panicked kernel may take to finish its message, to stop its other CPUs and to print where it
    /// panicked, before it is paused; it is as soon as it has [default: 250 for FreeBSD; 10000 for Linux, and no more than
    /// 2000 in which nothing changes].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u16))]
    panic_settle: Option<u16>,
    /// Dump after so many seconds, for a guest that hangs.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    dump_after: Option<Duration>,
    /// Dump a guest of which no vCPU makes progress for so many seconds: each is halted or spins with interrupts off.
    /// It gets an NMI first. A guest that is idle or busy is left alone.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    watchdog: Option<Duration>,
    /// Show the guest Hyper-V in place of KVM: a Linux guest then reports a panic, without a driver, to Hyper-V's crash
    /// registers. It costs the guest kvmclock and KVM's other paravirtual features.
    #[arg(long)]
    hyperv_crash: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Dumping")]
struct NetdumpOptions {
    /// netdump receiver; else the guest's net.dump.server, else an embedded receiver stores the core.
    #[arg(long = "netdump-server", value_name = "IP[:PORT]", value_parser = parse_server)]
    server: Option<SocketAddrV4>,
    /// The guest's address; else net.dump.client, else the one last seen on its network interface.
    #[arg(long = "netdump-client", value_name = "IP")]
    client: Option<Ipv4Addr>,
    /// Gateway for a server that does not answer ARP; else net.dump.gateway.
    #[arg(long = "netdump-gateway", value_name = "IP")]
    gateway: Option<Ipv4Addr>,
    /// Directory below the receiver's; else net.dump.path or net.netdump.path.
    #[arg(long = "netdump-path", value_name = "PATH", value_parser = path)]
    path: Option<String>,
    /// Do not dump.
    #[arg(long)]
    no_netdump: bool,
    /// How frames travel: tap, tap:NAME, virtio, udp or embedded. By default the guest's own tap if it has one, else
    /// udp; embedded without a server.
    #[arg(long = "netdump-link", value_name = "LINK")]
    link: Option<LinkSpec>,
    /// Whether the guest's kernel environment has a say in where its dump goes.
    #[arg(long, value_enum, default_value_t = GuestEnvOption::Read)]
    guest_env: GuestEnvOption,
    /// Servers that a guest may ask for; may be given again; any by default (none with the udp link).
    #[arg(long, value_name = "CIDR")]
    allow_server: Vec<Cidr>,
    /// Core format; `auto` takes what the guest's own debuggers expect.
    #[arg(long, value_name = "NAME", default_value = AUTO, value_parser = dump_format)]
    dump_format: FormatChoice,
    /// What a Linux guest's dump leaves out: zero, free, cache and user pages, separated by commas, or makedumpfile's
    /// number for it. Where the guest's kernel does not tell its pages apart, nothing is.
    #[arg(long, value_name = "LIST|0-31", default_value = "0", hide_default_value = true)]
    dump_filter: DumpFilter,
    /// Compress the core: gzip or zstd, with a level as in zstd:3; else the guest's kern.kerneldump_gzlevel, else 6.
    #[arg(long, value_name = "NAME[:LEVEL]")]
    dump_compress: Option<CompressOption>,
    /// Encrypt the core for the holder of the private key: an RSA public key in PEM.
    #[arg(long, value_name = "FILE")]
    dump_pubkey: Option<PathBuf>,
    /// What encrypts it: chacha20 (otherwise) or aes-cbc, which cannot be used with --dump-compress.
    #[arg(long, value_name = "NAME", requires = "dump_pubkey", value_parser = cipher())]
    dump_cipher: Option<Cipher>,
    /// How long one try waits for its ack, in polls of 0.5 ms.
    #[arg(long = "netdump-polls", value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    polls: u32,
    /// Tries after the first.
    #[arg(long = "netdump-retries", value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=100_000))]
    retries: u32,
    /// ARP requests for the server, and as many for the gateway.
    #[arg(long = "netdump-arp-retries", value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    arp_retries: u32,
    /// Longest time for the whole dump, in seconds.
    #[arg(long = "netdump-deadline", value_name = "SECONDS", default_value = "3600", value_parser = seconds)]
    deadline: Duration,
    /// Most messages on their way, or `classic`: FreeBSD's own, which waits after each 64 KiB [default: 16384, and no
    /// more than path and receiver bear].
    #[arg(long = "netdump-window", value_name = "N|classic", default_value_t, hide_default_value = true)]
    window: WindowChoice,
    /// Most bytes to send in a second, frames with their headers, such as 500M; K, M and G are 10^3, 10^6 and 10^9.
    #[arg(long = "netdump-rate", value_name = "RATE", value_parser = parse_rate)]
    rate: Option<NonZeroU64>,
    /// Send zeros like everything else, for a receiver whose storage does not read as zeros where nothing was written.
    #[arg(long = "netdump-send-zeros", conflicts_with_all = ["dump_compress", "dump_pubkey"])]
    send_zeros: bool,
    /// Where the embedded receiver stores cores.
    #[arg(long, value_name = "DIR", default_value = "crash")]
    crash_dir: PathBuf,
    /// The guest's name in the dump header, where the guest does not tell it; the image's by default.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Record what the dump sends and receives.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
struct OutputOptions {
    /// Write a JSON report of each panic to this file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print events as lines of JSON on standard output, the guest's console among them.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnPanicOption {
    /// Exit when the dump has ended.
    Exit,
    /// Boot the guest again.
    Reset,
    /// Keep the guest paused until SIGTERM.
    Hold,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum VirtioOption {
    /// PCI devices with MSI-X.
    Pci,
    /// Memory-mapped registers, told by ACPI (LNRO0005).
    Mmio,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GuestEnvOption {
    /// It decides what no option does.
    Read,
    /// It has none.
    Ignore,
}

/// Runs a guest; the exit code.
pub(crate) fn run(options: RunOptions) -> anyhow::Result<u8> {
    check_combinations(&options).unwrap_or_else(|error| error.exit());
    let vm = vm_config(&options)?;
    let dump = dump_config(&options.netdump, &options.image)?;
    check_outputs(&options)?;
    let (image, disk) = kernel(&options, &vm.handover)?;
    warn_of_blind_watcher(&options.panic, &image);
    let mut host = Host { vm: &vm, dump: &dump, image, disk, report: options.output.report };
    let status = if options.output.json {
        let mut json = Json::new().context("starting the thread that prints events")?;
        let console = json.console();
        let status = machine::run(&mut host, &mut || Box::new(console.fresh()), &mut json);
        json.finish();
        status
    } else {
        machine::run(&mut host, &mut || Box::new(std::io::stdout()), &mut Text::default())
    };
    Ok(status?.code())
}

/// The kernel, with its symbols from wherever the user has them, and the disk that it is from.
fn kernel(options: &RunOptions, given: &Handover) -> anyhow::Result<(KernelImage, Option<BootDisk>)> {
    if !boot_disk::is_disk(&options.image) {
        anyhow::ensure!(
            options.kernel.is_none() && !options.overlay,
            "--kernel and --overlay are for a disk image, which {} is not",
            options.image.display()
        );
        return Ok((kernel_file(options)?, None));
    }
    let access = if options.overlay { Access::Overlay } else { Access::Full };
    let wishes = Wishes {
        kernel: options.kernel.clone(),
        cmdline: options.cmdline.clone(),
        append: options.append.clone(),
        initrd_is_given: given.initrd.is_some(),
        look_only: false,
    };
    let with = boot_disk::Options { wishes, given: given.clone(), symbols: options.symbols.clone() };
    let (disk, image) = BootDisk::open(&DiskSpec { path: options.image.clone(), access }, with)?;
    tell_of_symbols(&image, options.symbols.is_some());
    Ok((image, Some(disk)))
}

/// The kernel that is a file of the host's.
fn kernel_file(options: &RunOptions) -> anyhow::Result<KernelImage> {
    let mut image = KernelImage::read(&options.image)?;
    if let Some(path) = &options.symbols {
        image.take_symbols_from(path)?;
    }
    tell_of_symbols(&image, options.symbols.is_some());
    Ok(image)
}

fn tell_of_symbols(image: &KernelImage, are_given: bool) {
    if let Some(problem) = image.payload_problem() {
        let problem = chain(problem);
        tracing::warn!(problem, "the kernel in this bzImage cannot be looked at: it has no symbols");
    }
    if !are_given && image.is_stripped_freebsd() {
        tracing::info!(
            "this FreeBSD kernel has no symbols: only its console tells of a panic, and its core is no minidump; give \
             its unstripped twin or its .debug file with --symbols"
        );
    }
    tracing::debug!(symbols = image.symbols().len(), "the kernel is read");
}

/// Whoever asks for the watcher by name, or by an option of its own, relies on it.
fn warn_of_blind_watcher(options: &PanicOptions, image: &KernelImage) {
    let named = options.sources.iter().any(|source| source.0.name() == "watcher");
    if (named || options.panic_settle.is_some()) && !watcher::sees(image.symbols()) {
        tracing::warn!(
            "the panic source 'watcher' cannot see a panic of {}: it has no symbols of FreeBSD's panicstr or Linux's \
             panic_cpu",
            image.path().display()
        );
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
