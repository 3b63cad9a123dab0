//! A Linux kernel's virtual memory, by what VMCOREINFO says of it: the image lies in one piece of physical memory, and
//! all other addresses are in the kernel's own page tables, `swapper_pg_dir`, which every process shares.
//!
//! Reference: `arch/x86/include/asm/page_64.h`, `Documentation/arch/x86/x86_64/mm.rst`.

use super::image::{WINDOW, WINDOW_LEN};
use super::vmcoreinfo::Vmcoreinfo;
use crate::vmcore::PhysicalMemory;
use crate::vmcore::paging::{AddressSpace, Mapping, left_in_page};

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

    /// Fills `buf` from virtual `address`; `None` when any byte of it is not mapped or cannot be read.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Option<()> {
        let mut address = address;
        let mut rest = buf;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at_mut(rest.len().min(left_in_page(address)));
            self.memory.read(self.translate(address)?, piece).ok()?;
            address = address.wrapping_add(piece.len() as u64);
            rest = behind;
        }
        Some(())
    }

    /// Reads a little-endian u64.
    pub fn read_u64(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// Reads a little-endian u32.
    pub fn read_u32(&self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    /// The bytes before the NUL of a string, at most `max`; `None` when it is not readable.
    pub fn read_cut_string(&self, address: u64, max: usize) -> Option<Vec<u8>> {
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
