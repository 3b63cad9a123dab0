//! `NT_PRSTATUS` of x86-64 (Linux `struct elf_prstatus`): 336 bytes, little-endian, of which a machine's core fills
//! the process number (CPU number + 1) and the general registers.

use super::super::cpu::{Registers, Segment};

const LEN: usize = 336;
const PID: usize = 32;
const REGISTERS: usize = 112;
const COUNT: usize = 27;

/// The descriptor; all registers are zero for a CPU that did not stop.
pub(super) fn emit(pid: i32, registers: Option<&Registers>) -> [u8; LEN] {
    let mut out = [0; LEN];
    out[PID..PID + 4].copy_from_slice(&pid.to_le_bytes());
    let Some(r) = registers else { return out };
    // orig_rax: no system call to restart.
    let none = u64::MAX;
    let selector = |segment: &Segment| u64::from(segment.selector);
    let values: [u64; COUNT] = [
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.rbp,
        r.rbx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.rax,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        none,
        r.rip,
        selector(&r.cs),
        r.rflags,
        r.rsp,
        selector(&r.ss),
        r.fs.base,
        r.gs.base,
        selector(&r.ds),
        selector(&r.es),
        selector(&r.fs),
        selector(&r.gs),
    ];
    for (slot, value) in out[REGISTERS..].chunks_exact_mut(8).zip(values) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    out
}

/// The registers of a descriptor, which has exactly 336 bytes.
pub(super) fn parse(descriptor: &[u8]) -> Option<Registers> {
    let bytes: &[u8; LEN] = descriptor.try_into().ok()?;
    let mut values = [0; COUNT];
    for (value, slot) in values.iter_mut().zip(bytes[REGISTERS..].chunks_exact(8)) {
        *value = u64::from_le_bytes(slot.try_into().ok()?);
    }
    let [
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        _,
        rip,
        cs,
        rflags,
        rsp,
        ss,
        fs_base,
        gs_base,
        ds,
        es,
        fs,
        gs,
    ] = values;
    let segment = |selector: u64, base| Segment { selector: low_half(selector), base, ..Segment::default() };
    Some(Registers {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rbp,
        rsp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
        cs: segment(cs, 0),
        ds: segment(ds, 0),
        es: segment(es, 0),
        fs: segment(fs, fs_base),
        gs: segment(gs, gs_base),
        ss: segment(ss, 0),
        ..Registers::default()
    })
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a selector has 16 bits; the file may hold anything above them"
)]
fn low_half(value: u64) -> u16 {
    value as u16
}
