//! The CPU in 64-bit mode, as kernels with a 64-bit entry want it: flat segments, paging on, interrupts off (Intel SDM
//! vol. 3A, sections 3.4.5 and 9.8.5).

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};

use crate::x86_64::regs::segment_from_descriptor;

/// What the CPU has loaded: flat, accessed, writable and present, as a VM entry wants it.
const CODE: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// A busy 64-bit task-state segment.
const TSS_BUSY: u8 = 0xb;

const CR0_PE: u64 = 1;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Page table bits: valid, writable, and a large page in one entry.
pub(super) const PG_V: u64 = 1 << 0;
pub(super) const PG_RW: u64 = 1 << 1;
pub(super) const PG_PS: u64 = 1 << 7;
/// What an entry of the page directory maps.
pub(super) const LARGE_PAGE: u64 = 2 << 20;
/// Entries of a table.
pub(super) const ENTRIES: u64 = 512;

/// Where the guest's tables are, and which descriptors its segments are of.
#[derive(Debug)]
pub(super) struct Tables {
    /// Guest-physical address of the descriptor table.
    pub(super) gdt: u64,
    /// How many descriptors it has.
    pub(super) descriptors: u16,
    /// Index of the 64-bit code segment.
    pub(super) code: u16,
    /// Index of the data segment.
    pub(super) data: u16,
    /// Guest-physical address of the top-level page table.
    pub(super) page_tables: u64,
}

/// Puts control registers and segments in place.
pub(super) fn apply(tables: &Tables, sregs: &mut kvm_sregs) {
    let data = segment_from_descriptor(DATA, tables.data);
    sregs.cs = segment_from_descriptor(CODE, tables.code);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { type_: TSS_BUSY, present: 1, ..Default::default() };
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    sregs.gdt = kvm_dtable { base: tables.gdt, limit: tables.descriptors * 8 - 1, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    (sregs.cr0, sregs.cr3, sregs.cr4) = (CR0_PE | CR0_NE | CR0_PG, tables.page_tables, CR4_PAE);
    sregs.efer = EFER_LME | EFER_LMA;
}

/// The words of a table as they lie in memory.
pub(super) fn bytes_of(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}
