//! What there is to say of a core: gathered once, printed for humans or written as JSON.

mod render;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::cpu::CpuState;
use super::info::{self, InfoFile};
use super::memory::PhysicalMemory;
use super::open::{OpenError, open};
use super::symbols::KernelSymbols;
use crate::facts::{self, GuestFacts};
pub use render::bytes_text;
pub(super) use render::plain;

/// Everything that is said of a core.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// The format's name.
    pub format: &'static str,
    /// What it is, for a human.
    pub kind: &'static str,
    /// Length of the file in bytes.
    pub length: u64,
    /// Length that the headers ask for; when it is another, the core is not whole.
    pub expected_length: u64,
    /// The panic.
    pub panic: PanicFacts,
    /// What the guest says of itself: from its memory when its symbols are known, else as the dumper found it.
    pub guest: GuestFacts,
    /// What the server that received the core wrote beside it.
    pub info: Option<InfoFile>,
    /// The RAM ranges.
    pub memory: Vec<RangeFacts>,
    /// The CPUs.
    pub cpus: Vec<CpuState>,
    /// What is wrong with the notes, one sentence each.
    pub problems: Vec<String>,
}

/// What is known of the panic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PanicFacts {
    /// The CPU that panicked.
    pub cpu: Option<u32>,
    /// How the panic was noticed.
    pub source: Option<String>,
    /// The panic message.
    pub text: Option<String>,
    /// When it was noticed, in seconds since 1970.
    pub time: Option<u64>,
}

/// One RAM range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RangeFacts {
    /// Guest-physical address of its first byte.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Bytes of it that are stored in the file. The rest was never touched by the guest or is zeros, unless the file
    /// was cut.
    pub stored: u64,
}

/// Opens a core and looks at all of it but the guest's data. With the symbols of the guest's kernel the guest's own
/// memory is asked for its facts.
pub fn inspect(path: &Path, symbols: Option<&KernelSymbols>) -> Result<Inspection, OpenError> {
    let core = open(path)?;
    let notes = core.notes();
    let guest = match symbols {
        Some(symbols) => complete(facts::gather(&core, Some(symbols)), &notes.facts),
        None => notes.facts.clone(),
    };
    let info = info::beside(path).and_then(|path| InfoFile::read(&path).ok());
    let texts =
        [&guest.panic_text, &notes.panic_text, &info.as_ref().and_then(|info| info.panic_string.clone())];
    let text = texts.into_iter().find_map(Clone::clone);
    Ok(Inspection {
        path: path.to_owned(),
        format: core.format(),
        kind: core.kind(),
        length: core.file().length(),
        expected_length: core.expected_length(),
        panic: PanicFacts {
            cpu: notes.panic_cpu,
            source: notes.panic_source.clone(),
            text,
            time: notes.panic_time,
        },
        guest,
        info,
        memory: core
            .stored()
            .map(|(range, stored)| RangeFacts { start: range.start, len: range.len, stored })
            .collect(),
        cpus: core.cpus().to_vec(),
        problems: core.problems().iter().map(ToString::to_string).collect(),
    })
}

/// What the guest's memory does not tell (any more) is taken from the notes.
fn complete(found: GuestFacts, noted: &GuestFacts) -> GuestFacts {
    let noted = noted.clone();
    GuestFacts {
        os: found.os.or(noted.os),
        release: found.release.or(noted.release),
        version: found.version.or(noted.version),
        host_name: found.host_name.or(noted.host_name),
        panic_text: found.panic_text.or(noted.panic_text),
        environment: found.environment.or(noted.environment),
    }
}
