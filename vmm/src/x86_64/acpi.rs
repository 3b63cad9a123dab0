//! ACPI tables (ACPI specification 6.5): RSDP, XSDT, FADT, MADT, a DSDT and, with PCI, an MCFG (PCI Firmware 3.0, 4.1.2),
//! made by the crate `acpi_tables`.
//!
//! The machine is hardware-reduced (section 4.1): no PM timer, no fixed events, no FACS. Soft-off is the sleep control
//! register, a reset the Intel chipsets' port. Both FreeBSD's and Linux's ACPICA take that at run time.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace as Window, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE,
    Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::firmware::{Hardware, VirtioMmio};
use super::layout;
use crate::devices::{rtc, serial, sleep};

const OEM: [u8; 6] = *b"VMM   ";
const OEM_TABLE: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;
/// Tables begin at multiples of this.
const ALIGN: usize = 16;

/// FADT, IA-PC boot architecture flags (table 5.11): an 8042 is there, VGA is not, nor is ASPM; the clock at 0x70 is
/// there, as bit 5 is clear.
const BOOT_ARCH: u16 = 1 << 1 | 1 << 2 | 1 << 4;
/// And MSIs are not, without PCI.
const NO_MSI: u16 = 1 << 3;
/// What resets by the reset control register: a full reset, bit 2 rising.
const RESET_VALUE: u8 = 0x06;

/// MADT flag: there are 8259s as well, to be masked.
const PCAT_COMPAT: u32 = 1;
/// MADT entries that the crate does not have (sections 5.2.12.5 and 5.2.12.7).
const SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
/// MPS INTI flags: as the bus has it; active high and level.
const CONFORMING: u16 = 0;
const LEVEL_HIGH: u16 = 0b1101;

/// All tables, as they lie from [`layout::ACPI`] on, the RSDP first.
pub fn tables(hardware: &Hardware) -> Vec<u8> {
    // The RSDP names the XSDT, which comes last because it names the others.
    let mut place = Place { bytes: vec![0; Rsdp::len()] };
    let dsdt = place.add(dsdt(hardware).as_slice());
    let fadt = place.add(&bytes_of(&fadt(dsdt, hardware)));
    let madt = place.add(madt(hardware.cpus).as_slice());
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if hardware.pci {
        xsdt.add_entry(place.add(&bytes_of(&mcfg())));
    }
    let xsdt = place.add(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    place.bytes.iter_mut().zip(rsdp).for_each(|(slot, byte)| *slot = byte);
    place.bytes
}

/// Tables one behind another.
struct Place {
    bytes: Vec<u8>,
}

impl Place {
    /// Where the table came to lie.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let at = layout::ACPI + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        at
    }
}

fn bytes_of(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64, hardware: &Hardware) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    // Both fields of the DSDT's address: readers older than ACPI 2 know only this one.
    fadt.dsdt = u32::try_from(dsdt).expect("below 1 MiB").into();
    fadt.sci_int = u16::from(layout::SCI_IRQ).into();
    fadt.century = rtc::CENTURY;
    fadt.iapc_boot_arch = (BOOT_ARCH | if hardware.pci { 0 } else { NO_MSI }).into();
    // A FreeBSD kernel that panics waits before it resets (kern.panic_reboot_wait_time), but not every one on a machine
    // with this register: 14.0-CURRENT of July 2022 uses it first, and is gone at the end of its message.
    fadt.reset_reg = port(layout::RESET_CONTROL);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL);
    // One register for both: it reads as 0, no wake event pending.
    fadt.sleep_status_reg = port(layout::SLEEP_CONTROL);
    fadt.finalize()
}

fn port(address: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address.into())
}

fn madt(cpus: u8) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 44, 5, OEM, OEM_TABLE, OEM_REVISION);
    madt.write_u32(36, layout::LOCAL_APIC);
    madt.write_u32(40, PCAT_COMPAT);
    for id in 0..cpus {
        madt.append_slice(&bytes_of(&ProcessorLocalApic::new(id, id, EnabledStatus::Enabled)));
    }
    madt.append_slice(&bytes_of(&IoApic::new(0, layout::IOAPIC, 0)));
    // KVM's timer is connected to pin 2, as on most boards.
    madt.append_slice(&source_override(0, 2, CONFORMING));
    // Without this FreeBSD would make the pin active-low and level-triggered, as PCI's are.
    madt.append_slice(&source_override(layout::SCI_IRQ, layout::SCI_IRQ, LEVEL_HIGH));
    madt.append_slice(&[LOCAL_APIC_NMI, 6, 0xff, 0, 0, 1]);
    madt
}

fn source_override(irq: u8, pin: u8, flags: u16) -> [u8; 10] {
    let [low, high] = flags.to_le_bytes();
    [SOURCE_OVERRIDE, 10, 0, irq, pin, 0, 0, 0, low, high]
}

/// Where the configuration space of bus 0 is in memory.
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::PCI_ECAM.into(), 0, 0, 0);
    mcfg
}

fn dsdt(hardware: &Hardware) -> Sdt {
    let mut aml = Vec::new();
    let s5 = Name::new("_S5_".into(), &Package::new(vec![&sleep::S5, &ZERO, &ZERO, &ZERO]));
    s5.to_aml_bytes(&mut aml);
    let mut devices = (0..hardware.cpus).map(processor).collect::<Vec<_>>();
    devices.extend(board_devices());
    devices.extend(hardware.pvpanic.then(pvpanic));
    devices.extend(hardware.pci.then(pci).into_iter().flatten());
    devices.extend((0..).zip(&hardware.virtio_mmio).map(|(index, device)| virtio_mmio(index, *device)));
    let devices: Vec<_> = devices.into_iter().map(Encoded).collect();
    let refs = devices.iter().map(|device| device as &dyn Aml).collect();
    Scope::new("_SB_".into(), refs).to_aml_bytes(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// AML that is already bytes.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// A device: its name, who it is, which of them, and where.
fn device(name: &str, hid: &dyn Aml, uid: u8, resources: Vec<&dyn Aml>) -> Vec<u8> {
    let hid = Name::new("_HID".into(), hid);
    let uid = Name::new("_UID".into(), &uid);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    bytes_of(&Device::new(name.into(), vec![&hid, &uid, &resources]))
}

fn processor(id: u8) -> Vec<u8> {
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &id);
    bytes_of(&Device::new(Path::new(&format!("CP{id:02X}")), vec![&hid, &uid]))
}

/// What every machine has.
fn board_devices() -> [Vec<u8>; 3] {
    let io = |port: u16, len: u64| IO::new(port, port, 1, u8::try_from(len).expect("a handful of ports"));
    let irq = |pin: u8| Interrupt::new(true, true, false, false, pin.into());
    let com1 = device(
        "COM1",
        &EISAName::new("PNP0501"),
        0,
        vec![&io(layout::COM1, serial::LEN), &irq(layout::COM1_IRQ)],
    );
    let keyboard = device(
        "PS2K",
        &EISAName::new("PNP0303"),
        0,
        vec![&io(layout::I8042, 1), &io(layout::I8042 + 4, 1), &irq(layout::I8042_IRQ)],
    );
    // No interrupt: the clock raises none, and a system that is offered one may choose it as its timer.
    let rtc = device("RTC0", &EISAName::new("PNP0B00"), 0, vec![&io(layout::RTC, rtc::LEN)]);
    [com1, keyboard, rtc]
}

/// QEMU `docs/specs/pvpanic.rst`.
fn pvpanic() -> Vec<u8> {
    device("PEVT", &"QEMU0001", 0, vec![&IO::new(layout::PVPANIC, layout::PVPANIC, 1, 1)])
}

/// A PCI Express root with one bus, and a note that the configuration space in memory is taken: without it Linux does not
/// believe the MCFG (`arch/x86/pci/mmconfig-shared.c`). No interrupt routing: functions use MSI-X.
fn pci() -> [Vec<u8>; 2] {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let uid = Name::new("_UID".into(), &ZERO);
    let segment = Name::new("_SEG".into(), &ZERO);
    let bus = Name::new("_BBN".into(), &ZERO);
    let coherent = Name::new("_CCA".into(), &ONE);
    let end = layout::PCI_WINDOW + (layout::PCI_WINDOW_LEN - 1);
    let buses = Window::new_bus_number(0u16, 0);
    let ports = IO::new(layout::PCI_PORTS, layout::PCI_PORTS, 1, 8);
    let window = Window::new_memory(AddressSpaceCacheable::NotCacheable, true, layout::PCI_WINDOW, end, None);
    let resources = ResourceTemplate::new(vec![&buses, &ports, &window]);
    let resources = Name::new("_CRS".into(), &resources);
    let root = Device::new("PCI0".into(), vec![&hid, &cid, &uid, &segment, &bus, &coherent, &resources]);
    let taken = Memory32Fixed::new(true, layout::PCI_ECAM, layout::PCI_ECAM_LEN);
    [bytes_of(&root), device("MRES", &EISAName::new("PNP0C02"), 0, vec![&taken])]
}

/// LNRO0005: Linux `drivers/virtio/virtio_mmio.c`, FreeBSD `virtio_mmio_acpi.c`.
fn virtio_mmio(index: u8, at: VirtioMmio) -> Vec<u8> {
    let hid = Name::new("_HID".into(), &"LNRO0005");
    let uid = Name::new("_UID".into(), &index);
    let coherent = Name::new("_CCA".into(), &ONE);
    let registers = Memory32Fixed::new(true, at.base, layout::VIRTIO_MMIO_LEN);
    let interrupt = Interrupt::new(true, true, false, false, at.irq.into());
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &interrupt]));
    let name = Path::new(&format!("VR{index:02X}"));
    bytes_of(&Device::new(name, vec![&hid, &uid, &coherent, &resources]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware() -> Hardware {
        let virtio_mmio =
            vec![VirtioMmio { base: 0xd000_0000, irq: 5 }, VirtioMmio { base: 0xd000_1000, irq: 6 }];
        Hardware { cpus: 3, virtio_mmio, pvpanic: true, pci: true }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().copied().fold(0, u8::wrapping_add)
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at a guest-physical address: signature, length and checksum as in every header.
    fn table(all: &[u8], address: u64) -> &[u8] {
        let at = usize::try_from(address - 0xe_0000).unwrap();
        let len = u32_at(all, at + 4) as usize;
        let table = &all[at..at + len];
        assert_eq!(sum(table), 0, "checksum of {:?}", std::str::from_utf8(&table[..4]));
        table
    }

    /// Follows the pointers as a system does: RSDP, XSDT, then each table.
    fn found(all: &[u8]) -> Vec<&[u8]> {
        assert_eq!((&all[..8], sum(&all[..20]), sum(&all[..36])), (&b"RSD PTR "[..], 0, 0));
        let xsdt = table(all, u64_at(all, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        xsdt[36..].chunks(8).map(|entry| table(all, u64_at(entry, 0))).collect()
    }

    #[test]
    fn every_table_is_found_and_its_checksum_is_right() {
        let all = tables(&hardware());
        let signatures: Vec<_> = found(&all).iter().map(|table| &table[..4]).collect();
        assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG"]);
        // Base of the segment's configuration space, and its first and last bus.
        let mcfg = found(&all)[2];
        assert_eq!((u64_at(mcfg, 44), u32_at(mcfg, 52), mcfg.len()), (0xf000_0000, 0, 60));
    }

    #[test]
    fn the_fadt_is_hardware_reduced_and_tells_how_to_reset_and_switch_off() {
        let all = tables(&hardware());
        let fadt = found(&all)[0];
        assert_eq!((fadt.len(), fadt[8]), (276, 6));
        let flags = u32_at(fadt, 112);
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        // Generic addresses: 1 is port space, 8 bits wide, byte access.
        assert_eq!((&fadt[116..120], u64_at(fadt, 120)), (&[1, 8, 0, 1][..], 0xcf9));
        assert_eq!(fadt[128] & 4, 4, "the reset bit");
        assert_eq!((&fadt[244..248], u64_at(fadt, 248)), (&[1, 8, 0, 1][..], 0x600));
        let dsdt = table(&all, u64_at(fadt, 140));
        assert_eq!((&dsdt[..4], u64::from(u32_at(fadt, 40))), (&b"DSDT"[..], u64_at(fadt, 140)));
    }

    #[test]
    fn the_madt_lists_every_cpu_the_ioapic_and_the_timers_pin() {
        let all = tables(&hardware());
        let madt = found(&all)[1];
        assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
        let (mut rest, mut entries) = (&madt[44..], Vec::new());
        while let [kind, len, ..] = *rest {
            let (entry, behind) = rest.split_at(len.into());
            entries.push((kind, &entry[2..]));
            rest = behind;
        }
        let cpus: Vec<_> = entries.iter().filter(|e| e.0 == 0).map(|e| e.1).collect();
        assert_eq!(cpus, [[0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [2, 2, 1, 0, 0, 0]]);
        let ioapics: Vec<_> = entries.iter().filter(|e| e.0 == 1).map(|e| u32_at(e.1, 2)).collect();
        assert_eq!(ioapics, [0xfec0_0000]);
        assert!(entries.contains(&(2, &[0, 0, 2, 0, 0, 0, 0, 0])), "IRQ 0 is pin 2");
    }

    #[test]
    fn the_dsdt_has_a_node_for_each_device_that_is_there() {
        let has = |hardware: &Hardware, what: &[u8]| {
            let all = tables(hardware);
            let dsdt = table(&all, u64_at(found(&all)[0], 140)).to_vec();
            dsdt.windows(what.len()).filter(|window| *window == what).count()
        };
        let full = hardware();
        assert_eq!((has(&full, b"LNRO0005"), has(&full, b"QEMU0001"), has(&full, b"ACPI0007")), (2, 1, 3));
        // Memory32Fixed, read-write, base, length.
        assert_eq!(has(&full, &[0x86, 9, 0, 1, 0, 0x10, 0, 0xd0, 0, 0x10, 0, 0]), 1);
        assert_eq!((has(&full, b"PCI0"), has(&full, b"MRES")), (1, 1));
        let bare = Hardware { cpus: 1, ..Default::default() };
        assert_eq!((has(&bare, b"LNRO0005"), has(&bare, b"QEMU0001"), has(&bare, b"PCI0")), (0, 0, 0));
        assert_eq!(has(&bare, b"_S5_"), 1);
    }
}
