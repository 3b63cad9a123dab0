//! The symbols and the load map of an ELF64 kernel: where its variables are, in virtual and physical addresses.
//!
//! The file is hostile: the number of symbols, the length of a name and the sum of all names are bounded, and no
//! field of it is trusted with an index or a size.

use std::collections::HashMap;
use std::sync::Arc;

use object::elf::{
    FileHeader64, PF_W, PF_X, PT_LOAD, SHN_ABS, SHN_UNDEF, SHT_SYMTAB, STB_LOCAL, STT_FILE, STT_FUNC,
    STT_NOTYPE, STT_SECTION, Sym64,
};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym, SymbolTable};
use object::{Endianness, FileKind, SectionIndex};
use thiserror::Error;

/// Most symbols that are taken; Linux and FreeBSD kernels have 60,000 to 250,000.
const MAX_SYMBOLS: usize = 1 << 20;
/// Longer names are left out: nothing that is looked up here is that long.
const MAX_NAME: usize = 512;
/// Most bytes of all names together. Names may overlap in the file, so its length is no bound.
const MAX_NAMES: usize = 64 << 20;
/// Most PT_LOAD segments that are taken; kernels have 2 to 10. Labels are looked up in all of them.
const MAX_SEGMENTS: usize = 64;
/// Longest `version` that is taken; FreeBSD's have some 200 bytes.
const MAX_VERSION: usize = 1024;

/// Why a kernel's symbols could not be read.
#[derive(Debug, Error)]
pub enum SymbolsError {
    /// Another format, or a 32-bit or big-endian file.
    #[error("the kernel is not a little-endian ELF64 file")]
    NotElf64,
    /// Tables that lie outside the file or contradict themselves.
    #[error("the ELF headers of the kernel are damaged")]
    Damaged(#[source] object::read::Error),
    /// More symbols than any kernel has.
    #[error("the kernel's symbol table has {0} entries, more than the {MAX_SYMBOLS} that are read")]
    TooMany(usize),
    /// More bytes of names than any kernel has.
    #[error("the names of the kernel's symbols exceed {MAX_NAMES} bytes")]
    NamesTooLong,
}

/// Symbols and load map of one kernel image.
#[derive(Debug, Clone, Default)]
pub struct KernelSymbols {
    symbols: HashMap<Arc<str>, Symbol>,
    /// In ascending order of address, one for each address.
    functions: Vec<Function>,
    segments: Vec<Segment>,
    version: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy)]
struct Symbol {
    address: u64,
    size: u64,
    local: bool,
}

/// A function. Of one name there may be several, unlike of what is looked up by name.
#[derive(Debug, Clone)]
struct Function {
    address: u64,
    /// 0 when the image does not say.
    size: u64,
    name: Arc<str>,
    /// A place in the code that the image does not call a function. Assembly has such entries: FreeBSD's
    /// `fast_syscall_common` and `nmi_calltrap` are two (seen in 14.0-CURRENT built with clang).
    is_label: bool,
}

/// A symbol of a list that has no sizes, such as Linux's kallsyms.
#[derive(Debug, Clone)]
pub(crate) struct ListedSymbol {
    pub(crate) name: Arc<str>,
    pub(crate) address: u64,
    pub(crate) is_local: bool,
    pub(crate) is_function: bool,
}

/// A place in the kernel's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodePlace<'k> {
    /// The function.
    pub function: &'k str,
    /// Bytes from its start.
    pub offset: u64,
}

/// One PT_LOAD: `len` bytes of memory at `virtual_start`, loaded at `physical_start`.
#[derive(Debug, Clone, Copy)]
struct Segment {
    virtual_start: u64,
    physical_start: u64,
    len: u64,
    writable: bool,
    executable: bool,
}

impl Segment {
    /// How far behind the segment's start an address in it lies.
    fn offset_of(&self, virtual_address: u64) -> Option<u64> {
        virtual_address.checked_sub(self.virtual_start).filter(|&offset| offset < self.len)
    }
}

impl KernelSymbols {
    /// Reads `.symtab` and the program headers of an ELF64 file. A stripped image gives an empty table.
    ///
    /// Of several symbols of one name a global one is kept, else the first.
    pub fn parse(bytes: &[u8]) -> Result<Self, SymbolsError> {
        if !matches!(FileKind::parse(bytes), Ok(FileKind::Elf64)) {
            return Err(SymbolsError::NotElf64);
        }
        let header = FileHeader64::<Endianness>::parse(bytes).map_err(SymbolsError::Damaged)?;
        let endian = header.endian().map_err(|_| SymbolsError::NotElf64)?;
        if endian != Endianness::Little {
            return Err(SymbolsError::NotElf64);
        }
        let sections = header.sections(endian, bytes).map_err(SymbolsError::Damaged)?;
        let table = sections.symbols(endian, bytes, SHT_SYMTAB).map_err(SymbolsError::Damaged)?;
        let strings =
            sections.section(table.string_section()).and_then(|section| section.data(endian, bytes));
        let strings = strings.unwrap_or_default();
        let (symbols, mut functions) = symbols(endian, &table, strings)?;
        let segments = segments(endian, header, bytes)?;
        let is_code =
            |address| segments.iter().any(|part| part.executable && part.offset_of(address).is_some());
        functions.retain(|function| !function.is_label || is_code(function.address));
        let version = version_text(endian, &sections, (&table, strings), bytes);
        Ok(Self { symbols, functions: sorted(functions), segments, version })
    }

    /// The text of the variable `version` as the file has it, which names the build; `None` where the file has none, as
    /// one that holds debug symbols only.
    pub fn version_text(&self) -> Option<&[u8]> {
        self.version.as_deref()
    }

    /// Virtual address of a symbol (its value, for absolute symbols such as FreeBSD's `kernbase`).
    pub fn address(&self, name: &str) -> Option<u64> {
        self.symbols.get(name).map(|symbol| symbol.address)
    }

    /// Size in bytes of what the symbol names; 0 when the image does not say.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.symbols.get(name).map(|symbol| symbol.size)
    }

    /// Where the image asks to be loaded in physical memory the byte that it calls `virtual_address`.
    ///
    /// A boot loader may have put a relocatable kernel elsewhere; then this is not where it is.
    pub fn physical(&self, virtual_address: u64) -> Option<u64> {
        self.segments
            .iter()
            .find_map(|segment| segment.physical_start.checked_add(segment.offset_of(virtual_address)?))
    }

    /// Whether an address lies in a part of the image that the kernel may write, its data and bss.
    pub fn is_writable(&self, virtual_address: u64) -> bool {
        self.segments.iter().any(|part| part.writable && part.offset_of(virtual_address).is_some())
    }

    /// The same load map with only these symbols, to keep a few of them at hand.
    pub fn only(&self, names: &[&str]) -> Self {
        let wanted = self.symbols.iter().filter(|(name, _)| names.contains(&name.as_ref()));
        let symbols = wanted.map(|(name, symbol)| (name.clone(), *symbol)).collect();
        Self { symbols, functions: Vec::new(), segments: self.segments.clone(), version: None }
    }

    /// Whether the file says where its parts are loaded; some `.debug` files do not.
    pub fn has_load_map(&self) -> bool {
        !self.segments.is_empty()
    }

    /// Whether the load map is the same as that of `other`.
    pub fn has_load_map_of(&self, other: &Self) -> bool {
        let places = |symbols: &Self| -> Vec<_> {
            let place = |part: &Segment| (part.virtual_start, part.physical_start, part.len);
            symbols.segments.iter().map(place).collect()
        };
        places(self) == places(other)
    }

    /// The same symbols with the load map of `other`.
    pub fn with_load_map_of(self, other: &Self) -> Self {
        Self { segments: other.segments.clone(), ..self }
    }

    /// The same load map and version with these symbols instead, which are in ascending order of address. Of several of
    /// one name a global one is kept, else the first. A function ends where the next address that has a name begins.
    pub(crate) fn with_listed(self, listed: Vec<ListedSymbol>) -> Self {
        let mut symbols = Names::with_capacity(listed.len());
        let mut functions: Vec<Function> = Vec::with_capacity(listed.len());
        let mut open = 0;
        for ListedSymbol { name, address, is_local, is_function } in listed {
            if functions.last().is_some_and(|last| last.address < address) {
                for function in &mut functions[open..] {
                    function.size = address.saturating_sub(function.address);
                }
                open = functions.len();
            }
            if is_function {
                functions.push(Function { address, size: 0, name: Arc::clone(&name), is_label: false });
            }
            let symbol = Symbol { address, size: 0, local: is_local };
            let known = symbols.entry(name).or_insert(symbol);
            if known.local && !symbol.local {
                *known = symbol;
            }
        }
        Self { symbols, functions: sorted(functions), ..self }
    }

    /// The function that `address` lies in: the nearest one at or below it, unless it is known to end before.
    pub fn function_at(&self, address: u64) -> Option<CodePlace<'_>> {
        let index = self.functions.partition_point(|function| function.address <= address);
        let function = self.functions.get(index.checked_sub(1)?)?;
        let offset = address - function.address;
        (function.size == 0 || offset < function.size)
            .then_some(CodePlace { function: &function.name, offset })
    }

    /// Whether there are no symbols at all, as in a stripped image.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// How many names are known.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }
}

/// What each name stands for.
type Names = HashMap<Arc<str>, Symbol>;

fn symbols(
    endian: Endianness,
    table: &SymbolTable<'_, FileHeader64<Endianness>>,
    strings: &[u8],
) -> Result<(Names, Vec<Function>), SymbolsError> {
    if table.len() > MAX_SYMBOLS {
        return Err(SymbolsError::TooMany(table.len()));
    }
    let mut symbols = Names::new();
    let mut functions = Vec::new();
    let mut names = 0;
    for entry in table.iter() {
        let nameless = matches!(entry.st_type(), STT_SECTION | STT_FILE);
        if nameless || entry.st_name(endian) == 0 || entry.st_shndx(endian) == SHN_UNDEF {
            continue;
        }
        // A name outside the string table, too long or not in UTF-8 is no name that anybody looks up.
        let Some(name) = name_at(strings, entry.st_name(endian)) else { continue };
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if name.is_empty() {
            continue;
        }
        let symbol = Symbol {
            address: entry.st_value(endian),
            size: entry.st_size(endian),
            local: entry.st_bind() == STB_LOCAL,
        };
        let shared = match symbols.get_key_value(name) {
            Some((shared, _)) => Arc::clone(shared),
            None => {
                names += name.len();
                if names > MAX_NAMES {
                    return Err(SymbolsError::NamesTooLong);
                }
                Arc::from(name)
            }
        };
        let is_label = entry.st_type() == STT_NOTYPE && entry.st_shndx(endian) != SHN_ABS;
        if is_label || entry.st_type() == STT_FUNC {
            functions.push(Function {
                address: symbol.address,
                size: symbol.size,
                name: Arc::clone(&shared),
                is_label,
            });
        }
        let known = symbols.entry(shared).or_insert(symbol);
        if known.local && !symbol.local {
            *known = symbol;
        }
    }
    Ok((symbols, functions))
}

/// A name of at most [`MAX_NAME`] bytes. No further bytes are looked at: a million names of one endless string would take
/// hours.
fn name_at(strings: &[u8], offset: u32) -> Option<&[u8]> {
    let rest = strings.get(usize::try_from(offset).ok()?..)?;
    let end = rest.iter().take(MAX_NAME + 1).position(|&byte| byte == 0)?;
    Some(&rest[..end])
}

fn version_text(
    endian: Endianness,
    sections: &SectionTable<'_, FileHeader64<Endianness>>,
    (table, strings): (&SymbolTable<'_, FileHeader64<Endianness>>, &[u8]),
    bytes: &[u8],
) -> Option<Vec<u8>> {
    let named = |entry: &&Sym64<Endianness>| name_at(strings, entry.st_name(endian)) == Some(b"version");
    let entry = table.iter().filter(named).find(|entry| entry.st_bind() != STB_LOCAL)?;
    let section = sections.section(SectionIndex(usize::from(entry.st_shndx(endian).0))).ok()?;
    let inside = entry.st_value(endian).checked_sub(section.sh_addr(endian))?;
    let rest = section.data(endian, bytes).ok()?.get(usize::try_from(inside).ok()?..)?;
    let end = rest.iter().take(MAX_VERSION).position(|&byte| byte == 0).filter(|&end| end > 0)?;
    Some(rest[..end].to_vec())
}

/// In order of address; of several at one address the first with the greatest size, a label last. A label in a function
/// of known size is a place in that function.
fn sorted(mut functions: Vec<Function>) -> Vec<Function> {
    functions.sort_by_key(|function| (function.address, function.is_label, u64::MAX - function.size));
    functions.dedup_by_key(|function| function.address);
    let mut end = 0;
    functions.retain(|function| {
        if !function.is_label {
            end = function.address.saturating_add(function.size);
        }
        !function.is_label || function.address >= end
    });
    functions
}

fn segments(
    endian: Endianness,
    header: &FileHeader64<Endianness>,
    bytes: &[u8],
) -> Result<Vec<Segment>, SymbolsError> {
    let headers = header.program_headers(endian, bytes).map_err(SymbolsError::Damaged)?;
    Ok(headers
        .iter()
        .filter(|header| header.p_type(endian) == PT_LOAD && header.p_memsz(endian) > 0)
        .take(MAX_SEGMENTS)
        .map(|header| Segment {
            virtual_start: header.p_vaddr(endian),
            physical_start: header.p_paddr(endian),
            len: header.p_memsz(endian),
            writable: header.p_flags(endian).contains(PF_W),
            executable: header.p_flags(endian).contains(PF_X),
        })
        .collect())
}
