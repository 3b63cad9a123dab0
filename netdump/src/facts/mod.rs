//! What a stopped guest says of itself, for a human and for the dump's own configuration.
//!
//! One file per kind of guest: it recognises the guest and reads what it knows how to find. The guest's memory is
//! hostile: every string, list and walk is bounded, and what cannot be read is missing, not an error.

mod bare;
mod freebsd;
mod kernel_state;
mod linux;

pub use kernel_state::{
    Backtraces, Frame, KernelState, RegisterSource, StateRequest, ThreadFacts, ThreadRegisters,
};

use serde::{Deserialize, Serialize};

use crate::vmcore::{KernelSymbols, PhysicalMemory};

/// What is known of a guest. Texts are the guest's own words: they may hold control characters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestFacts {
    /// The operating system, such as "FreeBSD".
    pub os: Option<String>,
    /// Its release, such as "14.1-RELEASE".
    pub release: Option<String>,
    /// The kernel's version text, usually a line or more with build time and builder.
    pub version: Option<String>,
    /// The guest's name.
    pub host_name: Option<String>,
    /// The panic message as the kernel formatted it.
    pub panic_text: Option<String>,
    /// The kernel environment as the guest last set it, in its order; `None` when none was found (an empty one was
    /// found and holds nothing).
    pub environment: Option<Vec<(String, String)>>,
}

impl GuestFacts {
    /// The value of a variable of the kernel environment; of several of one name the first counts, as in the kernel.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().flatten().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// These facts, and for each that is missing the one in `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            os: self.os.or(other.os),
            release: self.release.or(other.release),
            version: self.version.or(other.version),
            host_name: self.host_name.or(other.host_name),
            panic_text: self.panic_text.or(other.panic_text),
            environment: self.environment.or(other.environment),
        }
    }
}

/// One kind of guest.
pub trait GuestOs: Sync {
    /// Its name, for logs.
    fn name(&self) -> &'static str;

    /// Whether the guest is of this kind.
    fn recognise(&self, memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> bool;

    /// What can be found.
    fn facts(&self, memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> GuestFacts;

    /// The guest's clock when it stopped, in seconds since 1970.
    fn clock(&self, _memory: &dyn PhysicalMemory, _kernel: Option<&KernelSymbols>) -> Option<u64> {
        None
    }

    /// What its kernel was doing, where this kind of guest is known that well.
    fn state(
        &self,
        _memory: &dyn PhysicalMemory,
        _kernel: Option<&KernelSymbols>,
        _request: StateRequest,
    ) -> KernelState {
        KernelState::default()
    }
}

/// All kinds of guest; the first that recognises the guest is asked. The last one recognises everything.
pub static ALL: &[&dyn GuestOs] = &[&freebsd::FreeBsd, &linux::Linux, &bare::Bare];

/// What the stopped guest in `memory`, whose kernel image has these symbols, says of itself.
pub fn gather(memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> GuestFacts {
    let Some(os) = recognised(memory, kernel) else { return GuestFacts::default() };
    tracing::debug!(guest = os.name(), "asking the stopped guest for its facts");
    os.facts(memory, kernel)
}

/// The clock of the stopped guest in `memory`, in seconds since 1970: what the guest takes for that.
pub fn clock(memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> Option<u64> {
    recognised(memory, kernel)?.clock(memory, kernel)
}

/// What the kernel of the stopped guest in `memory`, whose image has these symbols, was doing.
pub fn kernel_state(
    memory: &dyn PhysicalMemory,
    kernel: Option<&KernelSymbols>,
    request: StateRequest,
) -> KernelState {
    recognised(memory, kernel).map_or_else(KernelState::default, |os| os.state(memory, kernel, request))
}

fn recognised(memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> Option<&'static dyn GuestOs> {
    ALL.iter().copied().find(|os| os.recognise(memory, kernel))
}
