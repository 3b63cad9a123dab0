//! Every way in which a guest ends, and what it is taken for.

use harness::guests::{Bench, assert_code, verify};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::needs_kvm;

/// Runs a guest that panics and whose core must arrive; the report.
fn dumped(guest: &str, options: &[&str]) -> Value {
    let bench = Bench::new(guest);
    assert_code(&bench.run(options), 10);
    let core = bench.core_path();
    verify(&core, &bench.report_path());
    assert!(bench.check_memory(&core) > 0, "the guest filled memory");
    let report = bench.report();
    assert_eq!(report["dump"]["outcome"], "complete");
    assert_eq!(report["exit_code"], 10);
    report
}

fn seen(report: &Value) -> (&str, &str) {
    let text = |name: &str| report["panic"][name].as_str().unwrap_or_default();
    (text("source"), text("text"))
}

#[test]
fn pvpanic_is_seen_with_the_guests_text_and_cpu() {
    needs_kvm!();
    let report = dumped("panic", &["--kenv", "text=disk-on-fire"]);
    assert_eq!(seen(&report), ("pvpanic", "disk-on-fire"));
    assert_eq!(report["panic"]["vcpu"], 0);
}

#[test]
fn a_triple_fault_is_seen() {
    needs_kvm!();
    assert_eq!(seen(&dumped("triple-fault", &[])).0, "triple-fault");
}

#[test]
fn both_kernels_console_lines_are_seen_however_they_are_written() {
    needs_kvm!();
    for style in ["freebsd", "linux"] {
        let style = format!("style={style}");
        let report = dumped("console-panic", &["--kenv", &style, "--kenv", "text=oops"]);
        assert_eq!(seen(&report), ("console", "oops"), "{style}");
    }
}

#[test]
fn an_instruction_that_kvm_cannot_emulate_is_a_panic() {
    needs_kvm!();
    assert_eq!(seen(&dumped("emulation-failure", &[])).0, "kvm-error");
}

#[test]
fn a_hung_guest_is_dumped_after_a_time() {
    needs_kvm!();
    for mode in ["spin", "halt"] {
        let mode = format!("mode={mode}");
        let report = dumped("hang", &["--dump-after", "1", "--kenv", &mode]);
        assert_eq!(seen(&report).0, "request", "{mode}");
        assert!(report["panic"]["detail"].as_str().unwrap().contains("--dump-after"));
    }
}

#[test]
fn a_hung_guest_is_dumped_on_sigusr1() {
    needs_kvm!();
    let bench = Bench::new("hang");
    let vmm = bench.start(&[]);
    vmm.wait_for_stdout("\n", 1);
    vmm.signal(Signal::SIGUSR1);
    assert_code(&vmm.wait(), 10);
    assert!(bench.report()["panic"]["detail"].as_str().unwrap().contains("SIGUSR1"));
}

#[test]
fn a_power_off_is_no_panic() {
    needs_kvm!();
    let bench = Bench::new("poweroff");
    assert_code(&bench.run(&[]), 0);
    assert!(!bench.report_path().exists() && !bench.crash_dir().exists());
}

#[test]
fn a_reset_is_no_panic_by_whatever_means() {
    needs_kvm!();
    for how in ["how=i8042", "how=cf9"] {
        let bench = Bench::new("reboot-loop");
        assert_code(&bench.run(&["--no-reboot", "--kenv", how]), 0);
        assert!(!bench.crash_dir().exists());
    }
}

#[test]
fn a_guest_that_resets_boots_again_until_the_vmm_is_stopped() {
    needs_kvm!();
    let bench = Bench::new("reboot-loop");
    let vmm = bench.start(&[]);
    vmm.wait_for_stderr("booting");
    vmm.wait_for_stdout("about to reset", 3);
    vmm.signal(Signal::SIGTERM);
    assert_code(&vmm.wait(), 0);
}

#[test]
fn a_source_that_is_not_chosen_sees_nothing() {
    needs_kvm!();
    // pvpanic's port does nothing now, and the guest hangs behind it.
    let bench = Bench::new("panic");
    assert_code(&bench.run(&["--panic-source", "request,console", "--dump-after", "1.5"]), 10);
    assert_eq!(seen(&bench.report()).0, "request");
}

#[test]
fn a_guest_with_a_crash_kernel_dumps_for_itself() {
    needs_kvm!();
    let crash_loaded = ["--kenv", "event=crashloaded", "--kenv"];
    let bench = Bench::new("panic");
    assert_code(&bench.run(&[&crash_loaded[..], &["then=poweroff"]].concat()), 12);
    assert!(!bench.crash_dir().exists());
    // Its own dump may fail in its turn; that is still its own business.
    let bench = Bench::new("panic");
    let vmm = bench.start(&[&crash_loaded[..], &["then=panicked"]].concat());
    vmm.wait_for_stderr("own crash kernel");
    vmm.wait_for_stderr("left to the guest");
    vmm.signal(Signal::SIGTERM);
    vmm.wait();
    assert!(!bench.crash_dir().exists());
    // Unless the host decides otherwise.
    let bench = Bench::new("panic");
    assert_code(&bench.run(&[&crash_loaded[..], &["then=poweroff", "--ignore-crashloaded"]].concat()), 10);
    assert_eq!(seen(&bench.report()).0, "pvpanic");
}

#[test]
fn pvpanic_bits_that_mean_nothing_mean_nothing() {
    needs_kvm!();
    let bench = Bench::new("panic");
    assert_code(&bench.run(&["--kenv", "event=4", "--kenv", "then=poweroff"]), 0);
    // And do not hide those that do.
    assert_eq!(seen(&dumped("panic", &["--kenv", "event=5"])).0, "pvpanic");
}
