//! `netdump torture`: what it says of us, and that it says so by its exit code.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn torture(arguments: &[&str]) -> Output {
    netdump().arg("torture").args(arguments).output().expect("the program can be started")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn simulated_runs_are_counted_and_the_known_bad_peers_found() {
    let report = json(&torture(&["--seeds", "100", "--json"]));
    assert_eq!((&report["runs"], &report["faulty"]), (&100.into(), &0.into()));
    let found: Vec<_> =
        report["known_bad"].as_array().unwrap().iter().map(|bad| &bad["found"]["faults"][0]).collect();
    let [mask, ack] = found[..] else { panic!("{found:?}") };
    assert!(mask.as_str().unwrap().starts_with("the client sent FINISHED, though bytes"), "{mask}");
    assert!(ack.as_str().unwrap().ends_with("and has lost them"), "{ack}");
}

#[test]
fn a_known_bad_peer_fails_with_the_seed_that_repeats_it() {
    let output = torture(&["--scenario", "ack-first", "--seeds", "30"]);
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8(output.stdout).unwrap();
    let fault = table.lines().find_map(|line| line.strip_prefix("FAULT  ")).expect("a fault");
    let (again, fault) = fault.split_once(": ").unwrap();
    let output = torture(&again.split(' ').collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains(fault), "{fault}");
}

#[test]
fn scenarios_are_listed_and_others_refused() {
    let output = torture(&["--server", "127.0.0.1", "--scenario", "list"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("live-pranks"));
    for wrong in [
        &["--scenario", "live-pranks"][..],
        &["--server", "127.0.0.1", "--client-port", "1"],
        &["--dir", "."],
    ] {
        assert_eq!(torture(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn our_server_survives() {
    let dir = directory();
    let server = Server::start(dir.path(), &[]);
    let address = server.address.to_string();
    // One of each scenario.
    let arguments = ["--json", "--seeds", "5", "--server", &address, "--dir", dir.path().to_str().unwrap()];
    let report = json(&torture(&arguments));
    assert_eq!((&report["runs"], &report["faulty"]), (&5.into(), &0.into()));
}

#[test]
fn our_client_survives() {
    let dir = directory();
    let file = dir.path().join("core");
    fs::write(&file, vec![7; 300_000]).unwrap();
    let mut torture = netdump()
        .args(["torture", "--json", "--client-port", "0", "--scenario", "reversed-acks", "--seeds", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    // It says on standard error where it waits.
    let mut line = String::new();
    let mut said = BufReader::new(torture.stderr.take().unwrap());
    said.read_line(&mut line).unwrap();
    let port = line.split(' ').nth(1).expect("port N waits").to_owned();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let server = format!("127.0.0.1:{port}");
                let mut send = netdump();
                send.arg("send").arg(&file).args([
                    "--client-port",
                    "0",
                    "--server",
                    &server,
                    "--polls",
                    "400",
                ]);
                send.output().expect("the program can be started");
            }
        });
        let output = torture.wait_with_output().unwrap();
        is_over.store(true, Ordering::Relaxed);
        let report = json(&output);
        assert_eq!((&report["runs"], &report["faulty"]), (&2.into(), &0.into()));
    });
}
