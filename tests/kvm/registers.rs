//! CPUs: what they held when they stopped.

use guest_images::{Register, known_register, known_xmm, signalling_register};
use harness::guests::{Bench, assert_code};
use harness::readers::elf::ElfCore;
use serde_json::Value;

use crate::needs_kvm;

fn register(report: &Value, cpu: usize, register: Register) -> u64 {
    let name = format!("{register:?}").to_lowercase();
    report["cpus"][cpu]["registers"][name].as_u64().unwrap()
}

#[test]
fn every_cpus_registers_are_its_own() {
    needs_kvm!();
    let bench = Bench::new("smp-panic");
    assert_code(&bench.run(&["--cpus", "4", "--kenv", "cpu=2"]), 10);
    let report = bench.report();
    assert_eq!(report["panic"]["vcpu"], 2);
    assert_eq!(report["pause"]["not_stopped"].as_array().unwrap().len(), 0);
    for cpu in [0, 1, 3] {
        for name in Register::ALL {
            let expected = known_register(u32::try_from(cpu).unwrap(), name);
            assert_eq!(register(&report, cpu, name), expected, "{name:?} of CPU {cpu}");
        }
    }
    for name in Register::ALL {
        assert_eq!(
            register(&report, 2, name),
            signalling_register(2, name, 1),
            "{name:?} of the panicking CPU"
        );
    }
}

#[test]
fn the_core_has_the_same_registers_in_cpu_order() {
    needs_kvm!();
    let bench = Bench::new("smp-panic");
    assert_code(&bench.run(&["--cpus", "4", "--kenv", "cpu=1"]), 10);
    let core = ElfCore::open(&bench.core_path()).unwrap();
    let notes = core.prstatus().unwrap();
    assert_eq!(notes.len(), 4);
    let report = bench.report();
    for (cpu, note) in notes.iter().enumerate() {
        assert_eq!(note.registers["rip"], report["cpus"][cpu]["registers"]["rip"].as_u64().unwrap());
        assert_eq!(note.registers["r15"], register(&report, cpu, Register::R15));
    }
}

#[test]
fn the_panicking_instruction_is_completed() {
    needs_kvm!();
    // The guest panics by an OUT; with the access completed RIP points behind it, at the jump to itself.
    let bench = Bench::new("panic");
    assert_code(&bench.run(&[]), 10);
    let rip = bench.report()["cpus"][0]["registers"]["rip"].as_u64().unwrap();
    let core = ElfCore::open(&bench.core_path()).unwrap();
    let code = core.memory(rip - 1, 3).unwrap();
    assert_eq!(code[0], 0xee, "OUT DX, AL lies before RIP {rip:#x}: {code:x?}");
}

#[test]
fn vector_registers_and_msrs_are_in_core_and_report() {
    needs_kvm!();
    let bench = Bench::new("smp-panic");
    assert_code(&bench.run(&["--cpus", "4", "--kenv", "cpu=1"]), 10);
    let core = ElfCore::open(&bench.core_path()).unwrap();
    // NT_X86_XSTATE: the legacy FXSAVE area first, XMM0 at byte 160 of it.
    let areas = core.descriptors("LINUX", 0x202);
    assert_eq!(areas.len(), 4);
    for (cpu, area) in (0..).zip(areas) {
        for index in 0..16 {
            let at = 160 + 16 * usize::from(index);
            let xmm = u128::from_le_bytes(area[at..at + 16].try_into().unwrap());
            assert_eq!(xmm, known_xmm(cpu, index), "XMM{index} of CPU {cpu}");
        }
    }
    let report = bench.report();
    let msrs = report["cpus"][0]["registers"]["msrs"].as_array().unwrap();
    let apic_base = msrs.iter().find(|msr| msr["index"] == 0x1b).expect("IA32_APIC_BASE was read");
    assert_eq!(apic_base["value"].as_u64().unwrap() >> 12, 0xfee00, "the boot CPU's local APIC");
}

#[test]
fn cpus_that_are_amid_port_and_memory_accesses_stop_with_them_completed() {
    needs_kvm!();
    for busy in ["busy=out", "busy=in", "busy=mmio"] {
        let bench = Bench::new("smp-panic");
        let ended = bench.run(&["--cpus", "4", "--kenv", "cpu=3", "--kenv", busy]);
        assert_code(&ended, 10);
        let report = bench.report();
        assert_eq!(report["pause"]["not_stopped"].as_array().unwrap().len(), 0, "{busy}");
        for cpu in 0..3 {
            // They count accesses begun in RBX and done in RCX, around the one instruction that is the access.
            let (begun, done) =
                (register(&report, cpu, Register::Rbx), register(&report, cpu, Register::Rcx));
            assert!(begun > 0 && begun - done <= 1, "{busy} of CPU {cpu}: {begun} begun, {done} done");
            if busy == "busy=out" {
                // Each writes its own digit: what the console got is what the CPU has done, whether counted yet or not.
                let digit = char::from_digit(u32::try_from(cpu).unwrap(), 10).unwrap();
                let digits = ended.stdout.rsplit('\n').next().unwrap().matches(digit).count() as u64;
                assert!(digits == done || digits == done + 1, "CPU {cpu}: {digits} written, {done} done");
            }
        }
    }
}
