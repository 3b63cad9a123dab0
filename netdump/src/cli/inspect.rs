//! `netdump inspect`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use netdump::vmcore::{self, KernelSymbols};

use super::Exit;

/// Kernels with all their symbols are far smaller.
const MAX_KERNEL: u64 = 1 << 30;

/// Say what a core is: its headers, memory, registers, environment and panic.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The core.
    file: PathBuf,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// The guest's kernel: with its symbols the guest's own memory is asked.
    #[arg(long, value_name = "KERNEL")]
    symbols: Option<PathBuf>,
}

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let symbols = self.symbols.as_deref().map(read_symbols).transpose()?;
        let inspection = vmcore::inspect(&self.file, symbols.as_ref())
            .with_context(|| format!("inspecting {}", self.file.display()))?;
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &inspection)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{inspection}")?;
        }
        Ok(Exit::Done)
    }
}

fn read_symbols(path: &std::path::Path) -> anyhow::Result<KernelSymbols> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_KERNEL).read_to_end(&mut bytes))
        .with_context(|| format!("reading the kernel {}", path.display()))?;
    KernelSymbols::parse(&bytes).with_context(|| format!("reading the symbols of {}", path.display()))
}
