//! Guests on KVM, run as a user runs them: every guest, panic source, policy and exit code, and every bad input.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod bad_input;
mod disks;
mod environment;
mod freebsd_boot;
mod linux_panic;
mod memory;
mod packed;
mod policies;
mod queues;
mod registers;
mod sources;
mod terminal;
mod watcher;

/// Ends a test on a machine without KVM.
macro_rules! needs_kvm {
    () => {
        if !harness::needs::Need::Kvm.or_skip() {
            return;
        }
    };
}
pub(crate) use needs_kvm;
