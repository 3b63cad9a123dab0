//! Where a dump goes when the guest has a say.

use harness::guests::{Bench, assert_code};
use serde_json::Value;

use crate::needs_kvm;

fn refused(report: &Value) -> Vec<(&str, &str)> {
    let list = report["target"]["refused"].as_array().unwrap();
    list.iter().map(|r| (r["variable"].as_str().unwrap(), r["value"].as_str().unwrap())).collect()
}

#[test]
fn a_path_that_the_guest_sets_at_run_time_is_where_its_dump_lands() {
    needs_kvm!();
    let bench = Bench::new("kenv-change");
    std::fs::create_dir_all(bench.crash_dir().join("late")).unwrap();
    let early = ["--kenv", "net.dump.path=early", "--kenv", "new_path=late"];
    assert_code(&bench.run(&early), 10);
    let report = bench.report();
    assert_eq!(report["target"]["path"], "late");
    let core = bench.core_path();
    assert!(core.starts_with(bench.crash_dir().join("late")), "{}", core.display());
    bench.check_memory(&core);
}

#[test]
fn options_win_over_the_guest() {
    needs_kvm!();
    let bench = Bench::new("kenv-change");
    std::fs::create_dir_all(bench.crash_dir().join("host")).unwrap();
    assert_code(&bench.run(&["--kenv", "new_path=late", "--netdump-path", "host"]), 10);
    assert!(bench.core_path().starts_with(bench.crash_dir().join("host")));
}

#[test]
fn a_guest_that_is_ignored_has_no_say() {
    needs_kvm!();
    let bench = Bench::new("panic");
    let guest = ["--kenv", "net.dump.path=x", "--kenv", "net.dump.server=192.0.2.1"];
    assert_code(&bench.run(&[&guest[..], &["--guest-env", "ignore"]].concat()), 10);
    let report = bench.report();
    assert_eq!((&report["target"]["path"], &report["target"]["server"]), (&Value::Null, &Value::Null));
    assert_eq!(refused(&report), []);
}

#[test]
fn what_a_host_refuses_is_named_in_the_report() {
    needs_kvm!();
    let bench = Bench::new("panic");
    let wishes = [
        "--kenv",
        "net.dump.server=192.0.2.1",
        "--kenv",
        "net.dump.path=../up",
        "--kenv",
        "net.dump.iface=vtnet3",
    ];
    let ended = bench.run(&[&wishes[..], &["--allow-server", "10.0.0.0/8"]].concat());
    assert_code(&ended, 10);
    let report = bench.report();
    let expected =
        [("net.dump.server", "192.0.2.1"), ("net.dump.iface", "vtnet3"), ("net.dump.path", "../up")];
    assert_eq!(refused(&report), expected);
    assert!(ended.stderr.contains("net.dump.path=../up"), "{}", ended.stderr);
}

#[test]
fn the_environment_is_in_report_and_core() {
    needs_kvm!();
    let bench = Bench::new("panic");
    assert_code(&bench.run(&["--kenv", "colour=blue", "--cmdline", "-v first=1"]), 10);
    let environment = bench.report()["guest"]["environment"].to_string();
    assert!(
        environment.contains(r#"["first","1"]"#) && environment.contains(r#"["colour","blue"]"#),
        "{environment}"
    );
    let core = bench.core_path();
    let inspect = harness::programs::run(
        harness::programs::program("netdump"),
        &["inspect", harness::programs::arg(&core)],
    );
    assert_code(&inspect, 0);
    assert!(inspect.stdout.contains("colour") && inspect.stdout.contains("blue"), "{}", inspect.stdout);
}
