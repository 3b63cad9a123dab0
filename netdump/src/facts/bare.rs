//! A guest of which nothing is known. Stands last in the table.

use super::{GuestFacts, GuestOs};
use crate::vmcore::{KernelSymbols, PhysicalMemory};

/// Any guest.
pub(super) struct Bare;

impl GuestOs for Bare {
    fn name(&self) -> &'static str {
        "bare"
    }

    fn recognise(&self, _memory: &dyn PhysicalMemory, _kernel: Option<&KernelSymbols>) -> bool {
        true
    }

    fn facts(&self, _memory: &dyn PhysicalMemory, _kernel: Option<&KernelSymbols>) -> GuestFacts {
        GuestFacts::default()
    }
}
