//! What a minidump's writer asks the kernel: its variables, checked. They are the guest's, and hostile.

use std::ops::Range;

use super::super::PlanError;
use super::super::kernel_memory::KernelMemory;
use super::super::memory::MemoryRange;
use super::super::paging::{AddressSpace, Mapping, PAGE_SIZE};
use super::page_set::PageNumbers;
use crate::freebsd::dump_avail::in_ram;
use crate::freebsd::layout::{DMAP_MAX, DMAP_MIN, KERNBASE, VM_MIN_KERNEL_ADDRESS};
use crate::vmcore::VirtualMemory;

/// `msg_magic` (`sys/sys/msgbuf.h`).
const MESSAGE_BUFFER_MAGIC: u32 = 0x06_3062;
/// Longest message buffer that is taken over. The default is 96 KiB; `kern.msgbufsize` makes it a few MiB.
const MAX_MESSAGES: u32 = 64 << 20;
/// What a page-directory entry maps as a large page.
const LARGE_PAGE: u64 = 2 << 20;
/// Most words of `kva_layout` that are looked at.
const MAX_LAYOUT: u64 = 64;

/// The start and the end of the kernel's address space, as the header has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) kernel_base: u64,
    pub(super) direct_map_start: u64,
    pub(super) direct_map_end: u64,
}

impl Layout {
    /// FreeBSD 9 to 14 have one layout, and absolute symbols for the direct map. Later kernels choose one at run time,
    /// with 4-level tables still this one: their `kva_layout`, whose members are not told apart here, must then hold
    /// these addresses.
    pub(super) fn read(kernel: &KernelMemory<'_>) -> Result<Self, PlanError> {
        let symbols = kernel.symbols();
        if let Some(chosen) = symbols.address("kva_layout") {
            let words = (symbols.size("kva_layout").unwrap_or(0) / 8).min(MAX_LAYOUT);
            let holds = |address: u64| {
                (0..words).any(|index| kernel.read_u64(chosen.wrapping_add(8 * index)) == Some(address))
            };
            if !holds(VM_MIN_KERNEL_ADDRESS) || !holds(DMAP_MIN) {
                return Err(PlanError::UnknownLayout);
            }
        }
        let symbol =
            |name, constant: u64| symbols.address(name).filter(|&value| value != 0).unwrap_or(constant);
        let start = symbol("dmapbase", DMAP_MIN);
        let end = symbol("dmapend", DMAP_MAX);
        let (start, end) = if start < end { (start, end) } else { (DMAP_MIN, DMAP_MAX) };
        Ok(Self { kernel_base: VM_MIN_KERNEL_ADDRESS, direct_map_start: start, direct_map_end: end })
    }
}

/// The kernel's PML4: what `KPML4phys` names, if that maps the kernel.
pub(super) fn tables(kernel: &KernelMemory<'_>) -> Result<u64, PlanError> {
    let (memory, symbols) = (kernel.physical(), kernel.symbols());
    let found = crate::freebsd::tables::find(memory, symbols).ok_or(PlanError::NoKernelTables)?;
    let root = found.root & !(PAGE_SIZE - 1);
    memory.read(root, &mut [0; 8]).map_err(|_| PlanError::NoKernelTables)?;
    let variable = symbols.address("KPML4phys").ok_or(PlanError::NoKernelTables)?;
    let mapped = AddressSpace::new(memory, Mapping::FourLevel(root)).translate(variable);
    mapped.map(|_| root).ok_or(PlanError::NotKernelTables { root })
}

/// Where the walk of the kernel's addresses ends: behind the kernel's image and its heap. Without the variables, at
/// the end of all addresses.
pub(super) fn end_of_kernel_addresses(kernel: &KernelMemory<'_>, remarks: &mut Vec<String>) -> u64 {
    let of_image = kernel.int("nkpt").map(|tables| KERNBASE.saturating_add(u64::from(tables) * LARGE_PAGE));
    let of_heap = kernel.pointer("kernel_vm_end");
    if of_image.is_none() || of_heap.is_none() {
        remarks.push(
            "the kernel's nkpt or kernel_vm_end cannot be read: the page map covers all kernel addresses"
                .into(),
        );
        return u64::MAX;
    }
    of_image.max(of_heap).unwrap_or(u64::MAX)
}

/// Where the direct map ends in physical addresses: pages that begin behind it belong to no dump (`PHYS_IN_DMAP`). The
/// kernel reaches its tables, with their `root`, by that map: a limit that leaves them out is damage.
pub(super) fn direct_map_limit(kernel: &KernelMemory<'_>, root: u64, remarks: &mut Vec<String>) -> u64 {
    let limit = kernel.pointer("dmaplimit").filter(|&limit| limit != 0);
    if let Some(limit) = limit.filter(|&limit| limit <= root) {
        remarks.push(format!(
            "the kernel's dmaplimit of {limit:#x} leaves out its own page tables, so it is not heeded"
        ));
        return u64::MAX;
    }
    limit.and_then(|limit| limit.checked_next_multiple_of(PAGE_SIZE)).unwrap_or(u64::MAX)
}

/// Address and length of the message buffer's text.
pub(super) fn message_buffer(kernel: &KernelMemory<'_>) -> Option<(u64, u32)> {
    let buffer = kernel.pointer("msgbufp").filter(|&address| address != 0)?;
    let text = kernel.read_u64(buffer)?;
    let magic = kernel.read_u32(buffer.checked_add(8)?)?;
    let size = kernel.read_u32(buffer.checked_add(12)?)?;
    (magic == MESSAGE_BUFFER_MAGIC && size <= MAX_MESSAGES).then_some((text, size))
}

/// How the kernel numbers the bits of its bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbering {
    /// Over dump_avail (13 and later).
    Ranges,
    /// From address 0; `vm_page_dump_size` bytes.
    FromZero,
}

impl Numbering {
    pub(super) fn of(kernel: &KernelMemory<'_>) -> Self {
        let has = |name| kernel.symbols().address(name).is_some();
        let old = has("vm_page_dump_size") && !has("vm_page_dump_pages");
        if old { Self::FromZero } else { Self::Ranges }
    }

    /// The numbers of the pages of `ranges`, which are sound. The older numbering covers whole pages of the bitmap, as
    /// many as the kernel says if they reach the end of `ram` in the ranges and not far beyond.
    pub(super) fn pages(
        self,
        kernel: &KernelMemory<'_>,
        ranges: &[Range<u64>],
        ram: &[MemoryRange],
    ) -> PageNumbers {
        match self {
            Self::Ranges => PageNumbers::of_ranges(ranges).expect("the ranges were checked"),
            Self::FromZero => {
                let end = in_ram(ranges, ram).last().map_or(0, |range| range.end() / PAGE_SIZE);
                let needed = end.next_multiple_of(8 * PAGE_SIZE);
                let told = kernel.int("vm_page_dump_size").map(|bytes| 8 * u64::from(bytes));
                let told = told.filter(|&bits| bits >= end && bits <= needed + 8 * PAGE_SIZE);
                PageNumbers::from_zero(told.unwrap_or(needed).next_multiple_of(8 * PAGE_SIZE))
            }
        }
    }

    /// The kernel's bitmap for pages that are numbered so; a sentence that says why it cannot be used.
    pub(super) fn bitmap(self, kernel: &KernelMemory<'_>, numbers: &PageNumbers) -> Result<Vec<u8>, String> {
        let bits = match self {
            Self::Ranges if kernel.symbols().address("vm_page_dump_pages").is_none() => Some(numbers.bits()),
            Self::Ranges => kernel.pointer("vm_page_dump_pages"),
            Self::FromZero => kernel.int("vm_page_dump_size").map(|bytes| 8 * u64::from(bytes)),
        };
        let bits = bits.ok_or("the length of vm_page_dump cannot be read")?;
        if bits > numbers.bits() || (self == Self::Ranges && bits < numbers.bits()) {
            return Err(format!("vm_page_dump has {bits} bits, dump_avail {}", numbers.bits()));
        }
        let address = kernel.pointer("vm_page_dump").filter(|&address| address != 0);
        let address = address.ok_or("vm_page_dump cannot be found")?;
        let len = usize::try_from(bits.div_ceil(8)).map_err(|_| "vm_page_dump does not fit into memory")?;
        let mut bitmap = vec![0; len];
        kernel
            .read(address, &mut bitmap)
            .ok_or_else(|| format!("vm_page_dump at {address:#x} cannot be read"))?;
        Ok(bitmap)
    }
}
