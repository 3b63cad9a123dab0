//! How fast dumps travel, each beside what the same path gives a pair of programs that does nothing but move bytes.
//!
//! ```text
//! cargo bench -p harness --bench netdump -- [--size 1GiB] [--runs 5] [--only NAME]... [--quick] [--json FILE]
//! ```
//!
//! A run measures everything once, one after the other, so that what is compared was measured within seconds; the table
//! shows medians over the runs. Sender and receiver share the machine: on two cores there is one for each.
//!
//! Everything happens in a network namespace of the bench's own and, where the user may mount, on a tmpfs of its own.
//! Rates are bytes of the core in a second, in GB = 10^9 bytes: of a dump from the first frame until FINISHED is
//! acknowledged, of a raw pair from the first write until the last byte is read. Each stored core is compared with the
//! guest's memory, outside of the time taken.
//!
//! - [`subjects`]: what is measured, and what is set against what
//! - [`raw`]: the pairs that do nothing else, and one that does the least that a dump must
//! - [`dump`]: a dump of ours; [`guest`] its memory, [`wrappers`] its troubles, [`stock`] a receiver like FreeBSD's
//! - [`lab`]: namespace, taps, folders, `netdump serve`
//! - [`child`]: the memory that a dump takes
//! - [`outcome`]: medians, table, JSON

mod child;
mod dump;
mod guest;
mod lab;
mod outcome;
mod raw;
mod stock;
mod subjects;
mod wrappers;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Parser;
use harness::needs::Need;
use harness::netns::Namespace;
use vmm::memory::MemorySize;

use self::lab::Lab;
use self::outcome::{Machine, Measured};
use self::subjects::{Row, Subject};

/// Measures dumps against what their paths can bear.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Memory that is dumped; slow ways get less.
    #[arg(long, default_value = "1GiB", value_parser = size)]
    size: MemorySize,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Only the rows whose names contain this; may be given again.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// 256 MiB, 3 runs: a look, no figures to quote.
    #[arg(long)]
    quick: bool,
    /// Writes everything that was measured to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What each run measures, on standard error.
    #[arg(long, short)]
    verbose: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// This process is the dumper whose memory is measured.
    #[arg(long, hide = true, value_name = "JSON")]
    child: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let mut options = Options::parse();
    if let Some(job) = &options.child {
        return child::run(job);
    }
    if options.quick {
        options.size = MemorySize::new(256 << 20)?;
        options.runs = options.runs.min(3);
    }
    if Need::Network.is_met() {
        let namespace = Namespace::new();
        namespace.inside(move || bench(&options))
    } else {
        bench(&options)
    }
}

/// Measures and prints.
fn bench(options: &Options) -> anyhow::Result<()> {
    let rows: Vec<Row> = subjects::rows()
        .into_iter()
        .filter(|row| options.only.is_empty() || options.only.iter().any(|only| row.name.contains(&**only)))
        .collect();
    ensure!(!rows.is_empty(), "no row has such a name");
    let wanted: BTreeSet<&str> = rows.iter().flat_map(Row::subjects).collect();
    let has_network = Need::Network.is_met();
    let (subjects, skipped): (Vec<Subject>, Vec<Subject>) = subjects::subjects()
        .into_iter()
        .filter(|subject| wanted.contains(subject.name))
        .partition(|subject| has_network || !subject.needs_taps);

    let mut lab = Lab::new(options.size, has_network)?;
    let mut measured = Measured::default();
    for run in 1..=options.runs {
        for subject in &subjects {
            lab.warm()?;
            let sample =
                (subject.measure)(&mut lab).with_context(|| format!("run {run}, {}", subject.name))?;
            if options.verbose {
                eprintln!(
                    "run {run}  {:<18} {:>9.3} {}  {}",
                    subject.name, sample.value, subject.unit, sample.note
                );
            }
            measured.add(subject, sample);
        }
    }
    let machine = Machine::here(options, &lab);
    print!("{}", outcome::table(&machine, &rows, &measured));
    for subject in &skipped {
        println!("SKIPPED {}: needs root, /dev/net/tun and the program ip", subject.name);
    }
    if let Some(path) = &options.json {
        let json = serde_json::to_vec_pretty(&outcome::json(&machine, &rows, &measured))?;
        std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// A size of memory with a unit: M, MiB, G or GiB.
fn size(text: &str) -> Result<MemorySize, vmm::memory::MemorySizeError> {
    text.strip_suffix("iB").unwrap_or(text).parse()
}
