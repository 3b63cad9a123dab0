//! A guest that has used its network and leaves the card's queues in any state: the VMM survives, and the dump is whole.

use harness::guests::Bench;
use harness::netns::Capture;
use harness::pcap::datagram;

use crate::lab::{GUEST_MAC, Lab, SMALL, TO_COLLECTOR};
use crate::needs_network;

/// Every state that `net-wedge` can leave.
const WEDGES: [&str; 11] = [
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
    "reset",
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

/// A guest that asks for the collector, hears it, sends three datagrams, and then leaves its queues so.
pub(crate) const USES_NETWORK: [&str; 3] = ["--kenv=ip=10.0.0.5", "--kenv=wait_rx=1", "--kenv=frames=3"];

fn dump_all(link: &str) {
    let lab = Lab::bridged();
    let receiver = lab.serve();
    for wedge in WEDGES {
        let capture = lab.collector.capture();
        let bench = Bench::new("net-wedge");
        let wedge_option = format!("--kenv=wedge={wedge}");
        let options = [&SMALL[..], &TO_COLLECTOR, &USES_NETWORK, &["--netdump-link", link, &wedge_option]];
        let dump = lab.dump(&receiver, &bench, &options.concat());
        assert_eq!(dump.report["panic"]["source"], "pvpanic", "{wedge}");
        let console = &dump.vmm.stdout;
        assert!(console.contains("received") && !console.contains("received nothing"), "{wedge}: {console}");
        for number in 0..3 {
            assert_eq!(seen(&capture, number), 1, "{wedge}: datagram {number}\n{console}");
        }
        assert_eq!(dump.report["dump"]["bad_pages"], 0, "{wedge}");
    }
}

#[test]
fn whatever_state_the_guest_left_its_card_in_the_tap_carries_its_dump() {
    needs_network!();
    dump_all("tap");
}

#[test]
fn whatever_state_the_guest_left_its_card_in_the_card_carries_its_dump() {
    needs_network!();
    dump_all("virtio");
}
