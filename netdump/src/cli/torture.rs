//! `netdump torture`.

use std::io::{IsTerminal, Write};
use std::net::SocketAddrV4;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory};
use indicatif::{ProgressBar, ProgressStyle};
use netdump::torture::live::{
    CLIENTS, ClientUnderTest, SERVERS, ServerUnderTest, torture_client, torture_server,
};
use netdump::torture::scenarios::{ALL, KNOWN_BAD, Scenario};
use netdump::torture::{Control, Discovery, Tally, find_known_bad, simulate};
use serde_json::json;

use super::signals::Signals;
use super::{Arguments, Exit};

/// Seeds, unless it is told otherwise.
const SIMULATED: u64 = 10_000;
const LIVE: u64 = 50;
/// How often the bar is drawn while nothing ends.
const TICK: Duration = Duration::from_millis(200);

/// Play netdump under bad conditions, and judge who takes part.
///
/// Without --server and --client-port all is simulated: our client, our receiver and others' meet on a network that loses,
/// repeats, delays and damages frames, under a clock that only jumps. A seed makes a run, the same each time.
///
/// With --server real datagrams go to any netdump server, from our client and FreeBSD's behind such a network, and from
/// hostile ones. With --client-port it is the server, good or bad behind such a network, for any client that sends its dumps
/// there one after another: `netdump send`, or a kernel.
///
/// Exits with 0 when nothing was wrong in any run, else with 1; what was wrong is listed with the seed that repeats it.
/// PCAP_DIR=DIR records every run.
#[derive(Debug, Args)]
pub(super) struct Torture {
    /// Torture this server.
    #[arg(long, value_name = "IP[:PORT]", value_parser = super::socket_address, conflicts_with = "client_port")]
    server: Option<SocketAddrV4>,
    /// Where that server stores, to look at its files too.
    #[arg(long, value_name = "DIR", requires = "server")]
    dir: Option<PathBuf>,
    /// Torture clients that dump to this port.
    #[arg(long, value_name = "PORT")]
    client_port: Option<u16>,
    /// How many seeds [default: 10000, or 50 with real datagrams, or 1 with --seed].
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed, or the only one.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Only this scenario, for every seed; `list` names them.
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Torture {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let known = self.scenarios();
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        match self.scenario.as_deref() {
            Some("list") => return list(&known),
            Some(unknown) if !names.contains(&unknown) => {
                let text = format!("no scenario '{unknown}' here; there are: {}", names.join(", "));
                Arguments::command().error(ErrorKind::InvalidValue, text).exit()
            }
            _ => {}
        }
        if let Some(dir) = &self.dir {
            std::fs::read_dir(dir).with_context(|| format!("looking into {}", dir.display()))?;
        }
        let signals = Signals::take().context("preparing to be interrupted")?;
        let seeds = self.seeds();
        let bar = progress_bar(seeds.end - seeds.start);
        let stopped = AtomicBool::new(false);
        // A signal is seen once only, by whoever asks first.
        let stops = || {
            stopped.fetch_or(signals.received().is_some(), Ordering::Relaxed)
                || stopped.load(Ordering::Relaxed)
        };
        let control = Control { stops: &stops, ended: &|| bar.inc(1) };
        let started = Instant::now();
        let (tally, known_bad) = self.play(seeds, &control, &bar)?;
        bar.finish_and_clear();
        self.tell(&tally, &known_bad, started.elapsed())?;
        Ok(Exit::when(tally.is_good() && known_bad.iter().all(|known| known.found.is_some())))
    }

    fn play(
        &self,
        seeds: Range<u64>,
        control: &Control<'_>,
        bar: &ProgressBar,
    ) -> anyhow::Result<(Tally, Vec<Discovery>)> {
        let only = self.scenario.as_deref();
        if let Some(address) = self.server {
            let server = ServerUnderTest { address, dir: self.dir.clone() };
            return Ok((torture_server(&server, seeds, only, control)?, Vec::new()));
        }
        if let Some(port) = self.client_port {
            let client = ClientUnderTest::at_port(port)?;
            let port = client.port();
            let waits = |seed: u64, about: &str| {
                let text = format!("port {port} waits for a dump: seed {seed}, {about}");
                if bar.is_hidden() { eprintln!("{text}") } else { bar.set_message(text) }
            };
            let tally =
                torture_client(&client, seeds, only, control, &|seed, manner| waits(seed, manner.about()))?;
            return Ok((tally, Vec::new()));
        }
        let first = seeds.start;
        // A run that is repeated alone is not about the known-bad peers.
        let is_search = only.is_none() && seeds.end - first > 1;
        let tally = simulate(seeds, only.and_then(Scenario::by_name), control);
        Ok((tally, if is_search { find_known_bad(first) } else { Vec::new() }))
    }

    /// Names, and what they are about.
    fn scenarios(&self) -> Vec<(&'static str, &'static str)> {
        if self.server.is_some() {
            return SERVERS.to_vec();
        }
        if self.client_port.is_some() {
            return CLIENTS.to_vec();
        }
        let scenarios = ALL.into_iter().chain(KNOWN_BAD.map(|bad| bad.scenario));
        scenarios.map(|scenario| (scenario.name, scenario.about)).collect()
    }

    fn seeds(&self) -> Range<u64> {
        let is_live = self.server.is_some() || self.client_port.is_some();
        let usual = match self.seed {
            Some(_) => 1,
            None if is_live => LIVE,
            None => SIMULATED,
        };
        let first = self.seed.unwrap_or(0);
        first..first.saturating_add(self.seeds.unwrap_or(usual))
    }

    fn tell(&self, tally: &Tally, known_bad: &[Discovery], took: Duration) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let seconds = took.as_secs_f64();
        if self.json {
            let (runs, faulty) = (tally.runs(), tally.faulty());
            let report = json!({
                "runs": runs, "faulty": faulty, "seconds": seconds,
                "scenarios": tally.rows(), "known_bad": known_bad,
            });
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)?;
            return Ok(());
        }
        write!(out, "{tally}")?;
        if !known_bad.is_empty() {
            writeln!(out, "\nFaults that are known and must be found:")?;
            known_bad.iter().try_for_each(|known| writeln!(out, "{known}"))?;
        }
        writeln!(out, "\n{} runs in {seconds:.1} s, {} with faults", tally.runs(), tally.faulty())?;
        Ok(())
    }
}

fn list(scenarios: &[(&str, &str)]) -> anyhow::Result<Exit> {
    let mut out = std::io::stdout().lock();
    scenarios.iter().try_for_each(|(name, about)| writeln!(out, "{name:20} {about}"))?;
    Ok(Exit::Done)
}

fn progress_bar(count: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} runs, {eta} left");
    let bar = ProgressBar::new(count).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(TICK);
    bar
}
