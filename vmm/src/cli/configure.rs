//! Options into configuration, and what only all of them together show to be wrong.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::CommandFactory;
use clap::error::ErrorKind;
use netdump::drive::Zeros;
use netdump::ekcd::Cipher;
use netdump::stream::{Packing, PackingError};
use vmm::boot::{Handover, Initrd, Module};
use vmm::config::{DumpConfig, GuestEnvironment, OnPanic, OnReset, Virtio, VmConfig};
use vmm::link::LinkSpec;
use vmm::output_file;
use vmm::panic::{self, SourceOptions};
use vmm::x86_64::cpu_mask::CpuMask;

use super::{Arguments, GuestEnvOption, NetdumpOptions, OnPanicOption, RunOptions, VirtioOption};

/// What no single option's parser can see: options that could have no effect.
pub(super) fn check_combinations(options: &RunOptions) -> Result<(), clap::Error> {
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

/// Finds out before the guest starts, not after it panicked, that a file cannot be written.
pub(super) fn check_outputs(options: &RunOptions) -> anyhow::Result<()> {
    for (option, path) in [("--report", &options.output.report), ("--pcap", &options.netdump.pcap)] {
        let Some(path) = path else { continue };
        output_file::check(path).with_context(|| format!("{option} {} cannot be written", path.display()))?;
    }
    Ok(())
}

pub(super) fn vm_config(options: &RunOptions) -> anyhow::Result<VmConfig> {
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

pub(super) fn dump_config(options: &NetdumpOptions, image: &Path) -> anyhow::Result<DumpConfig> {
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

/// `--cmdline` with `--append` behind it.
fn command_line(options: &RunOptions) -> String {
    [&options.cmdline, &options.append]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" ")
}
