//! The log of a Linux kernel that resets, powers off or collapses: a reset after a panic is a panic. The log is found by
//! VMCOREINFO, so it tells also of a kernel whose symbols nobody has, or which another one has started in its place.
//!
//! It is looked at once, when the guest has ended: finding it takes some milliseconds.

use netdump::freebsd;
use netdump::linux::panic_state;
use netdump::panicked::Panicked;

use super::{Lookout, PanicSource, Places};
use crate::bus::BusError;
use crate::memory::RunningGuest;

const NAME: &str = "kernel-log";

/// The source.
#[derive(Debug)]
pub(super) struct KernelLog;

impl PanicSource for KernelLog {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "a Linux guest resets or powers off, and its log tells of a panic"
    }

    fn arm(&'static self, places: &mut Places<'_>) -> Result<(), BusError> {
        if !freebsd::is_freebsd(places.guest.symbols) {
            let memory = RunningGuest::new(places.guest.memory.clone());
            places.lookouts.push(Box::new(Reader { memory }));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Reader {
    memory: RunningGuest,
}

impl Lookout for Reader {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&mut self) -> Option<Panicked> {
        None
    }

    fn looks_at_running_guests(&self) -> bool {
        false
    }

    fn look_at_end(&mut self) -> Option<Panicked> {
        panic_state::told_by_log(&self.memory)
    }
}
