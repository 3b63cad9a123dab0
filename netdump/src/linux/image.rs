//! Where the kernel's image lies: found from the page tables that the CPUs used, without asking the kernel.
//!
//! Linux maps its image into one window of 1 GiB whatever address randomisation chose, in whole 2 MiB pages
//! (`arch/x86/include/asm/page_64_types.h`). The first address that is mapped there is `_text`.

use crate::vmcore::paging::{AddressSpace, Mapping};
use crate::vmcore::{PhysicalMemory, Registers};

/// Where the window of the kernel's image begins (`__START_KERNEL_map`).
pub const WINDOW: u64 = 0xffff_ffff_8000_0000;
/// Its length (`KERNEL_IMAGE_SIZE` with address randomisation).
pub const WINDOW_LEN: u64 = 1 << 30;
/// The image begins on a large page.
pub const ALIGNMENT: u64 = 2 << 20;
/// With page-table isolation a CPU in user mode uses tables that lack most of the kernel; its kernel's root lies one
/// page before (`PTI_USER_PGTABLE_BIT`).
const USER_TABLES: u64 = 1 << 12;

/// Most CPUs whose tables are looked at: the kernel's part is the same in all of them.
const MAX_CPUS: usize = 32;

/// The place of a kernel image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelImage {
    /// Virtual address of its first byte, `_text`.
    pub virtual_start: u64,
    /// Guest-physical address of that byte.
    pub physical_start: u64,
    /// The page tables that said so.
    pub mapping: Mapping,
}

impl KernelImage {
    /// As the first CPU shows it that has a kernel's tables.
    pub fn find(memory: &dyn PhysicalMemory) -> Option<Self> {
        roots(memory).find_map(|mapping| Self::in_tables(memory, mapping))
    }

    /// What the kernel calls `phys_base`: a byte of the image lies at its distance from the start of the window, plus
    /// this, modulo 2^64.
    pub fn phys_base(&self) -> u64 {
        self.physical_start.wrapping_sub(self.virtual_start - WINDOW)
    }

    fn in_tables(memory: &dyn PhysicalMemory, mapping: Mapping) -> Option<Self> {
        let space = AddressSpace::new(memory, mapping);
        let mut starts = (0..WINDOW_LEN / ALIGNMENT).map(|index| WINDOW + index * ALIGNMENT);
        let (virtual_start, physical_start) =
            starts.find_map(|start| Some((start, space.translate(start)?)))?;
        // Tables isolated for user mode show single pages of the entry code: these need not begin the image.
        let is_image = physical_start.is_multiple_of(ALIGNMENT)
            && space.translate(virtual_start + ALIGNMENT / 2) == Some(physical_start + ALIGNMENT / 2);
        is_image.then_some(Self { virtual_start, physical_start, mapping })
    }
}

/// The page tables of the CPUs that use some, each preceded by what would be its kernel's.
pub(super) fn roots(memory: &dyn PhysicalMemory) -> impl Iterator<Item = Mapping> {
    let used = memory.cpus().iter().filter_map(|cpu| used_tables(cpu.registers.as_deref()?));
    used.take(MAX_CPUS).flat_map(|mapping| match mapping {
        Mapping::FourLevel(root) => [Mapping::FourLevel(root & !USER_TABLES), mapping],
        Mapping::FiveLevel(root) => [Mapping::FiveLevel(root & !USER_TABLES), mapping],
        Mapping::Identity => [mapping; 2],
    })
}

/// QEMU's note has no EFER, so paging with PAE counts as long mode: no 32-bit kernel is known here.
fn used_tables(registers: &Registers) -> Option<Mapping> {
    const LONG_MODE_ACTIVE: u64 = 1 << 10;
    let registers = Registers { efer: registers.efer | LONG_MODE_ACTIVE, ..registers.clone() };
    Mapping::of(&registers).filter(|mapping| *mapping != Mapping::Identity)
}
