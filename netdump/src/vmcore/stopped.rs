//! What a core is made from, and which format it gets.

use super::image::DumpImage;
use super::notes::CoreNotes;
use super::symbols::KernelSymbols;
use super::{ALL, DumpFormat, PhysicalMemory, PlanError};

/// A guest that stands still, with what is known of it.
#[derive(Clone, Copy)]
pub struct StoppedGuest<'m, 'k> {
    /// Its memory and its CPUs.
    pub memory: &'m dyn PhysicalMemory,
    /// The symbols of its kernel, where the kernel's file is known and has some.
    pub symbols: Option<&'k KernelSymbols>,
    /// What else is known.
    pub notes: &'k CoreNotes,
}

impl std::fmt::Debug for StoppedGuest<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoppedGuest").field("notes", &self.notes).finish_non_exhaustive()
    }
}

/// A planned core.
#[derive(Debug)]
pub struct PlannedCore<'m> {
    /// What it consists of.
    pub image: DumpImage<'m>,
    /// The format's name.
    pub format: &'static str,
    /// What a person should know of it, one sentence each: what could not be had, and what was done instead.
    pub remarks: Vec<String>,
}

/// The format that the user asks for.
#[derive(Debug, Clone, Copy)]
pub enum FormatChoice {
    /// What suits the guest: the first of its formats that can be planned.
    Auto,
    /// This one.
    Named(&'static dyn DumpFormat),
}

/// Name of [`FormatChoice::Auto`].
pub const AUTO: &str = "auto";

impl FormatChoice {
    /// The choice of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        if name == AUTO { Some(Self::Auto) } else { super::format(name).map(Self::Named) }
    }

    /// All names, the default first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        std::iter::once(AUTO).chain(ALL.iter().map(|format| format.name()))
    }

    /// Plans the core. Where a format cannot be had the next one is tried, and a remark says why: a dump in another
    /// format than was wanted is better than none.
    pub fn plan<'m>(self, guest: &StoppedGuest<'m, '_>) -> Result<PlannedCore<'m>, PlanError> {
        let wanted = match self {
            Self::Named(format) => Some(format),
            Self::Auto => None,
        };
        let others =
            ALL.iter().copied().filter(|other| wanted.is_none_or(|wanted| wanted.name() != other.name()));
        let (mut remarks, mut failed) = (Vec::new(), None);
        for format in wanted.into_iter().chain(others.filter(|format| format.suits(guest))) {
            match format.plan(guest) {
                Ok(mut core) => {
                    core.remarks.splice(0..0, remarks);
                    return Ok(core);
                }
                Err(error) => {
                    remarks.push(format!("no {} core: {error}", format.name()));
                    failed = Some(error);
                }
            }
        }
        Err(failed.expect("elf suits every guest, so one format at least was tried"))
    }
}
