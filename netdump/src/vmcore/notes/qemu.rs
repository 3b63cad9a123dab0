//! QEMU's CPU note (`target/i386/arch_dump.c`, `QEMUCPUState` version 1): 440 bytes, little-endian. Beside the general
//! registers it holds control registers and descriptor tables, from which crash finds a relocated kernel.

use super::super::cpu::{MSR_KERNEL_GS_BASE, Msr, Registers, Segment};

const LEN: usize = 440;
const VERSION: u32 = 1;
const GENERAL: usize = 8;
const SEGMENTS: usize = 152;
const SEGMENT_LEN: usize = 24;
const CONTROL: usize = 392;
const KERNEL_GS_BASE: usize = 432;

/// The descriptor; everything but version and size is zero for a CPU that did not stop.
pub(super) fn emit(registers: Option<&Registers>) -> [u8; LEN] {
    let mut out = [0; LEN];
    out[..4].copy_from_slice(&VERSION.to_le_bytes());
    out[4..8].copy_from_slice(&440_u32.to_le_bytes());
    let Some(r) = registers else { return out };
    let general = [
        r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15, r.rip, r.rflags,
    ];
    put_words(&mut out[GENERAL..], &general);
    let segments = [&r.cs, &r.ds, &r.es, &r.fs, &r.gs, &r.ss, &r.ldt, &r.tr, &r.gdt, &r.idt];
    for (slot, segment) in out[SEGMENTS..].chunks_exact_mut(SEGMENT_LEN).zip(segments) {
        slot[..4].copy_from_slice(&u32::from(segment.selector).to_le_bytes());
        slot[4..8].copy_from_slice(&segment.limit.to_le_bytes());
        slot[8..12].copy_from_slice(&segment.flags.to_le_bytes());
        slot[16..].copy_from_slice(&segment.base.to_le_bytes());
    }
    // There is no CR1.
    put_words(&mut out[CONTROL..], &[r.cr0, 0, r.cr2, r.cr3, r.cr4]);
    put_words(&mut out[KERNEL_GS_BASE..], &[r.msr(MSR_KERNEL_GS_BASE).unwrap_or_default()]);
    out
}

/// The registers of a descriptor of version 1, which has at least 440 bytes.
pub(super) fn parse(descriptor: &[u8]) -> Option<Registers> {
    let bytes = descriptor.first_chunk::<LEN>()?;
    if u32_at(bytes, 0) != VERSION {
        return None;
    }
    let general = |index: usize| u64_at(bytes, GENERAL + 8 * index);
    let segment = |index: usize| segment_at(bytes, SEGMENTS + SEGMENT_LEN * index);
    let control = |index: usize| u64_at(bytes, CONTROL + 8 * index);
    Some(Registers {
        rax: general(0),
        rbx: general(1),
        rcx: general(2),
        rdx: general(3),
        rsi: general(4),
        rdi: general(5),
        rsp: general(6),
        rbp: general(7),
        r8: general(8),
        r9: general(9),
        r10: general(10),
        r11: general(11),
        r12: general(12),
        r13: general(13),
        r14: general(14),
        r15: general(15),
        rip: general(16),
        rflags: general(17),
        cs: segment(0),
        ds: segment(1),
        es: segment(2),
        fs: segment(3),
        gs: segment(4),
        ss: segment(5),
        ldt: segment(6),
        tr: segment(7),
        gdt: segment(8),
        idt: segment(9),
        cr0: control(0),
        cr2: control(2),
        cr3: control(3),
        cr4: control(4),
        msrs: vec![Msr { index: MSR_KERNEL_GS_BASE, value: u64_at(bytes, KERNEL_GS_BASE) }],
        ..Registers::default()
    })
}

fn put_words(out: &mut [u8], words: &[u64]) {
    for (slot, word) in out.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
}

fn segment_at(bytes: &[u8; LEN], at: usize) -> Segment {
    Segment {
        selector: u16::from_le_bytes([bytes[at], bytes[at + 1]]),
        limit: u32_at(bytes, at + 4),
        flags: u32_at(bytes, at + 8),
        base: u64_at(bytes, at + 16),
    }
}

fn u32_at(bytes: &[u8; LEN], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, &byte| (value << 8) | u32::from(byte))
}

fn u64_at(bytes: &[u8; LEN], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, &byte| (value << 8) | u64::from(byte))
}
