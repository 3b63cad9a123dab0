//! A CPU shut down: a triple fault, as a kernel's last resort or its collapse (Intel SDM vol. 3A 7.15).
//!
//! A Linux kernel also resets itself so, with `reboot=t`; where its own words say that it does, and that it has not panicked,
//! that is a reset (`inquiry.rs`).
//!
//! The registers of that vCPU may be those after an INIT: AMD hosts reset it before they report.

use super::{ExitPanic, PanicSource, Places};
use crate::bus::BusError;
use crate::vcpu::Exit;

pub(super) const NAME: &str = "triple-fault";

/// The source.
#[derive(Debug)]
pub(super) struct TripleFault;

impl PanicSource for TripleFault {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "a vCPU shuts down after a triple fault"
    }

    fn arm(&'static self, places: &mut Places<'_>) -> Result<(), BusError> {
        places.exits.push(recognise);
        Ok(())
    }
}

fn recognise(exit: &Exit) -> Option<ExitPanic> {
    (*exit == Exit::Shutdown).then(|| ExitPanic {
        source: NAME,
        detail: "triple fault".into(),
        survivable: false,
    })
}
