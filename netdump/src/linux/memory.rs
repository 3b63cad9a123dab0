//! A Linux kernel's virtual memory, by what VMCOREINFO says of it: the image lies in one piece of physical memory, and
//! all other addresses are in the kernel's own page tables, `swapper_pg_dir`, which every process shares.
//!
//! Reference: `arch/x86/include/asm/page_64.h`, `Documentation/arch/x86/x86_64/mm.rst`.

use super::image::{WINDOW, WINDOW_LEN};
use super::vmcoreinfo::Vmcoreinfo;
use crate::vmcore::PhysicalMemory;
use crate::vmcore::paging::{AddressSpace, Mapping};
use crate::vmcore::virtual_memory::{VirtualMemory, split_at_pages};

/// The kernel's memory by virtual address.
#[derive(Clone, Copy)]
pub struct LinuxMemory<'m> {
    memory: &'m dyn PhysicalMemory,
    tables: AddressSpace<'m>,
    phys_base: u64,
}

impl std::fmt::Debug for LinuxMemory<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinuxMemory")
            .field("tables", &self.tables)
            .field("phys_base", &format_args!("{:#x}", self.phys_base))
            .finish_non_exhaustive()
    }
}

impl<'m> LinuxMemory<'m> {
    /// The memory of the kernel that `info` is of; `None` when its page tables are not where `info` says.
    pub fn new(memory: &'m dyn PhysicalMemory, info: &Vmcoreinfo) -> Option<Self> {
        let stext = info.symbol("_stext")?;
        let root =
            info.image_address(info.symbol("swapper_pg_dir").or_else(|| info.symbol("init_top_pgt"))?)?;
        let mapping = match info.number("pgtable_l5_enabled") {
            Some(1) => Mapping::FiveLevel(root),
            _ => Mapping::FourLevel(root),
        };
        let encrypted = info.number("sme_mask").unwrap_or(0).cast_unsigned();
        let tables = AddressSpace::new(memory, mapping).with_encryption_bits(encrypted);
        let found = Self { memory, tables, phys_base: info.phys_base() };
        (tables.translate(stext)? == info.image_address(stext)?).then_some(found)
    }

    /// Guest-physical address of the byte at virtual `address`; `None` when it is no kernel address or not mapped.
    pub fn translate(&self, address: u64) -> Option<u64> {
        // The upper half is the kernel's; the lower one, if anything is mapped there, is a process's.
        if address >> 63 == 0 {
            return None;
        }
        // The tables first: where the image may have only 512 MiB, modules lie in the same window. What the kernel
        // unmapped of its image, as the code of its start, still lies where it was.
        self.walk(address).or_else(|| self.in_image(address))
    }

    /// The same by the kernel's page tables alone.
    pub(super) fn walk(&self, address: u64) -> Option<u64> {
        self.tables.translate(address)
    }

    /// The guest's physical memory.
    pub fn physical(&self) -> &'m dyn PhysicalMemory {
        self.memory
    }

    /// Guest-physical address of a byte of the kernel's image, without page tables.
    fn in_image(&self, address: u64) -> Option<u64> {
        let inside = address.checked_sub(WINDOW).filter(|&inside| inside < WINDOW_LEN)?;
        let physical = inside.wrapping_add(self.phys_base);
        self.memory.range_at(physical).map(|_| physical)
    }
}

impl VirtualMemory for LinuxMemory<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Option<()> {
        split_at_pages(address, buf)
            .try_for_each(|(at, piece)| self.memory.read(self.translate(at)?, piece).ok())
    }
}
