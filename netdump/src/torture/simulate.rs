//! Many seeds, on every core of the machine.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::judge::Fault;
use super::scenarios::{ALL, KNOWN_BAD, KnownBad, Scenario, Verdict};
use super::tally::{Discovery, Tally};
use crate::report::Outcome;

/// Seeds after which a known-bad peer counts as overlooked. Most often the first or second is enough.
const FIND_WITHIN: u64 = 100;

/// Plays these seeds, each the scenario of its turn or all the same one, until `more` says that it is enough; it is
/// asked before each.
pub fn simulate(seeds: Range<u64>, only: Option<Scenario>, more: &(dyn Fn() -> bool + Sync)) -> Tally {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut tally = Tally::of(only.as_ref().map_or(&ALL[..], std::slice::from_ref));
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || !more() {
                return tally;
            }
            let scenario = only.unwrap_or_else(|| Scenario::of_seed(seed));
            tally.add(scenario.name, seed, run(scenario, seed));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let tallies = workers.into_iter().map(|worker| worker.join().expect("panics of runs are caught"));
        tallies.reduce(Tally::merged).expect("there is a thread")
    })
}

/// Looks for the faults of the known-bad peers, from this seed on.
pub fn find_known_bad(first: u64) -> Vec<Discovery> {
    KNOWN_BAD.into_iter().map(|bad| find(bad, first)).collect()
}

fn find(KnownBad { scenario, is_it }: KnownBad, first: u64) -> Discovery {
    let found = (first..first.saturating_add(FIND_WITHIN)).find_map(|seed| {
        let faults = run(scenario, seed).faults;
        faults.into_iter().find(is_it).map(|fault| (seed, fault))
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
            let tally = simulate(0..200, Scenario::by_name(name), &|| true);
            assert!(tally.is_good(), "{tally}");
        }
    }

    #[test]
    fn a_panic_is_a_fault_of_its_run() {
        let _ = catch_unwind(|| {});
        let panics = Scenario::test("panics", |_| panic!("boom"));
        assert_eq!(run(panics, 1).faults, [Fault::Panicked("boom".into())]);
    }
}
