//! What a core is made from, and which format it gets.

use super::image::DumpImage;
use super::notes::CoreNotes;
use super::symbols::KernelSymbols;
use super::{ALL, DumpFormat, PhysicalMemory, PlanError, elf};

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

    /// Plans the core. `Auto` falls back from format to format, and says why.
    pub fn plan<'m>(self, guest: &StoppedGuest<'m, '_>) -> Result<PlannedCore<'m>, PlanError> {
        let mut remarks = Vec::new();
        let suiting: Vec<&'static dyn DumpFormat> = match self {
            Self::Named(format) => vec![format],
            Self::Auto => ALL.iter().copied().filter(|format| format.suits(guest)).collect(),
        };
        for format in suiting {
            match format.plan(guest) {
                Ok(mut core) => {
                    core.remarks.splice(0..0, remarks);
                    return Ok(core);
                }
                Err(error) if matches!(self, Self::Auto) => {
                    remarks.push(format!("no {} core: {error}", format.name()));
                }
                Err(error) => return Err(error),
            }
        }
        let mut core = elf::Elf.plan(guest)?;
        core.remarks.splice(0..0, remarks);
        Ok(core)
    }
}
