//! What is played: who meets whom, in which weather, and what is wrong if it ends otherwise. A scenario and a seed make
//! a run, which is the same each time.

mod bad;
pub(super) mod judging;
mod others;
pub(super) mod ours;

use std::time::Duration;

use super::judge::Fault;
use crate::report::Outcome;

pub use ours::{Place, any_client};

/// One kind of run.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What options call it.
    pub name: &'static str,
    /// Who meets whom.
    pub about: &'static str,
    run: fn(u64) -> Verdict,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// For the client.
    pub outcome: Outcome,
    /// How long it took, in the run's own time.
    pub elapsed: Duration,
    /// What was done that must not be.
    pub faults: Vec<Fault>,
}

impl Scenario {
    #[cfg(test)]
    pub(super) fn test(name: &'static str, run: fn(u64) -> Verdict) -> Self {
        Self { name, about: "a test", run }
    }

    /// Plays it.
    pub fn run(&self, seed: u64) -> Verdict {
        (self.run)(seed)
    }

    /// The one of that name, known-bad peers among them.
    pub fn by_name(name: &str) -> Option<Self> {
        ALL.into_iter().chain(KNOWN_BAD.map(|bad| bad.scenario)).find(|scenario| scenario.name == name)
    }

    /// The one that a seed plays.
    pub fn of_seed(seed: u64) -> Self {
        let index = usize::try_from(seed % ALL.len() as u64).expect("it is below their number");
        ALL[index]
    }
}

/// All that must end well, whatever the seed. A seed plays the one of its turn.
pub const ALL: [Scenario; 11] = [
    Scenario { name: "ours", about: "our client, our receiver", run: ours::receiver },
    Scenario { name: "gateway", about: "our client, our receiver behind a gateway", run: ours::gateway },
    Scenario { name: "packed", about: "our client with a packed core, our receiver", run: ours::packed },
    Scenario {
        name: "restart",
        about: "our client, our receiver killed and started again",
        run: ours::restart,
    },
    Scenario { name: "disk", about: "our client, our receiver with a slow or full disk", run: ours::disk },
    Scenario { name: "crowd", about: "several of our clients, our receiver", run: ours::crowd },
    Scenario { name: "servers", about: "our client, servers with bad manners", run: others::servers },
    Scenario { name: "netdumpd", about: "our client, a stock netdumpd", run: others::netdumpd },
    Scenario { name: "freebsd", about: "FreeBSD's client (64-bit mask), our receiver", run: others::freebsd },
    Scenario {
        name: "pranks",
        about: "hostile clients and an honest one, our receiver",
        run: others::pranks,
    },
    Scenario { name: "careful", about: "a netdumpd that writes before it acknowledges", run: bad::careful },
];

/// A peer with a known fault that must be found.
#[derive(Debug, Clone, Copy)]
pub struct KnownBad {
    /// What is played.
    pub scenario: Scenario,
    /// Whether a fault is the one that it is known for.
    pub is_it: fn(&Fault) -> bool,
}

/// Peers with known faults: a kit that does not find these finds nothing.
pub const KNOWN_BAD: [KnownBad; 2] = [
    KnownBad {
        scenario: Scenario {
            name: "int-mask",
            about: "FreeBSD's client with its 32-bit ack mask",
            run: bad::int_mask,
        },
        is_it: |fault| matches!(fault, Fault::FinishedWithHole(_)),
    },
    KnownBad {
        scenario: Scenario {
            name: "ack-first",
            about: "netdumpd, which acknowledges before it writes",
            run: bad::ack_first,
        },
        is_it: |fault| matches!(fault, Fault::AckedAndLost { .. }),
    },
];
