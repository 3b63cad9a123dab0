//! Opens an ELF core: those written here, and those of other makers that give physical addresses (QEMU,
//! `/proc/vmcore`, FreeBSD full dumps, whose `e_version` is 0 and whose ABI byte is 0xff).

use std::io;
use std::ops::Range;

use thiserror::Error;

use super::super::core_file::CoreFile;
use super::super::memory::MemoryRange;
use super::super::notes::{self, ParsedNotes};
use super::super::open::{Core, Piece, PieceContent};
use super::super::storage::Segments;
use super::{
    CLASS_64, EM_X86_64, ET_CORE, HEADER_LEN, LITTLE_ENDIAN, MAX_PROGRAM_HEADERS, PROGRAM_HEADER_LEN,
    PT_LOAD, PT_NOTE,
};

/// Most bytes of notes that are read. A CPU needs 1 to 12 KiB.
const MAX_NOTES: usize = 64 << 20;
/// How often the bytes of a file may be shown: the kernel's image is in its RAM too, and QEMU's cores with virtual addresses show
/// RAM by each mapping of it.
const MOST_SHOWN: u64 = 16;
const STANDALONE_ABI: u8 = 0xff;

/// Why an ELF file cannot be read as a machine's core.
#[derive(Debug, Error)]
pub enum ElfError {
    /// Cut inside the headers.
    #[error("the ELF file ends inside its headers, at byte {length} of {needed}")]
    Cut {
        /// Length of the file.
        length: u64,
        /// Where the headers end.
        needed: u64,
    },
    /// 32-bit or big-endian.
    #[error("this is a 32-bit or big-endian ELF file; cores of x86-64 machines are neither")]
    Class,
    /// An executable, a library, an object file.
    #[error("this ELF file is no core (its type is {0}, a core's is 4)")]
    Type(u16),
    /// Another architecture.
    #[error("this core is of ELF machine {0}, not x86-64 (62)")]
    Machine(u16),
    /// Program headers of another size.
    #[error("the program headers have {0} bytes each, not 56")]
    ProgramHeaderSize(u16),
    /// More program headers than their number can say.
    #[error("the core has more than {MAX_PROGRAM_HEADERS} program headers")]
    TooManyProgramHeaders,
    /// A segment that does not fit into 64 bits.
    #[error("program header {0} describes bytes beyond the end of 64-bit addresses")]
    Overflow(usize),
    /// A segment with more bytes in the file than in memory.
    #[error("program header {0} has more bytes in the file than in memory")]
    FileLongerThanMemory(usize),
    /// Many segments out of the same bytes: each of them would be searched.
    #[error("the core's segments show the bytes of its file many times over")]
    Repeated,
    /// A core without memory.
    #[error("the core has no memory segments")]
    NoMemory,
    /// A user process's core.
    #[error("this is the core of a process, not of a machine: its segments have no physical addresses")]
    Process,
    /// The operating system refused a read.
    #[error("reading the headers of the core")]
    Read(#[source] io::Error),
}

/// One program header.
struct ProgramHeader {
    kind: u32,
    offset: u64,
    virtual_start: u64,
    physical: MemoryRange,
    file_len: u64,
}

pub(super) fn open(file: CoreFile) -> Result<Core, ElfError> {
    let header = read(&file, 0, u64::from(HEADER_LEN))?;
    if (header[4], header[5]) != (CLASS_64, LITTLE_ENDIAN) {
        return Err(ElfError::Class);
    }
    match (half(&header, 16), half(&header, 18)) {
        (ET_CORE, EM_X86_64) => {}
        (ET_CORE, machine) => return Err(ElfError::Machine(machine)),
        (other, _) => return Err(ElfError::Type(other)),
    }
    let headers = program_headers(&file, &header)?;
    let table = Piece {
        content: PieceContent::Table,
        offset: word(&header, 32),
        len: headers.len() as u64 * u64::from(PROGRAM_HEADER_LEN),
    };
    let mut pieces =
        vec![Piece { content: PieceContent::Header, offset: 0, len: u64::from(HEADER_LEN) }, table];
    pieces.extend(headers.iter().filter_map(piece));
    if !headers.iter().any(|header| header.kind == PT_LOAD) {
        return Err(ElfError::NoMemory);
    }
    if is_process(&headers) {
        return Err(ElfError::Process);
    }
    if shown(&file, &pieces) > MOST_SHOWN.saturating_mul(file.length()) {
        return Err(ElfError::Repeated);
    }
    let parsed = read_notes(&file, &pieces)?;
    let (format, kind) = if header[7] == STANDALONE_ABI {
        ("full", "FreeBSD full dump (ELF64 core, x86-64)")
    } else {
        ("elf", "ELF64 core, x86-64")
    };
    let storage = Box::new(Segments::of(&pieces));
    Ok(Core::new(file, format, kind, pieces, storage, parsed))
}

fn program_headers(file: &CoreFile, header: &[u8]) -> Result<Vec<ProgramHeader>, ElfError> {
    let (size, count) = (half(header, 54), half(header, 56));
    if usize::from(count) > MAX_PROGRAM_HEADERS {
        return Err(ElfError::TooManyProgramHeaders);
    }
    if count > 0 && size != PROGRAM_HEADER_LEN {
        return Err(ElfError::ProgramHeaderSize(size));
    }
    let table = read(file, word(header, 32), u64::from(count) * u64::from(PROGRAM_HEADER_LEN))?;
    table
        .chunks_exact(usize::from(PROGRAM_HEADER_LEN))
        .enumerate()
        .map(|(index, bytes)| parse(index, bytes))
        .collect()
}

fn parse(index: usize, bytes: &[u8]) -> Result<ProgramHeader, ElfError> {
    let kind = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let header = ProgramHeader {
        kind,
        offset: word(bytes, 8),
        virtual_start: word(bytes, 16),
        physical: MemoryRange { start: word(bytes, 24), len: word(bytes, 40) },
        file_len: word(bytes, 32),
    };
    let fits = header.offset.checked_add(header.file_len).is_some()
        && header.physical.start.checked_add(header.physical.len).is_some();
    if !fits {
        return Err(ElfError::Overflow(index));
    }
    if kind == PT_LOAD && header.file_len > header.physical.len {
        return Err(ElfError::FileLongerThanMemory(index));
    }
    Ok(header)
}

fn piece(header: &ProgramHeader) -> Option<Piece> {
    let content = match header.kind {
        PT_NOTE => PieceContent::Notes,
        PT_LOAD if header.physical.len > 0 => PieceContent::Memory(header.physical),
        _ => return None,
    };
    Some(Piece { content, offset: header.offset, len: header.file_len })
}

/// Bytes of the file that are shown as memory, those that several segments show several times.
fn shown(file: &CoreFile, pieces: &[Piece]) -> u64 {
    let memory = pieces.iter().filter(|piece| matches!(piece.content, PieceContent::Memory(_)));
    let bytes = memory.map(|piece| piece.end().min(file.length()).saturating_sub(piece.offset));
    bytes.fold(0, u64::saturating_add)
}

/// A process's core leaves all physical addresses 0.
fn is_process(headers: &[ProgramHeader]) -> bool {
    let mut loads = headers.iter().filter(|header| header.kind == PT_LOAD);
    headers.iter().filter(|header| header.kind == PT_LOAD).count() > 1
        && loads.all(|load| load.physical.start == 0 && load.virtual_start != 0)
}

/// All notes of the file, as far as they are there.
fn read_notes(file: &CoreFile, pieces: &[Piece]) -> Result<ParsedNotes, ElfError> {
    let mut bytes: Vec<u8> = Vec::new();
    for piece in pieces.iter().filter(|piece| piece.content == PieceContent::Notes) {
        let room = MAX_NOTES - bytes.len();
        let len = usize::try_from(piece.len).map_or(room, |len| len.min(room));
        bytes.extend(file.read_up_to(piece.offset, len).map_err(ElfError::Read)?);
    }
    Ok(notes::parse(&bytes))
}

fn read(file: &CoreFile, offset: u64, len: u64) -> Result<Vec<u8>, ElfError> {
    let needed = offset.saturating_add(len);
    if needed > file.length() {
        return Err(ElfError::Cut { length: file.length(), needed });
    }
    let len = usize::try_from(len).expect("headers are bounded by their 16-bit number");
    file.read_up_to(offset, len).map_err(ElfError::Read)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let Range { start, end } = at..at + 8;
    bytes[start..end].iter().rev().fold(0, |value, &byte| (value << 8) | u64::from(byte))
}
