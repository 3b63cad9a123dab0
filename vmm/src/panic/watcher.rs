//! The kernel's own words in its memory: FreeBSD sets `panicstr` and `panicked` when it panics, Linux takes `panic_cpu`,
//! whatever their consoles, debuggers or drivers do then. A guest that waits in its debugger for ever, or that panics
//! before it has a console, is seen by nobody else.
//!
//! The words are found by the kernel's symbols and read from outside while the guest runs: it is not paused for that
//! and does not notice.

use netdump::panicked::Panicked;
use netdump::vmcore::KernelSymbols;
use netdump::{freebsd, linux};

use super::{Lookout, PanicSource, Places};
use crate::bus::BusError;
use crate::memory::RunningGuest;

pub(super) const NAME: &str = "watcher";

/// The source.
#[derive(Debug)]
pub(super) struct Watcher;

impl PanicSource for Watcher {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "FreeBSD's panicstr or Linux's panic_cpu is set, read from the kernel's memory (needs its symbols)"
    }

    fn arm(&'static self, places: &mut Places<'_>) -> Result<(), BusError> {
        let guest = places.guest;
        if let Some(words) = Words::find(guest.symbols) {
            let memory = RunningGuest::new(guest.memory.clone());
            places.lookouts.push(Box::new(Reader { words, memory, cpus: guest.cpus }));
        }
        Ok(())
    }
}

/// Whether the watcher can see a panic of the kernel with these symbols.
pub fn sees(symbols: &KernelSymbols) -> bool {
    Words::find(symbols).is_some()
}

/// The words of a kernel.
#[derive(Debug)]
enum Words {
    FreeBsd(freebsd::panic_state::PanicWords),
    Linux(Box<linux::panic_state::PanicWords>),
}

impl Words {
    fn find(symbols: &KernelSymbols) -> Option<Self> {
        let freebsd = freebsd::panic_state::PanicWords::find(symbols).map(Self::FreeBsd);
        freebsd.or_else(|| Some(Self::Linux(Box::new(linux::panic_state::PanicWords::find(symbols)?))))
    }
}

#[derive(Debug)]
struct Reader {
    words: Words,
    memory: RunningGuest,
    cpus: u32,
}

impl Lookout for Reader {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&mut self) -> Option<Panicked> {
        // Both kernels number CPUs by their place among those that the firmware tables list, as we do.
        match &mut self.words {
            Words::FreeBsd(words) => words.read(&self.memory, self.cpus),
            Words::Linux(words) => words.read(&self.memory, self.cpus),
        }
    }

    fn says_well(&mut self) -> bool {
        match &self.words {
            // It prints its message before it sets all of them.
            Words::FreeBsd(_) => false,
            Words::Linux(words) => words.is_well(&self.memory),
        }
    }

    fn resets_by_triple_fault(&mut self) -> bool {
        match &self.words {
            // It triple-faults when nothing else has reset the machine, which here all do.
            Words::FreeBsd(_) => false,
            Words::Linux(words) => words.resets_by_triple_fault(&self.memory),
        }
    }

    fn look_at_end(&mut self) -> Option<Panicked> {
        match &mut self.words {
            Words::FreeBsd(words) => words.read(&self.memory, self.cpus),
            Words::Linux(words) => words.read_at_end(&self.memory, self.cpus),
        }
    }
}

#[cfg(test)]
mod tests {
    use netdump::linux::panic_state;

    use crate::boot::linux::KEPT_SYMBOLS;

    #[test]
    fn what_is_kept_of_a_linux_kernels_symbols_has_all_that_is_looked_at() {
        for symbol in panic_state::symbols() {
            assert!(KEPT_SYMBOLS.contains(&symbol), "{symbol}");
        }
    }
}
