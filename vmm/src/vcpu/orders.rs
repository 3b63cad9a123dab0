//! What the controller tells a vCPU's thread: orders that it obeys, and what it is asked for while it runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a vCPU thread is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Run,
    Park,
    Finish,
}

/// State that thread and controller share.
#[derive(Debug)]
pub(super) struct Control {
    command: Mutex<Orders>,
    changed: Condvar,
    /// Whether somebody wants a [`Glance`].
    pub(super) glance: Question,
    /// Whether the guest is to get an NMI.
    pub(super) nmi: Question,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orders {
    pub(super) command: Command,
    /// Counts how often waiting vCPUs were told to run on.
    pub(super) run_on: u64,
}

/// Something that a vCPU that runs is asked for, once.
#[derive(Debug, Default)]
pub(super) struct Question(AtomicBool);

impl Question {
    pub(super) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked.
    pub(super) fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

impl Control {
    /// For a vCPU that is to run.
    pub(super) fn new() -> Self {
        Self {
            command: Mutex::new(Orders { command: Command::Run, run_on: 0 }),
            changed: Condvar::new(),
            glance: Question::default(),
            nmi: Question::default(),
        }
    }

    pub(super) fn orders(&self) -> MutexGuard<'_, Orders> {
        self.command.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders());
        self.changed.notify_all();
    }

    /// Waits until the orders are not those that were `seen` before the guest was entered: an answer to what the guest
    /// did there may come before this thread gets here.
    pub(super) fn wait_for_news(&self, seen: Orders) {
        drop(self.changed.wait_while(self.orders(), |orders| *orders == seen));
    }

    /// Waits until a parked vCPU may leave.
    pub(super) fn wait_while_parked(&self) {
        drop(self.changed.wait_while(self.orders(), |orders| orders.command == Command::Park));
    }
}
