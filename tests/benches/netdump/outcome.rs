//! What was measured, and how it is told: medians, ratios, a table, JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::Options;
use super::lab::Lab;
use super::subjects::{Bound, Row, Subject};

const GIGA: f64 = 1e9;

/// One thing, measured once.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) value: f64,
    pub(crate) note: String,
}

impl Sample {
    pub(crate) fn of(value: f64) -> Self {
        Self { value, note: String::new() }
    }

    /// GB in a second.
    #[expect(clippy::cast_precision_loss, reason = "rates are rough")]
    pub(crate) fn rate(bytes: u64, took: Duration) -> Self {
        Self::of(bytes as f64 / GIGA / took.as_secs_f64())
    }

    /// The time that so many bytes take at this rate.
    #[expect(clippy::cast_precision_loss, reason = "rates are rough")]
    pub(crate) fn seconds_for(self, bytes: u64) -> Self {
        Self { value: bytes as f64 / GIGA / self.value, ..self }
    }

    pub(crate) fn with_note(self, note: String) -> Self {
        Self { note, ..self }
    }
}

/// All samples, by the names of subjects.
#[derive(Debug, Default)]
pub(crate) struct Measured(BTreeMap<&'static str, Series>);

#[derive(Debug)]
struct Series {
    unit: &'static str,
    samples: Vec<Sample>,
}

impl Series {
    fn median(&self) -> f64 {
        let mut values: Vec<f64> = self.samples.iter().map(|sample| sample.value).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        }
    }

    /// The least and the most.
    fn spread(&self) -> (f64, f64) {
        let values = || self.samples.iter().map(|sample| sample.value);
        (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
    }
}

impl Measured {
    pub(crate) fn add(&mut self, subject: &Subject, sample: Sample) {
        let series = self.0.entry(subject.name);
        series.or_insert_with(|| Series { unit: subject.unit, samples: Vec::new() }).samples.push(sample);
    }

    /// A row's figures; `None` when something of it could not be measured.
    fn judge(&self, row: &Row) -> Option<Judged<'_>> {
        let own = self.0.get(row.subject)?;
        let others = row.against.iter().map(|name| Some((*name, self.0.get(name)?)));
        let others: Vec<_> = others.collect::<Option<_>>()?;
        let best = others.into_iter().max_by(|a, b| a.1.median().total_cmp(&b.1.median()));
        let value = own.median() / best.map_or(1.0, |(_, other)| other.median());
        Some(Judged { own, best, value, holds: row.bound.map(|bound| bound.holds(value)) })
    }
}

struct Judged<'a> {
    own: &'a Series,
    /// The best of what it is set against.
    best: Option<(&'static str, &'a Series)>,
    /// The ratio, or the figure itself when it is set against nothing.
    value: f64,
    holds: Option<bool>,
}

/// Where and how was measured.
#[derive(Debug)]
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cores: usize,
    size: u64,
    runs: u16,
    store: &'static str,
}

impl Machine {
    pub(crate) fn here(options: &Options, lab: &Lab) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            kernel: kernel.trim().into(),
            cpu: cpu.map_or_else(String::new, |(_, name)| name.into()),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            size: options.size.bytes(),
            runs: options.runs,
            store: lab.memory_store(),
        }
    }
}

/// The table for people.
pub(crate) fn table(machine: &Machine, rows: &[Row], measured: &Measured) -> String {
    let Machine { kernel, cpu, cores, size, runs, store } = machine;
    let mut out = format!(
        "{} MiB of incompressible memory, medians of {runs} runs; {cores} cores of {cpu}, Linux {kernel}\n\
         receiver: netdump serve, storing on {store} unless a row says otherwise\n\n",
        size >> 20
    );
    let mut line = |cells: [&str; 6]| {
        let [row, own, other, ratio, bound, verdict] = cells;
        let _ = writeln!(out, "{row:<44} {own:>22}  {other:<34} {ratio:>6}  {bound:<8} {verdict}");
    };
    line(["", "measured (least - most)", "beside", "ratio", "must", ""]);
    for row in rows {
        let Some(Judged { own, best, value, holds }) = measured.judge(row) else {
            line([row.what, "", "", "", "", "SKIPPED"]);
            continue;
        };
        let (least, most) = own.spread();
        let figure = format!("{:.2} {} ({least:.2} - {most:.2})", own.median(), own.unit);
        let beside = best
            .map_or_else(String::new, |(name, other)| format!("{:.2} {} {name}", other.median(), other.unit));
        let ratio = best.map_or_else(String::new, |_| format!("{value:.2}"));
        let bound = row.bound.map_or_else(String::new, |bound| bound.to_string());
        let verdict = holds.map_or("", |holds| if holds { "ok" } else { "MISSED" });
        line([row.what, &figure, &beside, &ratio, &bound, verdict]);
    }
    out
}

/// Everything, for programs.
pub(crate) fn json(machine: &Machine, rows: &[Row], measured: &Measured) -> Value {
    let subjects: serde_json::Map<String, Value> = measured
        .0
        .iter()
        .map(|(name, series)| {
            let values: Vec<f64> = series.samples.iter().map(|sample| sample.value).collect();
            let notes: Vec<&str> = series.samples.iter().map(|sample| &*sample.note).collect();
            let value = json!({
                "unit": series.unit, "median": series.median(), "samples": values, "notes": notes,
            });
            ((*name).to_owned(), value)
        })
        .collect();
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let judged = measured.judge(row);
            json!({
                "name": row.name,
                "what": row.what,
                "subject": row.subject,
                "against": judged.as_ref().and_then(|judged| judged.best).map(|(name, _)| name),
                "value": judged.as_ref().map(|judged| judged.value),
                "must": row.bound.map(|bound| bound.to_string()),
                "holds": judged.as_ref().and_then(|judged| judged.holds),
            })
        })
        .collect();
    json!({
        "machine": { "kernel": machine.kernel, "cpu": machine.cpu, "cores": machine.cores },
        "size": machine.size,
        "runs": machine.runs,
        "store": machine.store,
        "rows": rows,
        "subjects": subjects,
    })
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::AtMost(bound) => write!(f, "<= {bound}"),
        }
    }
}
