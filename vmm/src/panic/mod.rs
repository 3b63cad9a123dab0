//! Panic sources: the ways in which a guest's panic shows from outside. Each is a file and a line in [`ALL`].
//!
//! A source is armed while the machine is built: it puts itself where it can see (a port, the console, the vCPUs' exits,
//! a signal or a timer) and later sends a [`crate::events::PanicEvent`], or it is a [`Lookout`] that the event loop
//! asks. It decides nothing; what follows from all that the sources say is `inquiry.rs`'s part.

mod console;
mod hyperv;
pub(crate) mod inquiry;
mod kernel_log;
mod kvm_error;
mod pvpanic;
mod request;
mod triple_fault;
pub(crate) mod watchdog;
pub mod watcher;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use netdump::panicked::Panicked;
use netdump::vmcore::KernelSymbols;
use nix::sys::signal::Signal;

use crate::bus::{Bus, BusError};
use crate::console::ConsoleWatcher;
use crate::devices::pci::PciBus;
use crate::events::EventSender;
use crate::hyperv::HypervMsrs;
use crate::memory::GuestMemory;
use crate::platform::Platform;
use crate::vcpu::Exit;

/// Every source, in the order in which they look at an exit. The names are those of `--panic-source` and the report.
pub static ALL: &[&dyn PanicSource] = &[
    &pvpanic::Pvpanic,
    &triple_fault::TripleFault,
    &console::Console,
    &watcher::Watcher,
    &kernel_log::KernelLog,
    &hyperv::HypervCrash,
    &watchdog::WatchdogSource,
    &kvm_error::KvmError,
    &request::Request,
];

/// Something that can notice a guest panic.
pub trait PanicSource: Sync + fmt::Debug {
    /// Its name in options and reports.
    fn name(&self) -> &'static str;

    /// What it looks at, for the help text.
    fn about(&self) -> &'static str;

    /// Puts the source where it can see.
    fn arm(&'static self, places: &mut Places<'_>) -> Result<(), BusError>;
}

/// What the sources have put where the machine is to use it.
#[derive(Debug, Default)]
pub(crate) struct Armed {
    pub(crate) console: Vec<Box<dyn ConsoleWatcher>>,
    pub(crate) exits: Vec<ExitHook>,
    pub(crate) wakeups: Vec<Wakeup>,
    pub(crate) lookouts: Vec<Box<dyn Lookout>>,
    pub(crate) hyperv: Option<Arc<HypervMsrs>>,
}

/// Arms the sources that are wanted, in a machine that is being built.
pub(crate) fn arm(
    sources: &[&'static dyn PanicSource],
    platform: &mut Platform,
    guest: &WatchedGuest<'_>,
    options: SourceOptions,
) -> Result<Armed, BusError> {
    let mut armed = Armed::default();
    for source in sources {
        source.arm(&mut Places {
            ports: &mut platform.ports,
            pci: platform.pci.as_mut(),
            console: &mut armed.console,
            exits: &mut armed.exits,
            wakeups: &mut armed.wakeups,
            lookouts: &mut armed.lookouts,
            hyperv: &mut armed.hyperv,
            guest,
            options,
            events: &platform.events,
        })?;
    }
    Ok(armed)
}

/// What a source may be told by options.
#[derive(Debug, Clone, Copy, Default)]
pub struct SourceOptions {
    /// Dump although the guest's own crash kernel or dumper takes over.
    pub ignore_crashloaded: bool,
    /// How long a panicked kernel may take to finish its message, to stop its other CPUs and to print what it has to
    /// say; else as long as kernels of its kind need.
    pub settle: Option<Duration>,
    /// Dump after this time, panic or not.
    pub dump_after: Option<Duration>,
    /// Dump when no vCPU makes progress for this time.
    pub watchdog: Option<Duration>,
    /// Show the guest Hyper-V's crash registers.
    pub hyperv_crash: bool,
}

/// Where sources can put themselves.
#[derive(Debug)]
pub struct Places<'a> {
    /// Port I/O.
    pub ports: &'a mut Bus,
    /// The PCI bus of a machine that has one.
    pub pci: Option<&'a mut PciBus>,
    /// Everything that the guest writes to its console.
    pub console: &'a mut Vec<Box<dyn ConsoleWatcher>>,
    /// Exits that end a vCPU's run.
    pub exits: &'a mut Vec<ExitHook>,
    /// Signals and timers of this process.
    pub wakeups: &'a mut Vec<Wakeup>,
    /// Those that the event loop asks from time to time.
    pub lookouts: &'a mut Vec<Box<dyn Lookout>>,
    /// Hyper-V, as the guest is to find it.
    pub hyperv: &'a mut Option<Arc<HypervMsrs>>,
    /// The guest as it will run.
    pub guest: &'a WatchedGuest<'a>,
    /// The source's options.
    pub options: SourceOptions,
    /// Where to report.
    pub events: &'a EventSender,
}

/// What a source can know of the guest before it runs.
#[derive(Debug)]
pub struct WatchedGuest<'a> {
    /// Its memory.
    pub memory: &'a GuestMemory,
    /// The symbols of its kernel.
    pub symbols: &'a KernelSymbols,
    /// How many vCPUs it has.
    pub cpus: u32,
}

/// A source that sees the panic in the guest itself, whenever it looks.
pub trait Lookout: Send + fmt::Debug {
    /// Name of the source.
    fn name(&self) -> &'static str;

    /// What the guest's kernel says of its panic; `None` when it has not panicked. The guest may be running.
    fn look(&mut self) -> Option<Panicked>;

    /// Whether [`look`](Self::look) is of any use.
    fn looks_at_running_guests(&self) -> bool {
        true
    }

    /// Whether the kernel itself says that it has not panicked: then a line on its console is a forgery.
    fn says_well(&mut self) -> bool {
        false
    }

    /// Whether the kernel, once it was looked at at its end, says that a triple fault is how it resets itself.
    fn resets_by_triple_fault(&mut self) -> bool {
        false
    }

    /// What [`look`](Self::look) says of a guest that has ended, or is about to be dumped for another reason: it may take longer.
    fn look_at_end(&mut self) -> Option<Panicked> {
        self.look()
    }
}

/// Looks at an exit; `Some` if it means a panic.
pub type ExitHook = fn(&Exit) -> Option<ExitPanic>;

/// What an exit hook found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitPanic {
    /// Name of the source.
    pub source: &'static str,
    /// What was seen, for the report.
    pub detail: String,
    /// Whether the guest can still run.
    pub survivable: bool,
}

/// Something outside the guest that makes for a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wakeup {
    /// When this process gets the signal.
    Signal(Signal),
    /// When the guest has run for so long.
    After(Duration),
    /// When no vCPU has made progress for so long.
    Hang(Duration),
}

impl Wakeup {
    /// The time after which the guest is dumped.
    pub(crate) fn time(all: &[Self]) -> Option<Duration> {
        all.iter().find_map(|wakeup| if let Self::After(time) = wakeup { Some(*time) } else { None })
    }

    /// The time for which the guest may hang.
    pub(crate) fn hang(all: &[Self]) -> Option<Duration> {
        all.iter().find_map(|wakeup| if let Self::Hang(limit) = wakeup { Some(*limit) } else { None })
    }
}

/// Name of the source that [`Wakeup`]s belong to.
pub(crate) const REQUEST: &str = request::NAME;

/// One source, chosen by its name.
#[derive(Debug, Clone, Copy)]
pub struct SourceName(pub &'static dyn PanicSource);

/// No source has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no panic source '{name}'; there are {}", names())]
pub struct UnknownSource {
    name: String,
}

impl FromStr for SourceName {
    type Err = UnknownSource;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = ALL.iter().find(|source| source.name() == name);
        found.map(|source| Self(*source)).ok_or_else(|| UnknownSource { name: name.to_owned() })
    }
}

/// The names of all sources, joined by commas.
pub fn names() -> String {
    ALL.iter().map(|source| source.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events;
    use crate::memory::{self, MemorySize};

    #[test]
    fn every_source_has_a_name_of_its_own_and_arms_beside_the_others() {
        let (sender, _queue) = events::channel().unwrap();
        let (mut ports, mut console, mut exits, mut wakeups, mut lookouts) =
            (Bus::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut pci = PciBus::new();
        let mut hyperv = None;
        let memory = memory::create(MemorySize::new(2 << 20).unwrap()).unwrap();
        let guest = WatchedGuest { memory: &memory, symbols: &KernelSymbols::default(), cpus: 1 };
        for source in ALL {
            assert_eq!(ALL.iter().filter(|other| other.name() == source.name()).count(), 1);
            assert!(!source.about().is_empty());
            assert_eq!(source.name().parse::<SourceName>().unwrap().0.name(), source.name());
            source
                .arm(&mut Places {
                    ports: &mut ports,
                    pci: Some(&mut pci),
                    console: &mut console,
                    exits: &mut exits,
                    wakeups: &mut wakeups,
                    lookouts: &mut lookouts,
                    hyperv: &mut hyperv,
                    guest: &guest,
                    options: SourceOptions::default(),
                    events: &sender,
                })
                .unwrap();
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_list() {
        let error = "pvpanik".parse::<SourceName>().unwrap_err().to_string();
        assert!(error.contains("'pvpanik'") && error.contains("pvpanic, triple-fault"), "{error}");
    }
}
