//! `netdump verify`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use netdump::vmcore::verify::Evidence;
use netdump::{report, vmcore};

use super::Exit;

/// Check whether a core is whole, with its receiver's manifest whether it is as it was stored, and with the sender's report
/// whether it is what was sent.
///
/// Says which parts are wrong. Ends with code 0 when nothing speaks against the core.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The core.
    file: PathBuf,
    /// The sender's report, of `vmm run --report` or `netdump send --report`.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The receiver's manifest [default: manifest.HOST.N.json beside the core].
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
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
        let evidence = Evidence {
            report: report.as_ref(),
            manifest: self.manifest.as_deref(),
            unpack_limit: self.unpack_limit,
        };
        let verdict = vmcore::verify_with(&self.file, &evidence, &mut progress);
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
