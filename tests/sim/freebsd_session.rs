//! Our client held against FreeBSD's own: a capture of one whole dump from a FreeBSD 14 guest to a stock netdumpd, each
//! frame cut to 66 bytes. The client is given the same addresses and the server's real answers, and must send the same
//! frames, but that FreeBSD cuts its messages where its 64 KiB buffer ends and ours does not.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::process::Command;
use std::time::Instant;

use harness::needs::{self, Need};
use netdump::client::{Client, ClientConfig, ClientEvent, CorePlan, DumpPlan, Ending, Packet, Phase};
use netdump::wire::udp::UdpChecksum;
use netdump::wire::{MacAddr, MessageKind, Route, message};
use netdump::{ReadAt, ReadError};

const CAPTURE: &str = "freebsd14-netdump-session.headers.pcap.xz";
const CORE_LEN: u64 = 58_765_312;
const GUEST_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);

const IP_HEADER: Range<usize> = 14..34;
const PORTS: Range<usize> = 34..38;
const UDP_LENGTH: Range<usize> = 38..40;
const UDP_CHECKSUM: Range<usize> = 40..42;
const KIND: usize = 45;
const SEQUENCE: Range<usize> = 46..50;
const OFFSET: Range<usize> = 50..58;
const LENGTH_AND_PADDING: Range<usize> = 58..66;

const VMCORE: u8 = 3;
const KDH: u8 = 4;
const FINISHED: u8 = 2;

/// The core's bytes are not in the capture.
struct Anything;

impl ReadAt for Anything {
    fn length(&self) -> u64 {
        CORE_LEN
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        buf.fill(offset.to_le_bytes()[1]);
        Ok(())
    }
}

struct Session {
    client: Client,
    now: Instant,
}

impl Session {
    fn new() -> Self {
        let now = Instant::now();
        let config = ClientConfig::new(SERVER, GUEST, GUEST_MAC, 1500);
        let core = CorePlan::Known { length: CORE_LEN, header: [0; 512] };
        let plan = DumpPlan { path: None, core, key: None };
        Self { client: Client::new(config, plan, now).expect("a good configuration"), now }
    }

    fn send(&mut self) -> Option<Vec<u8>> {
        let mut packet = Packet::default();
        let sent = self.client.poll_transmit(self.now, &Anything, &mut packet).expect("it can be read");
        sent.map(|_| packet.frame().bytes.to_vec())
    }

    /// Hands over a frame of the server. The capture was made before the host's card had completed the checksums, so
    /// those of UDP are taken as not made.
    fn receive(&mut self, frame: &[u8]) {
        let mut frame = frame.to_vec();
        if is_ip(&frame) {
            frame[UDP_CHECKSUM].fill(0);
        }
        self.client.handle_frame(self.now, &frame).expect("a frame that counts");
    }

    /// Hands over the ack of the server with another number in it.
    fn receive_ack(&mut self, like: &[u8], number: &[u8]) {
        let mut ack = like.to_vec();
        ack[42..46].copy_from_slice(number);
        self.receive(&ack);
    }
}

#[test]
fn our_frames_are_those_of_freebsds_client() {
    let Some(capture) = capture() else { return };
    let frames = frames(&capture);
    // ARP of an earlier attempt goes before; the dump begins with the last request and its answer.
    let herald_at = frames.iter().position(|frame| from_guest(frame) && is_ip(frame)).expect("a HERALD");
    let [request, answer, herald, herald_ack] = frames[herald_at - 2..herald_at + 2] else { unreachable!() };
    let guest: Vec<&[u8]> =
        frames[herald_at + 1..].iter().copied().filter(|frame| from_guest(frame)).collect();
    let server_ack = frames[frames.len() - 1];

    let mut session = Session::new();
    assert_eq!(session.send().unwrap(), request, "the ARP request, to the last bit");
    session.receive(answer);
    assert_eq!(session.send().unwrap(), herald, "the HERALD, to the last bit");
    session.receive(herald_ack);
    let accepted = std::iter::from_fn(|| session.client.poll_event())
        .find_map(|event| if let ClientEvent::Accepted { port } = event { Some(port) } else { None });
    assert_eq!(accepted, Some(42260));

    // FreeBSD's first buffer holds the 4096 bytes of the core's header: two messages are full, as ours are.
    let full = guest[0];
    let mut unacked = Vec::new();
    let mut sent = 0;
    while session.client.phase() == Phase::Data {
        while let Some(frame) = session.send() {
            if sent < 2 {
                assert_eq!(without_checksum(&frame), without_checksum(guest[sent]), "message {sent}");
            } else if frame.len() == 1514 {
                assert_same_but_for_position(&frame, full);
            }
            sent += 1;
            unacked.push(frame);
        }
        for frame in unacked.drain(..) {
            session.receive_ack(server_ack, &frame[SEQUENCE]);
        }
    }
    assert_eq!(sent as u64, CORE_LEN.div_ceil(1448));

    // The order at the end, and the last two messages but for their numbers.
    let kinds: Vec<u8> = guest.iter().filter(|frame| is_ip(frame)).map(|frame| frame[KIND]).collect();
    assert!(kinds[..kinds.len() - 2].iter().all(|kind| *kind == VMCORE));
    assert_eq!(kinds[kinds.len() - 2..], [KDH, FINISHED]);
    for theirs in &guest[guest.len() - 2..] {
        let frame = session.send().expect("a message");
        assert_same_but_for_position(&frame, theirs);
        assert_eq!(frame[OFFSET], theirs[OFFSET]);
        session.receive_ack(server_ack, &frame[SEQUENCE]);
    }
    let ending = std::iter::from_fn(|| session.client.poll_event()).last();
    assert!(matches!(ending, Some(ClientEvent::Closed(Ending::Complete))));
}

#[test]
fn every_header_of_freebsds_client_is_what_we_would_write() {
    let Some(capture) = capture() else { return };
    let mut messages = 0;
    for theirs in frames(&capture).into_iter().filter(|frame| from_guest(frame) && is_ip(frame)) {
        let number =
            |range: Range<usize>| theirs[range].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let number32 = |range| u32::try_from(number(range)).unwrap();
        let kind = match theirs[KIND] {
            1 => MessageKind::Herald,
            FINISHED => MessageKind::Finished,
            VMCORE => MessageKind::Vmcore,
            KDH => MessageKind::Kdh,
            other => panic!("kind {other}"),
        };
        let payload_len = usize::try_from(number(58..62)).unwrap();
        let route = Route {
            source_mac: GUEST_MAC,
            destination_mac: MacAddr(*theirs.first_chunk().unwrap()),
            source: SocketAddrV4::new(GUEST, 20024),
            destination: SocketAddrV4::new(SERVER, u16::try_from(number(36..38)).unwrap()),
        };
        let header = message::header(kind, number32(SEQUENCE), number(OFFSET), payload_len, 0);
        let ours = [route.headers(24 + payload_len, UdpChecksum::Partial).as_slice(), &header].concat();
        assert_eq!(without_checksum(&ours), without_checksum(theirs));
        messages += 1;
    }
    assert_eq!(messages, 41_250);
}

#[test]
fn a_real_servers_arp_request_is_answered_as_freebsd_does() {
    let Some(capture) = capture() else { return };
    let frames = frames(&capture);
    let is_request = |frame: &[u8]| frame[12..14] == [8, 6] && frame[21] == 1 && !from_guest(frame);
    let at = frames.iter().position(|frame| is_request(frame)).expect("a request of the server");
    let mut session = Session::new();
    session.receive(frames[at]);
    assert_eq!(session.send().unwrap(), frames[at + 1]);
}

/// Addresses, all of the IPv4 header (id, flags, TTL, checksum and all), ports, lengths, kind and padding.
fn assert_same_but_for_position(ours: &[u8], theirs: &[u8]) {
    assert_eq!(ours[..14], theirs[..14], "Ethernet");
    assert_eq!(ours[IP_HEADER], theirs[IP_HEADER], "IPv4");
    assert_eq!((&ours[PORTS], &ours[UDP_LENGTH]), (&theirs[PORTS], &theirs[UDP_LENGTH]), "UDP");
    assert_eq!(ours[42..SEQUENCE.start], theirs[42..SEQUENCE.start], "kind");
    assert_eq!(ours[LENGTH_AND_PADDING], theirs[LENGTH_AND_PADDING], "payload length and padding");
}

/// The part of a frame that was captured, but for the checksum over what was not.
fn without_checksum(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame[..66].to_vec();
    frame[UDP_CHECKSUM].fill(0);
    frame
}

fn from_guest(frame: &[u8]) -> bool {
    frame[6..12] == GUEST_MAC.0
}

fn is_ip(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0]
}

/// The frames of a little-endian pcap file.
fn frames(pcap: &[u8]) -> Vec<&[u8]> {
    let mut rest = &pcap[24..];
    let mut frames = Vec::new();
    while let Some((record, behind)) = rest.split_first_chunk::<16>() {
        let captured = u32::from_le_bytes([record[8], record[9], record[10], record[11]]);
        let (frame, behind) = behind.split_at(usize::try_from(captured).expect("66 at most"));
        frames.push(frame);
        rest = behind;
    }
    frames
}

fn capture() -> Option<Vec<u8>> {
    if !(Need::Fixtures.or_skip() && Need::Xz.or_skip()) {
        return None;
    }
    let path = needs::fixtures()?.join(CAPTURE);
    let output = Command::new("xz").arg("-dc").arg(&path).output().expect("xz can be run");
    assert!(output.status.success(), "xz does not unpack {}", path.display());
    Some(output.stdout)
}
