//! What firmware would tell an operating system: the memory map, ACPI tables and the MP table. Every guest gets them,
//! however it is booted.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::{acpi, layout, mptable};
use crate::memory::GuestMemory;

/// The machine, as far as tables describe it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hardware {
    /// Processors; their APIC numbers count from 0.
    pub cpus: u8,
    /// Devices with the virtio-mmio transport.
    pub virtio_mmio: Vec<VirtioMmio>,
    /// Whether there is a pvpanic device at its port.
    pub pvpanic: bool,
    /// Whether there is a PCI bus.
    pub pci: bool,
}

/// Where a virtio-mmio device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Start of its [`layout::VIRTIO_MMIO_LEN`] bytes.
    pub base: u32,
    /// Its interrupt, an edge-triggered IOAPIC pin.
    pub irq: u8,
}

/// A range of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// What is there.
    pub kind: MapKind,
}

/// What a range of the memory map is, by its number in every such map (BIOS E820, PVH, FreeBSD's SMAP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// For the system to use.
    Ram = 1,
    /// Not to be touched: firmware's data, in our case the tables.
    Reserved = 2,
}

/// The memory map: all RAM but what lies between conventional memory and 1 MiB, where the tables are.
///
/// A system that took their pages for RAM would overwrite them.
pub fn memory_map(memory: &GuestMemory) -> Vec<MapEntry> {
    let entry = |start, end, kind| MapEntry { start, end, kind };
    let low = [
        entry(0, layout::EBDA, MapKind::Ram),
        entry(layout::EBDA, layout::EBDA_END, MapKind::Reserved),
        entry(layout::TABLES, layout::HIMEM, MapKind::Reserved),
    ];
    let regions = memory.iter().map(|region| {
        let start = region.start_addr().0;
        entry(start.max(layout::HIMEM), start + region.len(), MapKind::Ram)
    });
    low.into_iter().chain(regions).collect()
}

/// What a BIOS has where a CPU starts, in real mode: `mov al, 0xfe; out 0x64, al; 1: hlt; jmp 1b`, a reset by the
/// keyboard controller. Linux goes there to reset a machine whose ACPI is hardware-reduced and that has no EFI: it takes
/// neither the reset register nor the keyboard controller then (`arch/x86/kernel/reboot.c`, `reboot_init`).
const RESET_CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// Writes the tables.
pub fn write(memory: &GuestMemory, hardware: &Hardware) -> Result<(), GuestMemoryError> {
    let segment = u16::try_from(layout::EBDA >> 4).expect("below 1 MiB");
    memory.write_obj(segment, GuestAddress(layout::EBDA_SEGMENT))?;
    let kib = u8::try_from((layout::EBDA_END - layout::EBDA) >> 10).expect("1 KiB");
    memory.write_obj(kib, GuestAddress(layout::EBDA))?;
    let acpi = acpi::tables(hardware);
    assert!(acpi.len() as u64 <= layout::MP_TABLE - layout::ACPI, "the tables of 254 CPUs fit");
    memory.write_slice(&acpi, GuestAddress(layout::ACPI))?;
    memory.write_slice(&mptable::pointer(), GuestAddress(layout::MP_POINTER))?;
    memory.write_slice(&mptable::table(hardware.cpus), GuestAddress(layout::MP_TABLE))?;
    memory.write_slice(&RESET_CODE, GuestAddress(layout::BIOS_ENTRY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MemorySize, create};

    fn memory(mib: u64) -> GuestMemory {
        create(MemorySize::new(mib << 20).unwrap()).unwrap()
    }

    #[test]
    fn no_table_lies_in_what_the_map_calls_ram() {
        let map = memory_map(&memory(4096));
        let tables = [layout::MP_POINTER, layout::ACPI, layout::MP_TABLE, layout::HIMEM - 1];
        for address in tables {
            let of = map.iter().find(|entry| (entry.start..entry.end).contains(&address)).unwrap();
            assert_eq!(of.kind, MapKind::Reserved, "{address:#x}");
        }
        let ram: u64 = map.iter().filter(|e| e.kind == MapKind::Ram).map(|e| e.end - e.start).sum();
        assert_eq!(ram, (4096 << 20) - 0x6_0400);
        assert!(map.is_sorted_by(|a, b| a.end <= b.start));
    }

    #[test]
    fn the_tables_are_where_systems_search_for_them() {
        let memory = memory(2);
        let virtio_mmio = vec![VirtioMmio { base: layout::VIRTIO_MMIO, irq: layout::VIRTIO_MMIO_IRQS[0] }; 8];
        write(&memory, &Hardware { cpus: 254, virtio_mmio, pvpanic: true, pci: true }).unwrap();
        let bytes = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        let segment = u16::from_le_bytes(bytes(0x40e, 2).try_into().unwrap());
        let ebda = u64::from(segment) << 4;
        assert_eq!((ebda, bytes(ebda, 1)[0]), (0x9_fc00, 1));
        let on_16 = |start: u64, end: u64| (start..end).step_by(16);
        let pointer = on_16(ebda, ebda + 1024).find(|&at| bytes(at, 4) == b"_MP_").unwrap();
        let table = u32::from_le_bytes(bytes(pointer + 4, 4).try_into().unwrap());
        assert_eq!(bytes(table.into(), 4), b"PCMP");
        let rsdp = on_16(0xe_0000, 0x10_0000).find(|&at| bytes(at, 8) == b"RSD PTR ").unwrap();
        assert_eq!(rsdp, layout::ACPI);
    }
}
