//! Whose address is whose: learned from the guest, kept alive during the dump, claimed by others.

use harness::guests::{Bench, assert_code};
use harness::netns::{Namespace, until};
use harness::pcap::{arp, datagram, kind, message};

use crate::lab::{CLIENT, GUEST_MAC, Lab, SERVER, SMALL, TO_COLLECTOR, check, reason};
use crate::needs_network;

/// A guest whose dump is long enough for a test to act in the middle of it: about 17 MB, at 8 MB/s.
const LONG: [&str; 3] = ["--memory=32M", "--kenv", "fill=16M"];
const SLOW: u32 = 8;

#[test]
fn the_guests_address_is_learned_from_what_it_sends() {
    needs_network!();
    let lab = Lab::bridged();
    let receiver = lab.serve();
    // By ARP, and by a datagram that is not from the address of its ARP.
    for address in ["10.0.0.5", "10.0.0.77"] {
        let bench = Bench::new("net-wedge");
        let ip = format!("--kenv=ip={address}");
        let way = ["--tap", "tap0", "--netdump-server", SERVER, &ip];
        let dump = lab.dump(&receiver, &bench, &[&SMALL[..], &way].concat());
        assert_eq!(dump.report["target"]["client"], address);
        assert!(dump.core.to_str().unwrap().contains(address));
    }
}

#[test]
fn a_guest_without_an_address_is_told_of_with_option_and_variable() {
    needs_network!();
    let lab = Lab::bridged();
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    let vmm = lab.start(&bench, &[&SMALL[..], &["--tap", "tap0", "--netdump-server", SERVER]].concat());
    let vmm = vmm.wait();
    assert_code(&vmm, 11);
    for text in [&reason(&bench), &vmm.stderr] {
        assert!(text.contains("--netdump-client") && text.contains("net.dump.client"), "{text}");
    }
    assert!(receiver.cores().is_empty());
    assert_eq!(bench.report()["dump"]["bytes_sent"], 0);
}

#[test]
fn a_collector_that_forgot_the_guest_finds_it_again_during_the_dump() {
    needs_network!();
    for link in ["tap", "virtio"] {
        let lab = Lab::bridged();
        lab.slow_down(SLOW);
        let receiver = lab.serve();
        let bench = Bench::new("panic");
        let capture = lab.collector.capture();
        let vmm = lab.start(&bench, &[&LONG[..], &TO_COLLECTOR, &["--netdump-link", link]].concat());
        receiver.wait_for_dump();
        let answers = || {
            capture.count(|frame| {
                arp(frame).is_some_and(|arp| arp.operation == 2 && arp.sender.to_string() == CLIENT)
            })
        };
        for forgotten in 1..=3 {
            lab.collector.ip("neighbour flush dev eth0");
            until("an ARP answer for the guest", || answers() >= forgotten);
        }
        assert!(receiver.cores().is_empty(), "{link}: all that was during the dump");
        assert_code(&vmm.wait(), 10);
        check(&bench, &receiver.wait_for_cores(1)[0]);
        let asked = capture.finish();
        let answer = asked.iter().filter_map(|frame| arp(frame)).find(|arp| arp.sender.to_string() == CLIENT);
        assert_eq!(answer.unwrap().sender_mac, GUEST_MAC);
    }
}

#[test]
fn another_host_with_the_guests_address_is_noticed_and_does_not_get_the_acks() {
    needs_network!();
    let lab = Lab::bridged();
    lab.slow_down(SLOW);
    let other = Namespace::new();
    lab.host.cable("up1", &other, "eth0");
    lab.host.ip("link set up1 master br0");
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    let vmm = lab.start(&bench, &[&LONG[..], &TO_COLLECTOR].concat());
    receiver.wait_for_dump();
    other.ip("address add 10.0.0.5/24 dev eth0");
    // It asks for the collector from the guest's address, and the collector believes it.
    other.inside(|| {
        let socket = std::net::UdpSocket::bind("10.0.0.5:0").unwrap();
        socket.send_to(b"hello", (SERVER, 9)).unwrap();
    });
    let vmm = vmm.wait();
    assert_code(&vmm, 10);
    check(&bench, &receiver.wait_for_cores(1)[0]);
    assert!(vmm.stderr.contains("another host uses the guest's address"), "{}", vmm.stderr);
    let ignored = bench.report()["dump"]["ignored"].to_string();
    assert!(ignored.contains("address"), "{ignored}");
}

#[test]
fn what_is_for_others_on_the_network_does_not_disturb_a_dump() {
    needs_network!();
    let lab = Lab::bridged();
    lab.slow_down(SLOW);
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    let capture = lab.collector.capture();
    let vmm = lab.start(&bench, &[&LONG[..], &TO_COLLECTOR].concat());
    // From here on the client knows the server's port, and what comes from another is no ack.
    capture.wait_for("data", |frame| {
        message(datagram(frame)?.payload).filter(|message| message.kind == kind::VMCORE).map(drop)
    });
    // Broadcasts, and datagrams for the guest from the server's address.
    lab.collector.inside(|| {
        let socket = std::net::UdpSocket::bind((SERVER, 0)).unwrap();
        socket.set_broadcast(true).unwrap();
        for number in 0_u32..2000 {
            socket.send_to(&number.to_be_bytes(), ("10.0.0.255", 20024)).unwrap();
            socket.send_to(&number.to_be_bytes(), (CLIENT, 20024)).unwrap();
            socket.send_to(b"no ack at all", (CLIENT, 20024)).unwrap();
            socket.send_to(&[], (CLIENT, 20024)).unwrap();
        }
    });
    assert_code(&vmm.wait(), 10);
    check(&bench, &receiver.wait_for_cores(1)[0]);
    let frames = capture.finish();
    let noise =
        frames.iter().filter_map(|frame| datagram(frame)).filter(|datagram| datagram.payload.is_empty());
    assert_eq!(noise.count(), 2000);
    let ignored = bench.report()["dump"]["ignored"].to_string();
    assert!(ignored.contains("port"), "{ignored}");
}
