//! Linux panics, played by a guest that has a Linux kernel's words: what the watcher sees wherever the kernel lies, how
//! long it waits, whom it leaves alone, and every end of a panicked guest.

use harness::guests::{Bench, assert_code, verify};
use harness::programs::Ended;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::needs_kvm;

const TEXT: &str = "told to panic by the environment";

fn told<'a>(told: &[&'a str], options: &[&'a str]) -> Vec<&'a str> {
    told.iter().flat_map(|variable| ["--kenv", variable]).chain(options.iter().copied()).collect()
}

fn run(bench: &Bench, variables: &[&str], options: &[&str]) -> Ended {
    bench.run(&told(variables, options))
}

/// Runs a guest of two CPUs whose core must arrive; the report.
fn dumped(variables: &[&str], options: &[&str]) -> Value {
    let bench = Bench::new("linux-abi");
    assert_code(&run(&bench, variables, &[&["--cpus", "2"], options].concat()), 10);
    verify(&bench.core_path(), &bench.report_path());
    bench.report()
}

/// Runs one that must not be dumped, to its end.
fn left_alone(variables: &[&str], options: &[&str], code: i32) -> Ended {
    let bench = Bench::new("linux-abi");
    let ended = run(&bench, variables, options);
    assert_code(&ended, code);
    assert!(!bench.crash_dir().exists());
    ended
}

fn text_of<'a>(report: &'a Value, name: &str) -> &'a str {
    report["panic"][name].as_str().unwrap_or_default()
}

fn signs(report: &Value) -> Vec<&str> {
    let signs = report["panic"]["signs"].as_array().unwrap();
    signs.iter().map(|sign| sign["source"].as_str().unwrap()).collect()
}

#[test]
fn a_panic_without_a_word_to_the_host_is_seen_wherever_the_kernel_lies() {
    needs_kvm!();
    let places: [&[&str]; 4] =
        [&[], &["moved=16"], &["moved=0", "slide=66"], &["moved=22", "slide=510", "cpu=1"]];
    for place in places {
        let report = dumped(place, &[]);
        assert_eq!((text_of(&report, "source"), text_of(&report, "text")), ("watcher", TEXT), "{place:?}");
        let cpu = u64::from(place.contains(&"cpu=1"));
        assert_eq!(report["panic"]["vcpu"], cpu);
        assert!(!text_of(&report, "detail").contains("not through"), "{report:#}");
        assert_eq!(signs(&report), ["watcher"]);
    }
}

#[test]
fn the_kernel_is_heard_out_and_then_paused_at_once() {
    needs_kvm!();
    let report = dumped(&["delay=60", "lines=5"], &[]);
    assert_eq!(text_of(&report, "text"), TEXT);
    let settling = report["pause"]["settling_microseconds"].as_u64().unwrap();
    assert!((300_000..2_000_000).contains(&settling), "{settling}");
    assert!(!text_of(&report, "detail").contains("not through"), "{report:#}");
    // One that is to reboot says no last word, but falls silent.
    let report = dumped(&["timeout=10"], &[]);
    assert!(!text_of(&report, "detail").contains("not through"), "{report:#}");
    // And one that does not get through is waited for no longer than told.
    let report = dumped(&["stop=no"], &["--panic-settle", "100"]);
    assert!(text_of(&report, "detail").contains("not through"), "{report:#}");
}

#[test]
fn each_end_of_a_panicked_guest_is_a_panic() {
    needs_kvm!();
    for (end, by) in [
        ("end=i8042", "reset by i8042"),
        ("end=cf9", "reset by port 0xcf9"),
        ("end=poweroff", "power-off"),
        ("end=triple", "triple fault"),
    ] {
        let report = dumped(&["timeout=1", "lines=0", end, "moved=18"], &[]);
        assert_eq!((text_of(&report, "source"), text_of(&report, "text")), ("watcher", TEXT), "{end}");
        let detail = text_of(&report, "detail");
        assert!(detail.ends_with(by), "{detail}");
    }
}

#[test]
fn no_end_of_a_guest_that_did_not_panic_is_one() {
    needs_kvm!();
    for end in ["end=i8042", "end=cf9", "end=poweroff"] {
        for story in ["panic=no", "panic=oops"] {
            left_alone(&[story, "forge=log", "moved=10", end], &["--no-reboot"], 0);
        }
    }
}

#[test]
fn a_line_on_the_console_is_no_panic_of_a_kernel_that_says_it_is_well() {
    needs_kvm!();
    let forged = ["panic=no", "forge=console", "after=50", "end=poweroff"];
    let ended = left_alone(&forged, &[], 0);
    assert!(ended.stderr.contains("does not say that it has panicked"), "{}", ended.stderr);
    // With nobody to ask, the line counts.
    let bench = Bench::new("linux-abi");
    assert_code(&run(&bench, &forged, &["--panic-source", "console"]), 10);
}

#[test]
fn a_guest_with_a_crash_kernel_is_left_to_it() {
    needs_kvm!();
    for moved in ["moved=0", "moved=20"] {
        let started = ["crash=started", "delay=10", "lines=2", "end=i8042", moved];
        let ended = left_alone(&started, &[], 12);
        assert!(ended.stderr.contains("own crash kernel takes over"), "{}", ended.stderr);
        let report = dumped(&started, &["--ignore-crashloaded"]);
        assert_eq!(text_of(&report, "text"), TEXT);
    }
    // One that was never started has dumped nothing.
    let report = dumped(&["crash=loaded", "delay=10", "end=i8042"], &[]);
    assert!(text_of(&report, "detail").contains("then the guest ended: reset by i8042"), "{report:#}");
}

#[test]
fn hypervs_crash_registers_tell_of_a_panic() {
    needs_kvm!();
    let variables = ["panic=no", "end=hyperv"];
    let report = dumped(&variables, &["--hyperv-crash"]);
    assert_eq!((text_of(&report, "source"), &report["panic"]["vcpu"]), ("hyperv-crash", &Value::from(0)));
    assert!(text_of(&report, "detail").contains("Hyper-V"), "{report:#}");
    // Beside the kernel's own words they are one more sign.
    let report = dumped(&["end=hyperv", "timeout=1"], &["--hyperv-crash"]);
    assert_eq!(text_of(&report, "text"), TEXT);
    assert!(signs(&report).contains(&"hyperv-crash") && signs(&report).contains(&"watcher"), "{report:#}");
}

#[test]
fn a_hung_guest_gets_an_nmi_and_is_dumped_by_the_watchdog() {
    needs_kvm!();
    for (mode, what) in
        [("mode=spin", "spins with interrupts off"), ("mode=halt", "is halted with interrupts off")]
    {
        // This guest's handler of the NMI announces a panic, as a kernel's may.
        let bench = Bench::new("hang");
        assert_code(&bench.run(&["--watchdog", "0.5", "--kenv", mode]), 10);
        let report = bench.report();
        assert_eq!(signs(&report), ["watchdog", "pvpanic"], "{mode}");
        assert!(text_of(&report, "text").contains("exception 2"), "{report:#}");
        // With nobody to hear that, it goes on hanging.
        let options = ["--watchdog", "0.5", "--panic-source", "watchdog", "--kenv", mode];
        assert_code(&bench.run(&options), 10);
        let report = bench.report();
        assert_eq!((text_of(&report, "source"), signs(&report)), ("watchdog", vec!["watchdog"]));
        assert!(text_of(&report, "detail").contains(what), "{report:#}");
    }
}

#[test]
fn a_guest_that_works_is_left_alone_by_the_watchdog() {
    needs_kvm!();
    let bench = Bench::new("smp-panic");
    let variables = ["busy=out", "after=1500"];
    assert_code(&run(&bench, &variables, &["--cpus", "4", "--watchdog", "0.2"]), 10);
    assert_eq!(signs(&bench.report()), ["pvpanic"]);
}

#[test]
fn a_panic_is_seen_by_the_watcher_on_request_too() {
    needs_kvm!();
    let bench = Bench::new("linux-abi");
    let variables = ["crash=loaded", "delay=10", "moved=24"];
    let vmm = bench.start(&told(&variables, &[]));
    vmm.wait_for_stderr("own crash kernel takes over");
    vmm.signal(Signal::SIGUSR1);
    assert_code(&vmm.wait(), 10);
    assert_eq!(signs(&bench.report()), ["watcher", "request"]);
}
