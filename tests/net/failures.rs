//! Servers and paths that fail before, during and after a dump: what is kept, what is said, and how long it takes.

use std::path::Path;
use std::time::Duration;

use harness::guests::{Bench, assert_code};
use harness::netns::{Namespace, until};
use harness::programs::{Ended, Running, arg, program};
use nix::sys::signal::Signal;

use crate::lab::{
    CLIENT, FAR_CLIENT, GATEWAY, IMPATIENT, Lab, Receiver, SERVER, SMALL, TO_COLLECTOR, check, reason,
};
use crate::needs_network;

/// A guest whose dump is long enough for a test to act in the middle of it: about 17 MB, at 8 MB/s.
const LONG: [&str; 3] = ["--memory=32M", "--kenv", "fill=16M"];
const SLOW: u32 = 8;

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until some of a core is stored, which is then in the middle of a dump.
fn wait_for_bytes(receiver: &Receiver, name: &str) {
    let core = receiver.folder.path().join(name);
    until("part of the core to be stored", || {
        std::fs::metadata(&core).is_ok_and(|core| core.len() > 1 << 20)
    });
}

/// Every byte that is not listed as missing must be in the file: the server acknowledges only what it has stored.
fn assert_acknowledged_bytes_are_kept(bench: &Bench, partial: &Path) {
    let report = bench.report();
    let missing = report["dump"]["missing"].as_array().unwrap();
    assert!(!missing.is_empty());
    let kept = std::fs::read(partial).unwrap();
    // The pattern begins at 16 MiB; memory lies in the core behind its notes.
    let length = usize::try_from(report["dump"]["length"].as_u64().unwrap()).unwrap();
    let memory = length - (32 << 20);
    let is_missing = |offset: u64| {
        missing.iter().any(|range| (range[0].as_u64().unwrap()..range[1].as_u64().unwrap()).contains(&offset))
    };
    let mut checked = 0;
    for address in (16_u64 << 20..32 << 20).step_by(8) {
        let offset = memory as u64 + address;
        if is_missing(offset) || is_missing(offset + 7) {
            continue;
        }
        let at = usize::try_from(offset).unwrap();
        let word = u64::from_le_bytes(kept[at..at + 8].try_into().unwrap());
        assert_eq!(word, guest_images::pattern(guest_images::DEFAULT_SEED, address), "at {address:#x}");
        checked += 1;
    }
    assert!(checked > 1000, "{checked} words were acknowledged");
}

#[test]
fn a_receiver_that_is_killed_fails_the_dump_and_keeps_what_it_acknowledged() {
    needs_network!();
    let lab = Lab::bridged();
    lab.slow_down(SLOW);
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    let patience = ["--netdump-polls", "100", "--netdump-retries", "10"];
    let vmm = lab.start(&bench, &[&LONG[..], &TO_COLLECTOR, &patience].concat());
    let partial = "vmcore.10.0.0.5.0.partial";
    wait_for_bytes(&receiver, partial);
    until("some of the pattern", || {
        std::fs::metadata(receiver.folder.path().join(partial)).unwrap().len() > 18 << 20
    });
    receiver.running.signal(Signal::SIGKILL);
    let vmm = vmm.wait();
    assert_code(&vmm, 11);
    assert!(vmm.took < Duration::from_secs(6), "{:?}", vmm.took);
    let reason = reason(&bench);
    assert!(reason.contains("stopped acknowledging while sending memory"), "{reason}");
    assert!(reason.contains("bytes of the core are missing"), "{reason}");
    assert!(vmm.stderr.contains(&reason), "{}", vmm.stderr);
    let folder = receiver.folder.path().to_owned();
    assert_acknowledged_bytes_are_kept(&bench, &folder.join(partial));
    let info = std::fs::read_to_string(folder.join("info.10.0.0.5.0")).unwrap();
    assert!(!info.contains("Dump complete"), "{info}");

    // The next receiver takes the next dump, beside what is left of this one.
    let again = lab.serve_in(&folder);
    let bench = Bench::new("panic");
    assert_code(&lab.start(&bench, &[&SMALL[..], &TO_COLLECTOR].concat()).wait(), 10);
    again.wait_for_stdout("\n", 1);
    check(&bench, &folder.join("vmcore.10.0.0.5.1"));
    let left = "vmcore.10.0.0.5.0.incomplete".to_owned();
    assert!(files(&folder).contains(&left), "{:?}", files(&folder));
}

#[test]
fn a_receiver_restarted_in_the_middle_gets_everything_again() {
    needs_network!();
    let lab = Lab::bridged();
    lab.slow_down(SLOW);
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    let patience = ["--netdump-polls", "100", "--netdump-retries", "20"];
    let vmm = lab.start(&bench, &[&LONG[..], &TO_COLLECTOR, &patience].concat());
    wait_for_bytes(&receiver, "vmcore.10.0.0.5.0.partial");
    receiver.running.signal(Signal::SIGKILL);
    let Receiver { running, folder } = receiver;
    running.wait();
    let again = lab.serve_in(folder.path());
    let vmm = vmm.wait();
    assert_code(&vmm, 10);
    again.wait_for_stdout("\n", 1);
    check(&bench, &folder.path().join("vmcore.10.0.0.5.1"));
    let left = "vmcore.10.0.0.5.0.incomplete".to_owned();
    assert!(files(folder.path()).contains(&left), "{:?}", files(folder.path()));
}

#[test]
fn a_receiver_told_to_stop_in_the_middle_keeps_what_came_under_a_name_that_says_so() {
    needs_network!();
    let lab = Lab::bridged();
    lab.slow_down(SLOW);
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    let patience = ["--netdump-polls", "100", "--netdump-retries", "10"];
    let vmm = lab.start(&bench, &[&LONG[..], &TO_COLLECTOR, &patience].concat());
    wait_for_bytes(&receiver, "vmcore.10.0.0.5.0.partial");
    receiver.running.signal(Signal::SIGTERM);
    let Receiver { running, folder } = receiver;
    assert_code(&running.wait(), 1);
    assert_code(&vmm.wait(), 11);
    let core = folder.path().join("vmcore.10.0.0.5.0.incomplete");
    let verdict = harness::programs::run(program("netdump"), &["verify", arg(&core)]);
    assert_code(&verdict, 1);
    let info = std::fs::read_to_string(folder.path().join("info.10.0.0.5.0")).unwrap();
    assert!(info.contains("Dump incomplete") && info.contains("Missing"), "{info}");
}

/// Dumps over a link while `namespace`'s interface is down for a second; the dump must arrive all the same.
fn dump_with_interface_down(
    link: &str,
    interface: &str,
    namespace: impl Fn(&Lab) -> &Namespace,
) -> (Ended, Bench) {
    let lab = Lab::bridged();
    lab.slow_down(SLOW);
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    let vmm = lab.start(&bench, &[&LONG[..], &TO_COLLECTOR, &["--netdump-link", link]].concat());
    wait_for_bytes(&receiver, "vmcore.10.0.0.5.0.partial");
    namespace(&lab).ip(&format!("link set {interface} down"));
    std::thread::sleep(Duration::from_secs(1));
    namespace(&lab).ip(&format!("link set {interface} up"));
    let vmm = vmm.wait();
    assert_code(&vmm, 10);
    check(&bench, &receiver.wait_for_cores(1)[0]);
    (vmm, bench)
}

#[test]
fn a_cable_unplugged_for_a_second_only_delays_the_dump() {
    needs_network!();
    for link in ["tap", "virtio"] {
        let (vmm, bench) = dump_with_interface_down(link, "eth0", |lab| &lab.collector);
        assert!(vmm.took > Duration::from_secs(1));
        assert!(bench.report()["dump"]["resends"].as_u64().unwrap() > 0);
    }
}

#[test]
fn the_guests_tap_set_down_for_a_second_only_delays_the_dump() {
    needs_network!();
    for link in ["tap", "virtio"] {
        dump_with_interface_down(link, "tap0", |lab| &lab.host);
    }
}

/// A dump that must fail within a few seconds, with a reason that holds every word.
fn assert_fails(lab: &Lab, options: &[&str], words: &[&str]) {
    let bench = Bench::new("panic");
    let vmm = lab.start(&bench, &[&SMALL[..], &IMPATIENT, options].concat()).wait();
    assert_code(&vmm, 11);
    assert!(vmm.took < Duration::from_secs(5), "{:?}", vmm.took);
    let reason = reason(&bench);
    for word in words {
        assert!(reason.contains(word), "no {word:?} in {reason}");
    }
    assert!(vmm.stderr.contains(&reason), "{}", vmm.stderr);
    let report = bench.report();
    let length = report["dump"]["length"].as_u64().unwrap();
    assert_eq!(report["dump"]["missing"].to_string(), format!("[[0,{length}]]"));
    assert_eq!(report["dump"].get("digest"), Some(&serde_json::Value::Null));
}

#[test]
fn servers_that_do_not_answer_are_named_with_what_was_asked_of_them() {
    needs_network!();
    let lab = Lab::bridged();
    lab.host.ip("address add 10.0.0.4/24 dev br0");
    // The collector is there, but no receiver.
    let host_sockets = ["--netdump-server", SERVER, "--netdump-link", "udp"];
    for options in
        [&TO_COLLECTOR[..], &[&TO_COLLECTOR[..], &["--netdump-link", "virtio"]].concat(), &host_sockets]
    {
        assert_fails(&lab, options, &["no netdump server answers at 10.0.0.9:20023"]);
    }
    let guest = ["--tap", "tap0", "--netdump-client", CLIENT, "--netdump-server"];
    assert_fails(&lab, &[&guest[..], &["10.0.0.66"]].concat(), &["10.0.0.66 does not answer ARP", "gateway"]);
    let gateway = ["10.0.0.66", "--netdump-gateway", "10.0.0.67"];
    assert_fails(&lab, &[&guest[..], &gateway].concat(), &["10.0.0.66", "ARP", "neither", "10.0.0.67"]);
    assert_fails(&lab, &[&guest[..], &["10.0.0.9:4711"]].concat(), &["10.0.0.9:4711"]);
    // The server's own address for the guest.
    let same = ["--tap", "tap0", "--netdump-server", SERVER, "--netdump-client", SERVER];
    assert_fails(&lab, &same, &["server and client cannot both have the address 10.0.0.9"]);
    // A host that has no way there.
    let away = ["--netdump-link", "udp", "--netdump-server", "192.0.2.1"];
    assert_fails(&lab, &away, &["192.0.2.1", "unreachable"]);
}

#[test]
fn a_way_narrower_than_the_link_is_suspected() {
    needs_network!();
    let lab = Lab::bridged();
    lab.host.ip("link set tap0 mtu 9000");
    let quick = ["--netdump-polls", "100", "--netdump-retries", "5"];
    let suspected = |lab: &Lab, options: &[&str], words: &[&str]| {
        let _receiver = lab.serve();
        let bench = Bench::new("panic");
        assert_code(&lab.start(&bench, &[&SMALL[..], &quick, options].concat()).wait(), 11);
        let reason = reason(&bench);
        assert!(words.iter().all(|word| reason.contains(word)), "{words:?} in {reason}");
    };
    // This kernel lets trains through a bridge whatever the MTU behind it; a message that goes alone is too long.
    suspected(&lab, &TO_COLLECTOR, &["stopped acknowledging", "4096 bytes of the core are missing"]);
    // A router says so by ICMP, but to the guest, which is stopped.
    let lab = Lab::routed();
    lab.narrow_the_far_network(1400);
    let far = ["--tap", "tap0", "--netdump-server", SERVER, "--netdump-client", FAR_CLIENT];
    let options = [&far[..], &["--netdump-gateway", GATEWAY]].concat();
    suspected(&lab, &options, &["stopped acknowledging", "no packet of 1500 bytes", "MTU"]);
}

#[test]
fn a_link_that_needs_a_server_says_who_can_name_one() {
    needs_network!();
    let lab = Lab::bridged();
    let options = ["--tap", "tap0", "--netdump-link", "tap", "--netdump-client", CLIENT];
    assert_fails(&lab, &options, &["needs a server", "--netdump-server", "net.dump.server"]);
    // What the guest named and was refused is in the report, and what the user reads names it.
    let bench = Bench::new("panic");
    let refused = ["--kenv=net.dump.server=10.0.0.9", "--allow-server", "10.9.0.0/16"];
    let vmm = lab.start(&bench, &[&SMALL[..], &options, &refused].concat()).wait();
    assert_code(&vmm, 11);
    assert!(vmm.stderr.contains("--allow-server"), "{}", vmm.stderr);
}

#[test]
fn two_guests_dump_to_one_receiver_at_once() {
    needs_network!();
    let lab = Lab::bridged();
    lab.add_tap("tap1");
    // So slow that neither can be done before the other begins.
    lab.slow_down(40);
    let receiver = lab.serve();
    let guests = [
        ("tap0", "52:54:00:00:00:01", "10.0.0.6", "seed=1"),
        ("tap1", "52:54:00:00:00:02", "10.0.0.7", "seed=2"),
    ];
    let benches = guests.map(|_| Bench::new("panic"));
    let run = |bench: &Bench, (tap, mac, client, seed): (&str, &str, &str, &str)| {
        let way = ["--tap", tap, "--mac", mac, "--netdump-server", SERVER, "--netdump-client", client];
        lab.start(bench, &[&["--memory=64M", "--kenv", "fill=48M", "--kenv", seed], &way[..]].concat())
    };
    let both: Vec<Running> = benches.iter().zip(guests).map(|(bench, guest)| run(bench, guest)).collect();
    for vmm in both {
        assert_code(&vmm.wait(), 10);
    }
    receiver.wait_for_cores(2);
    for (bench, (_, _, client, _)) in benches.iter().zip(guests) {
        check(bench, &receiver.folder.path().join(format!("vmcore.{client}.0")));
    }
    let said = receiver.running.stderr();
    let place = |text: &str| said.find(text).unwrap();
    assert!(said.rfind("dump begins").unwrap() < place("Dump complete"), "both at once:\n{said}");
}

/// A receiver in a mount namespace of its own, storing at `/mnt`, which is made by `mount`; and that folder as the
/// rest of the machine sees it.
fn serve_on(lab: &Lab, mount: &str) -> (Running, std::path::PathBuf) {
    let receiver = program("netdump");
    let script = format!("{mount} && exec {} serve --dir /mnt --listen {SERVER}", arg(&receiver));
    let running = lab.collector.start("unshare", &["--mount", "sh", "-c", &script]);
    let folder = format!("/proc/{}/root/mnt", running.pid());
    (running, folder.into())
}

#[test]
fn a_receiver_whose_disk_is_full_says_so_and_keeps_what_fitted() {
    needs_network!();
    let lab = Lab::bridged();
    let (receiver, folder) = serve_on(&lab, "mount -t tmpfs -o size=2m none /mnt");
    receiver.wait_for_stderr("listening");
    let bench = Bench::new("panic");
    let patience = ["--netdump-polls", "100", "--netdump-retries", "5"];
    let vmm = lab.start(&bench, &[&SMALL[..], &TO_COLLECTOR, &patience].concat()).wait();
    assert_code(&vmm, 11);
    assert!(reason(&bench).contains("stopped acknowledging"), "{}", reason(&bench));
    receiver.wait_for_stderr("No space left on device");
    let names = files(&folder);
    assert!(names.contains(&"vmcore.10.0.0.5.0.incomplete".to_owned()), "{names:?}");
    let info = std::fs::read_to_string(folder.join("info.10.0.0.5.0")).unwrap();
    assert!(info.contains("No space left on device"), "{info}");
    receiver.signal(Signal::SIGTERM);
    assert_code(&receiver.wait(), 0);
}

#[test]
fn a_receiver_does_not_start_on_a_disk_that_it_cannot_write() {
    needs_network!();
    let lab = Lab::bridged();
    let (receiver, _) = serve_on(&lab, "mount -t tmpfs -o ro none /mnt");
    let ended = receiver.wait();
    assert_code(&ended, 1);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("/mnt") && ended.stderr.contains("Read-only file system"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_dump_stored_by_the_vmm_itself_on_a_full_or_read_only_disk_says_so() {
    needs_network!();
    let lab = Lab::bridged();
    for (options, words) in [("size=2m", "No space left on device"), ("ro", "Read-only file system")] {
        let bench = Bench::new("panic");
        let vmm = program("vmm");
        let arguments = bench.arguments(&[&SMALL[..], &["--crash-dir", "/mnt"]].concat()).join(" ");
        // The bench's own folder for cores is not used: the last option wins.
        let arguments = arguments.replacen(&format!("--crash-dir {}", arg(&bench.crash_dir())), "", 1);
        let script = format!("mount -t tmpfs -o {options} none /mnt && exec {} {arguments}", arg(&vmm));
        let ended = lab.host.start("unshare", &["--mount", "sh", "-c", &script]).wait();
        assert_code(&ended, 11);
        let said = format!("{}\n{}", reason(&bench), ended.stderr);
        assert!(said.contains(words) && said.contains("/mnt"), "{said}");
        assert!(ended.took < Duration::from_secs(4), "{:?}", ended.took);
    }
}

#[test]
fn a_failed_dump_can_be_followed_by_the_guests_reset() {
    needs_network!();
    let lab = Lab::bridged();
    let bench = Bench::new("panic");
    let vmm = lab.start(&bench, &[&SMALL[..], &TO_COLLECTOR, &IMPATIENT, &["--on-panic", "reset"]].concat());
    vmm.wait_for_stderr("no netdump server answers");
    // The receiver comes up late; the next panic finds it.
    let receiver = lab.serve();
    let core = receiver.wait_for_cores(1).remove(0);
    until("the report of the dump", || {
        let report = bench.report_path();
        harness::programs::run(program("netdump"), &["verify", arg(&core), "--report", arg(&report)]).code
            == Some(0)
    });
    bench.check_memory(&core);
    vmm.signal(Signal::SIGTERM);
    vmm.wait();
}
