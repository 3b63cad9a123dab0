//! What the stopped guest tells of itself: the facts that every guest may have, and of Linux its crash card.

use std::time::Instant;

use netdump::facts::{self, GuestFacts, StateRequest};
use netdump::freebsd;
use netdump::linux::card::Crash;
use netdump::vmcore::KernelSymbols;

use crate::report::CardReport;
use crate::vm::PausedGuest;

/// The guest's own account.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) facts: GuestFacts,
    /// Its clock, in seconds since 1970.
    pub(crate) clock: Option<u64>,
    pub(crate) card: Option<CardReport>,
}

impl Account {
    /// Asks the guest's memory. `vcpu` is the one on which the panic showed.
    pub(crate) fn take(guest: &PausedGuest<'_>, symbols: &KernelSymbols, vcpu: Option<u32>) -> Self {
        let began = Instant::now();
        let crash = if freebsd::is_freebsd(symbols) { None } else { Crash::find(guest, Some(symbols)) };
        let Some(crash) = crash else {
            let (facts, clock) = (facts::gather(guest, Some(symbols)), facts::clock(guest, Some(symbols)));
            return Self { facts, clock, card: None };
        };
        let card = crash.card(StateRequest { panic_cpu: vcpu, ..StateRequest::default() });
        let microseconds = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        Self { facts: crash.facts(), clock: crash.clock(), card: Some(CardReport { microseconds, card }) }
    }

    /// The release of a Linux guest's kernel.
    pub(crate) fn linux_release(&self) -> Option<&str> {
        self.card.as_ref().map(|card| card.card.release.as_str())
    }
}
