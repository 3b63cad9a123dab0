//! CPU state at the kernel's first instruction, and back: KVM's registers as plain data (Intel SDM vol. 3A).

use kvm_bindings::{
    Msrs, kvm_dtable, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use netdump::vmcore::cpu::{Msr, Registers, Segment};

use crate::boot::BootState;

/// Model-specific registers that are set before a CPU's first instruction: everything a BIOS would have left at 0, fast
/// string operations on, memory write-back by default (MTRR enabled, type 6).
const BOOT_MSRS: [(u32, u64); 11] = [
    (0x174, 0), // SYSENTER_CS
    (0x175, 0), // SYSENTER_ESP
    (0x176, 0), // SYSENTER_EIP
    (0xc000_0081, 0),
    (0xc000_0082, 0),
    (0xc000_0083, 0),
    (0xc000_0084, 0),
    (0xc000_0102, 0), // KERNEL_GS_BASE
    (0x10, 0),        // TSC
    (0x1a0, 1),       // MISC_ENABLE: fast strings
    (0x2ff, 0x806),   // MTRRdefType
];

/// Model-specific registers that a debugger wants, ascending.
const DEBUG_MSRS: [u32; 19] = [
    0x10,
    0x1b,
    0x174,
    0x175,
    0x176,
    0x1a0,
    0x1d9,
    0x277,
    0x4b56_4d00,
    0x4b56_4d01,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
];

/// Offsets of the LVT entries for the two interrupt pins in the local APIC's page, and the delivery modes they get.
const LVT_LINT: [(usize, u32); 2] = [(0x350, 7 << 8 /* ExtINT */), (0x360, 4 << 8 /* NMI */)];

/// Gives a CPU its state at power-on: FPU, MSRs and APIC pins. Every CPU needs it.
pub(crate) fn set_power_on(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })?;
    set_msrs(vcpu)?;
    let mut lapic = vcpu.get_lapic()?;
    for (offset, mode) in LVT_LINT {
        set_lapic_word(&mut lapic, offset, mode);
    }
    vcpu.set_lapic(&lapic)
}

/// Sends a CPU an NMI the way a button on the machine does: by the pin LINT1, if the guest lets it (KVM API, `KVM_NMI`).
pub(crate) fn send_nmi(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const MASKED: u32 = 1 << 16;
    const DELIVERY_MODE: u32 = 7 << 8;
    let lapic = vcpu.get_lapic()?;
    let [_, (offset, mode)] = LVT_LINT;
    let word = lapic.regs.iter().skip(offset).take(4).rev();
    let word = word.fold(0, |word, byte| word << 8 | u32::from(byte.cast_unsigned()));
    if word & (MASKED | DELIVERY_MODE) == mode { vcpu.nmi() } else { Ok(()) }
}

/// Puts the boot CPU at the kernel's entry.
pub(crate) fn set_entry(vcpu: &VcpuFd, state: &BootState) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    state.mode.apply(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: state.entry,
        rsp: state.rsp,
        rbx: state.rbx,
        rsi: state.rsi,
        rflags: 2,
        ..Default::default()
    })
}

/// A flat or system segment from its descriptor's fields, as the GDT at [`crate::x86_64::layout::GDT`] has them.
pub(crate) fn segment_from_descriptor(descriptor: u64, index: u16) -> kvm_segment {
    let bits = |shift: u32, width: u32| (descriptor >> shift) & ((1 << width) - 1);
    let byte = |shift, width| u8::try_from(bits(shift, width)).expect("at most 8 bits wide");
    let limit = u32::try_from(bits(0, 16) | bits(48, 4) << 16).expect("20 bits");
    let granular = bits(55, 1) == 1;
    kvm_segment {
        base: bits(16, 24) | bits(56, 8) << 24,
        limit: if granular { limit << 12 | 0xfff } else { limit },
        selector: index * 8,
        type_: byte(40, 4),
        s: byte(44, 1),
        dpl: byte(45, 2),
        present: byte(47, 1),
        avl: byte(52, 1),
        l: byte(53, 1),
        db: byte(54, 1),
        g: byte(55, 1),
        ..Default::default()
    }
}

/// Reads every register of a stopped CPU.
pub(crate) fn read_registers(vcpu: &VcpuFd) -> Result<Registers, kvm_ioctls::Error> {
    let regs = vcpu.get_regs()?;
    let sregs = vcpu.get_sregs()?;
    let debug = vcpu.get_debug_regs()?;
    let mut registers = general(&regs);
    system(&mut registers, &sregs);
    (registers.dr, registers.dr6, registers.dr7) = (debug.db, debug.dr6, debug.dr7);
    registers.msrs = read_msrs(vcpu);
    registers.xsave = read_xsave(vcpu);
    Ok(registers)
}

fn general(r: &kvm_regs) -> Registers {
    Registers {
        rax: r.rax,
        rbx: r.rbx,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        rbp: r.rbp,
        rsp: r.rsp,
        r8: r.r8,
        r9: r.r9,
        r10: r.r10,
        r11: r.r11,
        r12: r.r12,
        r13: r.r13,
        r14: r.r14,
        r15: r.r15,
        rip: r.rip,
        rflags: r.rflags,
        ..Default::default()
    }
}

fn system(out: &mut Registers, s: &kvm_sregs) {
    (out.cs, out.ds, out.es) = (segment(&s.cs), segment(&s.ds), segment(&s.es));
    (out.fs, out.gs, out.ss) = (segment(&s.fs), segment(&s.gs), segment(&s.ss));
    (out.ldt, out.tr) = (segment(&s.ldt), segment(&s.tr));
    (out.gdt, out.idt) = (table(&s.gdt), table(&s.idt));
    (out.cr0, out.cr2, out.cr3, out.cr4, out.cr8) = (s.cr0, s.cr2, s.cr3, s.cr4, s.cr8);
    (out.efer, out.apic_base) = (s.efer, s.apic_base);
}

fn segment(s: &kvm_segment) -> Segment {
    let flag = |value: u8, bit: u32| u32::from(value) << bit;
    Segment {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        flags: flag(s.type_, 8)
            | flag(s.s, 12)
            | flag(s.dpl, 13)
            | flag(s.present, 15)
            | flag(s.avl, 20)
            | flag(s.l, 21)
            | flag(s.db, 22)
            | flag(s.g, 23),
    }
}

fn table(t: &kvm_dtable) -> Segment {
    Segment { base: t.base, limit: t.limit.into(), ..Default::default() }
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entries = BOOT_MSRS.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let msrs = Msrs::from_entries(&entries).expect("a dozen entries fit");
    // A KVM that refuses one of them sets those before it and says how many; a guest then starts with KVM's own value.
    let set = vcpu.set_msrs(&msrs)?;
    if let Some((index, _)) = BOOT_MSRS.get(set) {
        tracing::debug!(msr = format!("{index:#x}"), "KVM refuses to set this MSR at boot");
    }
    Ok(())
}

/// Reads what KVM has of the list. KVM stops at the first number it does not know, so that one is skipped and the rest
/// asked for again.
fn read_msrs(vcpu: &VcpuFd) -> Vec<Msr> {
    let mut wanted = DEBUG_MSRS.as_slice();
    let mut found = Vec::with_capacity(wanted.len());
    while !wanted.is_empty() {
        let entries: Vec<_> =
            wanted.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("two dozen entries fit");
        let Ok(read) = vcpu.get_msrs(&mut msrs) else { break };
        found.extend(msrs.as_slice().iter().take(read).map(|m| Msr { index: m.index, value: m.data }));
        wanted = wanted.get(read + 1..).unwrap_or_default();
    }
    found
}

/// The XSAVE area; empty on a KVM that cannot tell it (the core then has no vector registers, and nothing else lacks).
fn read_xsave(vcpu: &VcpuFd) -> Vec<u8> {
    let Ok(xsave) = vcpu.get_xsave() else { return Vec::new() };
    xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn set_lapic_word(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (slot, byte) in lapic.regs.iter_mut().skip(offset).zip(value.to_le_bytes()) {
        *slot = i8::from_ne_bytes([byte]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_code_descriptor_becomes_a_flat_segment() {
        let code = segment_from_descriptor(0x00cf_9b00_0000_ffff, 1);
        assert_eq!((code.base, code.limit, code.selector), (0, 0xffff_ffff, 8));
        assert_eq!((code.type_, code.s, code.dpl, code.present), (0xb, 1, 0, 1));
        assert_eq!((code.l, code.db, code.g), (0, 1, 1));
        assert_eq!(segment(&code).flags, 0x00c0_9b00);
    }

    #[test]
    fn a_task_segment_keeps_its_byte_limit() {
        let tss = segment_from_descriptor(0x0000_8b00_0000_0067, 3);
        assert_eq!((tss.limit, tss.type_, tss.s, tss.selector), (0x67, 0xb, 0, 24));
    }

    #[test]
    fn debugger_msrs_ascend() {
        assert!(DEBUG_MSRS.is_sorted());
    }
}
