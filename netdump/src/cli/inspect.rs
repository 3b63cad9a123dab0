//! `netdump inspect`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use netdump::facts::Backtraces;
use netdump::linux::kallsyms;
use netdump::vmcore::{self, InspectOptions, KernelSymbols};

use super::Exit;

/// Kernels with all their symbols are far smaller.
const MAX_KERNEL: u64 = 1 << 30;

/// Say what a core is: its headers, memory, registers, messages, threads, environment and panic.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The core.
    file: PathBuf,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// The guest's kernel, or the file of its debug symbols: with its symbols a FreeBSD guest's own memory is asked. Linux
    /// has its symbols in its memory.
    #[arg(long, value_name = "FILE", visible_alias = "symbols")]
    kernel: Option<PathBuf>,
    /// Show the call chain of this thread too, by its number.
    #[arg(long, value_name = "TID", conflicts_with = "all_threads")]
    thread: Option<u32>,
    /// Show the call chains of all threads.
    #[arg(long)]
    all_threads: bool,
    /// Most bytes that a compressed core may unpack to, such as `500G` [default: what its info file says, else 256G].
    #[arg(long, value_name = "SIZE", value_parser = super::size)]
    unpack_limit: Option<u64>,
}

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let symbols = self.kernel.as_deref().map(read_symbols).transpose()?;
        let options = InspectOptions {
            symbols: symbols.as_ref(),
            kernel: self.kernel.as_deref(),
            backtraces: self.backtraces(),
            unpack_limit: self.unpack_limit,
        };
        let inspection = vmcore::inspect_with(&self.file, &options)
            .with_context(|| format!("inspecting {}", self.file.display()))?;
        let wants_threads = self.all_threads || self.thread.is_some();
        if wants_threads && self.kernel.is_none() && inspection.card.is_none() {
            bail!(
                "the threads of this guest are found by its kernel's symbols: give its kernel with --kernel"
            );
        }
        if let Some(tid) = self.thread.filter(|&tid| inspection.kernel.thread(tid).is_none()) {
            if let Some(problem) = inspection.kernel.problems.first() {
                bail!("no thread {tid} was found in {}: {problem}", self.file.display());
            }
            bail!(
                "no thread {tid} was found among the {} of {}; without --thread they are listed",
                inspection.kernel.threads.len(),
                self.file.display()
            );
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &inspection)?;
            writeln!(out)?;
        } else {
            write!(out, "{inspection}")?;
        }
        Ok(Exit::Done)
    }

    fn backtraces(&self) -> Backtraces {
        match self.thread {
            _ if self.all_threads => Backtraces::All,
            Some(tid) => Backtraces::Thread(tid),
            None => Backtraces::Crashed,
        }
    }
}

fn read_symbols(path: &std::path::Path) -> anyhow::Result<KernelSymbols> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_KERNEL).read_to_end(&mut bytes))
        .with_context(|| format!("reading the kernel {}", path.display()))?;
    let mut symbols =
        KernelSymbols::parse(&bytes).with_context(|| format!("reading the symbols of {}", path.display()))?;
    if symbols.is_empty()
        && let Some(own) = kallsyms::from_image(&bytes)
    {
        symbols = own;
    }
    if symbols.is_empty() {
        bail!(
            "{} has no symbol table: give the kernel as it was installed, or the file of its debug symbols",
            path.display()
        );
    }
    Ok(symbols)
}
