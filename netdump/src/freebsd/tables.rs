//! Where a kernel's own page tables lie, and its image with them.
//!
//! `KPML4phys` holds the address of the kernel's PML4, and lies in the image. Loaders of BIOS, PVH and bhyve put the
//! image where its load map says; a UEFI loader puts it anywhere below 4 GiB, on a boundary of 2 MiB (`kernphys`, since
//! 2021). A core tells neither, but tables prove themselves: those of the kernel map `KPML4phys` to the very place that
//! their address was read from. So the place of the load map is tried, then those that stopped CPUs' tables tell, then
//! all.

use super::layout::{KERNBASE, KERNEL_LOAD};
use crate::vmcore::paging::{AddressSpace, Mapping, PAGE_SIZE};
use crate::vmcore::{KernelSymbols, PhysicalMemory};

/// Loaders put the kernel on such a boundary, below 4 GiB.
const BOUNDARY: usize = 2 << 20;
const MAX_LOAD: u64 = 1 << 32;
/// Most CPUs whose tables are tried.
const MAX_CPUS: usize = 16;

/// A kernel's page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelTables {
    /// Guest-physical address of the PML4. Under 5-level paging that is still the one of the kernel's half, so a walk
    /// from here has four levels.
    pub root: u64,
    /// How far behind the place of its load map the image lies, modulo 2^64.
    pub moved: u64,
}

/// The tables of the kernel with these symbols. Where none prove themselves (the core lacks pages of them, the kernel
/// has not made them yet) those that the load map leads to.
pub fn find(memory: &dyn PhysicalMemory, symbols: &KernelSymbols) -> Option<KernelTables> {
    if memory.kernel_map().is_some() {
        // A minidump translates by itself, and seldom has the upper tables.
        return None;
    }
    let variable = symbols.address("KPML4phys")?;
    let expected = symbols.physical(variable);
    let by_cpus = memory.cpus().iter().take(MAX_CPUS).filter_map(|cpu| {
        let used = Mapping::of(cpu.registers.as_deref()?)?;
        AddressSpace::new(memory, used).translate(variable)
    });
    let elsewhere = variable.checked_sub(KERNBASE + KERNEL_LOAD).into_iter().flat_map(|offset| {
        (0..MAX_LOAD).step_by(BOUNDARY).filter_map(move |start| offset.checked_add(start))
    });
    let proven = expected.into_iter().chain(by_cpus).chain(elsewhere).find_map(|place| {
        let root = root_at(memory, place).filter(|root| root.is_multiple_of(PAGE_SIZE))?;
        let mapped = AddressSpace::new(memory, Mapping::FourLevel(root)).translate(variable);
        let moved = expected.map_or(0, |expected| place.wrapping_sub(expected));
        (mapped == Some(place)).then_some(KernelTables { root, moved })
    });
    proven.or_else(|| Some(KernelTables { root: root_at(memory, expected?)?, moved: 0 }))
}

/// The word at a place in RAM, if it is an address.
fn root_at(memory: &dyn PhysicalMemory, place: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.ranges().iter().find(|range| range.start <= place && place < range.end())?;
    memory.read(place, &mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes)).filter(|&root| root != 0)
}
