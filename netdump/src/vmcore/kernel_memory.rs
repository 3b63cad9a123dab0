//! A stopped kernel's variables: its virtual memory, through whichever page tables of the guest map an address.
//!
//! No single root can be trusted to do. A CPU may have stopped in user mode on tables that lack most of the kernel, or
//! been reset by a triple fault; a table named by a symbol may not be filled yet.

use super::paging::{AddressSpace, Mapping};
use super::virtual_memory::{VirtualMemory, split_at_pages};
use super::{KernelMap, KernelSymbols, PhysicalMemory};

/// Most address spaces that are tried for an address.
const MAX_SPACES: usize = 16;
/// Longest array that is read for a string variable.
const MAX_ARRAY: usize = 1024;

/// The kernel's memory by virtual address and by symbol.
#[derive(Clone)]
pub struct KernelMemory<'m> {
    symbols: &'m KernelSymbols,
    memory: &'m dyn PhysicalMemory,
    spaces: Vec<AddressSpace<'m>>,
    /// How far the image lies from where its load map says, modulo 2^64.
    moved: u64,
}

impl std::fmt::Debug for KernelMemory<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelMemory").field("spaces", &self.spaces).finish_non_exhaustive()
    }
}

impl<'m> KernelMemory<'m> {
    /// Tries the PML4 at `root` first (the kernel's own, where a symbol names it), then the tables of each stopped CPU.
    pub fn new(memory: &'m dyn PhysicalMemory, symbols: &'m KernelSymbols, root: Option<u64>) -> Self {
        let used = memory.cpus().iter().filter_map(|cpu| Mapping::of(cpu.registers.as_ref()?));
        let (flat, paged): (Vec<_>, Vec<_>) = used.partition(|mapping| *mapping == Mapping::Identity);
        let mut mappings: Vec<Mapping> = Vec::new();
        for mapping in root.map(Mapping::FourLevel).into_iter().chain(paged).chain(flat) {
            if mappings.len() < MAX_SPACES && !mappings.contains(&mapping) {
                mappings.push(mapping);
            }
        }
        let spaces = mappings.into_iter().map(|mapping| AddressSpace::new(memory, mapping)).collect();
        Self { symbols, memory, spaces, moved: 0 }
    }

    /// The same, of an image that was loaded `moved` bytes behind the place that its load map says.
    #[must_use]
    pub fn with_image_moved_by(self, moved: u64) -> Self {
        Self { moved, ..self }
    }

    /// Through the translation that a core file brings. What that does not map is not in the file: to look elsewhere
    /// would find something else.
    fn read_by_file(&self, map: &dyn KernelMap, address: u64, buf: &mut [u8]) -> Option<()> {
        split_at_pages(address, buf)
            .try_for_each(|(at, piece)| self.memory.read(map.translate(at)?, piece).ok())
    }

    /// Guest-physical address of the byte at virtual `address`.
    pub fn translate(&self, address: u64) -> Option<u64> {
        // A CPU without paging "maps" every address, also those where no RAM is.
        let ranges = self.memory.ranges();
        let is_ram = |at: &u64| ranges.iter().any(|range| range.start <= *at && *at < range.end());
        if let Some(map) = self.memory.kernel_map() {
            return map.translate(address);
        }
        let mapped = self.spaces.iter().find_map(|space| space.translate(address).filter(is_ram));
        mapped.or_else(|| self.in_image(address))
    }

    /// Guest-physical address of a byte of the kernel's image, without page tables.
    fn in_image(&self, address: u64) -> Option<u64> {
        Some(self.symbols.physical(address)?.wrapping_add(self.moved))
    }

    /// The guest's physical memory.
    pub fn physical(&self) -> &'m dyn PhysicalMemory {
        self.memory
    }

    /// The kernel's symbols.
    pub fn symbols(&self) -> &'m KernelSymbols {
        self.symbols
    }

    /// The value of a pointer or any other 8-byte variable.
    pub fn pointer(&self, symbol: &str) -> Option<u64> {
        self.read_u64(self.symbols.address(symbol)?)
    }

    /// The value of an `int` variable.
    pub fn int(&self, symbol: &str) -> Option<u32> {
        self.read_u32(self.symbols.address(symbol)?)
    }

    /// Whether a `bool` or `int` variable is set; its width is what the symbol says, one byte where it does not.
    pub fn flag(&self, symbol: &str) -> Option<bool> {
        let width = if self.symbols.size(symbol)? >= 4 { 4 } else { 1 };
        let mut bytes = [0; 4];
        self.read(self.symbols.address(symbol)?, &mut bytes[..width])?;
        Some(bytes != [0; 4])
    }

    /// The text in a `char[]` variable, when it holds any.
    pub fn array_text(&self, symbol: &str) -> Option<String> {
        let size = usize::try_from(self.symbols.size(symbol)?).ok()?;
        let max = if size == 0 { MAX_ARRAY } else { size.min(MAX_ARRAY) };
        text(&self.read_string(self.symbols.address(symbol)?, max)?)
    }
}

impl VirtualMemory for KernelMemory<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Option<()> {
        if let Some(map) = self.memory.kernel_map() {
            return self.read_by_file(map, address, buf);
        }
        if self.spaces.iter().any(|space| space.read(address, buf).is_some()) {
            return Some(());
        }
        // Tables out of reach: the kernel's own variables still lie where its image was loaded.
        self.memory.read(self.in_image(address)?, buf).ok()
    }
}

/// What a guest's string says; `None` when it is empty.
pub(crate) fn text(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned())
}
