//! `netdump verify`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use netdump::{report, vmcore};

use super::Exit;

/// Check whether a core is whole, and with the sender's report whether it is what was sent.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The core.
    file: PathBuf,
    /// The sender's report, of `vmm run --report` or `netdump send --report`.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Most bytes that a compressed core may unpack to, such as `500G` [default: what its info file says, else 256G].
    #[arg(long, value_name = "SIZE", value_parser = super::size)]
    unpack_limit: Option<u64>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let report = self
            .report
            .as_deref()
            .map(|path| report::read(path).with_context(|| format!("using the report {}", path.display())));
        let report = report.transpose()?;
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let mut progress = |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let verdict = vmcore::verify_with(&self.file, report.as_ref(), self.unpack_limit, &mut progress);
        bar.finish_and_clear();
        let mut out = std::io::stdout().lock();
        if self.json {
            let mut value = serde_json::to_value(&verdict)?;
            if let Some(object) = value.as_object_mut() {
                object.insert("whole".into(), verdict.whole().into());
                object.insert("content_proven".into(), verdict.is_content_proven().into());
            }
            serde_json::to_writer_pretty(&mut out, &value)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{verdict}")?;
        }
        Ok(Exit::when(verdict.whole()))
    }
}
