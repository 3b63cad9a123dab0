//! A whole netdump of FreeBSD's own client, as captured, through the receiver. The capture's frames are cut behind the
//! message header: payloads are zeros of the length that the header announces.
//!
//! The capture is found in `$NETDUMP_FIXTURES`, or beside the workspace in `../shared/fixtures`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use netdump::receiver::{Endpoint, MemoryStore, Receiver, ReceiverConfig, ReceiverEvent, SessionId};
use netdump::vmcore::KernelDumpHeader;

const CAPTURE: &str = "freebsd14-netdump-session.headers.pcap.xz";
const CORE_LEN: u64 = 58_765_312;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);
/// Bytes before the UDP payload, and with the message header.
const UDP_PAYLOAD: usize = 42;
const CUT: usize = 66;

#[test]
fn freebsd_session_ends_whole_and_every_message_is_acknowledged_once() {
    let Some(pcap) = capture() else { return };
    let start = Instant::now();
    let mut receiver = Receiver::new(ReceiverConfig::default(), MemoryStore::with_limit(1 << 30));
    let (mut session, mut stored, mut recorded, mut sent) = (None::<SessionId>, None, Vec::new(), Vec::new());
    let mut train = Vec::new();
    for (micros, frame) in frames(&pcap) {
        let now = start + Duration::from_micros(micros);
        let Some(Udp { source, destination, payload }) = udp(frame) else { continue };
        if *source.ip() == SERVER {
            recorded.push(be32(payload));
            continue;
        }
        let to = match session {
            Some(session) if destination.port() != 20023 => Endpoint::Session(session),
            _ => Endpoint::Herald { local: *destination.ip() },
        };
        receiver.handle_datagram(now, to, source, &whole(payload)).unwrap();
        while let Some(event) = receiver.poll_event() {
            match event {
                ReceiverEvent::Opened { session: id, .. } => session = Some(id),
                ReceiverEvent::Ended { ending, summary, stored: core, .. } => {
                    stored = Some((ending, summary, core.unwrap()));
                }
                _ => {}
            }
        }
        while let Some(reply) = receiver.poll_transmit(&mut train) {
            assert_eq!(reply.to, source);
            sent.extend(train.chunks(4).map(be32));
        }
    }
    let (ending, summary, dump) = stored.expect("the dump ended");
    assert!(ending.is_complete());
    assert_eq!((summary.bytes, summary.length, summary.gaps.count), (CORE_LEN, CORE_LEN, 0));
    assert_eq!(dump.core.len() as u64, CORE_LEN);
    assert_eq!((summary.messages, summary.repeated), (41_248, 0));
    assert!(sent.iter().copied().eq(1..=41_250), "{} acks", sent.len());
    // The capture lacks a few acks; the client repeated nothing, so they did arrive.
    assert!(recorded.len() > 41_000 && recorded.iter().all(|ack| (1..=41_250).contains(ack)));
}

struct Udp<'a> {
    source: SocketAddrV4,
    destination: SocketAddrV4,
    payload: &'a [u8],
}

fn udp(frame: &[u8]) -> Option<Udp<'_>> {
    let is_udp = frame.len() > UDP_PAYLOAD && frame[12..14] == [8, 0] && frame[14] == 0x45 && frame[23] == 17;
    let address = |at: usize| Ipv4Addr::from(be32(&frame[at..]));
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    is_udp.then(|| Udp {
        source: SocketAddrV4::new(address(26), port(34)),
        destination: SocketAddrV4::new(address(30), port(36)),
        payload: &frame[UDP_PAYLOAD..frame.len().min(CUT)],
    })
}

fn be32(bytes: &[u8]) -> u32 {
    bytes[..4].iter().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

/// The message with a payload of zeros; a KDH gets a header that says what the capture's said.
fn whole(header: &[u8]) -> Vec<u8> {
    let len = be32(&header[16..]);
    let mut message = header.to_vec();
    message.resize(header.len() + len as usize, 0);
    if header[3] == 4 {
        let kdh = KernelDumpHeader { dump_length: CORE_LEN, ..Default::default() }.to_bytes();
        message[header.len()..].copy_from_slice(&kdh);
    }
    message
}

/// Frames of a little-endian pcap file with microseconds since its first one.
fn frames(pcap: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    assert_eq!(pcap[..4], [0xd4, 0xc3, 0xb2, 0xa1], "a pcap file with microseconds");
    let mut rest = &pcap[24..];
    let mut first = None;
    std::iter::from_fn(move || {
        let (record, behind) = rest.split_at_checked(16)?;
        let field = |at: usize| be32(&record[at..]).swap_bytes();
        let (frame, behind) = behind.split_at_checked(field(8) as usize)?;
        rest = behind;
        let micros = u64::from(field(0)) * 1_000_000 + u64::from(field(4));
        Some((micros - *first.get_or_insert(micros), frame))
    })
}

fn capture() -> Option<Vec<u8>> {
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures"));
    let path = std::env::var_os("NETDUMP_FIXTURES").map_or_else(beside, PathBuf::from).join(CAPTURE);
    if !path.exists() {
        println!("SKIPPED fixtures: no {CAPTURE}; set NETDUMP_FIXTURES to its directory");
        return None;
    }
    match Command::new("xz").arg("-dc").arg(&path).output() {
        Ok(output) if output.status.success() => Some(output.stdout),
        _ => {
            println!("SKIPPED xz: {CAPTURE} needs it to be unpacked");
            None
        }
    }
}
