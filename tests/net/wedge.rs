//! A guest that has used its network and leaves the card's queues in any state: the VMM survives, and the dump is whole.

use harness::guests::Bench;
use harness::netns::Capture;
use harness::pcap::datagram;

use crate::lab::{GUEST_MAC, Lab, SERVER, SMALL};
use crate::needs_network;

/// Every state that `net-wedge` can leave.
const WEDGES: [&str; 14] = [
    "none",
    "loop",
    "wild",
    "ahead",
    "indirect",
    "length",
    "index",
    "direction",
    "overlap",
    "rings",
    "nowhere",
    "reset",
    "messages",
    "bar",
];

/// How many of the guest's own datagrams, its `number`th, were seen.
pub(crate) fn seen(capture: &Capture, number: u32) -> usize {
    let words = ["net-wedge".to_owned(), number.to_string()];
    capture.count(|frame| {
        datagram(frame).is_some_and(|datagram| {
            datagram.to.port() == 9
                && datagram.from_mac == GUEST_MAC
                && String::from_utf8_lossy(datagram.payload).split_whitespace().eq(&words)
        })
    })
}

/// Has `net-wedge` ask for the collector, hear it, and send three datagrams before it leaves its queues in a state.
pub(crate) const USES_NETWORK: [&str; 2] = ["--kenv=wait_rx=1", "--kenv=frames=3"];

fn dump_all(link: &str, transport: &str) {
    let lab = Lab::bridged();
    let receiver = lab.serve();
    for (wedge, host) in WEDGES.into_iter().zip(20..) {
        let capture = lab.collector.capture();
        let bench = Bench::new("net-wedge");
        // An address each: a receiver lets a client wait that begins its next dump within two seconds.
        let own = [format!("--kenv=ip=10.0.0.{host}"), format!("--kenv=wedge={wedge}")];
        let way = ["--tap", "tap0", "--netdump-server", SERVER, "--netdump-link", link, &own[0], &own[1]];
        let options = [&SMALL[..], &USES_NETWORK, &way, &["--virtio", transport]];
        let dump = lab.dump(&receiver, &bench, &options.concat());
        assert_eq!(dump.report["panic"]["source"], "pvpanic", "{wedge}");
        let console = &dump.vmm.stdout;
        let over = if transport == "pci" { "over PCI" } else { "over mmio" };
        assert!(console.contains(over), "{wedge}: {console}");
        assert!(console.contains("received") && !console.contains("received nothing"), "{wedge}: {console}");
        for number in 0..3 {
            assert_eq!(seen(&capture, number), 1, "{wedge}: datagram {number}\n{console}");
        }
        assert_eq!(dump.report["dump"]["bad_pages"], 0, "{wedge}");
    }
}

#[test]
fn a_guest_that_keeps_its_queue_full_loses_no_frame() {
    needs_network!();
    for transport in ["mmio", "pci"] {
        let lab = Lab::bridged();
        let bench = Bench::new("net-flood");
        let options = ["--tap", "tap0", "--no-netdump", "--virtio", transport];
        let before = received(&lab);
        let ended =
            lab.start(&bench, &[&options[..], &["--kenv=frames=3000", "--kenv=bells=50"]].concat()).wait();
        assert!(ended.stdout.contains("flooded"), "{transport}: {}", ended.stdout);
        let came = received(&lab) - before;
        assert!((3000..3100).contains(&came), "{transport}: {came}");
    }
}

/// How many frames the lab's bridge has received.
fn received(lab: &Lab) -> u64 {
    let counters = lab.host.tool("cat", "/proc/net/dev");
    let bridge = counters.lines().find_map(|line| line.trim().strip_prefix("br0:"));
    let packets = bridge.and_then(|counters| counters.split_whitespace().nth(1));
    packets.and_then(|packets| packets.parse().ok()).expect("the bridge is counted")
}

#[test]
fn whatever_state_the_guest_left_its_card_in_the_tap_carries_its_dump() {
    needs_network!();
    dump_all("tap", "mmio");
}

#[test]
fn whatever_state_the_guest_left_its_card_in_the_card_carries_its_dump() {
    needs_network!();
    dump_all("virtio", "mmio");
}

#[test]
fn whatever_state_the_guest_left_its_pci_card_in_the_tap_carries_its_dump() {
    needs_network!();
    dump_all("tap", "pci");
}

#[test]
fn whatever_state_the_guest_left_its_pci_card_in_the_card_carries_its_dump() {
    needs_network!();
    dump_all("virtio", "pci");
}
