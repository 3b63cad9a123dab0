//! Files that are handed to a FreeBSD kernel beside itself: kernel modules, and data such as a root file system.
//!
//! They are laid out as the loader does it (freebsd-src `stand/common/load_elf_obj.c`, `load_elf.c`), because the
//! kernel's linker (`sys/kern/link_elf_obj.c`, `link_elf.c`) relies on that: a relocatable module by its sections, its
//! section headers telling where each came to lie; a shared object by its segments.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use object::elf::{
    self, ET_DYN, ET_REL, FileHeader64, PT_DYNAMIC, PT_LOAD, SHF_ALLOC, SHT_FINI_ARRAY, SHT_INIT_ARRAY,
    SHT_NOBITS, SHT_PROGBITS, SHT_REL, SHT_RELA, SHT_STRTAB, SHT_SYMTAB, SHT_X86_64_UNWIND, SectionHeader64,
};
use object::endian::Endianness;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use thiserror::Error;

use super::BootError;
use super::elf_tables::{put_symbols, symbol_tables};
use super::modinfo::{Metadata, Modinfo};
use super::space::{PAGE, Space};

/// Largest file: all of them have to fit below 1 GiB.
const MAX_LEN: u64 = 1 << 30;
/// Largest alignment of a section; page tables aside nothing in a kernel asks for more than a page.
const MAX_ALIGN: u64 = 1 << 21;
const HEADER_LEN: usize = 64;
const SECTION_HEADER_LEN: usize = 64;
/// Where `sh_addr` is in a section header.
const SECTION_ADDRESS: usize = 16;
const WHAT: &str = "a kernel module";

/// What `--module` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleSpec {
    /// The file.
    pub path: PathBuf,
    /// Its type, such as `md_image`; `None` for kernel modules, whose type their content tells.
    pub kind: Option<String>,
}

/// The text names no module.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not FILE or FILE:TYPE, such as if_vtnet.ko or root.img:md_image")]
pub struct ParseModuleError(String);

impl FromStr for ModuleSpec {
    type Err = ParseModuleError;

    /// The last colon separates; with nothing behind it the type is left to the content, for names that have colons.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_type =
            |kind: &str| kind.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b' '));
        let (path, kind) = match text.rsplit_once(':') {
            Some((path, kind)) if is_type(kind) => (path, Some(kind).filter(|kind| !kind.is_empty())),
            _ => (text, None),
        };
        if path.is_empty() || text.contains('\0') {
            return Err(ParseModuleError(text.to_owned()));
        }
        Ok(Self { path: path.into(), kind: kind.map(str::to_owned) })
    }
}

/// Why a file cannot be handed over.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// It cannot be read.
    #[error("reading the module {path}")]
    Read {
        /// The file.
        path: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a device, a pipe, ...
    #[error("the module {path} is not a regular file")]
    NotAFile {
        /// The file.
        path: String,
    },
    /// More bytes than the kernel's first page tables map.
    #[error("the module {path} has {len} bytes, at most 1 GiB can be handed to a kernel")]
    Large {
        /// The file.
        path: String,
        /// Its size.
        len: u64,
    },
    /// No kernel module, and nobody said what else.
    #[error(
        "{path} is no kernel module of FreeBSD/amd64: give its type with --module {path}:TYPE, such as md_image"
    )]
    Kind {
        /// The file.
        path: String,
    },
    /// A kernel module that contradicts itself.
    #[error("the module {path} is damaged: {problem}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// Two of one name: the kernel would find the first of them only, itself before all.
    #[error("two modules, or the kernel and a module, are named {name}")]
    Twice {
        /// The name.
        name: String,
    },
}

/// A file that is handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    path: PathBuf,
    bytes: Vec<u8>,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Relocatable,
    Shared,
    Data(String),
}

impl Module {
    /// Reads a file and finds out what it is.
    pub fn read(spec: &ModuleSpec) -> Result<Self, ModuleError> {
        let path = || spec.path.display().to_string();
        let read_error = |source| ModuleError::Read { path: path(), source };
        let metadata = std::fs::metadata(&spec.path).map_err(read_error)?;
        // A pipe may never end, and neither do some devices.
        if !metadata.is_file() {
            return Err(ModuleError::NotAFile { path: path() });
        }
        if metadata.len() > MAX_LEN {
            return Err(ModuleError::Large { path: path(), len: metadata.len() });
        }
        let bytes = std::fs::read(&spec.path).map_err(read_error)?;
        Self::from_bytes(&spec.path, spec.kind.clone(), bytes)
    }

    /// Finds out what a file's content is; `path` is for its name.
    pub fn from_bytes(path: &Path, kind: Option<String>, bytes: Vec<u8>) -> Result<Self, ModuleError> {
        let kind = match kind {
            Some(kind) => Kind::Data(kind),
            None => elf_kind(&bytes).ok_or_else(|| ModuleError::Kind { path: path.display().to_string() })?,
        };
        Ok(Self { path: path.to_owned(), bytes, kind })
    }

    /// What the kernel knows it by.
    pub(super) fn name(&self) -> String {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
        format!("/boot/kernel/{}", name.as_deref().unwrap_or("module"))
    }

    /// Lays it out in memory and tells of it.
    pub(super) fn place(&self, space: &mut Space<'_>, list: &mut Modinfo) -> Result<(), BootError> {
        let start = space.align(PAGE)?;
        match &self.kind {
            Kind::Data(kind) => {
                space.put("a module", &self.bytes)?;
                list.thing(&self.name(), kind, start, self.bytes.len() as u64);
            }
            Kind::Relocatable => self.place_relocatable(space, list)?,
            Kind::Shared => self.place_shared(start, space, list)?,
        }
        Ok(())
    }

    fn damaged(&self, problem: impl Into<String>) -> BootError {
        let path = self.path.display().to_string();
        BootError::Module(ModuleError::Damaged { path, problem: problem.into() })
    }

    /// A file of [`elf_kind`], so that its header is there.
    fn header(&self) -> &FileHeader64<Endianness> {
        FileHeader64::parse(self.bytes.as_slice()).expect("the header was read before")
    }

    fn place_relocatable(&self, space: &mut Space<'_>, list: &mut Modinfo) -> Result<(), BootError> {
        let damaged = |error: object::Error| self.damaged(error.to_string());
        let sections = self.header().section_headers(ENDIAN, self.bytes.as_slice()).map_err(damaged)?;
        let order = self.loaded_sections(sections)?;
        // The kernel counts from the first section: no gap may come before it.
        let aligned = order.iter().try_fold(PAGE, |aligned, &index| {
            self.alignment(&sections[index]).map(|alignment| aligned.max(alignment))
        })?;
        let start = space.align(aligned)?;
        let mut addresses = vec![0; sections.len()];
        for &index in &order {
            let section = &sections[index];
            let at = space.align(self.alignment(section)?)?;
            space.skip(section.sh_size(ENDIAN))?;
            addresses[index] = at;
            let data = section.data(ENDIAN, self.bytes.as_slice()).map_err(damaged)?;
            space.write(at, WHAT, data)?;
        }
        let end = space.align(1)?;
        list.thing(&self.name(), "elf obj module", start, end - start);
        list.metadata(Metadata::SectionHeaders, &self.section_headers(&addresses)?);
        list.metadata(Metadata::ElfHeader, &self.bytes[..HEADER_LEN]);
        Ok(())
    }

    /// The sections that the loader loads, in its order: code and data, symbols, their names, section names, and
    /// relocations of what was loaded.
    fn loaded_sections(&self, sections: &[SectionHeader64<Endianness>]) -> Result<Vec<usize>, BootError> {
        let kind = |section: &SectionHeader64<Endianness>| section.sh_type(ENDIAN);
        let allocated = |section: &SectionHeader64<Endianness>| section.sh_flags(ENDIAN).contains(SHF_ALLOC);
        let strings = |index: usize, problem: &str| match sections.get(index) {
            Some(section) if index > 0 && kind(section) == SHT_STRTAB => Ok(index),
            _ => Err(self.damaged(problem)),
        };
        let is_program = |section: &SectionHeader64<Endianness>| {
            let kinds = [SHT_PROGBITS, SHT_NOBITS, SHT_X86_64_UNWIND, SHT_INIT_ARRAY, SHT_FINI_ARRAY];
            kinds.contains(&kind(section)) && allocated(section) && section.sh_size(ENDIAN) > 0
        };
        let all = |wanted: &dyn Fn(&SectionHeader64<Endianness>) -> bool| -> Vec<usize> {
            (0..sections.len()).filter(|&index| wanted(&sections[index])).collect()
        };
        let mut order = all(&is_program);
        let [symbols] = all(&|section| kind(section) == SHT_SYMTAB)[..] else {
            return Err(self.damaged("it has no symbol table, or several"));
        };
        order.push(symbols);
        let names = usize::try_from(sections[symbols].sh_link(ENDIAN)).unwrap_or(0);
        order.push(strings(names, "its symbols have no names")?);
        let section_names = usize::from(self.header().e_shstrndx.get(ENDIAN).0);
        let section_names = strings(section_names, "its sections have no names")?;
        if section_names != names {
            order.push(section_names);
        }
        for index in all(&|section| matches!(kind(section), SHT_REL | SHT_RELA)) {
            let target = usize::try_from(sections[index].sh_info(ENDIAN)).ok().and_then(|i| sections.get(i));
            let target = target.ok_or_else(|| self.damaged("it relocates a section that does not exist"))?;
            if allocated(target) {
                order.push(index);
            }
        }
        Ok(order)
    }

    fn alignment(&self, section: &SectionHeader64<Endianness>) -> Result<u64, BootError> {
        match section.sh_addralign(ENDIAN).max(1) {
            align if align.is_power_of_two() && align <= MAX_ALIGN => Ok(align),
            align => Err(self.damaged(format!("a section wants to be aligned to {align:#x} bytes"))),
        }
    }

    /// The section headers with the physical address of what was loaded, and 0 elsewhere.
    fn section_headers(&self, addresses: &[u64]) -> Result<Vec<u8>, BootError> {
        let outside = || self.damaged("its section headers lie outside the file");
        let start = usize::try_from(self.header().e_shoff.get(ENDIAN)).map_err(|_| outside())?;
        let end = start.checked_add(addresses.len() * SECTION_HEADER_LEN).ok_or_else(outside)?;
        let mut headers = self.bytes.get(start..end).ok_or_else(outside)?.to_vec();
        for (header, address) in headers.chunks_exact_mut(SECTION_HEADER_LEN).zip(addresses) {
            header[SECTION_ADDRESS..SECTION_ADDRESS + 8].copy_from_slice(&address.to_le_bytes());
        }
        Ok(headers)
    }

    fn place_shared(&self, base: u64, space: &mut Space<'_>, list: &mut Modinfo) -> Result<(), BootError> {
        let damaged = |error: object::Error| self.damaged(error.to_string());
        let programs = self.header().program_headers(ENDIAN, self.bytes.as_slice()).map_err(damaged)?;
        let of_type = |kind| programs.iter().filter(move |program| program.p_type(ENDIAN) == kind);
        let end_of = |p: &elf::ProgramHeader64<Endianness>| {
            p.p_vaddr(ENDIAN).saturating_add(p.p_memsz(ENDIAN).max(p.p_filesz(ENDIAN)))
        };
        space.skip(of_type(PT_LOAD).map(end_of).max().unwrap_or(0))?;
        let mut copied = 0;
        for program in of_type(PT_LOAD) {
            let data = program.data(ENDIAN, self.bytes.as_slice());
            let data = data.map_err(|()| self.damaged("a segment lies outside the file"))?;
            copied += data.len();
            // Else a small file could make loading endless.
            if copied > self.bytes.len() {
                return Err(self.damaged("its segments have more bytes than the file"));
            }
            space.write(base + program.p_vaddr(ENDIAN), WHAT, data)?;
        }
        let symbols = symbol_tables(&self.bytes).map_err(damaged)?;
        let symbols = symbols.map(|tables| put_symbols(space, tables)).transpose()?;
        list.thing(&self.name(), "elf module", base, space.align(8)? - base);
        if let Some(symbols) = symbols {
            list.number(Metadata::SymbolsStart, symbols.start);
            list.number(Metadata::SymbolsEnd, symbols.end);
        }
        let dynamic = of_type(PT_DYNAMIC).next().ok_or_else(|| self.damaged("it has no dynamic section"))?;
        list.number(Metadata::Dynamic, dynamic.p_vaddr(ENDIAN));
        list.metadata(Metadata::ElfHeader, &self.bytes[..HEADER_LEN]);
        Ok(())
    }
}

const ENDIAN: Endianness = Endianness::Little;

/// What sort of kernel module a file is, if any: ELF64, little-endian, x86-64.
fn elf_kind(bytes: &[u8]) -> Option<Kind> {
    let header = FileHeader64::<Endianness>::parse(bytes).ok()?;
    if header.endian() != Ok(ENDIAN) || header.e_machine(ENDIAN) != elf::EM_X86_64 {
        return None;
    }
    match header.e_type(ENDIAN) {
        ET_REL if usize::from(header.e_shentsize(ENDIAN)) == SECTION_HEADER_LEN => Some(Kind::Relocatable),
        ET_DYN => Some(Kind::Shared),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::boot::modinfo::reader::records;
    use crate::boot::test_kernel::{Kernel, module, mutate, shared_module};
    use crate::memory::{GuestMemory, MemorySize, create};

    const BASE: u64 = 0x40_0000;

    fn memory() -> GuestMemory {
        create(MemorySize::new(16 << 20).unwrap()).unwrap()
    }

    fn place(bytes: Vec<u8>, memory: &GuestMemory) -> Result<Vec<(u32, Vec<u8>)>, BootError> {
        let module = Module::from_bytes(Path::new("test.ko"), None, bytes)?;
        let (image, mut list) = (Kernel::default().image(), Modinfo::default());
        module.place(&mut Space::new(memory, &image, BASE), &mut list)?;
        Ok(records(&list.finish()))
    }

    fn number(record: &(u32, Vec<u8>)) -> u64 {
        u64::from_le_bytes(record.1.clone().try_into().unwrap())
    }

    #[test]
    fn each_loaded_section_of_a_relocatable_module_is_where_its_header_says() {
        let (memory, bytes) = (memory(), module());
        let records = place(bytes.clone(), &memory).unwrap();
        let [_, kind, address, size, headers, header] = &records[..] else { panic!("{records:x?}") };
        assert_eq!((&kind.1[..], number(address)), (&b"elf obj module\0"[..], BASE));
        assert_eq!((header.0, &header.1[..]), (0x8002, &bytes[..64]));
        let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let mut lowest = u64::MAX;
        let mut loaded = 0;
        for section in headers.1.chunks(64) {
            let (at, offset, len) = (u64_at(section, 16), u64_at(section, 24), u64_at(section, 32));
            if at == 0 {
                continue;
            }
            loaded += 1;
            lowest = lowest.min(at);
            assert!(at + len <= BASE + number(size));
            if section[4] == 8 {
                continue; // zeroes
            }
            let index = |value: u64| usize::try_from(value).unwrap();
            let mut found = vec![0; index(len)];
            memory.read_slice(&mut found, GuestAddress(at)).unwrap();
            assert_eq!(found, bytes[index(offset)..index(offset + len)]);
        }
        assert_eq!((lowest, loaded), (BASE, 6), "text, bss, symbols, two string tables, relocations");
    }

    #[test]
    fn a_shared_module_lies_by_its_segments() {
        let (memory, bytes) = (memory(), shared_module());
        let records = place(bytes.clone(), &memory).unwrap();
        assert_eq!(&records[1].1, b"elf module\0");
        assert_eq!((number(&records[2]), number(&records[3])), (BASE, 0x2000));
        assert_eq!((records[4].0, number(&records[4])), (0x8005, 0x100));
        let mut found = vec![0; bytes.len()];
        memory.read_slice(&mut found, GuestAddress(BASE)).unwrap();
        assert_eq!(found, bytes);
    }

    #[test]
    fn files_that_are_no_modules_need_a_type() {
        let read = |kind: Option<&str>| Module::from_bytes(Path::new("x"), kind.map(Into::into), vec![1, 2]);
        assert!(read(None).unwrap_err().to_string().contains("x is no kernel module"));
        assert!(read(Some("md_image")).is_ok());
    }

    #[test]
    fn what_may_never_end_is_not_read() {
        for path in ["/dev/zero", "/"] {
            let spec = ModuleSpec { path: path.into(), kind: Some("md_image".into()) };
            assert!(matches!(Module::read(&spec), Err(ModuleError::NotAFile { .. })), "{path}");
        }
    }

    #[test]
    fn the_last_colon_separates_the_type() {
        let parse = |text: &str| text.parse::<ModuleSpec>().map(|spec| (spec.path, spec.kind));
        assert_eq!(parse("a.ko"), Ok(("a.ko".into(), None)));
        assert_eq!(parse("r.img:md_image"), Ok(("r.img".into(), Some("md_image".into()))));
        assert_eq!(parse("a:b/c.ko"), Ok(("a:b/c.ko".into(), None)));
        assert_eq!(parse("a:b:"), Ok(("a:b".into(), None)));
        assert!(parse(":x").is_err() && parse("").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn damaged_modules_are_refused_or_loaded(changes in mutate()) {
            let memory = memory();
            for whole in [module(), shared_module()] {
                let _ = place(changes.apply(whole), &memory);
            }
        }
    }
}
