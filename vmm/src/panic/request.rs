//! A dump on request, of a guest that may merely hang: SIGUSR1 to this process, or `--dump-after`.

use nix::sys::signal::Signal;

use super::{PanicSource, Places, Wakeup};
use crate::bus::BusError;

pub(super) const NAME: &str = "request";

/// The source.
#[derive(Debug)]
pub(super) struct Request;

impl PanicSource for Request {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "SIGUSR1 to this process, or --dump-after"
    }

    fn arm(&'static self, places: &mut Places<'_>) -> Result<(), BusError> {
        places.wakeups.push(Wakeup::Signal(Signal::SIGUSR1));
        places.wakeups.extend(places.options.dump_after.map(Wakeup::After));
        Ok(())
    }
}
