//! Many runs side by side.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::scenarios::Verdict;
use super::tally::Tally;

/// How a caller stops runs, and hears of them.
pub struct Control<'a> {
    /// Whether to stop as soon as possible.
    pub stops: &'a (dyn Fn() -> bool + Sync),
    /// A run has ended.
    pub ended: &'a (dyn Fn() + Sync),
}

impl std::fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

/// Plays a run for each of these seeds, several at a time, and counts what came of them in `empty`. `play` names the
/// scenario of the seed; without a verdict the run was stopped. The first failure stops everything.
pub(super) fn play_all<E: Send>(
    seeds: Range<u64>,
    threads: usize,
    empty: &Tally,
    control: &Control<'_>,
    play: &(dyn Fn(u64) -> Result<Option<(&'static str, Verdict)>, E> + Sync),
) -> Result<Tally, E> {
    let next = AtomicU64::new(seeds.start);
    let has_failed = AtomicBool::new(false);
    let work = || {
        let mut tally = empty.clone();
        while !(control.stops)() && !has_failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            match play(seed).inspect_err(|_| has_failed.store(true, Ordering::Relaxed))? {
                Some((scenario, verdict)) => tally.add(scenario, seed, verdict),
                None => break,
            }
            (control.ended)();
        }
        Ok(tally)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let tallies = workers.into_iter().map(|worker| worker.join().expect("panics of runs are caught"));
        tallies.collect::<Vec<_>>().into_iter().try_fold(empty.clone(), |all, tally| Ok(all.merged(tally?)))
    })
}
