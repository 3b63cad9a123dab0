//! Bytes that claim to be a message, an ack, a frame: what is taken apart is what is put together again, and a path that
//! a HERALD asks for never leads out of the directory that it is for.

#![no_main]

use std::path::Component;

use libfuzzer_sys::fuzz_target;
use netdump::client::check_path;
use netdump::receiver::path::{DumpPath, PathRefusal};
use netdump::wire::arp::{ArpPacket, PACKET_LEN};
use netdump::wire::ethernet::{EthernetHeader, HEADER_LEN};
use netdump::wire::message::{MAX_PATH, MAX_PAYLOAD};
use netdump::wire::{Ack, Message, Route};
use netdump_fuzz::repair;

fuzz_target!(|bytes: &[u8]| {
    message(bytes);
    frame(bytes);
    let mut repaired = bytes.to_vec();
    repair(&mut repaired);
    frame(&repaired);
    path(bytes);
});

fn message(bytes: &[u8]) {
    if let Ok(message) = Message::parse(bytes) {
        assert!(message.payload.len() <= MAX_PAYLOAD);
        let mut again = Vec::new();
        message.emit(&mut again);
        assert_eq!(again, bytes);
    }
    if let Ok(ack) = Ack::parse(bytes) {
        assert_eq!(ack.to_bytes(), bytes);
    }
}

fn frame(bytes: &[u8]) {
    let Ok((ethernet, packet)) = EthernetHeader::parse(bytes) else { return };
    assert_eq!(ethernet.to_bytes(), bytes[..HEADER_LEN]);
    if let Ok(arp) = ArpPacket::parse(packet) {
        let mut again = Vec::new();
        arp.emit(&mut again);
        assert_eq!(again, packet[..PACKET_LEN]);
    }
    if let Ok((route, payload)) = Route::parse(bytes) {
        let mut again = Vec::new();
        route.emit(payload, &mut again);
        assert_eq!(Route::parse(&again), Ok((route, payload)));
        assert!(again.len() <= bytes.len(), "padding was taken for payload");
    }
}

fn path(bytes: &[u8]) {
    if let Ok(Some(path)) = DumpPath::from_herald(bytes) {
        assert!(path.as_path().components().all(|part| matches!(part, Component::Normal(_))));
        assert!(path.as_path().as_os_str().len() < bytes.len());
    }
    // What our client lets through, our receiver must not take for an attack.
    if let Ok(text) = str::from_utf8(bytes)
        && check_path(text, MAX_PATH).is_ok()
    {
        let refused = DumpPath::from_herald(&[bytes, b"\0"].concat()).err();
        let known = [None, Some(PathRefusal::ControlCharacter)];
        assert!(known.contains(&refused) || matches!(refused, Some(PathRefusal::LongPart(_))), "{refused:?}");
    }
}
