//! FreeBSD panics seen in the guest's memory: what only the watcher sees, how long it waits, whom it leaves alone, and
//! that it sees nothing in a guest that does not panic.

use guest_images::freebsd::PANIC_TEXT;
use harness::guests::{Bench, assert_code, verify};
use harness::programs::{Ended, arg};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::needs_kvm;

const FLAVOURS: [&str; 3] = ["freebsd-abi", "freebsd-abi-13", "freebsd-abi-12"];

/// The options for a guest that is told these things.
fn told<'a>(told: &[&'a str], options: &[&'a str]) -> Vec<&'a str> {
    told.iter().flat_map(|variable| ["--kenv", variable]).chain(options.iter().copied()).collect()
}

fn run(bench: &Bench, variables: &[&str], options: &[&str]) -> Ended {
    bench.run(&told(variables, options))
}

/// Runs a guest whose core must arrive; the report.
fn dumped(bench: &Bench, variables: &[&str], options: &[&str]) -> Value {
    assert_code(&run(bench, variables, options), 10);
    verify(&bench.core_path(), &bench.report_path());
    bench.report()
}

fn source(report: &Value) -> &str {
    report["panic"]["source"].as_str().unwrap()
}

fn detail(report: &Value) -> &str {
    report["panic"]["detail"].as_str().unwrap()
}

fn text(report: &Value) -> &str {
    report["panic"]["text"].as_str().unwrap()
}

fn signs(report: &Value) -> Vec<&str> {
    let signs = report["panic"]["signs"].as_array().unwrap();
    signs.iter().map(|sign| sign["source"].as_str().unwrap()).collect()
}

#[test]
fn a_guest_that_waits_in_its_debugger_without_a_word_is_seen() {
    needs_kvm!();
    for flavour in FLAVOURS {
        let report = dumped(&Bench::new(flavour), &["abi.panic=ddb", "abi.console=quiet"], &[]);
        assert_eq!((source(&report), text(&report)), ("watcher", PANIC_TEXT), "{flavour}");
        assert_eq!(report["panic"]["vcpu"], 0);
        assert_eq!(signs(&report), ["watcher"]);
    }
}

#[test]
fn the_message_is_waited_for() {
    needs_kvm!();
    let bench = Bench::new("freebsd-abi");
    let slow = ["abi.panic=spin", "abi.console=quiet", "abi.delay=100"];
    let report = dumped(&bench, &slow, &["--panic-settle", "20000"]);
    assert_eq!((source(&report), text(&report)), ("watcher", PANIC_TEXT));
    assert!(report["pause"]["settling_microseconds"].as_u64().unwrap() > 5000);
    assert!(!detail(&report).contains("not through"), "{}", detail(&report));
}

#[test]
fn a_message_that_does_not_come_is_waited_for_no_longer_than_told() {
    needs_kvm!();
    let bench = Bench::new("freebsd-abi");
    let slow = ["abi.panic=spin", "abi.console=quiet", "abi.delay=20000"];
    let report = dumped(&bench, &slow, &["--panic-settle", "50"]);
    assert_eq!((source(&report), text(&report)), ("watcher", guest_images::freebsd::PANIC_FORMAT));
    assert!(detail(&report).contains("not through"), "{}", detail(&report));
    let settling = report["pause"]["settling_microseconds"].as_u64().unwrap();
    assert!((50_000..2_000_000).contains(&settling), "{settling}");
}

#[test]
fn each_end_of_a_panicked_guest_is_a_panic() {
    needs_kvm!();
    for (end, by) in [
        ("reset-8042", "reset by i8042"),
        ("reset-cf9", "reset by port 0xcf9"),
        ("poweroff", "power-off"),
        ("triple", "triple fault"),
    ] {
        let end = format!("abi.panic={end}");
        let report = dumped(&Bench::new("freebsd-abi"), &[&end, "abi.console=quiet"], &[]);
        assert_eq!((source(&report), text(&report)), ("watcher", PANIC_TEXT), "{end}");
        assert!(detail(&report).ends_with(by), "{}", detail(&report));
    }
}

#[test]
fn the_first_sign_is_the_source_and_the_watcher_is_named_beside_it() {
    needs_kvm!();
    // On a busy host the watcher may look before the console's line is out.
    let report = dumped(&Bench::new("freebsd-abi"), &[], &[]);
    let signs = signs(&report);
    assert_eq!(signs[0], source(&report));
    assert!(["console", "watcher"].contains(&source(&report)) && signs.contains(&"watcher"), "{signs:?}");
}

#[test]
fn a_guest_that_does_not_panic_is_left_alone() {
    needs_kvm!();
    let bench = Bench::new("freebsd-abi");
    let vmm = bench.start(&told(&["abi.panic=none"], &["--cpus", "2"]));
    vmm.wait_for_stdout("hand-off", 1);
    std::thread::sleep(std::time::Duration::from_millis(500));
    vmm.signal(Signal::SIGTERM);
    assert_code(&vmm.wait(), 0);
    assert!(!bench.crash_dir().exists());
}

#[test]
fn clean_ends_are_no_panics_however_many() {
    needs_kvm!();
    for end in ["abi.end=reset-8042", "abi.end=reset-cf9"] {
        let bench = Bench::new("freebsd-abi");
        let vmm = bench.start(&told(&["abi.panic=none", end], &[]));
        vmm.wait_for_stdout("hand-off", 20);
        vmm.signal(Signal::SIGTERM);
        assert_code(&vmm.wait(), 0);
        assert!(!bench.crash_dir().exists());
    }
    let bench = Bench::new("freebsd-abi");
    for _ in 0..5 {
        assert_code(&run(&bench, &["abi.panic=none", "abi.end=poweroff"], &[]), 0);
    }
    assert!(!bench.crash_dir().exists());
}

#[test]
fn a_guest_with_a_dumper_dumps_for_itself() {
    needs_kvm!();
    for flavour in FLAVOURS {
        let bench = Bench::new(flavour);
        let ended = run(&bench, &["abi.panic=dump"], &[]);
        assert_code(&ended, 12);
        assert!(ended.stderr.contains("a dump device of its own"), "{}", ended.stderr);
        assert!(!bench.crash_dir().exists());
        // Unless the host decides otherwise.
        assert_eq!(text(&dumped(&bench, &["abi.panic=dump"], &["--ignore-crashloaded"])), PANIC_TEXT);
    }
}

#[test]
fn a_guest_whose_dumper_does_nothing_is_dumped_when_it_ends() {
    needs_kvm!();
    for end in ["abi.panic=reset-8042", "abi.panic=triple", "abi.panic=poweroff"] {
        let bench = Bench::new("freebsd-abi");
        let report = dumped(&bench, &[end, "abi.dumper=idle"], &[]);
        assert!(signs(&report).contains(&"watcher"));
        assert!(detail(&report).contains("then the guest ended"), "{}", detail(&report));
    }
}

#[test]
fn a_guest_that_stays_in_its_debugger_with_a_dumper_is_dumped_on_request() {
    needs_kvm!();
    let bench = Bench::new("freebsd-abi");
    let vmm = bench.start(&told(&["abi.panic=ddb", "abi.dumper=idle", "abi.console=quiet"], &[]));
    vmm.wait_for_stderr("a dump device of its own");
    vmm.signal(Signal::SIGUSR1);
    assert_code(&vmm.wait(), 10);
    let report = bench.report();
    assert_eq!(source(&report), "request");
    assert_eq!((signs(&report), &report["panic"]["vcpu"]), (vec!["watcher", "request"], &Value::from(0)));
    assert!(report["panic"]["signs"][1]["microseconds"].as_u64().unwrap() > 0);
}

#[test]
fn a_guest_is_dumped_on_request_while_it_is_waited_for() {
    needs_kvm!();
    let bench = Bench::new("freebsd-abi");
    let slow = ["abi.panic=spin", "abi.console=quiet", "abi.delay=60000"];
    let report = dumped(&bench, &slow, &["--panic-settle", "60000", "--dump-after", "4"]);
    assert_eq!((source(&report), signs(&report)), ("watcher", vec!["watcher", "request"]));
    assert!(detail(&report).contains("--dump-after"), "{}", detail(&report));
}

#[test]
fn the_cpu_that_panicked_is_the_one_that_did_not_stop() {
    needs_kvm!();
    let bench = Bench::new("freebsd-abi");
    let variables = ["abi.panic=spin", "abi.console=quiet", "abi.cpus=4", "abi.cpu=2"];
    let report = dumped(&bench, &variables, &["--cpus", "4", "--panic-settle", "20000"]);
    assert_eq!(report["panic"]["vcpu"], 2);
    assert_eq!(report["pause"]["not_stopped"].as_array().unwrap().len(), 0);
    assert_eq!(report["cpus"].as_array().unwrap().len(), 4);
    let rip = report["cpus"][2]["registers"]["rip"].as_u64().unwrap();
    assert!(rip > 0xffff_ffff_8000_0000, "{rip:#x}");
}

#[test]
fn cpus_that_never_stop_are_waited_for_no_longer_than_told() {
    needs_kvm!();
    let bench = Bench::new("freebsd-abi");
    let variables = ["abi.panic=spin", "abi.console=quiet", "abi.cpus=2", "abi.stop=no"];
    let report = dumped(&bench, &variables, &["--cpus", "2", "--panic-settle", "50"]);
    assert_eq!((text(&report), &report["panic"]["vcpu"]), (PANIC_TEXT, &Value::Null));
    assert!(detail(&report).contains("not through"), "{}", detail(&report));
}

#[test]
fn a_stripped_kernel_is_watched_with_its_twins_symbols() {
    needs_kvm!();
    let bench = Bench::new("freebsd-abi");
    let twin = bench.folder().join("kernel.debug");
    std::fs::copy(bench.image(), &twin).unwrap();
    let mut image = std::fs::read(bench.image()).unwrap();
    // No section headers: no symbols.
    image[0x28..0x30].fill(0);
    image[0x3c..0x40].fill(0);
    std::fs::write(bench.image(), image).unwrap();
    let quiet = ["abi.panic=halt", "abi.console=quiet"];
    let report = dumped(&bench, &quiet, &["--symbols", arg(&twin)]);
    assert_eq!((source(&report), text(&report)), ("watcher", PANIC_TEXT));

    let without = run(&bench, &quiet, &["--dump-after", "1", "--panic-settle", "10"]);
    assert!(without.stderr.contains("--symbols"), "{}", without.stderr);
    assert!(without.stderr.contains("'watcher' cannot see a panic of"), "{}", without.stderr);
    assert_eq!(source(&bench.report()), "request");
    let wrong = run(&bench, &quiet, &["--symbols", arg(&bench.image())]);
    assert_code(&wrong, 1);
    assert!(wrong.stderr.contains("no symbols"), "{}", wrong.stderr);
}

#[test]
fn the_dump_header_is_what_the_kernel_would_have_written() {
    needs_kvm!();
    let bench = Bench::new("freebsd-abi");
    dumped(&bench, &["abi.panic=halt", "abi.hostname=vm7.example.org"], &[]);
    let info = std::fs::read_dir(bench.crash_dir()).unwrap().flatten().map(|entry| entry.path());
    let info = info
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"info.")));
    let info = std::fs::read_to_string(info.min().unwrap()).unwrap();
    for line in ["vm7.example.org", PANIC_TEXT, "amd64", "FreeBSD 14.0-ABI #0", "2023"] {
        assert!(info.contains(line), "no {line:?} in\n{info}");
    }
}

#[test]
fn options_that_need_the_watcher_say_so() {
    let bench = Bench::new("freebsd-abi");
    let refused = run(&bench, &[], &["--panic-source", "console", "--panic-settle", "10"]);
    assert_code(&refused, 2);
    assert!(refused.stderr.contains("watcher"), "{}", refused.stderr);
    assert!(refused.stderr.contains("Usage: vmm run"), "{}", refused.stderr);
}
