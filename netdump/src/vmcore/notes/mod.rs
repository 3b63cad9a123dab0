//! The notes of a core: the CPUs' registers for debuggers, and what the dumper knew, for whoever has only the file.
//!
//! A note is `u32 name length, u32 descriptor length, u32 type`, the name with its NUL and the descriptor, each padded
//! to 4 bytes; all little-endian. In this order, which crash, drgn, gdb and makedumpfile accept:
//!
//! | name | type | descriptor |
//! |---|---|---|
//! | `CORE` | `NT_PRSTATUS` 1 | per CPU in CPU order: general registers (`prstatus.rs`) |
//! | `LINUX` | `NT_X86_XSTATE` 0x202 | behind the PRSTATUS of each CPU whose XSAVE area is known (`xstate.rs`) |
//! | `QEMU` | 0 | per CPU in CPU order: control registers and descriptor tables too (`qemu.rs`) |
//! | `VMCOREINFO` | 0 | of Linux guests: what the kernel says of itself ([`Vmcoreinfo`]) |
//! | `NETDUMP` | 0x4e455444 | once: lines of `key=value` (`text.rs`) |

mod prstatus;
mod qemu;
mod text;
mod xstate;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::cpu::{Activity, CpuState, Registers};
use crate::facts::GuestFacts;
use crate::linux::Vmcoreinfo;

const NT_PRSTATUS: u32 = 1;
const NT_X86_XSTATE: u32 = 0x202;
const QEMU_CPU: u32 = 0;
const VMCOREINFO: u32 = 0;
/// "NETD". crash and BFD look at some types without looking at the name: a small number could pass for a PRSTATUS.
const NETDUMP_TEXT: u32 = 0x4e45_5444;

/// Most CPUs that are taken from a file.
pub const MAX_CPUS: usize = 4096;

/// What a core says beside memory and registers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CoreNotes {
    /// The CPU that panicked, where that is known.
    pub panic_cpu: Option<u32>,
    /// How the panic was noticed, such as "pvpanic".
    pub panic_source: Option<String>,
    /// The panic message as the dumper saw it (on the console, say); the guest's own is in `facts`.
    pub panic_text: Option<String>,
    /// When the panic was noticed, in seconds since 1970.
    pub panic_time: Option<u64>,
    /// What the guest says of itself.
    pub facts: GuestFacts,
}

impl CoreNotes {
    /// The panic message: the guest's own, else what the dumper saw.
    pub fn best_panic_text(&self) -> Option<&str> {
        self.facts.panic_text.as_deref().or(self.panic_text.as_deref())
    }
}

/// What is wrong with the notes of a file. Whatever can be read is read all the same.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotesProblem {
    /// A note that ends behind the last byte of the notes.
    #[error("the note at byte {0} of the notes does not fit into them")]
    Cut(usize),
    /// A descriptor whose size is not the one of its kind.
    #[error("a {kind} note has {len} bytes")]
    Size {
        /// The kind of note.
        kind: &'static str,
        /// Bytes of its descriptor.
        len: usize,
    },
    /// More CPUs than are taken.
    #[error("notes of more than {MAX_CPUS} CPUs")]
    TooManyCpus,
    /// One of our own lines that cannot be understood.
    #[error("line {0} of the NETDUMP note cannot be understood")]
    Line(usize),
}

/// What the notes of a file hold.
#[derive(Debug, Default)]
pub struct ParsedNotes {
    /// The CPUs in the order of their numbers.
    pub cpus: Vec<CpuState>,
    /// What the dumper knew; empty in cores of other makers.
    pub core: CoreNotes,
    /// What the guest's Linux kernel says of itself.
    pub vmcoreinfo: Option<Vmcoreinfo>,
    /// What is wrong, in file order; at most a few dozen are listed.
    pub problems: Vec<NotesProblem>,
}

/// All notes of a core, in file order.
pub fn emit(cpus: &[CpuState], core: &CoreNotes, vmcoreinfo: Option<&Vmcoreinfo>) -> Vec<u8> {
    let mut out = Vec::new();
    for cpu in cpus {
        let pid = i32::try_from(cpu.index).unwrap_or(i32::MAX).saturating_add(1);
        put_note(&mut out, "CORE", NT_PRSTATUS, &prstatus::emit(pid, cpu.registers.as_deref()));
        if let Some(xsave) = cpu.registers.as_deref().and_then(|registers| xstate::emit(&registers.xsave)) {
            put_note(&mut out, "LINUX", NT_X86_XSTATE, &xsave);
        }
    }
    for cpu in cpus {
        put_note(&mut out, "QEMU", QEMU_CPU, &qemu::emit(cpu.registers.as_deref()));
    }
    if let Some(info) = vmcoreinfo {
        put_note(&mut out, "VMCOREINFO", VMCOREINFO, info.text().as_bytes());
    }
    put_note(&mut out, "NETDUMP", NETDUMP_TEXT, text::emit(cpus, core).as_bytes());
    out
}

/// Takes the notes of a file apart.
pub fn parse(bytes: &[u8]) -> ParsedNotes {
    let mut reader = Reader::default();
    let mut at = 0;
    while at < bytes.len() {
        let Some((note, next)) = note_at(bytes, at) else {
            reader.problem(NotesProblem::Cut(at));
            break;
        };
        reader.take(&note);
        at = next;
    }
    reader.finish()
}

struct Note<'a> {
    name: &'a [u8],
    kind: u32,
    descriptor: &'a [u8],
}

fn put_note(out: &mut Vec<u8>, name: &str, kind: u32, descriptor: &[u8]) {
    let length = |len: usize| u32::try_from(len).expect("notes are bounded far below 4 GiB").to_le_bytes();
    out.extend(length(name.len() + 1));
    out.extend(length(descriptor.len()));
    out.extend(kind.to_le_bytes());
    for part in [&[name.as_bytes(), &[0]].concat(), descriptor] {
        out.extend_from_slice(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// The note at byte `at` and where the next one begins.
fn note_at(bytes: &[u8], at: usize) -> Option<(Note<'_>, usize)> {
    let word = |index: usize| {
        let from = at.checked_add(4 * index)?;
        Some(u32::from_le_bytes(bytes.get(from..from.checked_add(4)?)?.try_into().ok()?))
    };
    let part = |from: usize, len: u32| {
        let end = from.checked_add(usize::try_from(len).ok()?)?;
        Some((bytes.get(from..end)?, end.checked_next_multiple_of(4)?))
    };
    let (name, behind_name) = part(at.checked_add(12)?, word(0)?)?;
    let (descriptor, next) = part(behind_name, word(1)?)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    Some((Note { name, kind: word(2)?, descriptor }, next))
}

/// Collects notes until all are seen: what belongs to one CPU is spread over several.
#[derive(Default)]
struct Reader {
    general: Vec<Registers>,
    xsave: Vec<Vec<u8>>,
    full: Vec<Registers>,
    text: Vec<u8>,
    vmcoreinfo: Option<Vmcoreinfo>,
    problems: Vec<NotesProblem>,
}

impl Reader {
    const MAX_PROBLEMS: usize = 32;

    fn problem(&mut self, problem: NotesProblem) {
        if self.problems.len() < Self::MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }

    fn take(&mut self, note: &Note<'_>) {
        let size = |kind| NotesProblem::Size { kind, len: note.descriptor.len() };
        match (note.name, note.kind) {
            (b"CORE", NT_PRSTATUS) => match prstatus::parse(note.descriptor) {
                Some(_) if self.general.len() >= MAX_CPUS => self.problem(NotesProblem::TooManyCpus),
                Some(registers) => {
                    self.general.push(registers);
                    self.xsave.push(Vec::new());
                }
                None => self.problem(size("PRSTATUS")),
            },
            (b"LINUX", NT_X86_XSTATE) => {
                if let Some(xsave) = self.xsave.last_mut() {
                    *xsave = note.descriptor.to_vec();
                }
            }
            (b"QEMU", QEMU_CPU) => match qemu::parse(note.descriptor) {
                Some(_) if self.full.len() >= MAX_CPUS => self.problem(NotesProblem::TooManyCpus),
                Some(registers) => self.full.push(registers),
                None => self.problem(size("QEMU")),
            },
            (b"VMCOREINFO", VMCOREINFO) => self.vmcoreinfo = Vmcoreinfo::parse(note.descriptor),
            (b"NETDUMP", NETDUMP_TEXT) => self.text = note.descriptor.to_vec(),
            // Other makers' notes are none of our business.
            _ => {}
        }
    }

    fn finish(mut self) -> ParsedNotes {
        let count = self.general.len().max(self.full.len());
        let mut general = std::mem::take(&mut self.general).into_iter();
        let mut full = std::mem::take(&mut self.full).into_iter();
        let mut xsave = std::mem::take(&mut self.xsave).into_iter();
        let mut cpus: Vec<CpuState> = (0..count)
            .map(|index| {
                // The QEMU note holds all that PRSTATUS holds.
                let (general, full) = (general.next(), full.next());
                let mut registers = full.or(general).unwrap_or_default();
                registers.xsave = xsave.next().unwrap_or_default();
                CpuState {
                    index: u32::try_from(index).expect("MAX_CPUS fits into u32"),
                    activity: Activity::Running,
                    registers: Some(Box::new(registers)),
                }
            })
            .collect();
        let text = std::mem::take(&mut self.text);
        let (core, bad_lines) = text::parse(&text, &mut cpus);
        for line in bad_lines {
            self.problem(NotesProblem::Line(line));
        }
        ParsedNotes { cpus, core, vmcoreinfo: self.vmcoreinfo, problems: self.problems }
    }
}
