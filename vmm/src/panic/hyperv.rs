//! Hyper-V's crash registers, with `--hyperv-crash`: what a stock Linux kernel without any module writes to when it
//! panics, from the time on that it has set its APICs up.
//!
//! KVM keeps them where it can, and then tells of a crash by an exit; [`crate::hyperv`] keeps them elsewhere.

use std::sync::Arc;

use kvm_bindings::KVM_SYSTEM_EVENT_CRASH;

use super::{ExitPanic, PanicSource, Places};
use crate::bus::BusError;
use crate::hyperv::{HypervMsrs, SOURCE};
use crate::vcpu::Exit;

/// The source.
#[derive(Debug)]
pub(super) struct HypervCrash;

impl PanicSource for HypervCrash {
    fn name(&self) -> &'static str {
        SOURCE
    }

    fn about(&self) -> &'static str {
        "the guest writes to Hyper-V's crash registers (only with --hyperv-crash)"
    }

    fn arm(&'static self, places: &mut Places<'_>) -> Result<(), BusError> {
        if places.options.hyperv_crash {
            let msrs = HypervMsrs::new(places.guest.memory.clone(), places.events.clone());
            *places.hyperv = Some(Arc::new(msrs));
            places.exits.push(recognise);
        }
        Ok(())
    }
}

fn recognise(exit: &Exit) -> Option<ExitPanic> {
    let detail = "the guest told Hyper-V of a crash".into();
    (*exit == Exit::SystemEvent(KVM_SYSTEM_EVENT_CRASH)).then_some(ExitPanic {
        source: SOURCE,
        detail,
        survivable: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crash_is_a_panic() {
        assert!(recognise(&Exit::SystemEvent(KVM_SYSTEM_EVENT_CRASH)).is_some());
        for other in [Exit::SystemEvent(1), Exit::SystemEvent(2), Exit::Shutdown] {
            assert_eq!(recognise(&other), None);
        }
    }
}
