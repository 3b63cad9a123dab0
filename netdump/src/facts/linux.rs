//! Linux, told by what it keeps in its memory for the tools that read its dumps: no symbols are needed.

use super::{GuestFacts, GuestOs, KernelState, StateRequest};
use crate::linux::Kernel;
use crate::linux::card::Crash;
use crate::vmcore::{KernelSymbols, PhysicalMemory};

/// A Linux kernel: one that has VMCOREINFO, or one whose image the CPUs' page tables show.
pub(super) struct Linux;

impl GuestOs for Linux {
    fn name(&self) -> &'static str {
        "linux"
    }

    fn recognise(&self, memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> bool {
        Kernel::is_in(memory, kernel)
    }

    fn facts(&self, memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> GuestFacts {
        Crash::find(memory, kernel).map_or_else(GuestFacts::default, |crash| crash.facts())
    }

    /// The timekeeper's copy of itself, which the clock interrupt updates.
    fn clock(&self, memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> Option<u64> {
        Kernel::find(memory, kernel)?.clock()
    }

    fn state(
        &self,
        memory: &dyn PhysicalMemory,
        kernel: Option<&KernelSymbols>,
        request: StateRequest,
    ) -> KernelState {
        let Some(crash) = Crash::find(memory, kernel) else { return KernelState::default() };
        crash.card(request).take_state(crash.log())
    }
}
