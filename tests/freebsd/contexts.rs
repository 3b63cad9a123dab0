//! The registers that a debugger shows: the guest's own where it saved them, else those of the virtual CPUs.

use guest_images::freebsd::{IDLE_BACKTRACE, PANIC_BACKTRACE, STOPPED_BACKTRACE};
use guest_images::{Register, known_register};
use harness::readers::freebsd::{VirtualMemory, registers};
use serde_json::Value;

use crate::needs;
use crate::specimen::Specimen;

const NAMED: [(&str, Register); 5] = [
    ("rbx", Register::Rbx),
    ("r12", Register::R12),
    ("r13", Register::R13),
    ("r14", Register::R14),
    ("r15", Register::R15),
];

fn vcpu(specimen: &Specimen, cpu: i32) -> &Value {
    &specimen.report["cpus"][usize::try_from(cpu).unwrap()]["registers"]
}

fn dumppcb(specimen: &Specimen) -> u64 {
    specimen.symbols.address("dumppcb").unwrap()
}

/// Asserts that a pcb has what a virtual CPU had.
#[track_caller]
fn assert_live(specimen: &Specimen, core: &dyn VirtualMemory, pcb: u64, cpu: i32) {
    for (name, value) in registers(core, pcb).unwrap() {
        assert_eq!(vcpu(specimen, cpu)[name], value, "{name} of CPU {cpu}");
    }
}

#[test]
fn cpus_whose_contexts_the_guest_did_not_save_have_them_in_the_core() {
    needs!(Kvm);
    for flavour in ["freebsd-abi", "freebsd-abi-13", "freebsd-abi-12"] {
        let specimen = Specimen::dumped_with_4_cpus(flavour, &["abi.stop=no"], &[]);
        let core = specimen.minidump();
        assert_eq!(specimen.remarks(), [""; 0], "{flavour}");
        specimen.check_threads(&core);
        assert_live(&specimen, &core, dumppcb(&specimen), 2);
        let chain = specimen.backtrace(&core, dumppcb(&specimen));
        assert_eq!(chain, [&["shutdown_final", "kern_reboot"], PANIC_BACKTRACE].concat());
        assert_eq!(specimen.stopped_cpus(&core), 0b1011);
        let others = specimen.others(&core);
        assert_eq!(others.len(), 3, "{flavour}");
        for thread in others {
            assert_eq!(specimen.backtrace(&core, thread.pcb), IDLE_BACKTRACE, "{flavour} {thread:?}");
            assert_live(&specimen, &core, thread.pcb, thread.oncpu);
            let shown = registers(&core, thread.pcb).unwrap();
            let cpu = thread.oncpu.cast_unsigned();
            NAMED.iter().for_each(|&(name, register)| assert_eq!(shown[name], known_register(cpu, register)));
        }
    }
}

#[test]
fn contexts_that_the_guest_saved_are_left_as_they_are() {
    needs!(Kvm);
    for flavour in ["freebsd-abi", "freebsd-abi-13", "freebsd-abi-12"] {
        let specimen = Specimen::dumped_with_4_cpus(flavour, &["abi.savectx=yes"], &[]);
        let core = specimen.minidump();
        specimen.check_threads(&core);
        let chain = specimen.backtrace(&core, dumppcb(&specimen));
        assert_eq!(chain, [&["doadump", "kern_reboot"], PANIC_BACKTRACE].concat(), "{flavour}");
        let own = registers(&core, dumppcb(&specimen)).unwrap();
        // Saved earlier than the VMM looked, by a call: the address behind it lies where the stack pointer points.
        assert_ne!(vcpu(&specimen, 2)["rip"], own["rip"]);
        NAMED
            .iter()
            .for_each(|&(name, register)| assert_eq!(own[name], known_register(2, register), "{name}"));
        for thread in specimen.others(&core) {
            assert_eq!(specimen.backtrace(&core, thread.pcb), STOPPED_BACKTRACE, "{flavour} {thread:?}");
            let shown = registers(&core, thread.pcb).unwrap();
            assert_ne!(vcpu(&specimen, thread.oncpu)["rip"], shown["rip"]);
        }
    }
}

#[test]
fn a_cpu_in_user_mode_is_shown_there() {
    needs!(Kvm);
    let variables = ["abi.cpus=3", "abi.cpu=0", "abi.user=yes"];
    let specimen = Specimen::dumped("freebsd-abi", &variables, &["--cpus", "3"]);
    let core = specimen.minidump();
    let threads = specimen.others(&core);
    let busy = threads.iter().find(|thread| thread.comm == "busyloop").unwrap();
    assert_eq!((busy.oncpu, specimen.stopped_cpus(&core)), (1, 0b110));
    assert_live(&specimen, &core, busy.pcb, 1);
    let shown = registers(&core, busy.pcb).unwrap();
    assert_eq!(shown["rip"] & !0xfff, 0x40_0000);
    NAMED.iter().for_each(|&(name, register)| assert_eq!(shown[name], known_register(1, register), "{name}"));
}

#[test]
fn the_thread_that_panicked_is_shown_however_the_panic_was_seen() {
    needs!(Kvm);
    let crashed = guest_images::freebsd::CRASHED.tid.cast_unsigned();
    for end in ["abi.panic=halt", "abi.panic=ddb", "abi.panic=triple"] {
        let bench = harness::guests::Bench::new("freebsd-abi");
        let ended = bench.run(&["--cpus", "2", "--kenv", "abi.cpus=2", "--kenv", end]);
        harness::guests::assert_code(&ended, 10);
        let specimen = Specimen { cpus: 2, ..Specimen::of("freebsd-abi", bench, ended) };
        let core = specimen.minidump();
        specimen.check_threads(&core);
        let tid = core.u32_va(specimen.symbols.address("dumptid").unwrap()).unwrap();
        assert_eq!((tid, specimen.stopped_cpus(&core)), (crashed, 0b10), "{end}");
    }
}
