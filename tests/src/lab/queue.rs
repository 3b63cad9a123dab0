//! Which run is next, and how often one is tried again whose first level died under it.
//!
//! The first level is QEMU's emulation of a processor with nested virtualisation, which has faults of its own (an interrupt in
//! the wrong instant takes L1's kernel down). That says nothing of the run, which is made anew; a run that ended is judged as it
//! is, and never again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// First levels that may die under one run, and that may die without one.
const TRIES: u32 = 3;

/// Runs by number, in the order in which they are to be made.
#[derive(Debug)]
pub struct Queue(Mutex<State>);

#[derive(Debug)]
struct State {
    waiting: VecDeque<usize>,
    /// How many first levels died under each run.
    died: Vec<u32>,
    /// How many died before they had one.
    died_idle: u32,
}

/// What becomes of a run that was lost.
#[derive(Debug, PartialEq, Eq)]
pub enum Lost {
    /// It is next again; so many first levels have died under it.
    Again(u32),
    /// There is no use in trying.
    GiveUp,
}

impl Queue {
    /// All runs from 0 on.
    pub fn new(runs: usize) -> Self {
        Self(Mutex::new(State { waiting: (0..runs).collect(), died: vec![0; runs], died_idle: 0 }))
    }

    /// The next run.
    pub fn next(&self) -> Option<usize> {
        self.state().waiting.pop_front()
    }

    /// Whether no run waits.
    pub fn is_empty(&self) -> bool {
        self.state().waiting.is_empty()
    }

    /// A first level died, with this run or with none.
    pub fn lost(&self, run: Option<usize>) -> Lost {
        let mut state = self.state();
        let died = match run {
            Some(run) => &mut state.died[run],
            None => &mut state.died_idle,
        };
        *died += 1;
        let died = *died;
        if died >= TRIES {
            return Lost::GiveUp;
        }
        state.waiting.extend(run);
        state.waiting.rotate_right(usize::from(run.is_some()));
        Lost::Again(died)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_run_is_next_again_twice() {
        let queue = Queue::new(3);
        assert_eq!((queue.next(), queue.next()), (Some(0), Some(1)));
        assert_eq!(queue.lost(Some(0)), Lost::Again(1));
        assert_eq!((queue.next(), queue.next()), (Some(0), Some(2)));
        assert_eq!(queue.lost(Some(0)), Lost::Again(2));
        assert_eq!((queue.next(), queue.next()), (Some(0), None));
        assert_eq!(queue.lost(Some(0)), Lost::GiveUp);
        assert!(queue.is_empty());
    }

    #[test]
    fn first_levels_that_die_without_a_run_are_not_booted_for_ever() {
        let queue = Queue::new(1);
        assert_eq!(
            [queue.lost(None), queue.lost(None), queue.lost(None)],
            [Lost::Again(1), Lost::Again(2), Lost::GiveUp]
        );
        assert_eq!(queue.next(), Some(0));
    }
}
