//! `cargo lab`: the lab by hand. Boots the first level with the programs of this workspace and files of one's own.

use std::fs;
use std::ops::ControlFlow::Continue;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use harness::lab;
use harness::lab::bench;
use harness::lab::initramfs::Initramfs;
use harness::lab::kernels::{self, Kernel};
use harness::lab::level1::{Level1, Patience};
use harness::lab::modules::Modules;
use harness::lab::scenario;

/// Unmodified distribution kernels as guests of `vmm`, on a KVM that can run them.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs scenarios, all or those named, and judges them.
    Test {
        /// How their names begin.
        names: Vec<String>,
        /// Lets crash and drgn open the cores with the kernels' debug packages, hundreds of MB each, fetched once.
        #[arg(long)]
        with_debuginfo: bool,
    },
    /// Names the scenarios.
    List,
    /// What a first level runs.
    #[command(hide = true)]
    Here {
        /// What to do.
        order: PathBuf,
    },
    /// A shell in the first level: vmm, netdump, ip, tc, `collector` for a bridge and a receiver at 10.0.0.9. Files are in
    /// /lab/in, kernels in /lab/in/NAME; what is left in /lab/out comes back.
    Shell(Place),
    /// Runs shell commands in the first level, in /lab/out, which comes back. The exit code is theirs.
    Run {
        #[command(flatten)]
        place: Place,
        /// The commands, for `sh -c`.
        #[arg(last = true, required = true)]
        commands: Vec<String>,
    },
    /// Writes an initramfs for a guest: busybox, modules, and what its first program does.
    Initramfs {
        /// The guest's kernel, for modules.
        #[arg(long, default_value = "6.1-cloud")]
        kernel: String,
        /// A module to load, with those that it needs; may be given again.
        #[arg(long = "module", value_name = "NAME")]
        modules: Vec<String>,
        /// Shell commands to run once modules are loaded; then the guest switches itself off.
        #[arg(long, default_value = "echo init is up")]
        init: String,
        /// The archive to write.
        file: PathBuf,
    },
    /// Fetches kernels and tells where they are.
    Kernels {
        /// Names; all that the lab knows by default.
        names: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Place {
    /// A file to take along as /lab/in/NAME; may be given again.
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A kernel to take along as /lab/in/NAME, such as 6.1-cloud; may be given again.
    #[arg(long = "kernel", value_name = "NAME")]
    kernels: Vec<String>,
    /// Where /lab is on this machine; results are in its `out`.
    #[arg(long, value_name = "FOLDER", default_value = "target/lab/hand")]
    folder: PathBuf,
    /// Longest time of `run`, in seconds.
    #[arg(long, value_name = "N", default_value_t = 600)]
    seconds: u64,
    /// Programs to use instead of this workspace's vmm and netdump, as the profile of this command has them.
    #[arg(long = "program", value_name = "FILE")]
    programs: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Test { names, with_debuginfo } => {
            let mut runs = scenario::find(&names)?;
            runs.iter_mut().for_each(|run| run.scenario.with_debuginfo |= with_debuginfo);
            let good = bench::run(&lab::folder()?, &runs, |line| println!("{line}"))?;
            Ok(u8::from(!good))
        }
        Command::List => {
            for run in scenario::find(&[])? {
                println!("{:34} {}", run.name, run.scenario.about);
            }
            Ok(0)
        }
        Command::Here { order } => {
            bench::obey(&order)?;
            Ok(0)
        }
        Command::Shell(place) => {
            prepare(&place, None)?.shell()?;
            Ok(0)
        }
        Command::Run { place, commands } => {
            let order = format!("cd /lab/out\n{}\n", commands.join(" "));
            let all = place.seconds;
            let patience = Patience { all, silence: Duration::from_secs(all) };
            let code = prepare(&place, Some(&order))?.run(patience, |line| {
                println!("{line}");
                Continue(String::new())
            })?;
            eprintln!("lab: results are in {}", place.folder.join("out").display());
            Ok(u8::try_from(code).unwrap_or(u8::MAX))
        }
        Command::Initramfs { kernel, modules, init, file } => {
            let kernel = Kernel::fetch(&lab::folder()?, &kernel)?;
            let mut root = Initramfs::with_busybox(&lab::guest::init(&init))?;
            root.modules(&Modules::below(&kernel.modules()?)?, &modules)?;
            fs::write(&file, root.finish()?).with_context(|| format!("writing {}", file.display()))?;
            Ok(0)
        }
        Command::Kernels { names } => {
            let known = kernels::ALL.map(|kernel| kernel.name.to_owned());
            for name in if names.is_empty() { &known[..] } else { &names } {
                println!("{name:14} {}", Kernel::fetch(&lab::folder()?, name)?.image()?.display());
            }
            Ok(0)
        }
    }
}

/// A first level that has the user's files, and runs an order or has a shell.
fn prepare(place: &Place, order: Option<&str>) -> anyhow::Result<Level1> {
    let lab = lab::folder()?;
    let inside = place.folder.join("in");
    fs::create_dir_all(&inside).with_context(|| format!("making {}", inside.display()))?;
    for file in &place.files {
        let name = file.file_name().with_context(|| format!("{} is no file", file.display()))?;
        take(file, &inside.join(name))?;
    }
    for name in &place.kernels {
        take(&Kernel::fetch(&lab, name)?.image()?, &inside.join(name))?;
    }
    let programs = match place.programs.is_empty() {
        true => ["vmm", "netdump"].map(lab::under_test).to_vec(),
        false => place.programs.clone(),
    };
    Level1::new(&lab, &place.folder, &programs, order)
}

fn take(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("taking {} along", from.display()))?;
    Ok(())
}
