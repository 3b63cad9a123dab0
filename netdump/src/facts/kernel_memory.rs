//! A stopped kernel's variables: its virtual memory, through whichever page tables of the guest map an address.
//!
//! No single root can be trusted to do. A CPU may have stopped in user mode on tables that lack most of the kernel, or
//! been reset by a triple fault; a table named by a symbol may not be filled yet.

use crate::vmcore::paging::{AddressSpace, Mapping, left_in_page};
use crate::vmcore::{KernelSymbols, PhysicalMemory};

/// Most address spaces that are tried for an address.
const MAX_SPACES: usize = 16;
/// Longest array that is read for a string variable.
const MAX_ARRAY: usize = 1024;

/// The kernel's memory by virtual address and by symbol.
pub(super) struct KernelMemory<'m> {
    symbols: &'m KernelSymbols,
    memory: &'m dyn PhysicalMemory,
    spaces: Vec<AddressSpace<'m>>,
}

impl<'m> KernelMemory<'m> {
    /// Tries `root` first (the kernel's own tables, where a symbol names them), then the tables of each stopped CPU.
    pub(super) fn new(
        memory: &'m dyn PhysicalMemory,
        symbols: &'m KernelSymbols,
        root: Option<Mapping>,
    ) -> Self {
        let used = memory.cpus().iter().filter_map(|cpu| Mapping::of(cpu.registers.as_ref()?));
        let (flat, paged): (Vec<_>, Vec<_>) = used.partition(|mapping| *mapping == Mapping::Identity);
        let mut mappings: Vec<Mapping> = Vec::new();
        for mapping in root.into_iter().chain(paged).chain(flat) {
            if mappings.len() < MAX_SPACES && !mappings.contains(&mapping) {
                mappings.push(mapping);
            }
        }
        let spaces = mappings.into_iter().map(|mapping| AddressSpace::new(memory, mapping)).collect();
        Self { symbols, memory, spaces }
    }

    /// Fills `buf` from virtual `address`.
    pub(super) fn read(&self, address: u64, buf: &mut [u8]) -> Option<()> {
        if self.spaces.iter().any(|space| space.read(address, buf).is_some()) {
            return Some(());
        }
        // Tables out of reach: the kernel's own variables still lie where its image was loaded.
        self.memory.read(self.symbols.physical(address)?, buf).ok()
    }

    /// Reads a little-endian u64.
    pub(super) fn read_u64(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// The bytes before the NUL of a string; `None` when it has none among its first `max` bytes or is not readable.
    pub(super) fn read_string(&self, address: u64, max: usize) -> Option<Vec<u8>> {
        self.read_cut_string(address, max).filter(|text| text.len() < max)
    }

    /// The bytes before the NUL of a string, at most `max`; `None` when it is not readable.
    pub(super) fn read_cut_string(&self, address: u64, max: usize) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        while text.len() < max {
            let at = address.checked_add(text.len() as u64)?;
            let mut piece = vec![0; left_in_page(at).min(max - text.len())];
            self.read(at, &mut piece)?;
            if let Some(end) = piece.iter().position(|&byte| byte == 0) {
                text.extend_from_slice(&piece[..end]);
                break;
            }
            text.append(&mut piece);
        }
        Some(text)
    }

    /// The value of a pointer variable.
    pub(super) fn pointer(&self, symbol: &str) -> Option<u64> {
        self.read_u64(self.symbols.address(symbol)?)
    }

    /// Whether a `bool` or `int` variable is set; its width is what the symbol says, one byte where it does not.
    pub(super) fn flag(&self, symbol: &str) -> Option<bool> {
        let width = if self.symbols.size(symbol)? >= 4 { 4 } else { 1 };
        let mut bytes = [0; 4];
        self.read(self.symbols.address(symbol)?, &mut bytes[..width])?;
        Some(bytes != [0; 4])
    }

    /// The text in a `char[]` variable, when it holds any.
    pub(super) fn array_text(&self, symbol: &str) -> Option<String> {
        let size = usize::try_from(self.symbols.size(symbol)?).ok()?;
        let max = if size == 0 { MAX_ARRAY } else { size.min(MAX_ARRAY) };
        text(&self.read_string(self.symbols.address(symbol)?, max)?)
    }
}

/// What a guest's string says; `None` when it is empty.
pub(super) fn text(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned())
}
