//! A core on its way into another format, or without some of its pages.

use anyhow::Context;
use netdump::linux::filter::{self, DumpFilter, FilterCounts, FilteredMemory};
use netdump::vmcore::{self, Core, PhysicalMemory, PlannedCore, StoppedGuest};

/// The format of a core that is only filtered.
const USUAL_FORMAT: &str = "elf";

/// A core that is open, and what is kept of it.
pub(super) struct Source<'c> {
    core: &'c Core,
    filtered: Option<FilteredMemory<'c>>,
}

impl<'c> Source<'c> {
    /// What the filter keeps. Unlike a stopped guest's dump, a core that cannot be filtered can wait: it is an error.
    pub(super) fn new(core: &'c Core, filter: Option<DumpFilter>) -> anyhow::Result<Self> {
        let filtered = filter::for_dump(core, None, filter.unwrap_or_default())?;
        Ok(Self { core, filtered })
    }

    /// How many pages are left out.
    pub(super) fn counts(&self) -> Option<FilterCounts> {
        self.filtered.as_ref().map(FilteredMemory::counts)
    }

    /// The core in the format of this name. What a person should know of it is said.
    pub(super) fn plan(&self, format: Option<&str>) -> anyhow::Result<PlannedCore<'_>> {
        let memory: &dyn PhysicalMemory = self.filtered.as_ref().map_or(self.core, |filtered| filtered);
        let guest = StoppedGuest { memory, symbols: None, notes: self.core.notes() };
        let name = format.unwrap_or(USUAL_FORMAT);
        let format = vmcore::format(name).with_context(|| format!("there is no format {name}"))?;
        let planned = format.plan(&guest).with_context(|| format!("making a {name} core"))?;
        self.counts().iter().for_each(|counts| tracing::info!("{counts}"));
        planned.remarks.iter().for_each(|remark| tracing::warn!("{remark}"));
        Ok(planned)
    }
}
