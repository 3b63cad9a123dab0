//! Every link, at every MTU that matters.

use harness::guests::Bench;

use crate::lab::{CLIENT, Dump, Lab, SERVER, SMALL, TO_COLLECTOR};
use crate::needs_network;

/// Dumps a guest; the messages must be as long as the MTU lets them be.
fn dump_at(lab: &Lab, mtu: u32, options: &[&str]) -> Dump {
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    let dump = lab.dump(&receiver, &bench, &[&SMALL, options].concat());
    assert_long_messages(&dump, mtu);
    dump
}

/// IPv4 takes 20 bytes of the MTU, UDP 8, netdump 24; no message carries more than a page.
#[track_caller]
pub(crate) fn assert_long_messages(dump: &Dump, mtu: u32) {
    let number = |name: &str| dump.report["dump"][name].as_u64().unwrap();
    let (sent, messages) = (number("bytes_sent"), number("messages"));
    let fewest = sent.div_ceil(u64::from(mtu - 52).min(4096));
    assert!(
        (fewest..fewest + fewest / 20 + 100).contains(&messages),
        "{sent} bytes at an MTU of {mtu} need about {fewest} messages, not {messages}"
    );
}

#[test]
fn the_guests_tap_is_the_usual_link_to_a_server() {
    needs_network!();
    let lab = Lab::bridged();
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    let dump = lab.dump(&receiver, &bench, &TO_COLLECTOR);
    assert_eq!(dump.report["target"]["link"], "tap");
    assert_eq!(dump.report["target"]["client"], CLIENT);
    assert!(dump.core.ends_with("vmcore.10.0.0.5.0"), "{}", dump.core.display());
    assert!(dump.vmm.stderr.contains("10.0.0.9:20023"), "{}", dump.vmm.stderr);
    let info = std::fs::read_to_string(receiver.folder.path().join("info.10.0.0.5.0")).unwrap();
    assert!(info.contains("Dump complete") && info.contains("the guest was told to panic"), "{info}");
    let ended = receiver.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn taps_carry_messages_of_every_size() {
    needs_network!();
    for mtu in [564, 600, 1500, 9000] {
        dump_at(&Lab::bridged_with_mtu(mtu), mtu, &TO_COLLECTOR);
    }
}

#[test]
fn the_guests_card_carries_messages_of_every_size() {
    needs_network!();
    for mtu in [564, 600, 1500, 9000] {
        let options = [&TO_COLLECTOR[..], &["--netdump-link", "virtio"]].concat();
        let dump = dump_at(&Lab::bridged_with_mtu(mtu), mtu, &options);
        assert_eq!(dump.report["target"]["link"], "virtio");
    }
}

#[test]
fn the_hosts_own_sockets_carry_messages_of_every_size() {
    needs_network!();
    for mtu in [600, 1500, 9000] {
        let lab = Lab::bridged_with_mtu(mtu);
        lab.host.ip("address add 10.0.0.4/24 dev br0");
        // Without a tap it is the usual link.
        let dump = dump_at(&lab, mtu, &["--netdump-server", SERVER]);
        assert_eq!(dump.report["target"]["link"], "udp");
        assert!(dump.core.ends_with("vmcore.10.0.0.4.0"), "the host's address: {}", dump.core.display());
    }
}

#[test]
fn a_tap_of_its_own_can_carry_the_dumps_of_a_guest() {
    needs_network!();
    let lab = Lab::bridged();
    lab.add_tap("dump0");
    // The guest's own network leads nowhere.
    lab.host.ip("link set tap0 nomaster");
    let options = [&TO_COLLECTOR[..], &["--netdump-link", "tap:dump0"]].concat();
    let dump = dump_at(&lab, 1500, &options);
    assert_eq!(dump.report["target"]["link"], "tap:dump0");
    // Nor does the guest need a network at all.
    dump_at(
        &lab,
        1500,
        &["--netdump-server", SERVER, "--netdump-client", CLIENT, "--netdump-link", "tap:dump0"],
    );
    // Its own tap may be named too.
    lab.host.ip("link set tap0 master br0");
    dump_at(&lab, 1500, &[&TO_COLLECTOR[..], &["--netdump-link", "tap:tap0"]].concat());
}

#[test]
fn a_tap_that_is_absent_is_made_and_is_gone_afterwards() {
    needs_network!();
    let lab = Lab::bridged();
    lab.host.ip("link delete tap0");
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    // Somebody puts it on the bridge while the guest runs.
    let options = [&TO_COLLECTOR[..], &["--kenv", "after=700"]].concat();
    let vmm = lab.start(&bench, &options);
    vmm.wait_for_stderr("booting");
    lab.host.ip("link set tap0 master br0");
    harness::guests::assert_code(&vmm.wait(), 10);
    crate::lab::check(&bench, &receiver.wait_for_cores(1)[0]);
    assert!(!lab.host.tool("ip", "-brief link").contains("tap0"));
}

#[test]
fn an_mtu_that_changed_since_the_start_counts() {
    needs_network!();
    for (link, mtu) in [("tap", 9000), ("virtio", 9000), ("tap", 700), ("virtio", 700)] {
        let lab = Lab::bridged();
        let receiver = lab.serve();
        let bench = Bench::new("panic");
        let options = [&SMALL[..], &TO_COLLECTOR, &["--netdump-link", link, "--kenv", "after=600"]].concat();
        let vmm = lab.start(&bench, &options);
        vmm.wait_for_stderr("booting");
        lab.collector.ip(&format!("link set eth0 mtu {mtu}"));
        for interface in ["up0", "tap0", "br0"] {
            lab.host.ip(&format!("link set {interface} mtu {mtu}"));
        }
        let vmm = vmm.wait();
        harness::guests::assert_code(&vmm, 10);
        let core = receiver.wait_for_cores(1).remove(0);
        crate::lab::check(&bench, &core);
        assert_long_messages(&Dump { vmm, core, report: bench.report() }, mtu);
    }
}
