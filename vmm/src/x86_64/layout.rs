//! Every address that the machine chooses, in one place. Guest-physical unless said otherwise.
//!
//! ```text
//! 0                first page, left alone: real-mode vectors
//! 0x500            GDT for the 32-bit entry
//! 0x6000           PVH start info, its module list behind it
//! 0x7000           PVH memory map
//! 0x20000          kernel command line
//! 0x9fc00          end of the RAM that the memory map offers below 1 MiB
//! 0x100000         kernel and the rest of low RAM
//! 0xc0000000       end of low RAM at the latest; the hole up to 4 GiB belongs to devices:
//! 0xd0000000         virtio-mmio devices, one page each
//! 0xfec00000         IOAPIC (KVM's)
//! 0xfee00000         local APICs (KVM's)
//! 0xfffbd000         three pages for KVM's real-mode TSS (only Intel hosts use them)
//! 0x100000000      high RAM
//! ```

/// The descriptor table that the 32-bit entry state refers to.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` of the PVH boot protocol.
pub const PVH_START_INFO: u64 = 0x6000;
/// Its memory map.
pub const PVH_MEMMAP: u64 = 0x7000;
/// The kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line in bytes, NUL included: FreeBSD keeps its PVH environment in one page, Linux takes 2 KiB.
pub const CMDLINE_MAX: usize = 4096;
/// Where the memory map ends conventional memory: firmware would keep its extended data area behind it.
pub const EBDA: u64 = 0x9_fc00;
/// Kernels are loaded from here on.
pub const HIMEM: u64 = 0x10_0000;
/// Low RAM ends here at the latest.
pub const HOLE_START: u64 = 0xc000_0000;
/// High RAM starts here.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// First virtio-mmio device; the others follow page by page.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Bytes that each virtio-mmio device occupies.
pub const VIRTIO_MMIO_LEN: u64 = 0x1000;
/// Interrupt of the first virtio-mmio device, as an IOAPIC pin: 3 and 4 are the serial ports'.
pub const VIRTIO_MMIO_IRQ: u32 = 5;
/// Three pages for KVM's task-state segment; anywhere outside RAM and devices.
pub const KVM_TSS: usize = 0xfffb_d000;

/// The first serial port.
pub const COM1: u64 = 0x3f8;
/// Its interrupt.
pub const COM1_IRQ: u32 = 4;
/// Keyboard controller: data at 0x60, command and status at 0x64.
pub const I8042: u64 = 0x60;
/// Reset control register of Intel chipsets.
pub const RESET_CONTROL: u64 = 0xcf9;
/// pvpanic's port, as QEMU places it.
pub const PVPANIC: u64 = 0x505;
/// ACPI sleep control register (hardware-reduced ACPI), as cloud-hypervisor places it.
pub const SLEEP_CONTROL: u64 = 0x600;
