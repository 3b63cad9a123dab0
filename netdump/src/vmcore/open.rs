//! A core file as guest-physical memory: opened by its content, whatever its name.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::core_file::CoreFile;
use super::cpu::CpuState;
use super::elf::ElfError;
use super::memory::{MemoryError, MemoryRange, PhysicalMemory};
use super::notes::{CoreNotes, NotesProblem, ParsedNotes};

/// Bytes that are enough to tell a format.
const HEAD_LEN: usize = 4096;

/// Files that are told by their first bytes but cannot be read, and what they are.
const OTHER_FILES: &[(&[u8], &str)] = &[
    (b"minidump FreeBSD/amd64\0", "a FreeBSD/amd64 minidump"),
    (b"minidump FreeBSD/", "a FreeBSD minidump of another architecture"),
    (b"FreeBSD Kernel Dump\0", "a raw FreeBSD dump device with its dump header in front"),
    (b"KDUMP   ", "a kdump-compressed core of Linux"),
    (b"DISKDUMP", "a diskdump core of Linux"),
    (b"makedumpfile\0", "a flattened makedumpfile core of Linux"),
    (b"\x1f\x8b", "a gzip stream, such as a compressed core"),
    (b"\x28\xb5\x2f\xfd", "a zstd frame, such as a compressed core"),
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
    /// No known format.
    #[error("this is no core of a known format (it begins with {0})")]
    Unknown(String),
    /// An ELF file that is no core of a machine, or a damaged one.
    #[error(transparent)]
    Elf(#[from] ElfError),
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
    /// Guest memory. It may be longer than the piece: what is missing at its end reads as zeros.
    Memory(MemoryRange),
}

impl std::fmt::Display for PieceContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Table => f.write_str("the table of segments"),
            Self::Notes => f.write_str("the notes"),
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
    /// Ascending and without overlap, with the place of each in `files`.
    ranges: Vec<MemoryRange>,
    files: Vec<FilePart>,
    parsed: ParsedNotes,
}

/// Where a range of memory lies in the file.
#[derive(Debug, Clone, Copy)]
struct FilePart {
    offset: u64,
    len: u64,
}

/// Opens a core file, whatever its name: the format is told by its content.
pub fn open(path: &Path) -> Result<Core, OpenError> {
    let failed = |source| OpenError::File { path: path.to_owned(), source };
    let file = CoreFile::open(path).map_err(failed)?;
    if file.length() == 0 {
        return Err(OpenError::Empty);
    }
    let head = file.read_up_to(0, HEAD_LEN).map_err(failed)?;
    if let Some(format) = super::ALL.iter().find(|format| format.recognise(&head)) {
        return format.open(file);
    }
    Err(OTHER_FILES
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map_or_else(|| OpenError::Unknown(first_bytes(&head)), |(_, what)| OpenError::Unsupported(what)))
}

impl Core {
    /// A core of `file`, whose headers describe `pieces`. `kind` says what it is, for a human.
    ///
    /// Where memory pieces overlap (a kernel image listed apart from the RAM that it lies in), the piece with the lower
    /// address is kept, of two with the same address the longer one.
    pub(super) fn new(
        file: CoreFile,
        format: &'static str,
        kind: &'static str,
        pieces: Vec<Piece>,
        parsed: ParsedNotes,
    ) -> Self {
        let mut memory: Vec<_> = pieces
            .iter()
            .filter_map(|piece| match piece.content {
                PieceContent::Memory(range) => {
                    Some((range, FilePart { offset: piece.offset, len: piece.len }))
                }
                _ => None,
            })
            .collect();
        memory.sort_by_key(|(range, _)| (range.start, u64::MAX - range.len));
        let mut end = 0_u64;
        memory.retain_mut(|(range, part)| {
            let covered = end.saturating_sub(range.start);
            if covered >= range.len {
                return false;
            }
            range.start += covered;
            range.len -= covered;
            part.offset += covered.min(part.len);
            part.len -= covered.min(part.len);
            end = range.end();
            true
        });
        let (ranges, files) = memory.into_iter().unzip();
        Self { file, format, kind, pieces, ranges, files, parsed }
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

    /// Of each RAM range, in order, how many bytes are stored in the file: neither holes nor cut off.
    pub fn stored(&self) -> impl Iterator<Item = (MemoryRange, u64)> {
        self.ranges.iter().zip(&self.files).map(|(range, part)| (*range, self.stored_in(part)))
    }

    fn stored_in(&self, part: &FilePart) -> u64 {
        let end = part.offset.saturating_add(part.len);
        let mut stored = 0;
        let mut at = part.offset;
        while let Some(data) = self.file.next_data(at).filter(|data| data.start < end) {
            stored += data.end.min(end) - data.start;
            at = data.end;
        }
        stored
    }

    /// The range that holds `address`, and its place in the file.
    fn locate(&self, address: u64) -> Option<(MemoryRange, FilePart)> {
        let index = self.ranges.partition_point(|range| range.end() <= address);
        let range = self.ranges.get(index).filter(|range| range.start <= address)?;
        Some((*range, self.files[index]))
    }
}

impl PhysicalMemory for Core {
    fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let not_in_ram = MemoryError::NotInRam { address, len: buf.len() };
        let Some((range, part)) = self.locate(address) else { return Err(not_in_ram) };
        if buf.len() as u64 > range.end() - address {
            return Err(not_in_ram);
        }
        let skip = address - range.start;
        let in_file =
            usize::try_from(part.len.saturating_sub(skip)).map_or(buf.len(), |left| left.min(buf.len()));
        let (stored, left_out) = buf.split_at_mut(in_file);
        left_out.fill(0);
        let len = stored.len();
        self.file.read(part.offset.saturating_add(skip), stored).map_err(|source| MemoryError::Unreadable {
            address,
            len,
            source,
        })
    }

    /// Holes of the file count as untouched; what a cut file lacks does not, as it cannot be read.
    fn next_touched(&self, address: u64) -> Option<Range<u64>> {
        let (range, part) = self.locate(address)?;
        let from = part.offset.saturating_add(address - range.start);
        let part_end = part.offset.saturating_add(part.len);
        let data = match self.file.next_data(from) {
            Some(data) => data,
            None => from.max(self.file.length())..part_end,
        };
        let address_of = |offset: u64| range.start + (offset.min(part_end) - part.offset);
        let touched = address_of(data.start)..address_of(data.end);
        (data.start < part_end && !touched.is_empty()).then_some(touched)
    }

    fn cpus(&self) -> &[CpuState] {
        &self.parsed.cpus
    }
}

fn first_bytes(head: &[u8]) -> String {
    let shown = &head[..head.len().min(8)];
    if shown.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
        return format!("\"{}\"", String::from_utf8_lossy(shown));
    }
    let hex: Vec<String> = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.join(" ")
}
