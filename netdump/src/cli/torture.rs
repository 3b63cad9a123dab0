//! `netdump torture`.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use clap::Args;
use clap::builder::PossibleValuesParser;
use indicatif::{ProgressBar, ProgressStyle};
use netdump::torture::scenarios::{ALL, KNOWN_BAD, Scenario};
use netdump::torture::{Discovery, Tally, find_known_bad, simulate};

use super::Exit;
use super::signals::Signals;

/// Seeds of a simulation, unless it is told otherwise.
const SIMULATED: u64 = 10_000;

/// Play netdump under bad conditions and judge who takes part.
///
/// Without --server and --client-port everything is simulated: our client, our receiver and others' meet on a network that
/// loses, repeats, delays and damages frames, under a clock that only jumps. A seed makes a run, the same each time.
#[derive(Debug, Args)]
pub(super) struct Torture {
    /// How many seeds [default: 10000, or 1 with --seed].
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed, or the only one.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Only this one of the table's rows; each seed plays it.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(names()))]
    scenario: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

fn names() -> impl Iterator<Item = &'static str> {
    ALL.into_iter().chain(KNOWN_BAD.map(|bad| bad.scenario)).map(|scenario| scenario.name)
}

impl Torture {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let signals = Signals::take()?;
        let first = self.seed.unwrap_or(0);
        let count = self.seeds.unwrap_or(if self.seed.is_some() { 1 } else { SIMULATED });
        let only = self.scenario.as_deref().and_then(Scenario::by_name);
        let bar = progress_bar(count);
        let started = Instant::now();
        let more = || {
            bar.inc(1);
            signals.received().is_none()
        };
        let tally = simulate(first..first.saturating_add(count), only, &more);
        // A run that is repeated alone is not about these.
        let known = if only.is_none() && count > 1 { find_known_bad(first) } else { Vec::new() };
        bar.finish_and_clear();
        self.tell(&tally, &known, started)?;
        Ok(Exit::when(tally.is_good() && known.iter().all(|known| known.found.is_some())))
    }

    fn tell(&self, tally: &Tally, known: &[Discovery], started: Instant) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let seconds = started.elapsed().as_secs_f64();
        if self.json {
            let known: Vec<_> = known
                .iter()
                .map(|known| {
                    serde_json::json!({
                        "scenario": known.scenario,
                        "about": known.about,
                        "seed": known.found.as_ref().map(|(seed, _)| seed),
                        "fault": known.found.as_ref().map(|(_, fault)| fault.to_string()),
                    })
                })
                .collect();
            let rows = tally.rows();
            let report = serde_json::json!({ "rows": rows, "known_bad": known, "seconds": seconds });
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)?;
            return Ok(());
        }
        write!(out, "{tally}")?;
        if !known.is_empty() {
            writeln!(out, "\nFaults that are known and must be found:")?;
            known.iter().try_for_each(|known| writeln!(out, "{known}"))?;
        }
        let (runs, faulty) = (tally.runs(), tally.faulty());
        writeln!(out, "\n{runs} runs in {seconds:.1} s, {faulty} with faults")?;
        Ok(())
    }
}

fn progress_bar(count: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} runs {eta}");
    ProgressBar::new(count).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
