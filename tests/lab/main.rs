//! Unmodified distribution kernels under `vmm run`: every scenario of `tests/lab/scenarios`, one line for each.
//!
//! `cargo test -p harness --test lab -- NAME` runs those whose names begin so; `cargo lab` does that and more by hand.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::ensure;
use harness::lab::{self, bench, readers, scenario};
use harness::needs::Need;

/// What runs and readers need of the machine.
const NEEDS: [Need; 3] = [Need::Lab, Need::Makedumpfile, Need::Libkdumpfile];

fn main() -> ExitCode {
    // cargo and the check give libtest's options to every test.
    let names = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect::<Vec<_>>();
    if !NEEDS.iter().all(|need| need.or_skip()) {
        return ExitCode::SUCCESS;
    }
    match run(&names) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(names: &[String]) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut runs = scenario::find(names)?;
    if runs.iter().any(|run| run.scenario.disk_image.is_some()) && !Need::Root.or_skip() {
        // The files of a system belong to root.
        runs.retain(|run| run.scenario.disk_image.is_none());
    }
    let lab = lab::folder()?;
    readers::drgn_folder(&lab)?;
    let good = bench::run(&lab, &runs, |line| println!("{line}"))?;
    println!(
        "{} runs in {:.0} s; what they left is in {}",
        runs.len(),
        started.elapsed().as_secs_f64(),
        lab.join("runs/out").display()
    );
    ensure!(good, "the lab found what is not as it should be");
    Ok(())
}
