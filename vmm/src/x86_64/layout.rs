//! Every address that the machine chooses, in one place. Guest-physical unless said otherwise.
//!
//! ```text
//! 0                first page: real-mode vectors; at 0x40e where the extended BIOS data area is
//! 0x500            GDT for the 32-bit entry
//! 0x1000           stack of FreeBSD's native entry, its page tables and its GDT behind it
//! 0x6000           PVH start info
//! 0x6800           PVH module list
//! 0x7000           PVH memory map
//! 0x8000           zero page of Linux's 64-bit entry, its page tables behind it
//! 0x20000          kernel command line
//! 0x9fc00          extended BIOS data area, 1 KiB: the pointer to the MP table; from here to 1 MiB nothing is offered
//! 0xe0000            ACPI tables, the RSDP first
//! 0xf0000            MP table
//! 0xffff0            what resets a machine whose kernel jumps to the BIOS
//! 0x100000         kernel and the rest of low RAM
//! 0xc0000000       end of low RAM at the latest; the hole up to 4 GiB belongs to devices:
//! 0xd0000000         virtio-mmio devices, one page each
//! 0xe0000000         PCI devices: where their BARs lie
//! 0xf0000000         PCI configuration space of bus 0
//! 0xfec00000         IOAPIC (KVM's)
//! 0xfee00000         local APICs (KVM's)
//! 0xfffbd000         three pages for KVM's real-mode TSS (only Intel hosts use them)
//! 0x100000000      high RAM
//! ```

/// Word of the BIOS data area: the segment of the extended BIOS data area.
pub const EBDA_SEGMENT: u64 = 0x40e;
/// The descriptor table that the 32-bit entry state refers to.
pub const GDT: u64 = 0x500;
/// FreeBSD's native entry: the page whose start is the stack pointer.
pub const NATIVE_STACK: u64 = 0x1000;
/// Its top-level page table.
pub const NATIVE_PML4: u64 = 0x2000;
/// Its page directory pointers.
pub const NATIVE_PDP: u64 = 0x3000;
/// Its page directory.
pub const NATIVE_PD: u64 = 0x4000;
/// Its descriptor table.
pub const NATIVE_GDT: u64 = 0x5000;
/// `hvm_start_info` of the PVH boot protocol.
pub const PVH_START_INFO: u64 = 0x6000;
/// Its list of modules: one, the initrd.
pub const PVH_MODULES: u64 = 0x6800;
/// Its memory map.
pub const PVH_MEMMAP: u64 = 0x7000;
/// Linux's 64-bit entry: the zero page (`struct boot_params`).
pub const ZERO_PAGE: u64 = 0x8000;
/// Its top-level page table.
pub const LINUX_PML4: u64 = 0x9000;
/// Its page directory pointers.
pub const LINUX_PDPT: u64 = 0xa000;
/// Its page directory.
pub const LINUX_PD: u64 = 0xb000;
/// The kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line in bytes, NUL included: FreeBSD keeps its PVH environment in one page, and Linux takes less.
pub const CMDLINE_MAX: usize = 4096;
/// The extended BIOS data area, which ends conventional memory. Its first byte is its size in KiB.
pub const EBDA: u64 = 0x9_fc00;
/// Where conventional memory would end without it; VGA memory follows in a PC.
pub const EBDA_END: u64 = 0xa_0000;
/// The MP floating pointer: in the first KiB of the EBDA and the last of 640 KiB, where systems search (MP
/// specification 1.4, section 4).
pub const MP_POINTER: u64 = EBDA + 0x10;
/// Start of the area that the tables are in, as the memory map reserves it.
pub const TABLES: u64 = 0xe_0000;
/// ACPI's RSDP, where systems that are told nothing search for it (ACPI specification 5.2.5.1); its tables follow.
pub const ACPI: u64 = TABLES;
/// The ACPI tables end here at the latest, and the MP configuration table starts here.
pub const MP_TABLE: u64 = 0xf_0000;
/// Where a PC's BIOS is entered for a reset, f000:fff0 in real mode.
pub const BIOS_ENTRY: u64 = 0xf_fff0;
/// Kernels are loaded from here on.
pub const HIMEM: u64 = 0x10_0000;
/// Low RAM ends here at the latest.
pub const HOLE_START: u64 = 0xc000_0000;
/// High RAM starts here.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// First virtio-mmio device; the others follow page by page.
pub const VIRTIO_MMIO: u32 = 0xd000_0000;
/// Bytes that each virtio-mmio device occupies.
pub const VIRTIO_MMIO_LEN: u32 = 0x1000;
/// Interrupts of the virtio-mmio devices, as IOAPIC pins: 0 to 4, 8 and 9 are the board's. Those below 16 come first, as
/// they are ISA ones, edge-triggered, for guests that go by the MP table.
pub const VIRTIO_MMIO_IRQS: [u8; 17] = [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
/// Where the BARs of PCI devices lie.
pub const PCI_WINDOW: u32 = 0xe000_0000;
/// Length of that window in bytes.
pub const PCI_WINDOW_LEN: u32 = 0x1000_0000;
/// The PCI configuration space in memory (ECAM): one bus.
pub const PCI_ECAM: u32 = 0xf000_0000;
/// Its length in bytes: 32 devices of 8 functions of 4 KiB.
pub const PCI_ECAM_LEN: u32 = 0x10_0000;
/// KVM's IOAPIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// KVM's local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages for KVM's task-state segment; anywhere outside RAM and devices.
pub const KVM_TSS: usize = 0xfffb_d000;

/// The first serial port.
pub const COM1: u16 = 0x3f8;
/// Its interrupt.
pub const COM1_IRQ: u8 = 4;
/// Keyboard controller: data at 0x60, command and status at 0x64.
pub const I8042: u16 = 0x60;
/// Its interrupt.
pub const I8042_IRQ: u8 = 1;
/// The real-time clock: index at 0x70, data at 0x71.
pub const RTC: u16 = 0x70;
/// The interrupt that ACPI events would use.
pub const SCI_IRQ: u8 = 9;
/// PCI configuration: address at 0xcf8, data at 0xcfc.
pub const PCI_PORTS: u16 = 0xcf8;
/// Reset control register of Intel chipsets.
pub const RESET_CONTROL: u16 = 0xcf9;
/// pvpanic's port, as QEMU places it.
pub const PVPANIC: u16 = 0x505;
/// ACPI sleep control register (hardware-reduced ACPI), as cloud-hypervisor places it.
pub const SLEEP_CONTROL: u16 = 0x600;
