//! The kernel's own words in its memory: FreeBSD sets `panicstr` and `panicked` when it panics, whatever its console,
//! its debugger or its drivers do then. A guest that waits in its debugger for ever is seen by nobody else.
//!
//! The words are found by the kernel's symbols and read from outside while the guest runs: it is not paused for that
//! and does not notice.

use netdump::freebsd::panic_state::{PanicWords, Panicked};

use super::{Lookout, PanicSource, Places};
use crate::bus::BusError;
use crate::memory::RunningGuest;

const NAME: &str = "watcher";

/// The source.
#[derive(Debug)]
pub(super) struct Watcher;

impl PanicSource for Watcher {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "a FreeBSD kernel's panicstr is set, read from its memory (needs its symbols)"
    }

    fn arm(&'static self, places: &mut Places<'_>) -> Result<(), BusError> {
        let guest = places.guest;
        if let Some(words) = PanicWords::find(guest.symbols) {
            let memory = RunningGuest::new(guest.memory.clone());
            places.lookouts.push(Box::new(Reader { words, memory, cpus: guest.cpus }));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Reader {
    words: PanicWords,
    memory: RunningGuest,
    cpus: u32,
}

impl Lookout for Reader {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&mut self) -> Option<Panicked> {
        // FreeBSD's number of a CPU is its place among those that the firmware tables list, as ours is.
        self.words.read(&self.memory, self.cpus)
    }
}
