//! Many seeds, on every core of the machine.

use std::any::Any;
use std::convert::Infallible;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::control::{Control, play_all};
use super::judge::Fault;
use super::scenarios::{ALL, KNOWN_BAD, KnownBad, Scenario, Verdict};
use super::tally::{Discovery, Failure, Tally};
use crate::report::Outcome;

/// Seeds after which a known-bad peer counts as overlooked. Most often the first or second is enough.
const FIND_WITHIN: u64 = 100;

/// Plays these seeds, each the scenario of its turn or all the same one.
pub fn simulate(seeds: Range<u64>, only: Option<Scenario>, control: &Control<'_>) -> Tally {
    let empty = Tally::of(only.as_ref().map_or(&ALL[..], std::slice::from_ref));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let played = play_all(seeds, threads, &empty, control, &|seed| {
        let scenario = only.unwrap_or_else(|| Scenario::of_seed(seed));
        Ok::<_, Infallible>(Some((scenario.name, run(scenario, seed))))
    });
    match played {
        Ok(tally) => tally,
    }
}

/// Looks for the faults of the known-bad peers, from this seed on.
pub fn find_known_bad(first: u64) -> Vec<Discovery> {
    KNOWN_BAD.into_iter().map(|bad| find(bad, first)).collect()
}

fn find(KnownBad { scenario, is_it }: KnownBad, first: u64) -> Discovery {
    let found = (first..first.saturating_add(FIND_WITHIN)).find_map(|seed| {
        let faults = run(scenario, seed).faults;
        let fault = faults.into_iter().find(is_it)?;
        Some(Failure { seed, faults: vec![fault.to_string()] })
    });
    Discovery { scenario: scenario.name, about: scenario.about, found }
}

/// A run that panics is one that failed.
fn run(scenario: Scenario, seed: u64) -> Verdict {
    catch_unwind(AssertUnwindSafe(|| scenario.run(seed))).unwrap_or_else(|panic| Verdict {
        outcome: Outcome::Failed,
        elapsed: std::time::Duration::ZERO,
        faults: vec![Fault::Panicked(text_of(panic.as_ref()))],
    })
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_repeated_by_its_seed() {
        for seed in 0..2 * ALL.len() as u64 {
            let scenario = Scenario::of_seed(seed);
            assert_eq!(scenario.run(seed), scenario.run(seed), "{} {seed}", scenario.name);
        }
    }

    #[test]
    fn known_bad_peers_are_found() {
        for discovery in find_known_bad(0) {
            assert!(discovery.found.is_some(), "{}", discovery.about);
        }
    }

    #[test]
    fn their_careful_twins_are_not_accused() {
        for name in ["freebsd", "careful"] {
            let control = Control { stops: &|| false, ended: &|| {} };
            let tally = simulate(0..200, Scenario::by_name(name), &control);
            assert!(tally.is_good(), "{tally}");
        }
    }

    #[test]
    fn a_panic_is_a_fault_of_its_run() {
        let panics = Scenario::test("panics", |_| panic!("boom"));
        assert_eq!(run(panics, 1).faults, [Fault::Panicked("boom".into())]);
    }
}
