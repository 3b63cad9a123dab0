//! CPUs: what they held when they stopped.

use guest_images::{Register, known_register, signalling_register};
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
