//! `vmm run`: options into configuration. What clap can refuse by itself (exit code 2) it does, by the types' parsers.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use netdump::client::{ConfigError, WindowChoice, check_path, parse_rate};
use netdump::drive::Zeros;
use netdump::ekcd::Cipher;
use netdump::linux::filter::DumpFilter;
use netdump::stream::{CompressOption, Packing, PackingError};
use netdump::vmcore::{AUTO, FormatChoice};
use netdump::wire::MacAddr;
use netdump::wire::message::MAX_PATH;
use vmm::boot::{self, BootProtocol, Handover, Initrd, KernelImage, Module, ModuleSpec};
use vmm::boot_disk::{self, BootDisk};
use vmm::config::{Cidr, DumpConfig, GuestEnvironment, OnPanic, OnReset, Virtio, VmConfig, parse_server};
use vmm::devices::virtio::blk::{Access, DiskSpec};
use vmm::image::boot::Wishes;
use vmm::link::LinkSpec;
use vmm::machine::{self, Host};
use vmm::memory::MemorySize;
use vmm::nic::DEFAULT_MAC;
use vmm::output_file;
use vmm::panic::{self, SourceName, SourceOptions, watcher};
use vmm::sys::interface::InterfaceName;
use vmm::vm::MAX_CPUS;
use vmm::x86_64::cpu_mask::{CpuMask, MaskWord};

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

/// A boot protocol by its name; none is auto.
#[derive(Debug, Clone, Copy)]
struct Boot(Option<&'static dyn BootProtocol>);

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

/// `--cmdline` with `--append` behind it.
fn command_line(options: &RunOptions) -> String {
    [&options.cmdline, &options.append]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" ")
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

fn vm_config(options: &RunOptions) -> anyhow::Result<VmConfig> {
    let chosen = options.panic.sources.iter().map(|name| name.0).collect::<Vec<_>>();
    let modules = options.modules.iter().map(Module::read).collect::<Result<_, _>>()?;
    Ok(VmConfig {
        memory: options.memory,
        cpus: options.cpus,
        cpu_mask: CpuMask::new(&options.cpu_mask),
        boot: options.boot.0,
        handover: Handover {
            cmdline: command_line(options),
            environment: options.kernel_env.clone(),
            modules,
            initrd: options.initrd.as_deref().map(Initrd::new).transpose()?,
        },
        tap: options.tap.clone(),
        mac: options.mac,
        virtio: options.virtio.map(|transport| match transport {
            VirtioOption::Pci => Virtio::Pci,
            VirtioOption::Mmio => Virtio::Mmio,
        }),
        disks: options.disks.clone(),
        sources: if chosen.is_empty() { panic::ALL.to_vec() } else { chosen },
        source_options: SourceOptions {
            ignore_crashloaded: options.panic.ignore_crashloaded,
            dump_after: options.panic.dump_after,
            watchdog: options.panic.watchdog,
            hyperv_crash: options.panic.hyperv_crash,
            settle: options.panic.panic_settle.map(|ms| Duration::from_millis(ms.into())),
        },
        on_panic: match options.on_panic {
            OnPanicOption::Exit => OnPanic::Exit,
            OnPanicOption::Reset => OnPanic::Reset,
            OnPanicOption::Hold => OnPanic::Hold,
        },
        on_reset: if options.no_reboot { OnReset::Exit } else { OnReset::Boot },
    })
}

fn dump_config(options: &NetdumpOptions, image: &Path) -> anyhow::Result<DumpConfig> {
    let public_key = options.dump_pubkey.as_deref();
    let packing = Packing::from_options(options.dump_compress, public_key, options.dump_cipher)?;
    let image_name =
        || image.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(DumpConfig {
        enabled: !options.no_netdump,
        server: options.server,
        client: options.client,
        gateway: options.gateway,
        path: options.path.clone(),
        link: options.link.clone(),
        guest_environment: match options.guest_env {
            GuestEnvOption::Read => GuestEnvironment::Read,
            GuestEnvOption::Ignore => GuestEnvironment::Ignore,
        },
        allowed_servers: options.allow_server.clone(),
        format: options.dump_format,
        filter: options.dump_filter,
        packing,
        polls: options.polls,
        retries: options.retries,
        arp_retries: options.arp_retries,
        deadline: Some(options.deadline),
        window: options.window,
        rate: options.rate,
        zeros: if options.send_zeros { Zeros::Send } else { Zeros::Skip },
        crash_dir: options.crash_dir.clone(),
        pcap: options.pcap.clone(),
        name: options.name.clone().unwrap_or_else(image_name),
    })
}

/// Finds out before the guest starts, not after it panicked, that a file cannot be written.
fn check_outputs(options: &RunOptions) -> anyhow::Result<()> {
    for (option, path) in [("--report", &options.output.report), ("--pcap", &options.netdump.pcap)] {
        let Some(path) = path else { continue };
        output_file::check(path).with_context(|| format!("{option} {} cannot be written", path.display()))?;
    }
    Ok(())
}

/// What no single option's parser can see: options that could have no effect.
fn check_combinations(options: &RunOptions) -> Result<(), clap::Error> {
    let conflict = |message: &str| {
        let mut command = Arguments::command();
        // Else its usage would begin with `run`.
        command.build();
        let run = command.find_subcommand_mut("run").expect("there is a command `run`");
        Err(run.error(ErrorKind::ArgumentConflict, message))
    };
    let sources = &options.panic.sources;
    let lacks = |name: &str| !sources.is_empty() && !sources.iter().any(|source| source.0.name() == name);
    let netdump = &options.netdump;
    let guest_has_no_say = matches!(netdump.guest_env, GuestEnvOption::Ignore);
    let no_server = netdump.server.is_none() && !netdump.no_netdump;
    let cannot_be_compressed =
        |cipher: &Cipher| netdump.dump_compress.is_some() && !cipher.allows_compression();
    if let Some(cipher) = netdump.dump_cipher.filter(cannot_be_compressed) {
        return conflict(&PackingError::CipherOfCompressed(cipher).to_string());
    }
    match &netdump.link {
        _ if options.panic.dump_after.is_some() && lacks("request") => {
            conflict("--dump-after needs the panic source 'request', which --panic-source leaves out")
        }
        _ if options.panic.ignore_crashloaded && lacks("pvpanic") && lacks("watcher") => conflict(
            "--ignore-crashloaded needs a panic source 'pvpanic' or 'watcher', which --panic-source leaves out",
        ),
        _ if options.panic.panic_settle.is_some() && lacks("watcher") => {
            conflict("--panic-settle needs the panic source 'watcher', which --panic-source leaves out")
        }
        Some(LinkSpec::Udp) if no_server && (guest_has_no_say || netdump.allow_server.is_empty()) => {
            conflict("the udp link needs --netdump-server, or --allow-server for a guest that names one")
        }
        Some(LinkSpec::GuestTap | LinkSpec::Tap(_) | LinkSpec::Virtio) if no_server && guest_has_no_say => {
            conflict("this link needs --netdump-server, as the guest may not name one")
        }
        Some(LinkSpec::Udp) if netdump.client.is_some() || netdump.gateway.is_some() => conflict(
            "the udp link sends from the host's own address and by its routes: no client, no gateway",
        ),
        Some(LinkSpec::Embedded) if netdump.server.is_some() || netdump.gateway.is_some() => {
            conflict("the embedded link has its receiver in this process: no server, no gateway")
        }
        _ => Ok(()),
    }
}

fn cipher() -> impl TypedValueParser<Value = Cipher> {
    let names = PossibleValuesParser::new(Cipher::ALL.map(Cipher::name));
    names.map(|name| Cipher::by_name(&name).expect("it is one of their names"))
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && name.chars().all(is_name) => {
            Ok((name.into(), value.into()))
        }
        _ => Err("a variable is given as NAME=VALUE, such as net.dump.server=10.0.0.9".into()),
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_graphic() && !matches!(c, ',' | '=' | '"')
}

fn unicast(text: &str) -> Result<MacAddr, String> {
    let mac: MacAddr = text.parse().map_err(|error: netdump::wire::mac::ParseMacError| error.to_string())?;
    if mac.is_group() || mac == MacAddr::ZERO {
        Err(format!("{mac} is no single host's address"))
    } else {
        Ok(mac)
    }
}

fn path(text: &str) -> Result<String, ConfigError> {
    check_path(text, MAX_PATH).map(|()| text.to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| (0.001..=1e9).contains(s));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("'{text}' is not a number of seconds"))
}

fn dump_format(name: &str) -> Result<FormatChoice, String> {
    FormatChoice::by_name(name).ok_or_else(|| {
        let names: Vec<_> = FormatChoice::names().collect();
        format!("there is no core format '{name}'; there are {}", names.join(", "))
    })
}

fn boot_protocol(name: &str) -> Result<Boot, String> {
    if name == "auto" {
        return Ok(Boot(None));
    }
    boot::protocol(name).map(|protocol| Boot(Some(protocol))).ok_or_else(|| {
        let names: Vec<_> = boot::ALL.iter().map(|protocol| protocol.name()).collect();
        format!("there is no boot protocol '{name}'; there are auto, {}", names.join(", "))
    })
}

fn boot_help() -> String {
    let lines: Vec<_> =
        boot::ALL.iter().map(|protocol| format!("  {:<7} {}", protocol.name(), protocol.takes())).collect();
    format!("How to start it; auto takes the first that fits.\n\n{}", lines.join("\n"))
}

fn sources_help() -> String {
    let lines: Vec<_> =
        panic::ALL.iter().map(|source| format!("  {:<13} {}", source.name(), source.about())).collect();
    format!("Panic sources to use, separated by commas; all by default.\n\n{}", lines.join("\n"))
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
