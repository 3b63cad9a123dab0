//! A file that claims to be a capture: the harness's reader takes its records apart without a loss, reads them again as
//! the recorder writes them, and agrees with the product, with which it shares no code, on every frame.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use netdump::link::pcap::PcapFile;
use netdump::wire::arp::{ArpOperation, ArpPacket};
use netdump::wire::ethernet::{EtherType, EthernetHeader};
use netdump::wire::{Ack, Message, Route};
use netdump_fuzz::{pcap, repair};

fuzz_target!(|bytes: &[u8]| {
    let Ok(frames) = pcap::frames(bytes) else { return };
    assert_eq!(24 + frames.iter().map(|frame| 16 + frame.len()).sum::<usize>(), bytes.len());
    assert_eq!(pcap::frames(&recorded(&frames)).expect("just recorded"), frames);
    for frame in frames {
        arp(frame);
        datagram(frame);
        let mut repaired = frame.to_vec();
        repair(&mut repaired);
        datagram(&repaired);
    }
});

fn recorded(frames: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = PcapFile::new(&mut bytes).expect("memory takes it");
    for (second, frame) in (0..).zip(frames) {
        file.record(Duration::from_secs(second), frame).expect("memory takes it");
    }
    file.flush().expect("memory takes it");
    drop(file);
    bytes
}

fn arp(frame: &[u8]) {
    let ours = EthernetHeader::parse(frame)
        .ok()
        .filter(|(header, _)| header.ethertype == EtherType::ARP)
        .and_then(|(_, packet)| ArpPacket::parse(packet).ok());
    // The harness leaves it to its callers which operations there are.
    let theirs = pcap::arp(frame).filter(|arp| [1, 2].contains(&arp.operation));
    let ours = ours.map(|arp| pcap::Arp {
        operation: if arp.operation == ArpOperation::Request { 1 } else { 2 },
        sender_mac: arp.sender_mac.0,
        sender: arp.sender_ip,
        target: arp.target_ip,
    });
    assert_eq!(ours, theirs);
}

fn datagram(frame: &[u8]) {
    let theirs = pcap::datagram(frame);
    let ours = Route::parse(frame).ok();
    // Who writes no checksum (0) is believed by the product, and fragments are left to the harness's callers.
    let sound = theirs.filter(|datagram| {
        let is_summed = datagram.udp_sum || frame[40..42] == [0, 0];
        datagram.ip_sum && is_summed && datagram.flags & 0x3fff == 0
    });
    // Bytes between the ends of UDP and IPv4 are nothing to the product; the harness does not take such a packet.
    let Some((route, payload)) = ours.filter(|(_, payload)| is_exact(frame, payload)) else {
        assert!(sound.is_none(), "the product refuses {sound:?}");
        return;
    };
    let datagram = sound.expect("the product takes it");
    assert_eq!((datagram.to_mac, datagram.from_mac), (route.destination_mac.0, route.source_mac.0));
    assert_eq!((datagram.from, datagram.to), (route.source, route.destination));
    assert_eq!(datagram.payload, payload);
    message(payload);
}

fn is_exact(frame: &[u8], payload: &[u8]) -> bool {
    usize::from(u16::from_be_bytes([frame[16], frame[17]])) == 28 + payload.len()
}

fn message(payload: &[u8]) {
    assert_eq!(pcap::ack(payload), Ack::parse(payload).ok().map(|ack| ack.0));
    let Ok(ours) = Message::parse(payload) else { return };
    if ours.aux == 0 {
        let theirs = pcap::message(payload).expect("the product takes it");
        assert_eq!(
            (theirs.kind, theirs.sequence, theirs.offset, theirs.payload),
            (ours.kind as u32, ours.sequence, ours.offset, ours.payload)
        );
    }
}
