//! `vmm bench`: what a start of this program costs, beside the same of QEMU's smallest machine where QEMU is installed.
//!
//! Every figure is of processes as a user starts them, one after the other and taking turns, so that what is compared
//! was measured within seconds; what is told are medians. Nothing is dumped.

mod child;
mod guest;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use vmm::boot::{self, KernelImage};
use vmm::memory::MemorySize;
use vmm::vm::MAX_CPUS;

use child::{Folder, Program, arguments, paused};

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Time until the guest's first instructions run, memory beyond the guest's, time to pause; with a Linux kernel,
    /// time until its console prints a text.
    Boot(BootBench),
}

/// Options of `vmm bench boot`.
#[derive(Debug, Args)]
pub(crate) struct BootBench {
    /// A kernel to boot as well, in every way in which it can be.
    image: Option<PathBuf>,
    /// Its initrd.
    #[arg(long, value_name = "FILE", requires = "image")]
    initrd: Option<PathBuf>,
    /// Its command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0", allow_hyphen_values = true)]
    cmdline: String,
    /// What its console prints when it is up.
    #[arg(long, value_name = "TEXT", default_value = "Run /init as init process")]
    until: String,
    /// Guest RAM.
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: MemorySize,
    /// vCPU counts to pause.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4,16", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_CPUS)))]
    pause_cpus: Vec<u8>,
    /// How often everything is measured.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
}

/// Longest time for a guest that prints as its first act, and for a kernel.
const FIRST_LIMIT: Duration = Duration::from_secs(60);
const KERNEL_LIMIT: Duration = Duration::from_secs(600);

/// Runs a benchmark; the exit code.
pub(crate) fn run(bench: &Bench) -> anyhow::Result<u8> {
    let Bench::Boot(options) = bench;
    vmm::vm::open_kvm()?;
    let folder = Folder::new()?;
    let mut programs = vec![Program::this()?];
    programs.extend(Program::qemu());
    header(options, &programs);
    first_instruction(options, &programs, &folder)?;
    disk(options, &folder)?;
    for cpus in &options.pause_cpus {
        pause(options, *cpus, &folder)?;
    }
    if let Some(image) = &options.image {
        kernel(options, &programs, image)?;
    }
    Ok(0)
}

fn header(options: &BootBench, programs: &[Program]) {
    let names: Vec<_> = programs.iter().map(|program| format!("{:>14}", program.name())).collect();
    let title = format!("{} MiB, medians of {}", options.memory.bytes() >> 20, options.runs);
    println!("{title:<44}{}", names.concat());
    if let [_] = programs {
        println!("SKIPPED qemu: qemu-system-x86_64 is not installed");
    }
}

/// One line: a cell for each program, empty where it does not apply.
fn row(title: &str, cells: &[String]) {
    let cells: Vec<_> = cells.iter().map(|cell| format!("{cell:>14}")).collect();
    println!("{title:<44}{}", cells.concat());
}

fn first_instruction(options: &BootBench, programs: &[Program], folder: &Folder) -> anyhow::Result<()> {
    let image = folder.write("first.elf", &guest::first())?;
    let mut started = vec![Vec::new(); programs.len()];
    let mut memory = vec![Vec::new(); programs.len()];
    for _ in 0..options.runs {
        for ((program, started), memory) in programs.iter().zip(&mut started).zip(&mut memory) {
            let arguments = arguments(*program, options.memory, &image);
            let mut child = program.start(&arguments)?;
            started.push(child.until(guest::FIRST, FIRST_LIMIT)?);
            memory.push(child.own_memory()?);
        }
    }
    let times: Vec<_> = started.into_iter().map(milliseconds).collect();
    row("exec to the guest's first instructions", &times);
    let memory: Vec<_> = memory.into_iter().map(mebibytes).collect();
    row("memory beyond the guest's, while it runs", &memory);
    Ok(())
}

/// Bytes of the disk that is booted from. It is sparse.
const DISK_LEN: u64 = 10 << 30;

/// The same guest from a disk, with its kernel in a file system that has room for it and little more.
fn disk(options: &BootBench, folder: &Folder) -> anyhow::Result<()> {
    let Some(image) = folder.disk(&guest::first(), DISK_LEN)? else {
        println!("SKIPPED disk: makefs is not installed");
        return Ok(());
    };
    let program = Program::this()?;
    let (mut started, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let mut with = arguments(program, options.memory, &image);
        with.insert(1, "--overlay".into());
        let mut child = program.start(&with)?;
        started.push(child.until(guest::FIRST, FIRST_LIMIT)?);
        memory.push(child.own_memory()?);
    }
    row("the same from a disk of 10 GiB (sparse, UFS)", &[milliseconds(started)]);
    row("memory beyond the guest's, while it runs", &[mebibytes(memory)]);
    Ok(())
}

/// How long it takes to stop busy vCPUs, from a panic being seen; QEMU has no such thing.
fn pause(options: &BootBench, cpus: u8, folder: &Folder) -> anyhow::Result<()> {
    let guest = guest_images::find("smp-panic").context("the guest 'smp-panic' is not built in")?;
    let image = folder.write("smp-panic.elf", guest.elf)?;
    let report = folder.path("report.json");
    let program = Program::this()?;
    let mut times = Vec::new();
    for _ in 0..options.runs {
        let mut with = arguments(program, options.memory, &image);
        let environment = [format!("cpus={cpus}"), "cpu=0".into(), "fill=2M".into()];
        with.splice(1..1, environment.iter().flat_map(|word| ["--kernel-env".into(), word.clone()]));
        let more = ["--cpus".into(), cpus.to_string(), "--report".into(), report.display().to_string()];
        with.splice(1..1, more);
        program.start(&with)?.wait(FIRST_LIMIT)?;
        times.push(paused(&report)?);
    }
    row(&format!("panic to all paused, vCPUs: {cpus}"), &[milliseconds(times)]);
    Ok(())
}

/// How long a kernel takes until its console says that it is up.
fn kernel(options: &BootBench, programs: &[Program], image: &Path) -> anyhow::Result<()> {
    let kernel = KernelImage::read(image)?;
    let ways = boot::ALL.iter().filter(|protocol| protocol.recognises(&kernel));
    let mut lines: Vec<(String, usize, Vec<String>)> = ways
        .map(|way| {
            (
                format!("exec to '{}', {}", options.until, way.name()),
                0,
                vec!["--boot".into(), way.name().into()],
            )
        })
        .collect();
    lines
        .extend((1..programs.len()).map(|index| (format!("exec to '{}'", options.until), index, Vec::new())));
    let mut times = vec![Vec::new(); lines.len()];
    for _ in 0..options.runs {
        for ((_, index, way), times) in lines.iter().zip(&mut times) {
            let program = programs[*index];
            let mut with = arguments(program, options.memory, image);
            with.splice(1..1, way.iter().cloned());
            with.splice(1..1, program.kernel(&options.cmdline, options.initrd.as_deref()));
            times.push(program.start(&with)?.until(options.until.as_bytes(), KERNEL_LIMIT)?);
        }
    }
    for ((title, index, _), times) in lines.iter().zip(times) {
        let cells: Vec<_> = (0..*index).map(|_| String::new()).chain([milliseconds(times)]).collect();
        row(title, &cells);
    }
    Ok(())
}

fn milliseconds(mut times: Vec<Duration>) -> String {
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    format!("{:.2} ms", median.as_secs_f64() * 1e3)
}

#[expect(clippy::cast_precision_loss, reason = "a process has far fewer than 2^52 KiB")]
fn mebibytes(mut kib: Vec<u64>) -> String {
    kib.sort_unstable();
    let median = kib.get(kib.len() / 2).copied().unwrap_or_default();
    format!("{:.1} MiB", median as f64 / 1024.0)
}
