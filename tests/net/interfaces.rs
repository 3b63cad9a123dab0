//! Interfaces that will not do: told in one sentence before the guest starts, or in the report when they go bad later.

use std::process::Command;
use std::time::Duration;

use harness::guests::{Bench, assert_code};
use harness::programs::{Ended, program, start_command};

use crate::lab::{CLIENT, IMPATIENT, Lab, SERVER, SMALL, TO_COLLECTOR, reason};
use crate::needs_network;

/// The VMM must refuse with exit code 1 and one line that holds every word, before the guest starts.
#[track_caller]
fn assert_refused(ended: &Ended, words: &[&str]) {
    assert_code(ended, 1);
    let lines: Vec<_> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{}", ended.stderr);
    for word in words {
        assert!(lines[0].contains(word), "no {word:?} in {}", lines[0]);
    }
    assert!(lines[0].starts_with("vmm: ") && ended.stdout.is_empty(), "{}", ended.stdout);
}

fn run(lab: &Lab, options: &[&str]) -> Ended {
    lab.start(&Bench::new("panic"), options).wait()
}

#[test]
fn an_interface_that_is_no_tap_is_refused() {
    needs_network!();
    let lab = Lab::bridged();
    for name in ["up0", "br0", "lo"] {
        let ended = run(&lab, &["--tap", name, "--netdump-server", SERVER]);
        assert_refused(&ended, &[name, "no tap"]);
        let by_name = format!("tap:{name}");
        let options = [&TO_COLLECTOR[..], &["--netdump-link", &by_name]].concat();
        assert_refused(&run(&lab, &options), &[name, "no tap"]);
    }
    let options = [&TO_COLLECTOR[..], &["--netdump-link", "tap:nowhere0"]].concat();
    assert_refused(&run(&lab, &options), &["nowhere0", "there is no such interface"]);
}

#[test]
fn an_interface_that_is_down_is_refused_with_the_command_that_helps() {
    needs_network!();
    let lab = Lab::bridged();
    lab.host.ip("link set tap0 down");
    for link in ["tap", "virtio", "tap:tap0"] {
        let ended = run(&lab, &[&TO_COLLECTOR[..], &["--netdump-link", link]].concat());
        assert_refused(&ended, &["tap0 is down", "ip link set tap0 up"]);
    }
}

#[test]
fn an_interface_too_narrow_for_a_dump_header_is_refused() {
    needs_network!();
    let lab = Lab::bridged();
    lab.host.ip("link set tap0 mtu 563");
    for link in ["tap", "virtio"] {
        let ended = run(&lab, &[&TO_COLLECTOR[..], &["--netdump-link", link]].concat());
        assert_refused(&ended, &["tap0", "MTU", "564"]);
    }
}

#[test]
fn links_that_need_a_card_are_refused_without_one() {
    needs_network!();
    let lab = Lab::bridged();
    for link in ["tap", "virtio"] {
        let options = ["--netdump-server", SERVER, "--netdump-client", CLIENT, "--netdump-link", link];
        assert_refused(&run(&lab, &options), &[&format!("link {link}: "), "no network card", "--tap"]);
    }
}

#[test]
fn a_tap_that_another_vmm_has_is_refused() {
    needs_network!();
    let lab = Lab::bridged();
    lab.add_tap("dump0");
    let hang = Bench::new("hang");
    let other = lab.start(&hang, &[&TO_COLLECTOR[..], &["--netdump-link", "tap:dump0"]].concat());
    other.wait_for_stderr("booting");
    assert_refused(&run(&lab, &TO_COLLECTOR), &["tap0", "in use"]);
    // The tap that the other one keeps for its dump too.
    let link = ["--netdump-server", SERVER, "--netdump-client", CLIENT, "--netdump-link", "tap:dump0"];
    assert_refused(&run(&lab, &link), &["dump0", "in use"]);
}

#[test]
fn a_tap_is_not_made_without_the_right_to() {
    needs_network!();
    let lab = Lab::bridged();
    let bench = Bench::new("panic");
    let without_rights = |tap: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]).arg(program("vmm"));
        command.args(bench.arguments(&["--tap", tap, "--netdump-server", SERVER]));
        lab.host.inside(move || start_command(&mut command)).wait()
    };
    assert_refused(
        &without_rights("new0"),
        &["new0", "does not exist", "CAP_NET_ADMIN", "ip tuntap add new0"],
    );
    lab.host.ip("tuntap add other0 mode tap user 4711");
    lab.host.ip("link set other0 up");
    assert_refused(&without_rights("other0"), &["other0", "another user", "CAP_NET_ADMIN"]);
}

/// Does `harm` to the host's network while the guest runs; the dump must fail with a reason that holds every word.
fn harmed(link: &str, harm: &str, words: &[&str]) {
    let lab = Lab::bridged();
    let _receiver = lab.serve();
    let bench = Bench::new("panic");
    let more = ["--netdump-link", link, "--kenv", "after=500"];
    let vmm = lab.start(&bench, &[&SMALL[..], &TO_COLLECTOR, &IMPATIENT, &more].concat());
    vmm.wait_for_stderr("booting");
    lab.host.ip(harm);
    let vmm = vmm.wait();
    assert_code(&vmm, 11);
    let reason = reason(&bench);
    for word in words {
        assert!(reason.contains(word), "{link}, {harm}: no {word:?} in {reason}");
    }
    assert!(vmm.stderr.contains(&reason), "{}", vmm.stderr);
    assert!(vmm.took < Duration::from_secs(5), "{:?}", vmm.took);
}

#[test]
fn an_interface_that_goes_bad_while_the_guest_runs_is_told_in_the_report() {
    needs_network!();
    for link in ["tap", "virtio"] {
        harmed(link, "link set tap0 down", &["tap0", "down"]);
        harmed(link, "link delete tap0", &["tap0", "removed"]);
        harmed(link, "link set tap0 mtu 500", &["tap0", "MTU", "564"]);
        harmed(link, "link set tap0 nomaster", &[SERVER, "does not answer ARP"]);
    }
}
