//! Options of `netdump serve` about what it stores, and whom it tells.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use netdump::receiver::StoreLimits;

use super::hook::Hook;
use super::metrics::{Counters, Metrics};
use crate::cli::size;

/// What may be stored.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct Limits {
    /// Most bytes of one dump, such as `64G`, each byte received counted once. One that is larger ends there.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_bytes_per_dump: Option<u64>,
    /// Most bytes of all dumps in the directory together. What is there is counted whenever a dump begins, by the room that
    /// it takes on the file system; what is received since is added.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_bytes_total: Option<u64>,
    /// Bytes that must stay free on the file system; looked at whenever a dump begins, and each 4 MiB.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    min_free: Option<u64>,
}

impl Limits {
    pub(super) fn for_store(&self) -> StoreLimits {
        StoreLimits {
            max_bytes_per_dump: self.max_bytes_per_dump,
            max_bytes_total: self.max_bytes_total,
            min_free: self.min_free,
        }
    }
}

/// Who is told beside the operator.
#[derive(Debug, Args)]
#[command(next_help_heading = "Telling others")]
pub(super) struct Outlets {
    /// Run this program when a dump has ended, as netdumpd does: with `success`, `timeout` or `error`, the client's
    /// address, HOST, info file and core as arguments, in the directory, which the names are relative to. A description
    /// as JSON is its standard input.
    #[arg(long, value_name = "PROGRAM")]
    hook: Option<PathBuf>,
    /// Kill the program of --hook, and all that it has started, after this long.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "hook", value_parser = clap::value_parser!(u32).range(1..))]
    hook_timeout: u32,
    /// Answer HTTP requests for Prometheus metrics at this address; port 0 takes any free one.
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
}

/// What the options have started.
#[derive(Debug, Default)]
pub(super) struct Started {
    pub(super) hook: Option<Hook>,
    pub(super) counters: Arc<Counters>,
    /// Where metrics are to be had.
    pub(super) metrics: Option<SocketAddr>,
}

impl Outlets {
    /// Starts what is asked for. `directory` is the store's.
    pub(super) fn start(&self, directory: &Path) -> anyhow::Result<Started> {
        let limit = Duration::from_secs(self.hook_timeout.into());
        let hook = self.hook.as_deref().map(|program| Hook::start(program, directory, limit)).transpose()?;
        let counters = Arc::<Counters>::default();
        let hooks = hook.as_ref().map(|hook| Arc::clone(hook.outcomes()));
        let serve = |address| {
            Metrics::serve(address, directory, Arc::clone(&counters), hooks)
                .with_context(|| format!("serving metrics at {address}"))
        };
        let metrics = self.metrics.map(serve).transpose()?;
        Ok(Started { hook, counters, metrics })
    }
}
