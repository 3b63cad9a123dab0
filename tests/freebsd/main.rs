//! FreeBSD's dumps from end to end: a guest that honours its kernel's ABI panics under `vmm run`, a receiver stores the
//! core, and readers that share nothing with the product open it and compare it with what the guest itself says.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod contexts;
mod disks;
mod failures;
mod formats;
mod header;
mod hostile;
#[path = "../net/lab.rs"]
#[allow(dead_code, reason = "the tests of networks use the rest")]
mod lab;
mod minidump;
mod packed;
mod specimen;

/// Ends a test on a machine that lacks one of what it needs.
macro_rules! needs {
    ($($need:ident),+) => {
        $(if !harness::needs::Need::$need.or_skip() {
            return;
        })+
    };
}
pub(crate) use needs;
