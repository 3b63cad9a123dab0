//! What a stopped guest says of itself, for a human and for the dump's own configuration.
//!
//! One file per kind of guest: it recognises the guest and reads what it knows how to find. The guest's memory is
//! hostile: every string, list and walk is bounded, and what cannot be read is missing, not an error.

mod bare;
mod freebsd;

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
}

/// One kind of guest.
pub trait GuestOs: Sync {
    /// Its name, for logs.
    fn name(&self) -> &'static str;

    /// Whether the guest is of this kind.
    fn recognise(&self, memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> bool;

    /// What can be found.
    fn facts(&self, memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> GuestFacts;
}

/// All kinds of guest; the first that recognises the guest is asked. The last one recognises everything.
pub static ALL: &[&dyn GuestOs] = &[&freebsd::FreeBsd, &bare::Bare];

/// What the stopped guest in `memory`, whose kernel image has these symbols, says of itself.
pub fn gather(memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> GuestFacts {
    let Some(os) = ALL.iter().find(|os| os.recognise(memory, kernel)) else { return GuestFacts::default() };
    tracing::debug!(guest = os.name(), "asking the stopped guest for its facts");
    os.facts(memory, kernel)
}
