//! The symbol tables of an ELF file as FreeBSD's loader hands them over (freebsd-src `stand/common/load_elf.c`,
//! `sys/ddb/db_main.c`): u64 length and .symtab, u64 length and .strtab, each padded to 8 bytes.

use std::ops::Range;

use object::elf::{FileHeader64, PT_LOAD, SHT_STRTAB, SHT_SYMTAB, SectionHeader64};
use object::endian::Endianness;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

use super::BootError;
use super::space::Space;

/// A file has one (System V ABI, chapter 4, "Sections"). Each is compared with every segment, and a small file could name
/// very many of both.
const MAX_SYMBOL_TABLES: usize = 4;

type Header = FileHeader64<Endianness>;

/// .symtab and .strtab of a file; `None` for a stripped one, and where a segment loads them anyway.
pub(super) fn symbol_tables(bytes: &[u8]) -> object::Result<Option<[&[u8]; 2]>> {
    let header = Header::parse(bytes)?;
    let endian = header.endian()?;
    let sections = header.section_headers(endian, bytes)?;
    let loaded = |section: &SectionHeader64<Endianness>| -> object::Result<bool> {
        let (start, len) = (section.sh_offset(endian), section.sh_size(endian));
        let programs = header.program_headers(endian, bytes)?;
        Ok(programs.iter().filter(|program| program.p_type(endian) == PT_LOAD).any(|program| {
            let (offset, file_len) = program.file_range(endian);
            offset <= start && start.saturating_add(len) <= offset.saturating_add(file_len)
        }))
    };
    let found = sections.iter().filter(|section| section.sh_type(endian) == SHT_SYMTAB);
    for section in found.take(MAX_SYMBOL_TABLES) {
        if section.sh_size(endian) == 0 || loaded(section)? {
            continue;
        }
        let strings = usize::try_from(section.sh_link(endian)).ok().and_then(|index| sections.get(index));
        let Some(strings) = strings.filter(|strings| strings.sh_type(endian) == SHT_STRTAB) else {
            continue;
        };
        return Ok(Some([section.data(endian, bytes)?, strings.data(endian, bytes)?]));
    }
    Ok(None)
}

/// Writes the tables; where they begin and end.
pub(super) fn put_symbols(space: &mut Space<'_>, tables: [&[u8]; 2]) -> Result<Range<u64>, BootError> {
    const WHAT: &str = "the symbol tables";
    let start = space.align(8)?;
    let mut end = start;
    for table in tables {
        space.put(WHAT, &(table.len() as u64).to_le_bytes())?;
        space.put(WHAT, table)?;
        end = space.align(8)?;
    }
    Ok(start..end)
}
