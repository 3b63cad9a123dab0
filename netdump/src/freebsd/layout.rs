//! FreeBSD/amd64's address space with 4-level tables, the same in releases 11 to 14 (`sys/amd64/include/vmparam.h`,
//! `pmap.h`). Virtual addresses.

/// Where the kernel's image is linked, less [`KERNEL_LOAD`].
pub const KERNBASE: u64 = 0xffff_ffff_8000_0000;
/// Physical address at which a BIOS or PVH loader puts the kernel's first byte (`kernphys` tells another one).
pub const KERNEL_LOAD: u64 = 0x20_0000;
/// First address of the kernel's own address space: what a minidump's header calls kernbase.
pub const VM_MIN_KERNEL_ADDRESS: u64 = 0xffff_fe00_0000_0000;
/// First address of the direct map.
pub const DMAP_MIN: u64 = 0xffff_f800_0000_0000;
/// End of the region of the direct map, not of the RAM in it.
pub const DMAP_MAX: u64 = 0xffff_fc00_0000_0000;
