//! What follows a panic, and the exit codes.

use std::fs::File;
use std::net::UdpSocket;
use std::time::Duration;

use harness::guests::{Bench, assert_code};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use crate::needs_kvm;

/// A short patience, so that a dump to nobody fails within a second.
const IMPATIENT: [&str; 6] =
    ["--netdump-polls", "100", "--netdump-retries", "1", "--netdump-arp-retries", "1"];

fn to_nobody() -> Vec<&'static str> {
    [&["--netdump-server", "127.0.0.1:9", "--netdump-link", "udp"][..], &IMPATIENT].concat()
}

#[test]
fn a_silent_server_ends_as_a_failed_dump() {
    needs_kvm!();
    let _port = client_port();
    let bench = Bench::new("panic");
    let ended = bench.run(&to_nobody());
    assert_code(&ended, 11);
    let report = bench.report();
    assert_eq!(report["dump"]["outcome"], "failed");
    assert_eq!(report["exit_code"], 11);
    let length = report["dump"]["length"].as_u64().unwrap();
    assert_eq!(report["dump"]["missing"][0][1].as_u64(), Some(length), "all of it is missing");
    assert!(ended.stderr.contains("127.0.0.1"), "{}", ended.stderr);
}

#[test]
fn a_guest_that_is_not_to_be_dumped_is_still_reported() {
    needs_kvm!();
    let bench = Bench::new("panic");
    assert_code(&bench.run(&["--no-netdump"]), 12);
    let report = bench.report();
    assert_eq!((&report["dump"], &report["panic"]["source"]), (&serde_json::Value::Null, &"pvpanic".into()));
    assert!(report["cpus"][0]["registers"]["rip"].as_u64().unwrap() > 0);
    assert!(!bench.crash_dir().exists());
}

#[test]
fn data_acknowledged_and_finished_not_is_unconfirmed() {
    needs_kvm!();
    let _port = client_port();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    server.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let acks_all_but_finished = std::thread::spawn(move || {
        let mut message = [0; 8192];
        let mut finished = 0;
        while finished < 2 {
            let Ok((len, client)) = server.recv_from(&mut message) else { return finished };
            assert!(len >= 24);
            if message[3] == 2 {
                finished += 1;
            } else {
                server.send_to(&message[4..8], client).unwrap();
            }
        }
        finished
    });
    let bench = Bench::new("panic");
    let options = [&["--netdump-server", &address, "--netdump-link", "udp"][..], &IMPATIENT].concat();
    assert_code(&bench.run(&options), 13);
    assert_eq!(bench.report()["dump"]["outcome"], "unconfirmed");
    assert!(acks_all_but_finished.join().unwrap() >= 2, "FINISHED is repeated");
}

#[test]
fn after_a_dump_the_guest_boots_again_if_wanted() {
    needs_kvm!();
    let bench = Bench::new("panic");
    let vmm = bench.start(&["--on-panic", "reset"]);
    let cores = || {
        let files = std::fs::read_dir(bench.crash_dir()).into_iter().flatten().flatten();
        let name = |file: std::fs::DirEntry| file.file_name().into_string().unwrap();
        files
            .map(name)
            .filter(|n| n.starts_with("vmcore.") && n.ends_with(|c: char| c.is_ascii_digit()))
            .count()
    };
    vmm.wait_until("two cores", || cores() >= 2);
    vmm.signal(Signal::SIGTERM);
    vmm.wait();
}

#[test]
fn after_a_failed_dump_the_same_follows() {
    needs_kvm!();
    let _port = client_port();
    let bench = Bench::new("panic");
    let vmm = bench.start(&[&to_nobody()[..], &["--on-panic", "reset"]].concat());
    vmm.wait_for_stdout("pvpanic", 2);
    vmm.signal(Signal::SIGTERM);
    vmm.wait();
}

#[test]
fn a_held_guest_stays_until_sigterm_and_the_dumps_code_counts() {
    needs_kvm!();
    let bench = Bench::new("panic");
    let mut vmm = bench.start(&["--on-panic", "hold"]);
    vmm.wait_for_stderr("stays paused");
    std::thread::sleep(Duration::from_millis(200));
    assert!(vmm.is_running());
    vmm.signal(Signal::SIGTERM);
    assert_code(&vmm.wait(), 10);
}

#[test]
fn ctrl_c_during_a_dump_ends_it_as_failed_with_what_is_missing() {
    needs_kvm!();
    let _port = client_port();
    let bench = Bench::new("panic");
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let address = server.local_addr().unwrap().to_string();
    let vmm = bench.start(&["--netdump-server", &address, "--netdump-link", "udp"]);
    // A server that takes the HERALD and then says nothing more.
    let mut message = [0; 8192];
    let (_, client) = server.recv_from(&mut message).unwrap();
    server.send_to(&message[4..8], client).unwrap();
    server.recv_from(&mut message).unwrap();
    vmm.signal(Signal::SIGINT);
    let ended = vmm.wait();
    assert_code(&ended, 11);
    let report = bench.report();
    assert!(report["dump"]["reason"].as_str().unwrap().contains("SIGINT"), "{report}");
    assert!(!report["dump"]["missing"].as_array().unwrap().is_empty());
}

#[test]
fn events_are_lines_of_json_if_wanted() {
    needs_kvm!();
    let bench = Bench::new("panic");
    let ended = bench.run(&["--json"]);
    assert_code(&ended, 10);
    let events: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    for name in ["booting", "console", "panic", "paused", "dumping", "progress", "dumped"] {
        assert!(names.contains(&name), "no {name} in {names:?}");
    }
    assert_eq!(events.last().unwrap()["report"]["exit_code"], 10);
}

#[test]
fn a_dump_waits_for_another_that_uses_the_hosts_client_port() {
    needs_kvm!();
    let _port = client_port();
    let other = UdpSocket::bind("0.0.0.0:20024").unwrap();
    let bench = Bench::new("panic");
    let vmm = bench.start(&to_nobody());
    vmm.wait_for_stderr("waiting for its end");
    drop(other);
    assert_code(&vmm.wait(), 11);
    assert!(bench.report()["dump"]["reason"].as_str().unwrap().contains("127.0.0.1:9"), "it was its turn");

    let _other = UdpSocket::bind("0.0.0.0:20024").unwrap();
    let vmm = bench.start(&to_nobody());
    vmm.wait_for_stderr("waiting for its end");
    vmm.signal(Signal::SIGINT);
    assert_code(&vmm.wait(), 11);
    assert!(bench.report()["dump"]["reason"].as_str().unwrap().contains("20024"));
}

/// The udp link has one client port a host, as the protocol has: tests that use it take turns, other processes' too.
fn client_port() -> Flock<File> {
    let file = File::create(std::env::temp_dir().join("netdump-client-port.lock")).unwrap();
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap()
}
