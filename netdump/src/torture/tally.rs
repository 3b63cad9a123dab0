//! What came of many runs, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::judge::Fault;
use super::scenarios::{Scenario, Verdict};
use crate::report::Outcome;

/// Failed runs told of in full, for each scenario.
const MAX_FAILURES: usize = 100;
/// Failed runs of a scenario that a table lists.
const LISTED: usize = 10;

/// What came of the runs of some scenarios.
#[derive(Debug, Clone, Serialize)]
pub struct Tally {
    rows: Vec<Row>,
}

/// What came of one scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name.
    pub scenario: &'static str,
    /// Who meets whom.
    pub about: &'static str,
    /// Runs.
    pub runs: u64,
    /// Those in which the dump was completed.
    pub complete: u64,
    /// Those in which all was acknowledged but the end.
    pub unconfirmed: u64,
    /// Those in which the dump failed, and the client said so.
    pub failed: u64,
    /// Those in which something was wrong, whatever came of the dump.
    pub faulty: u64,
    /// The first of these, by seed.
    pub failures: Vec<Failure>,
}

/// A run in which something was wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// What repeats it.
    pub seed: u64,
    /// What was wrong.
    pub faults: Vec<String>,
}

/// Whether the fault of a known-bad peer was found.
#[derive(Debug, Clone, Serialize)]
pub struct Discovery {
    /// The scenario.
    pub scenario: &'static str,
    /// Who it is.
    pub about: &'static str,
    /// The run that shows it.
    pub found: Option<Failure>,
}

impl Tally {
    /// Of nothing yet.
    pub fn of(scenarios: &[Scenario]) -> Self {
        Self::with_rows(scenarios.iter().map(|scenario| (scenario.name, scenario.about)))
    }

    /// The same for runs that are no simulations: names, and who meets whom.
    pub fn with_rows(rows: impl Iterator<Item = (&'static str, &'static str)>) -> Self {
        let row = |(scenario, about)| Row {
            scenario,
            about,
            runs: 0,
            complete: 0,
            unconfirmed: 0,
            failed: 0,
            faulty: 0,
            failures: Vec::new(),
        };
        Self { rows: rows.map(row).collect() }
    }

    /// Counts a run.
    pub fn add(&mut self, scenario: &'static str, seed: u64, verdict: Verdict) {
        let Some(row) = self.rows.iter_mut().find(|row| row.scenario == scenario) else { return };
        row.runs += 1;
        match verdict.outcome {
            Outcome::Complete => row.complete += 1,
            Outcome::Unconfirmed => row.unconfirmed += 1,
            Outcome::Failed => row.failed += 1,
        }
        if !verdict.faults.is_empty() {
            row.faulty += 1;
            row.failures
                .push(Failure { seed, faults: verdict.faults.iter().map(Fault::to_string).collect() });
            row.trim();
        }
    }

    /// Both together, which are of the same scenarios.
    pub fn merged(mut self, other: Self) -> Self {
        for (row, more) in self.rows.iter_mut().zip(other.rows) {
            row.runs += more.runs;
            row.complete += more.complete;
            row.unconfirmed += more.unconfirmed;
            row.failed += more.failed;
            row.faulty += more.faulty;
            row.failures.extend(more.failures);
            row.trim();
        }
        self
    }

    /// The scenarios.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Runs of all scenarios.
    pub fn runs(&self) -> u64 {
        self.rows.iter().map(|row| row.runs).sum()
    }

    /// Runs in which something was wrong.
    pub fn faulty(&self) -> u64 {
        self.rows.iter().map(|row| row.faulty).sum()
    }

    /// Whether nothing was wrong in any run.
    pub fn is_good(&self) -> bool {
        self.faulty() == 0
    }
}

impl Row {
    fn trim(&mut self) {
        self.failures.sort_by_key(|failure| failure.seed);
        self.failures.truncate(MAX_FAILURES);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = || self.rows.iter().filter(|row| row.runs > 0);
        let width = rows().map(|row| row.about.chars().count()).max().unwrap_or(0);
        writeln!(
            f,
            "{:width$}  {:>7} {:>9} {:>12} {:>7} {:>7}",
            "", "runs", "complete", "unconfirmed", "failed", "faulty"
        )?;
        for Row { about, runs, complete, unconfirmed, failed, faulty, .. } in rows() {
            writeln!(f, "{about:width$}  {runs:>7} {complete:>9} {unconfirmed:>12} {failed:>7} {faulty:>7}")?;
        }
        for row in rows() {
            for Failure { seed, faults } in row.failures.iter().take(LISTED) {
                writeln!(f, "FAULT  --scenario {} --seed {seed}: {}", row.scenario, faults.join("; "))?;
            }
            if row.failures.len() > LISTED {
                writeln!(
                    f,
                    "       and {} more runs of {} with faults",
                    row.faulty - LISTED as u64,
                    row.scenario
                )?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Some(Failure { seed, faults }) => {
                write!(f, "found  --scenario {} --seed {seed}: {}", self.scenario, faults.join("; "))
            }
            None => write!(f, "FAULT  {} was not found", self.about),
        }
    }
}
