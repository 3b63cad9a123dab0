//! The modules that a kernel has loaded: their code, their symbols and their ORC tables, found through the list `modules`
//! and the kernel's own types (`struct module`, which changes from version to version).

use std::cell::{Cell, OnceCell};

use super::btf::Structure;
use super::kernel::Kernel;
use super::orc::Tables;
use crate::vmcore::VirtualMemory;

/// Most modules that are followed; machines have some 50 to 200.
const MAX_MODULES: usize = 1024;
/// Most symbols that are read of one module, and of all.
const MAX_SYMBOLS: u64 = 1 << 16;
const MAX_ALL_SYMBOLS: u64 = 1 << 19;
/// `MODULE_NAME_LEN`, and the longest name of a symbol.
const NAME_LEN: usize = 56;
const SYMBOL_LEN: usize = 512;
/// The text that stays and the text for the start only, in `enum mod_mem_type` (since 6.4).
const TEXT_PARTS: [u64; 2] = [0, 4];
/// `Elf64_Sym`, and its fields.
const ELF_SYMBOL_LEN: usize = 24;
const ELF_SECTION: usize = 6;
const ELF_VALUE: usize = 8;

/// All modules, the newest first.
#[derive(Debug, Default)]
pub(super) struct Modules {
    list: Vec<Module>,
    /// Symbols that may still be read.
    budget: Cell<u64>,
}

/// A module.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    /// Start and length of its parts with code.
    code: Vec<(u64, u64)>,
    /// Address and number of its symbols, and where their names are.
    symbols: Option<(u64, u64, u64)>,
    /// Its ORC tables.
    pub(super) orc: Option<Tables>,
    /// Address and name's place of each symbol, in ascending order, once someone asks.
    sorted: OnceCell<Vec<(u64, u32)>>,
}

impl Modules {
    /// Follows the list.
    pub(super) fn read(kernel: &Kernel<'_>) -> Option<Self> {
        let offsets = Offsets::read(kernel)?;
        let head = kernel.variable("modules")?;
        let mut list = Vec::new();
        let mut at = kernel.memory().read_u64(head)?;
        while at != head && list.len() < MAX_MODULES {
            let Some(module) = at.checked_sub(offsets.list).and_then(|module| offsets.module(kernel, module))
            else {
                break;
            };
            list.push(module);
            let Some(next) = kernel.memory().read_u64(at) else { break };
            at = next;
        }
        Some(Self { list, budget: Cell::new(MAX_ALL_SYMBOLS) })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|module| module.name.as_str())
    }

    /// The module whose code this is.
    pub(super) fn at(&self, address: u64) -> Option<&Module> {
        let inside =
            |&(start, len): &(u64, u64)| address.checked_sub(start).is_some_and(|offset| offset < len);
        self.list.iter().find(|module| module.code.iter().any(inside))
    }

    /// The module's function at `address`, and the distance from its start.
    pub(super) fn function_at(
        &self,
        kernel: &Kernel<'_>,
        module: &Module,
        address: u64,
    ) -> Option<(String, u64)> {
        let sorted = module.sorted.get_or_init(|| self.read_symbols(kernel, module).unwrap_or_default());
        let behind = sorted.partition_point(|&(start, _)| start <= address);
        let (start, name) = *sorted.get(behind.checked_sub(1)?)?;
        // Data lies elsewhere: what is nearest below in the same part is code.
        let (part, _) =
            module.code.iter().find(|(part, len)| address.checked_sub(*part).is_some_and(|at| at < *len))?;
        let (_, _, strings) = module.symbols?;
        let name = kernel.memory().read_cut_string(strings.checked_add(name.into())?, SYMBOL_LEN)?;
        (start >= *part).then(|| (String::from_utf8_lossy(&name).into_owned(), address - start))
    }

    fn read_symbols(&self, kernel: &Kernel<'_>, module: &Module) -> Option<Vec<(u64, u32)>> {
        let (first, count, strings) = module.symbols?;
        let count = count.min(MAX_SYMBOLS);
        self.budget.set(self.budget.get().checked_sub(count)?);
        let mut bytes = vec![0; usize::try_from(count).ok()? * ELF_SYMBOL_LEN];
        kernel.memory().read(first, &mut bytes)?;
        let symbol = |bytes: &[u8; ELF_SYMBOL_LEN]| {
            let name = u32::from_le_bytes(bytes[..4].try_into().ok()?);
            let value = u64::from_le_bytes(bytes[ELF_VALUE..][..8].try_into().ok()?);
            let is_defined = bytes[ELF_SECTION..][..2] != [0, 0];
            (is_defined && name != 0).then_some((value, name))
        };
        let is_code = |&(value, _): &(u64, u32)| {
            module.code.iter().any(|(start, len)| value.checked_sub(*start).is_some_and(|at| at < *len))
        };
        let mut symbols: Vec<_> = bytes.as_chunks().0.iter().filter_map(symbol).filter(is_code).collect();
        // Sections' symbols and mapping symbols have no name that a person would look for.
        let named = |&(_, name): &(u64, u32)| {
            let mut first = [0];
            let at = strings.checked_add(name.into());
            at.and_then(|at| kernel.memory().read(at, &mut first)).is_some()
                && !matches!(first[0], 0 | b'$' | b'.')
        };
        symbols.retain(named);
        symbols.sort_by_key(|&(value, _)| value);
        symbols.dedup_by_key(|&mut (value, _)| value);
        Some(symbols)
    }
}

/// Where the fields lie in `struct module`.
struct Offsets {
    list: u64,
    name: u64,
    parts: Vec<Part>,
    symbols: Option<SymbolOffsets>,
    /// `arch.orc_unwind_ip`, `arch.orc_unwind`, `arch.num_orcs`.
    orc: Option<[u64; 3]>,
}

/// A part with code: where its start and its length stand.
struct Part {
    base: u64,
    size: u64,
}

struct SymbolOffsets {
    pointer: u64,
    symbols: u64,
    count: u64,
    strings: u64,
}

impl Offsets {
    fn read(kernel: &Kernel<'_>) -> Option<Self> {
        let [module, symbols] = kernel.types()?.structures(["module", "mod_kallsyms"]);
        let module = module?;
        let symbols = || {
            let symbols = symbols?;
            Some(SymbolOffsets {
                pointer: module.offset("kallsyms")?,
                symbols: symbols.offset("symtab")?,
                count: symbols.offset("num_symtab")?,
                strings: symbols.offset("strtab")?,
            })
        };
        let orc =
            ["arch.orc_unwind_ip", "arch.orc_unwind", "arch.num_orcs"].map(|field| module.offset(field));
        Some(Self {
            list: module.offset("list")?,
            name: module.offset("name")?,
            parts: parts(module)?,
            symbols: symbols(),
            orc: if let [Some(addresses), Some(entries), Some(count)] = orc {
                Some([addresses, entries, count])
            } else {
                None
            },
        })
    }

    fn module(&self, kernel: &Kernel<'_>, address: u64) -> Option<Module> {
        let memory = kernel.memory();
        let word = |offset: u64| memory.read_u64(address.checked_add(offset)?);
        let half = |offset: u64| memory.read_u32(address.checked_add(offset)?);
        let name = memory.read_cut_string(address.checked_add(self.name)?, NAME_LEN)?;
        let part = |part: &Part| Some((word(part.base)?, u64::from(half(part.size)?)));
        let symbols = || {
            let offsets = self.symbols.as_ref()?;
            let table = word(offsets.pointer)?;
            let field = |offset: u64| memory.read_u64(table.checked_add(offset)?);
            let count = memory.read_u32(table.checked_add(offsets.count)?)?;
            Some((field(offsets.symbols)?, count.into(), field(offsets.strings)?))
        };
        let orc = || {
            let [addresses, entries, count] = self.orc?;
            Some(Tables { addresses: word(addresses)?, entries: word(entries)?, count: half(count)?.into() })
        };
        Some(Module {
            name: String::from_utf8_lossy(&name).into_owned(),
            code: self.parts.iter().filter_map(part).filter(|&(base, _)| base != 0).collect(),
            symbols: symbols(),
            orc: orc(),
            sorted: OnceCell::new(),
        })
    }
}

/// `core_layout` and `init_layout`, or since 6.4 an array of parts.
fn parts(module: Structure<'_>) -> Option<Vec<Part>> {
    let old = |layout: &str| {
        let field = |field: &str| module.offset(&format!("{layout}.{field}"));
        Some(Part { base: field("base")?, size: field("text_size")? })
    };
    if let Some(kept) = old("core_layout") {
        return Some(std::iter::once(kept).chain(old("init_layout")).collect());
    }
    let array = module.field("mem")?;
    let element = module.element(&array)?;
    let (base, size) = (element.offset("base")?, element.offset("size")?);
    let start = |index: u64| array.offset + index * element.size();
    Some(TEXT_PARTS.map(|index| Part { base: start(index) + base, size: start(index) + size }).into())
}
