//! `struct pcb`: where a kernel saves the registers of a CPU that it stops (`sys/amd64/include/pcb.h`, `savectx` in
//! `sys/amd64/amd64/cpu_switch.S`). Little-endian.
//!
//! Debuggers read the first eight words. The rest is for people, and known for the layout of FreeBSD 12 and later
//! (0x140 bytes) only.

use crate::vmcore::Registers;
use crate::vmcore::cpu::{MSR_KERNEL_GS_BASE, Segment};

/// Bytes of the eight words that debuggers read: the least that a pcb has.
pub const CORE_LEN: usize = 64;
/// Size of the layout whose other fields are known.
const KNOWN_LEN: usize = 0x140;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_SFMASK: u32 = 0xc000_0084;

const RSP: usize = 0x28;
const RIP: usize = 0x38;

/// What `savectx` would write over the pcb in `bytes`, called by a CPU with these registers whose per-CPU data lies at
/// `pcpu`. Fields that it does not write keep their values.
///
/// rip and rsp are the CPU's own: `savectx` saves its return address and where that lies, 8 bytes off, which makes no
/// difference to a call chain.
pub fn save(bytes: &mut [u8], registers: &Registers, pcpu: u64) {
    let r = registers;
    let general = [r.r15, r.r14, r.r13, r.r12, r.rbp, r.rsp, r.rbx, r.rip];
    for (at, value) in (0..).step_by(8).zip(general) {
        put(bytes, at, value);
    }
    if bytes.len() != KNOWN_LEN {
        return;
    }
    // The kernel's code runs on its own GS base, whatever the CPU was doing: the other one is the user's.
    let hidden = r.msr(MSR_KERNEL_GS_BASE).unwrap_or(0);
    let user_gs = if r.gs.base == pcpu { hidden } else { r.gs.base };
    let words = [r.fs.base, pcpu, user_gs, r.cr0, r.cr2, r.cr3, r.cr4];
    let debug = [r.dr[0], r.dr[1], r.dr[2], r.dr[3], r.dr6, r.dr7];
    for (at, value) in (0x40..).step_by(8).zip(words.into_iter().chain(debug)) {
        put(bytes, at, value);
    }
    put_table(bytes, 0xa8, r.gdt);
    put_table(bytes, 0xb2, r.idt);
    bytes[0xbc..0xbe].copy_from_slice(&r.ldt.selector.to_le_bytes());
    bytes[0xc6..0xc8].copy_from_slice(&r.tr.selector.to_le_bytes());
    put(bytes, 0xe8, r.efer);
    for (at, msr) in [(0xf0, MSR_STAR), (0xf8, MSR_LSTAR), (0x100, MSR_CSTAR), (0x108, MSR_SFMASK)] {
        if let Some(value) = r.msr(msr) {
            put(bytes, at, value);
        }
    }
}

/// The saved rip; 0 in a pcb that was never filled.
pub fn rip(bytes: &[u8]) -> u64 {
    word(bytes, RIP)
}

/// The saved rsp.
pub fn rsp(bytes: &[u8]) -> u64 {
    word(bytes, RSP)
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// A pseudo-descriptor as SGDT stores it: limit, base.
fn put_table(bytes: &mut [u8], at: usize, table: Segment) {
    let limit = u16::try_from(table.limit).unwrap_or(u16::MAX);
    bytes[at..at + 2].copy_from_slice(&limit.to_le_bytes());
    put(bytes, at + 2, table.base);
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .map_or(0, |word| word.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}
