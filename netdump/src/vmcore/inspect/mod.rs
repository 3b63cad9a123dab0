//! What there is to say of a core: gathered once, printed for humans or written as JSON.

mod debuggers;
mod kernel_text;
mod render;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::cpu::CpuState;
use super::info::{self, InfoFile};
use super::memory::PhysicalMemory;
use super::minidump::read::Minidump;
use super::open::{Core, OpenError, open_with};
use super::symbols::KernelSymbols;
use super::unpack::Packed;
use crate::facts::{self, Backtraces, GuestFacts, KernelState, StateRequest};
use crate::freebsd::{self, msgbuf};
use crate::linux::card::{Crash, CrashCard};
pub use debuggers::commands as debugger_commands;
pub use render::bytes_text;
pub(crate) use render::{counted, labelled, line, plain, rest};

/// What is said of a kernel file that does not belong to the core.
const OTHER_KERNEL: &str = "the kernel file given is of another build than the kernel in this core, so its symbols were \
                            not used: give the one that ran";

/// Everything that is said of a core.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// The format's name.
    pub format: &'static str,
    /// What it is, for a human.
    pub kind: &'static str,
    /// Length of the core in bytes; of a compressed one, unpacked.
    pub length: u64,
    /// How the file was compressed, if it was.
    pub packed: Option<Packed>,
    /// Length that the headers ask for; when it is another, the core is not whole.
    pub expected_length: u64,
    /// What a minidump's header says.
    pub minidump: Option<MinidumpFacts>,
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
    /// What the kernel said and what its threads were doing. Threads are found by the symbols of the guest's kernel.
    pub kernel: KernelState,
    /// What a Linux kernel tells of its crash; its tasks are `kernel`'s threads.
    pub card: Option<CrashCard>,
    /// The commands that open the core in a debugger, on a machine that has one.
    pub debuggers: Vec<String>,
    /// What is wrong with the notes, one sentence each.
    pub problems: Vec<String>,
}

/// What is said of a core beyond its headers.
#[derive(Debug, Clone, Copy, Default)]
pub struct InspectOptions<'k> {
    /// The symbols of the guest's kernel: with them the guest's own memory is asked.
    pub symbols: Option<&'k KernelSymbols>,
    /// The file of the guest's kernel, for the commands that open the core in a debugger.
    pub kernel: Option<&'k Path>,
    /// The threads whose call chains are wanted.
    pub backtraces: Backtraces,
    /// Most bytes that a compressed core may unpack to, instead of the usual limit.
    pub unpack_limit: Option<u64>,
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

/// What a minidump's header says, and how many pages there are. Lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MinidumpFacts {
    /// Version of the format.
    pub version: u32,
    /// Length of the message buffer.
    pub message_buffer_len: u32,
    /// Length of dump_avail; 0 before version 3.
    pub dump_avail_len: u32,
    /// Length of the bitmap.
    pub bitmap_len: u32,
    /// Length of the page map.
    pub page_map_len: u32,
    /// First kernel address of the page map.
    pub kernel_base: u64,
    /// Start of the direct map.
    pub direct_map_start: u64,
    /// End of the region of the direct map.
    pub direct_map_end: u64,
    /// Pages that have a bit in the bitmap.
    pub pages: u64,
    /// Pages that are in the dump: whose bit is set.
    pub pages_set: u64,
    /// Those of them that are in the file; the rest was cut off.
    pub pages_in_file: u64,
}

impl MinidumpFacts {
    fn of(minidump: &Minidump, length: u64) -> Self {
        let header = minidump.header();
        Self {
            version: header.version.number(),
            message_buffer_len: header.message_buffer_len,
            dump_avail_len: header.dump_avail_len,
            bitmap_len: header.bitmap_len,
            page_map_len: header.page_map_len,
            kernel_base: header.kernel_base,
            direct_map_start: header.direct_map_start,
            direct_map_end: header.direct_map_end,
            pages: minidump.pages().numbers().bits(),
            pages_set: minidump.pages().len(),
            pages_in_file: minidump.pages_in(length),
        }
    }
}

/// [`inspect_with`], with no more than the symbols of the guest's kernel.
pub fn inspect(path: &Path, symbols: Option<&KernelSymbols>) -> Result<Inspection, OpenError> {
    inspect_with(path, &InspectOptions { symbols, ..InspectOptions::default() })
}

/// Opens a core and looks at all of it but the guest's data. With the symbols of the guest's kernel the guest's own
/// memory is asked for its facts and its threads.
pub fn inspect_with(path: &Path, options: &InspectOptions<'_>) -> Result<Inspection, OpenError> {
    let core = open_with(path, options.unpack_limit)?;
    let notes = core.notes();
    let is_other = options.symbols.is_some_and(|symbols| freebsd::ran_in(&core, symbols) == Some(false));
    let options =
        if is_other { &InspectOptions { symbols: None, kernel: None, ..*options } } else { options };
    let Asked { mut kernel, guest, card } = ask_guest(&core, options);
    if is_other {
        kernel.problems.push(OTHER_KERNEL.to_owned());
    }
    let info = info::beside(path).and_then(|path| InfoFile::read(&path).ok());
    let texts =
        [&guest.panic_text, &notes.panic_text, &info.as_ref().and_then(|info| info.panic_string.clone())];
    let text = texts.into_iter().find_map(Clone::clone);
    let length = core.file().length();
    let release = card.as_ref().map(|card| card.release.clone());
    Ok(Inspection {
        path: path.to_owned(),
        format: core.format(),
        kind: core.kind(),
        length,
        packed: core.file().packed().cloned(),
        expected_length: core.expected_length(),
        minidump: core.minidump().map(|minidump| MinidumpFacts::of(minidump, length)),
        panic: PanicFacts {
            cpu: notes.panic_cpu.or_else(|| card.as_ref()?.panicked().map(|cpu| cpu.index)),
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
        kernel,
        debuggers: debuggers::commands(
            core.format(),
            path,
            core.file().packed().map(|packed| packed.method),
            options.kernel,
            release.as_deref(),
        ),
        card,
        problems: core.problems().iter().map(ToString::to_string).collect(),
    })
}

/// What there is to know beside the file's own headers.
struct Asked {
    kernel: KernelState,
    guest: GuestFacts,
    card: Option<CrashCard>,
}

/// What the guest's memory tells, of FreeBSD when its symbols are known, and for the rest what the file itself does.
fn ask_guest(core: &Core, options: &InspectOptions<'_>) -> Asked {
    let request = StateRequest { backtraces: options.backtraces, panic_cpu: core.notes().panic_cpu };
    let mut kernel = KernelState::default();
    let mut guest = GuestFacts::default();
    let mut card = None;
    if let Some(crash) = linux(core, options) {
        let mut made = crash.card(request);
        kernel = made.take_state(crash.log());
        guest = crash.facts();
        card = Some(made);
    } else if let Some(symbols) = options.symbols {
        kernel = facts::kernel_state(core, Some(symbols), request);
        guest = facts::gather(core, Some(symbols));
    }
    if let Some(messages) = core.messages() {
        kernel.message_buffer = Some(messages);
    }
    guest = guest.or(core.notes().facts.clone());
    if let Some(messages) = kernel.message_buffer.as_ref().filter(|_| card.is_none()) {
        guest = guest.or(msgbuf::facts(messages));
    }
    Asked { kernel, guest, card }
}

/// A Linux guest. It is not looked for in a core that is known to be of another.
fn linux<'c>(core: &'c Core, options: &InspectOptions<'_>) -> Option<Crash<'c>> {
    let is_other = core.minidump().is_some()
        || options.symbols.is_some_and(freebsd::is_freebsd)
        || core.notes().facts.os.as_deref().is_some_and(|os| os != "Linux");
    if is_other { None } else { Crash::find(core, options.symbols) }
}
