//! What is said of stopped FreeBSD kernels: of a real one's core, and of kernels laid out by the harness, alive, in
//! every kind of core, and hostile.

use std::path::PathBuf;

use harness::fake_kernel::FakeKernel;
use harness::readers::freebsd::{VirtualMemory, registers, threads};
use harness::readers::full::FullCore;
use harness::readers::minidump::MiniCore;
use netdump::facts::{self, Backtraces, KernelState, RegisterSource, StateRequest, ThreadFacts};
use netdump::vmcore::{
    CoreNotes, InspectOptions, KernelSymbols, PhysicalMemory, Registers, inspect, inspect_with, open,
};
use proptest::prelude::*;

use super::fixture::fixture;
use super::freebsd_guest::{
    BASE, DATA, DIRECT_MAP, FUNCTIONS, FreeBsd, HEAP, MESSAGES, STACK, TEXT, VARIABLES, kernel_behind,
    process_at, symbols, thread_at, variable,
};

const CRASHED_REGISTERS: [(&str, u64); 8] = [
    ("r15", 0xffff_f800_0336_9380),
    ("r14", 0),
    ("r13", 0xffff_f800_0336_93a8),
    ("r12", 0xffff_fe00_45b1_1c00),
    ("rbp", 0xffff_fe00_798c_4760),
    ("rsp", 0xffff_fe00_798c_4748),
    ("rbx", 0),
    ("rip", 0xffff_ffff_80c0_9ade),
];
const CRASHED_CALLS: [u64; 5] = [
    0xffff_ffff_80c0_9ade,
    0xffff_ffff_80c0_9916,
    0xffff_ffff_80c0_9d90,
    0xffff_ffff_80c0_9b93,
    0xffff_ffff_80c5_7d91,
];

#[test]
fn real_core_tells_who_crashed_and_where() {
    let Some(fixture) = fixture() else { return };
    let symbols = fixture.kernel_symbols();
    let options = InspectOptions { symbols: Some(&symbols), ..InspectOptions::default() };
    let inspection = inspect_with(&fixture.core, &options).unwrap();
    let json = serde_json::to_value(&inspection).unwrap();
    let header = &json["minidump"];
    for (field, value) in [
        ("version", 3_u64),
        ("message_buffer_len", 0x17fb8),
        ("bitmap_len", 0x1000),
        ("page_map_len", 0x7f_f000),
        ("kernel_base", 0xffff_fe00_0000_0000),
        ("direct_map_start", 0xffff_f800_0000_0000),
        ("direct_map_end", 0xffff_fc00_0000_0000),
        ("dump_avail_len", 0x1000),
        ("pages", 32634),
        ("pages_set", 24144),
    ] {
        assert_eq!(header[field], value, "{field}");
    }
    assert_eq!(json["expected_length"], 107_388_928);
    assert_eq!(json["kernel"]["crashed_thread"], 100_670);
    assert_eq!(inspection.kernel.threads.len(), 16);
    assert_eq!(inspection.kernel.problems, [""; 0]);
    let crashed = inspection.kernel.crashed().unwrap();
    assert_eq!((crashed.pid, crashed.process.as_str(), crashed.cpu), (800, "sysctl", Some(10)));
    assert_eq!(crashed.registers_from, Some(RegisterSource::DumpContext));
    let found = serde_json::to_value(crashed.registers).unwrap();
    for (name, value) in CRASHED_REGISTERS {
        assert_eq!(found[name], value, "{name}");
    }
    let calls: Vec<u64> = crashed.backtrace.iter().map(|frame| frame.address).collect();
    assert_eq!(calls[..5], CRASHED_CALLS);
    let pids: Vec<u32> = inspection.kernel.threads.iter().map(|thread| thread.pid).collect();
    assert_eq!(pids, [[11; 12].as_slice(), &[28; 3], &[800]].concat(), "the oldest process first");
    let text = inspection.to_string();
    for expected in [
        "24144 of 32634 pages are in the dump, 1393 of them are cut off",
        "Thread    100670 of pid 800 sysctl, on CPU 10, CRASHED; registers of dumppcb",
        "rip ffffffff80c09ade    rsp fffffe00798c4748",
        "Calls     ffffffff80c09ade\n          ffffffff80c09916\n",
        "28  100210    4  stoppcbs[4]    pagedaemon/dom0",
        "kgdb /boot/kernel/kernel ",
        "lldb --core ",
    ] {
        assert!(text.contains(expected), "'{expected}' is not in:\n{text}");
    }
}

#[test]
fn threads_of_the_real_core_are_those_that_a_naive_reader_finds() {
    let Some(fixture) = fixture() else { return };
    let naive = MiniCore::open(&fixture.core).unwrap();
    let mut expected = threads(&naive, &fixture.symbols).unwrap();
    expected.sort_by_key(|thread| (thread.pid, thread.tid));
    let request = StateRequest { backtraces: Backtraces::All, panic_cpu: None };
    let core = open(&fixture.core).unwrap();
    let mut found = facts::kernel_state(&core, Some(&fixture.kernel_symbols()), request).threads;
    found.sort_by_key(|thread| (thread.pid, thread.tid));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!((found.pid, found.tid), (expected.pid, expected.tid));
        assert_eq!((&found.process, &found.name), (&expected.comm, &expected.name));
        assert_eq!(found.cpu, u32::try_from(expected.oncpu).ok());
        let values = serde_json::to_value(found.registers).unwrap();
        for (name, value) in registers(&naive, expected.pcb).unwrap() {
            assert_eq!(values[name], value, "{name} of {}", found.tid);
        }
        assert!(!found.backtrace.is_empty());
    }
    let on_cpu_4 = found.iter().find(|thread| thread.pid == 28 && thread.cpu == Some(4)).unwrap();
    let registers = on_cpu_4.registers.unwrap();
    assert_eq!((registers.rip, registers.r13, registers.r14), (0xffff_ffff_8105_7988, 0x27b_e000, 4));
    assert_eq!((registers.rbp, registers.rsp), (0xffff_fe00_008e_2e00, 0xffff_fe00_008e_2de8));
    let processes = [(0xffff_f800_02c3_b528, 800), (0xffff_f800_0384_5000, 28), (0xffff_f800_0337_4000, 11)];
    let mut process = naive.u64_va(fixture.symbols.address("allproc").unwrap()).unwrap();
    for (address, pid) in processes {
        assert_eq!((process, naive.u32_va(process + 0xc4).unwrap()), (address, pid));
        process = naive.u64_va(process).unwrap();
    }
    assert_eq!(process, 0);
}

/// pid 1 with a waiting thread, pid 12 with one on CPU 1 and one on CPU 2, pid 700 with the one that panicked on CPU 0.
fn guest() -> FreeBsd {
    let mut guest = FreeBsd::new(&PROCESSES);
    guest.dumped_by(100_700, 0x7000);
    guest.stopped(1, 0x1100);
    // A call chain: panic, called by vpanic, which was called by fork_exit.
    guest.stack(0x10, &[STACK + 0x40, TEXT + 0x120]);
    guest.stack(0x40, &[0, TEXT + 0x410]);
    guest
}

const PROCESSES: [(u32, &str, &[super::freebsd_guest::Thread]); 3] = [
    (700, "sysctl", &[(100_700, "sysctl", 0, 0x7100)]),
    (12, "intr", &[(100_012, "swi4: clock", 1, 0x1200), (100_013, "irq\x1b[2J", 2, 0x1300)]),
    (1, "init", &[(100_001, "init", -1, 0x100)]),
];

fn state(memory: &dyn PhysicalMemory) -> KernelState {
    let request = StateRequest { backtraces: Backtraces::Crashed, panic_cpu: None };
    facts::kernel_state(memory, Some(&symbols()), request)
}

fn thread(state: &KernelState, tid: u32) -> &ThreadFacts {
    state.thread(tid).unwrap_or_else(|| panic!("no thread {tid} in {state:?}"))
}

/// Where a thread's registers came from, and the r12 that tells whose they are.
fn registers_of(state: &KernelState, tid: u32) -> (Option<RegisterSource>, Option<u64>) {
    let thread = thread(state, tid);
    (thread.registers_from, thread.registers.map(|registers| registers.r12))
}

#[test]
fn registers_are_chosen_as_a_debugger_does() {
    let guest = guest();
    let state = state(&guest.memory);
    assert_eq!(state.problems, [""; 0]);
    assert_eq!(state.crashed_thread, Some(100_700));
    let tids: Vec<u32> = state.threads.iter().map(|thread| thread.tid).collect();
    assert_eq!(tids, [100_001, 100_012, 100_013, 100_700]);
    assert_eq!(registers_of(&state, 100_700), (Some(RegisterSource::DumpContext), Some(0x7000)));
    assert_eq!(registers_of(&state, 100_012), (Some(RegisterSource::StoppedCpu(1)), Some(0x1100)));
    assert_eq!(
        registers_of(&state, 100_013),
        (Some(RegisterSource::Stale), Some(0x1300)),
        "its bit is not set"
    );
    assert_eq!(registers_of(&state, 100_001), (Some(RegisterSource::Switched), Some(0x100)));
}

#[test]
fn pointer_to_saved_registers_is_told_from_an_array() {
    let mut guest = guest();
    guest.pcb(HEAP + 0x5_0000 + 0x140, 0x5100);
    guest.pointer("stoppcbs", DIRECT_MAP + HEAP + 0x5_0000);
    // Of two global symbols of one name the first counts.
    let symbols = kernel_behind(FakeKernel::default().symbol("stoppcbs", BASE + variable("stoppcbs"), 8));
    let symbols = KernelSymbols::parse(&symbols.image()).unwrap();
    let state = facts::kernel_state(&guest.memory, Some(&symbols), StateRequest::default());
    assert_eq!(registers_of(&state, 100_012), (Some(RegisterSource::StoppedCpu(1)), Some(0x5100)));
}

fn virtual_cpus() -> Vec<Registers> {
    let on_tables = Registers { cr0: 1 << 31, efer: 1 << 10, cr3: 0x40_0000, ..Registers::default() };
    (0..3)
        .map(|cpu| Registers { r12: 0xc000 + cpu, rsp: STACK, rbp: STACK + 0x10, ..on_tables.clone() })
        .collect()
}

#[test]
fn registers_seen_from_outside_serve_a_kernel_that_saved_none() {
    let mut guest = FreeBsd::with_cpus(&PROCESSES, virtual_cpus());
    guest.stopped(1, 0x1100);
    let request = StateRequest { backtraces: Backtraces::Crashed, panic_cpu: Some(2) };
    let state = facts::kernel_state(&guest.memory, Some(&symbols()), request);
    assert_eq!(state.crashed_thread, Some(100_013), "the thread on the CPU that panicked");
    assert_eq!(registers_of(&state, 100_013), (Some(RegisterSource::VirtualCpu(2)), Some(0xc002)));
    assert_eq!(registers_of(&state, 100_012), (Some(RegisterSource::StoppedCpu(1)), Some(0x1100)));
    assert_eq!(registers_of(&state, 100_700), (Some(RegisterSource::VirtualCpu(0)), Some(0xc000)));
    assert_eq!(registers_of(&state, 100_001), (Some(RegisterSource::Switched), Some(0x100)));
}

#[test]
fn virtual_cpus_are_known_by_the_kernels_own_numbers() {
    // The kernel numbers the three CPUs the other way round: pc_curthread, pc_cpuid, pc_prvspace.
    let own = |cpu: u64| HEAP + 0x5_0000 + 0x1000 * cpu;
    let cpus = (0..).zip(virtual_cpus()).map(|(cpu, mut registers)| {
        registers.gs.base = DIRECT_MAP + own(cpu);
        registers
    });
    let mut guest = FreeBsd::with_cpus(&PROCESSES, cpus.collect());
    let running = [thread_at(1, 1), thread_at(1, 0), thread_at(0, 0)];
    for (cpu, thread) in (0..).zip(running) {
        guest.memory.write_words(own(cpu), &[DIRECT_MAP + thread]);
        guest.memory.write_words(own(cpu) + 0x38, &[(2 - cpu) << 32]);
        guest.memory.write_words(own(cpu) + 0x180, &[DIRECT_MAP + own(cpu)]);
    }
    let request = StateRequest { backtraces: Backtraces::Crashed, panic_cpu: Some(0) };
    let state = facts::kernel_state(&guest.memory, Some(&symbols()), request);
    assert_eq!(state.crashed_thread, Some(100_013));
    assert_eq!(registers_of(&state, 100_013), (Some(RegisterSource::VirtualCpu(0)), Some(0xc000)));
    assert_eq!(registers_of(&state, 100_700), (Some(RegisterSource::VirtualCpu(2)), Some(0xc002)));
}

fn stored(bytes: &[u8]) -> (PathBuf, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmcore.vm1.0");
    std::fs::write(&path, bytes).unwrap();
    (path, directory)
}

#[test]
fn every_kind_of_core_tells_what_the_stopped_guest_does() {
    let guest = guest();
    let alive = state(&guest.memory);
    assert_eq!(alive.message_buffer.as_deref(), Some(MESSAGES));
    let elf = super::all_bytes(&super::plan(&guest.memory, &CoreNotes::default()));
    let cores = [("minidump", guest.minidump().image()), ("full", guest.full_dump()), ("elf", elf)];
    for (format, bytes) in cores {
        let (path, _directory) = stored(&bytes);
        let inspection = inspect(&path, Some(&symbols())).unwrap();
        assert_eq!(inspection.format, format);
        assert_eq!(inspection.kernel, alive, "{format}");
        assert_eq!(inspection.guest.version.as_deref(), Some("FreeBSD 14.1-RELEASE GENERIC\n"), "{format}");
        assert_eq!(inspection.panic.text.as_deref(), Some("from the messages"), "{format}");
        assert_eq!(inspection.debuggers.is_empty(), format == "elf");
    }
}

#[test]
fn full_dump_is_read_as_a_naive_reader_does() {
    let guest = guest();
    let (path, _directory) = stored(&guest.full_dump());
    let list = VARIABLES.iter().map(|(name, offset, size)| match *name {
        "kernbase" => ((*name).to_owned(), (BASE, 0)),
        _ => ((*name).to_owned(), (BASE + DATA + offset, *size)),
    });
    let list = harness::readers::freebsd::Symbols(list.collect());
    let naive = FullCore::open(&path, &list).unwrap();
    assert_eq!(naive.segments(), [(0x1000, 0, 0x100_0000)]);
    let core = open(&path).unwrap();
    assert_eq!((core.format(), core.kind()), ("full", "FreeBSD full dump (ELF64 core, x86-64)"));
    let state = state(&core);
    for expected in threads(&naive, &list).unwrap() {
        let found = thread(&state, expected.tid);
        assert_eq!((found.pid, &found.process), (expected.pid, &expected.comm));
        if found.registers_from != Some(RegisterSource::Stale) {
            let values = registers(&naive, expected.pcb).unwrap();
            assert_eq!(found.registers.unwrap().rip, values["rip"]);
        }
    }
}

#[test]
fn calls_have_names() {
    let guest = guest();
    let shown: Vec<String> =
        state(&guest.memory).crashed().unwrap().backtrace.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["ffffffff80300008 panic+0x8", "ffffffff80300120 vpanic+0x20", "ffffffff80300410 fork_exit+0x10",]
    );
}

#[test]
fn call_that_never_returns_belongs_to_its_caller() {
    let mut guest = guest();
    // Behind the last instruction of vpanic; behind a function that is known to end before.
    guest.stack(0x18, &[TEXT + 0x180]);
    guest.stack(0x48, &[TEXT + 0x3f0]);
    let state = state(&guest.memory);
    let frames = &state.crashed().unwrap().backtrace;
    assert_eq!(frames[1].to_string(), "ffffffff80300180 vpanic+0x80");
    assert_eq!(frames[2].to_string(), "ffffffff803003f0", "victim ends at 0x340");
}

#[test]
fn calls_go_on_behind_a_trap() {
    let mut guest = guest();
    // The trap handler returns to calltrap; above lies the trap frame, whose rbp leads on.
    guest.stack(0x10, &[STACK + 0x200, TEXT + 0x210]);
    let mut frame = [0; 0xc0 / 8];
    (frame[0x40 / 8], frame[0x98 / 8], frame[0xa0 / 8], frame[0xb0 / 8]) =
        (STACK + 0x200, TEXT + 0x300, 0x20, STACK + 0x100);
    guest.stack(0x20, &frame);
    guest.stack(0x200, &[0, TEXT + 0x410]);
    let calls = |guest: &FreeBsd| -> Vec<String> {
        state(&guest.memory).crashed().unwrap().backtrace.iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        calls(&guest)[1..],
        [
            "ffffffff80300210 calltrap+0x10",
            "ffffffff80300300 victim+0x0 (interrupted here)",
            "ffffffff80300410 fork_exit+0x10",
        ]
    );
    // From user mode the chain ends with the trap.
    guest.stack(0x20 + 0xa0, &[0x43]);
    assert_eq!(calls(&guest).len(), 2);
}

#[test]
fn calls_go_on_behind_an_interrupt_that_has_a_stack_of_its_own() {
    // As an NMI has; the interrupted stack lies below it.
    const BELOW: u64 = 0x8000;
    let mut guest = guest();
    guest.stack(0x10, &[0x1234_5678, TEXT + 0x210]);
    let mut frame = [0; 0xc0 / 8];
    (frame[0x40 / 8], frame[0x98 / 8], frame[0xa0 / 8], frame[0xb0 / 8]) =
        (STACK - BELOW + 0x40, TEXT + 0x300, 0x20, STACK - BELOW);
    guest.stack(0x20, &frame);
    guest.memory.write_words(HEAP + 0x6_0000 - BELOW + 0x40, &[STACK - BELOW + 0x80, TEXT + 0x120]);
    guest.memory.write_words(HEAP + 0x6_0000 - BELOW + 0x80, &[0, TEXT + 0x410]);
    let shown: Vec<String> =
        state(&guest.memory).crashed().unwrap().backtrace.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown[1..],
        [
            "ffffffff80300210 calltrap+0x10",
            "ffffffff80300300 victim+0x0 (interrupted here)",
            "ffffffff80300120 vpanic+0x20",
            "ffffffff80300410 fork_exit+0x10",
        ]
    );
}

#[test]
fn chains_of_frames_that_do_not_ascend_end() {
    for (pointer, expected) in [
        (STACK + 0x10, 2),
        (STACK - 0x100, 2),
        (STACK + 0x11, 2),
        (STACK + (64 << 12), 2),
        (0, 2),
        (u64::MAX, 2),
        (STACK + 0x20, 3),
    ] {
        let mut guest = guest();
        guest.stack(0x10, &[pointer, TEXT]);
        guest.stack(0x20, &[STACK + 0x20, TEXT]);
        assert_eq!(state(&guest.memory).crashed().unwrap().backtrace.len(), expected, "{pointer:#x}");
    }
    let mut guest = guest();
    for frame in (0x10..0x8000).step_by(16) {
        guest.stack(frame, &[STACK + frame + 16, TEXT]);
    }
    assert_eq!(state(&guest.memory).crashed().unwrap().backtrace.len(), 128);
}

#[test]
fn lists_without_end_end() {
    let mut guest = guest();
    guest.memory.write_words(process_at(2), &[DIRECT_MAP + process_at(0)]);
    guest.memory.write_words(thread_at(1, 1) + 0x10, &[DIRECT_MAP + thread_at(1, 0)]);
    let state = state(&guest.memory);
    assert_eq!(state.threads.len(), 4);
    let [processes, threads] = &state.problems[..] else { panic!("{:?}", state.problems) };
    assert!(processes.contains("the list of processes comes back to 0xfffff80000600000"), "{processes}");
    assert!(threads.contains("the list of threads comes back to 0xfffff80000611000"), "{threads}");
}

#[test]
fn lists_that_break_are_read_up_to_there() {
    let mut guest = guest();
    guest.memory.write_words(process_at(1), &[0xdead_0000_0000]);
    let state = state(&guest.memory);
    assert_eq!(state.threads.len(), 3);
    assert_eq!(state.problems, ["the list of processes cannot be followed at 0xdead00000000"]);
}

#[test]
fn one_thread_in_two_processes_is_listed_once() {
    let mut guest = guest();
    guest.memory.write_words(process_at(2) + 0x10, &[DIRECT_MAP + thread_at(0, 0)]);
    let state = state(&guest.memory);
    assert_eq!(state.threads.iter().filter(|thread| thread.tid == 100_700).count(), 1);
}

#[test]
fn kernel_without_the_constants_says_so() {
    let mut guest = guest();
    guest.int("thread_off_td_tid", u32::MAX);
    let state = state(&guest.memory);
    assert_eq!(state.threads, []);
    assert_eq!(state.problems, ["the kernel has no constants for the places in its process list"]);
    assert_eq!(state.message_buffer.as_deref(), Some(MESSAGES), "what needs none is still told");
}

#[test]
fn names_cannot_command_the_terminal() {
    let guest = guest();
    let (path, _directory) = stored(&guest.minidump().image());
    let options = InspectOptions {
        symbols: Some(&symbols()),
        backtraces: Backtraces::All,
        ..InspectOptions::default()
    };
    let text = inspect_with(&path, &options).unwrap().to_string();
    assert!(text.contains("intr/irq\\u{1b}[2J"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    assert_eq!(text.matches("Calls ").count(), 4, "{text}");
}

#[test]
fn only_the_threads_asked_for_have_their_calls_told() {
    let guest = guest();
    for (backtraces, expected) in [
        (Backtraces::Crashed, 1),
        (Backtraces::Thread(100_001), 2),
        (Backtraces::Thread(100_700), 1),
        (Backtraces::All, 4),
    ] {
        let request = StateRequest { backtraces, panic_cpu: None };
        let state = facts::kernel_state(&guest.memory, Some(&symbols()), request);
        let told = state.threads.iter().filter(|thread| !thread.backtrace.is_empty()).count();
        assert_eq!(told, expected, "{backtraces:?}");
    }
}

#[test]
fn functions_are_found_by_address() {
    let symbols = symbols();
    let at = |address| symbols.function_at(address).map(|place| (place.function, place.offset));
    for (name, offset, _) in FUNCTIONS {
        assert_eq!(at(TEXT + offset), Some((name, 0)));
    }
    assert_eq!(at(TEXT - 1), None);
    assert_eq!(at(TEXT + 0x1ff), None, "vpanic ends at 0x180");
    assert_eq!(at(TEXT + 0x2ff), Some(("calltrap", 0xff)), "its size is not known");
    assert_eq!(at(u64::MAX), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn damaged_kernels_do_no_harm(
        changes in prop::collection::vec((0_usize..VARIABLES.len(), prop_oneof![any::<u64>(), (HEAP..HEAP + 0x8_0000).prop_map(|at| DIRECT_MAP + at), 0_u64..0x1000]), 0..6),
        heap in prop::collection::vec((0_u64..0x1_0000, prop_oneof![any::<u64>(), (HEAP..HEAP + 0x8_0000).prop_map(|at| DIRECT_MAP + at)]), 0..20),
    ) {
        let mut guest = guest();
        for (variable, value) in changes {
            guest.memory.write_words(DATA + VARIABLES[variable].1, &[value]);
        }
        for (place, value) in heap {
            guest.memory.write_words(HEAP + 8 * place, &[value]);
        }
        let request = StateRequest { backtraces: Backtraces::All, panic_cpu: Some(1) };
        let state = facts::kernel_state(&guest.memory, Some(&symbols()), request);
        prop_assert!(state.threads.len() <= 1 << 16);
    }
}

#[test]
fn kernel_that_a_loader_put_elsewhere_is_found() {
    let options = InspectOptions { symbols: Some(&symbols()), ..InspectOptions::default() };
    let expected = state(&guest().memory);
    for distance in [0x60_0000, 0xa0_0000] {
        let mut guest = guest();
        guest.load_elsewhere(distance);
        let (path, _directory) = stored(&guest.full_dump());
        let found = inspect_with(&path, &options).unwrap();
        assert_eq!(found.kernel, expected, "{distance:#x}");
        assert_eq!(found.guest.version.as_deref(), Some("FreeBSD 14.1-RELEASE GENERIC\n"), "{distance:#x}");
    }
}

#[test]
fn what_a_minidump_does_not_map_is_not_looked_for_elsewhere() {
    let guest = guest();
    let mut fake = guest.minidump();
    // The image lies elsewhere, and the page of its variables is not in the dump.
    fake.page_map[1] = 0x80_0083;
    let (path, _directory) = stored(&fake.image());
    let found = inspect(&path, Some(&symbols())).unwrap();
    assert_eq!(found.kernel.threads, []);
    assert_eq!(found.guest.version, None);
}

/// The symbols of a kernel file that holds this text in its variable `version`.
fn symbols_of_build(version: &[u8]) -> KernelSymbols {
    let kernel = FakeKernel::default().with_content("version", BASE + variable("version"), version);
    KernelSymbols::parse(&kernel_behind(kernel).image()).unwrap()
}

#[test]
fn kernel_of_another_build_is_not_asked_but_told_of() {
    let guest = guest();
    let own = symbols_of_build(b"FreeBSD 14.1-RELEASE GENERIC\n\0");
    assert_eq!(own.version_text(), Some(b"FreeBSD 14.1-RELEASE GENERIC\n".as_slice()));
    let others = [
        symbols_of_build(b"FreeBSD 14.1-RELEASE GENERIC\0"),
        symbols_of_build(b"FreeBSD 14.1-RELEASE GENERIC\nx\0"),
        symbols_of_build(b"FreeBSD 14.0-RELEASE GENERIC\n\0"),
    ];
    let elf = super::all_bytes(&super::plan(&guest.memory, &CoreNotes::default()));
    for bytes in [guest.minidump().image(), guest.full_dump(), elf] {
        let (path, _directory) = stored(&bytes);
        let options = |symbols| InspectOptions {
            symbols: Some(symbols),
            kernel: Some(std::path::Path::new("other")),
            ..InspectOptions::default()
        };
        let found = inspect_with(&path, &options(&own)).unwrap();
        assert_eq!((found.kernel.threads.len(), found.kernel.problems.len()), (4, 0));
        for other in &others {
            let found = inspect_with(&path, &options(other)).unwrap();
            assert_eq!(found.kernel.threads, []);
            let [problem] = &found.kernel.problems[..] else { panic!("{:?}", found.kernel.problems) };
            assert!(problem.contains("of another build"), "{problem}");
            assert!(
                found.debuggers.iter().all(|command| !command.contains("other")),
                "{:?}",
                found.debuggers
            );
        }
    }
    // A file of debug symbols has no content to compare.
    assert_eq!(symbols().version_text(), None);
}

#[test]
fn registers_of_a_cpu_that_was_reset_are_no_threads() {
    let mut cpus = virtual_cpus();
    cpus[0].gs.base = DIRECT_MAP + HEAP + 0x5_0000;
    // CPU 2 is as after a reset, and the one that panicked.
    cpus[2] = Registers { rip: 0xfff0, cr0: 0x6000_0010, ..Registers::default() };
    let mut guest = FreeBsd::with_cpus(&PROCESSES, cpus);
    guest.memory.write_words(HEAP + 0x5_0000, &[DIRECT_MAP + thread_at(0, 0)]);
    guest.memory.write_words(DATA + 0xc00, &[DIRECT_MAP + HEAP + 0x5_0000, 1, 2]);
    let kernel = FakeKernel::default().symbol("cpuid_to_pcpu", BASE + DATA + 0xc00, 24);
    let symbols = KernelSymbols::parse(&kernel_behind(kernel).image()).unwrap();
    let request = StateRequest { backtraces: Backtraces::Crashed, panic_cpu: Some(2) };
    let state = facts::kernel_state(&guest.memory, Some(&symbols), request);
    assert_eq!(state.crashed_thread, Some(100_013), "its thread is still known");
    assert_eq!(registers_of(&state, 100_013), (Some(RegisterSource::Stale), Some(0x1300)));
    assert_eq!(registers_of(&state, 100_700), (Some(RegisterSource::VirtualCpu(0)), Some(0xc000)));
}

#[test]
fn problems_of_a_hostile_core_are_counted_not_listed() {
    // Each process's list of threads ends in nowhere.
    let mut guest = guest();
    let link = |index: u64| HEAP + 0x7_1000 + 0x20 * index;
    guest.pointer("allproc", DIRECT_MAP + link(0));
    for index in 0..40 {
        guest.memory.write_words(link(index), &[DIRECT_MAP + link(index + 1), 0, 0xdead_0000_0000 + index]);
    }
    let state = state(&guest.memory);
    assert_eq!(state.problems.len(), 17, "{:?}", state.problems);
    assert!(state.problems[16].starts_with("and ") && state.problems[16].contains("more problems"));
}

#[test]
fn processes_that_have_ended_are_listed_where_the_kernel_keeps_them_apart() {
    let mut guest = guest();
    // The second process heads the other list, the third follows it.
    guest.memory.write_words(process_at(0), &[0]);
    guest.memory.write_words(DATA + 0xc00, &[DIRECT_MAP + process_at(1)]);
    let kernel = FakeKernel::default().symbol("zombproc", BASE + DATA + 0xc00, 8);
    let symbols = KernelSymbols::parse(&kernel_behind(kernel).image()).unwrap();
    let state = facts::kernel_state(&guest.memory, Some(&symbols), StateRequest::default());
    let pids: Vec<u32> = state.threads.iter().map(|thread| thread.pid).collect();
    assert_eq!((pids, state.problems), (vec![700, 1, 12, 12], Vec::new()));
}
