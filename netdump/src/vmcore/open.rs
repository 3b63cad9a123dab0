//! A core file as guest-physical memory: opened by its content, whatever its name.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::core_file::CoreFile;
use super::cpu::CpuState;
use super::elf::ElfError;
use super::kdump::KdumpError;
use super::memory::{Findings, KernelMap, MemoryError, MemoryRange, PhysicalMemory};
use super::minidump::header::ANY_MAGIC;
use super::minidump::read::{Minidump, MinidumpError};
use super::notes::{CoreNotes, NotesProblem, ParsedNotes};
use super::storage::{FilePart, Storage};
use super::unpack::{self, UnpackError};
use crate::ekcd::encrypted;

/// Bytes that are enough to tell a format.
const HEAD_LEN: usize = 4096;

/// Bytes that are read at once of a file that is searched.
const SEARCH_STEP: usize = 256 << 10;

/// Files that are told by their first bytes but cannot be read, and what they are.
const OTHER_FILES: &[(&[u8], &str)] = &[
    (b"FreeBSD Kernel Dump\0", "a raw FreeBSD dump device with its dump header in front"),
    (b"DISKDUMP", "a diskdump core of Linux"),
    (b"makedumpfile\0", "a flattened makedumpfile core of Linux"),
    (b"\x1f\x8b", "a gzip stream inside of another"),
    (b"\x28\xb5\x2f\xfd", "a zstd frame inside of another"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"BZh", "a bzip2 file"),
    (b"Dump from ", "the info file of a dump, not its core"),
];

/// Why a file cannot be read as a core.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The operating system refused.
    #[error("opening {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A file without content.
    #[error("the file is empty")]
    Empty,
    /// A known kind of file that is not read here.
    #[error("this is {0}, which this version cannot read")]
    Unsupported(&'static str),
    /// A minidump of a machine that is no x86-64 one.
    #[error(
        "this is a FreeBSD minidump of an {0} kernel, which is not read here (amd64 ones are); kgdb on FreeBSD reads it"
    )]
    OtherMinidump(String),
    /// No known format.
    #[error("this is no core of a known format (it begins with {0})")]
    Unknown(String),
    /// An ELF file that is no core of a machine, or a damaged one.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// A kdump-compressed core that is damaged or of an unknown kind.
    #[error(transparent)]
    Kdump(#[from] KdumpError),
    /// A damaged minidump.
    #[error(transparent)]
    Minidump(#[from] MinidumpError),
    /// An encrypted core.
    #[error(
        "this core is encrypted ({sign}); `netdump decrypt --key PRIVATE.pem {}` makes one that can be read",
        path.display()
    )]
    Encrypted {
        /// The core.
        path: PathBuf,
        /// What tells.
        sign: encrypted::Sign,
    },
    /// A compressed core that cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

/// One part of a core file, as its headers describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// What it holds.
    pub content: PieceContent,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Its length in the file, in bytes.
    pub len: u64,
}

impl Piece {
    /// Offset behind its last byte.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// What a part of a core file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceContent {
    /// The header of the file.
    Header,
    /// The table of the parts that follow.
    Table,
    /// The notes.
    Notes,
    /// The kernel's message buffer.
    MessageBuffer,
    /// The list of the ranges of RAM.
    DumpAvail,
    /// The bitmap of the pages that follow.
    Bitmap,
    /// The kernel's page directories, or page tables.
    PageMap,
    /// This many pages of guest memory, those that the bitmap names.
    Pages(u64),
    /// Guest memory. It may be longer than the piece: what is missing at its end reads as zeros.
    Memory(MemoryRange),
}

impl std::fmt::Display for PieceContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Table => f.write_str("the table of segments"),
            Self::Notes => f.write_str("the notes"),
            Self::MessageBuffer => f.write_str("the message buffer"),
            Self::DumpAvail => f.write_str("dump_avail"),
            Self::Bitmap => f.write_str("the bitmap"),
            Self::PageMap => f.write_str("the page map"),
            Self::Pages(1) => f.write_str("the only page"),
            Self::Pages(count) => write!(f, "the {count} pages"),
            Self::Memory(range) => write!(f, "memory {:#x} to {:#x}", range.start, range.end()),
        }
    }
}

/// An open core.
#[derive(Debug)]
pub struct Core {
    file: CoreFile,
    format: &'static str,
    kind: &'static str,
    pieces: Vec<Piece>,
    storage: Box<dyn Storage>,
    parsed: ParsedNotes,
    findings: Findings,
}

/// Opens a core file, whatever its name: the format is told by its content. A compressed one is unpacked first.
pub fn open(path: &Path) -> Result<Core, OpenError> {
    open_with(path, None)
}

/// [`open`], and of a compressed core at most `unpack_limit` bytes instead of the usual limit.
pub fn open_with(path: &Path, unpack_limit: Option<u64>) -> Result<Core, OpenError> {
    let failed = |source| OpenError::File { path: path.to_owned(), source };
    let file = CoreFile::open(path).map_err(failed)?;
    if file.length() == 0 {
        return Err(OpenError::Empty);
    }
    let head = file.read_up_to(0, HEAD_LEN).map_err(failed)?;
    if let Some(sign) = encrypted::sign(path, &head) {
        return Err(OpenError::Encrypted { path: path.to_owned(), sign });
    }
    let file = unpack::unpacked(path, file, unpack_limit)?;
    let head = file.read_up_to(0, HEAD_LEN).map_err(failed)?;
    if let Some(architecture) = other_minidump(&head) {
        return Err(OpenError::OtherMinidump(architecture));
    }
    if let Some(format) = super::ALL.iter().find(|format| format.recognise(&head)) {
        return format.open(file);
    }
    Err(OTHER_FILES
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map_or_else(|| OpenError::Unknown(first_bytes(&head)), |(_, what)| OpenError::Unsupported(what)))
}

impl Core {
    /// A core of `file`, whose headers describe `pieces` and which holds guest memory in its own way. `kind` says what
    /// it is, for a human.
    pub(super) fn new(
        file: CoreFile,
        format: &'static str,
        kind: &'static str,
        pieces: Vec<Piece>,
        storage: Box<dyn Storage>,
        parsed: ParsedNotes,
    ) -> Self {
        let findings = Findings::default();
        if let Some(info) = &parsed.vmcoreinfo {
            findings.vmcoreinfo.get_or_init(|| Some(info.clone()));
        }
        Self { file, format, kind, pieces, storage, parsed, findings }
    }

    /// The format's name, as in [`super::ALL`].
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// What the file is, for a human.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The file.
    pub fn file(&self) -> &CoreFile {
        &self.file
    }

    /// The file, when its headers are no longer needed.
    pub fn into_file(self) -> CoreFile {
        self.file
    }

    /// The parts of the file in the order of its headers.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The length that the headers ask for; a shorter file was cut.
    pub fn expected_length(&self) -> u64 {
        self.pieces.iter().map(Piece::end).max().unwrap_or(0)
    }

    /// What the dumper knew of the panic and the guest; empty in cores of other makers.
    pub fn notes(&self) -> &CoreNotes {
        &self.parsed.core
    }

    /// What is wrong with the notes.
    pub fn problems(&self) -> &[NotesProblem] {
        &self.parsed.problems
    }

    /// Of each RAM range, in order, how many bytes are stored in the file: neither left out, nor holes, nor cut off.
    pub fn stored(&self) -> impl Iterator<Item = (MemoryRange, u64)> {
        let places = (0..).map(|index| self.storage.place(index));
        self.ranges().iter().zip(places).map(|(range, part)| (*range, self.stored_in(part)))
    }

    fn stored_in(&self, part: FilePart) -> u64 {
        let end = part.offset.saturating_add(part.len);
        let mut stored = 0;
        let mut at = part.offset;
        while let Some(data) = self.file.next_data(at).filter(|data| data.start < end) {
            stored += data.end.min(end) - data.start;
            at = data.end;
        }
        stored
    }

    /// The guest-physical address of the byte at an offset of the file, if guest memory lies there.
    pub fn address_at(&self, offset: u64) -> Option<u64> {
        self.storage.address_at(offset)
    }

    /// What lies at an offset of the file, for a human.
    pub fn content_at(&self, offset: u64) -> Option<String> {
        if let Some(address) = self.address_at(offset) {
            return Some(format!("guest-physical {address:#x}"));
        }
        let piece = self.pieces.iter().find(|piece| piece.offset <= offset && offset < piece.end())?;
        Some(piece.content.to_string())
    }

    /// What a minidump's header says.
    pub fn minidump(&self) -> Option<&Minidump> {
        self.storage.minidump()
    }

    /// The kernel's messages, where the file has a part of its own for them.
    pub fn messages(&self) -> Option<String> {
        self.minidump()?.messages(&self.file)
    }
}

impl PhysicalMemory for Core {
    fn ranges(&self) -> &[MemoryRange] {
        self.storage.ranges()
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.storage.read(&self.file, address, buf)
    }

    fn next_touched(&self, address: u64) -> Option<Range<u64>> {
        self.storage.next_touched(&self.file, address)
    }

    fn findings(&self) -> Option<&Findings> {
        Some(&self.findings)
    }

    fn search_step(&self) -> usize {
        SEARCH_STEP
    }

    fn cpus(&self) -> &[CpuState] {
        &self.parsed.cpus
    }

    fn kernel_map(&self) -> Option<&dyn KernelMap> {
        self.minidump().map(|_| self as &dyn KernelMap)
    }
}

impl KernelMap for Core {
    fn translate(&self, address: u64) -> Option<u64> {
        self.storage.translate(&self.file, address)
    }
}

/// The architecture of a minidump that is not amd64's, as its magic bytes name it.
fn other_minidump(head: &[u8]) -> Option<String> {
    let name = head.strip_prefix(ANY_MAGIC)?;
    let name = name.get(..7).unwrap_or(name);
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let name = &name[..end];
    (name != b"amd64").then(|| {
        let plain = !name.is_empty() && name.iter().all(u8::is_ascii_alphanumeric);
        if plain { String::from_utf8_lossy(name).into_owned() } else { "unknown".to_owned() }
    })
}

fn first_bytes(head: &[u8]) -> String {
    let shown = &head[..head.len().min(8)];
    if shown.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
        return format!("\"{}\"", String::from_utf8_lossy(shown));
    }
    let hex: Vec<String> = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.join(" ")
}
