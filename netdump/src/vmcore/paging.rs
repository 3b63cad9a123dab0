//! x86-64 address translation on memory that is not ours: 4-level and 5-level page tables with pages of 4 KiB, 2 MiB
//! and 1 GiB (Intel SDM volume 3, chapter 4).
//!
//! The tables are hostile. A walk reads at most five entries, so a table that points at itself costs no more than any
//! other; an entry that points outside RAM is a translation that fails.

use super::cpu::Registers;
use super::memory::PhysicalMemory;
use super::virtual_memory::{VirtualMemory, split_at_pages};

/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 4096;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Bits 51:12 of an entry, and of CR3: the rest are flags, the PCID and the no-execute bit.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

const CR0_PAGING: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

/// How virtual addresses become physical ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// Paging is off: they are the same.
    Identity,
    /// A PML4 at this physical address. Flag bits below the page are ignored.
    FourLevel(u64),
    /// A PML5 at this physical address. Flag bits below the page are ignored.
    FiveLevel(u64),
}

impl Mapping {
    /// What a CPU with these registers uses; `None` for 32-bit paging, which no kernel that is dumped here uses.
    pub fn of(registers: &Registers) -> Option<Self> {
        if registers.cr0 & CR0_PAGING == 0 {
            return Some(Self::Identity);
        }
        if registers.efer & EFER_LONG_MODE_ACTIVE == 0 {
            return None;
        }
        let root = registers.cr3 & FRAME;
        Some(if registers.cr4 & CR4_LA57 != 0 { Self::FiveLevel(root) } else { Self::FourLevel(root) })
    }
}

/// One virtual address space of the guest.
#[derive(Clone, Copy)]
pub struct AddressSpace<'m> {
    memory: &'m dyn PhysicalMemory,
    mapping: Mapping,
    /// The bits of an entry that make the address of a table or page.
    frame: u64,
}

impl std::fmt::Debug for AddressSpace<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressSpace").field("mapping", &self.mapping).finish_non_exhaustive()
    }
}

impl<'m> AddressSpace<'m> {
    /// The address space that `mapping` describes in `memory`.
    pub fn new(memory: &'m dyn PhysicalMemory, mapping: Mapping) -> Self {
        Self { memory, mapping, frame: FRAME }
    }

    /// The same, of tables whose entries mark encrypted memory by these bits (AMD's SME: the "C-bit").
    #[must_use]
    pub fn with_encryption_bits(self, bits: u64) -> Self {
        Self { frame: FRAME & !bits, ..self }
    }

    /// Physical address of the byte at virtual address `address`; `None` when it is not mapped, not canonical, or the
    /// tables leave RAM.
    pub fn translate(&self, address: u64) -> Option<u64> {
        let (mut table, levels) = match self.mapping {
            Mapping::Identity => return Some(address),
            Mapping::FourLevel(root) => (root & FRAME, 4),
            Mapping::FiveLevel(root) => (root & FRAME, 5),
        };
        if !is_canonical(address, levels) {
            return None;
        }
        for level in (1..=levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let entry = self.entry(table, (address >> shift) & 511)?;
            if entry & PRESENT == 0 {
                return None;
            }
            let is_page = level == 1 || (level <= 3 && entry & LARGE != 0);
            if is_page {
                // Low bits of a large page's frame are flags (PAT) and reserved bits.
                let inside = (1 << shift) - 1;
                return Some((entry & self.frame & !inside) | (address & inside));
            }
            table = entry & self.frame;
        }
        None
    }

    fn entry(&self, table: u64, index: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.memory.read(table + 8 * index, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }
}

impl VirtualMemory for AddressSpace<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Option<()> {
        split_at_pages(address, buf)
            .try_for_each(|(at, piece)| self.memory.read(self.translate(at)?, piece).ok())
    }
}

/// Whether the bits above those that the tables translate all equal the highest one that they do.
fn is_canonical(address: u64, levels: u32) -> bool {
    let above = address >> (12 + 9 * levels - 1);
    above == 0 || above == u64::MAX >> (12 + 9 * levels - 1)
}
