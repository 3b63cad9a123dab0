//! The client against a peer that says exactly what a test lets it say.

mod choices;
mod growing;
mod path;
mod resume;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::link::{Frame, GuestPiece, Offloads};
use crate::report::Outcome;
use crate::wire::arp::ArpOperation;
use crate::wire::checksum::Checksum;
use crate::wire::datagram::HEADERS_LEN;
use crate::wire::ethernet::{EtherType, EthernetHeader};
use crate::wire::{Ack, MacAddr, Message, Route};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 66);
const OUR_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
const THEIR_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 9]);
const PORT: u16 = 42260;
/// Bytes of the core that a growing one may grow to.
const GROWN: usize = 200_000;
const SECOND: Duration = Duration::from_secs(1);

/// A message as it was on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: MessageKind,
    sequence: u32,
    offset: u64,
    payload: Vec<u8>,
    to: u16,
}

struct Bench {
    client: Client,
    image: Vec<u8>,
    now: Instant,
}

fn config() -> ClientConfig {
    ClientConfig::new(SERVER, CLIENT, OUR_MAC, 1500)
}

fn plan(length: usize) -> DumpPlan {
    let core = CorePlan::Known { length: length as u64, header: [0x4b; KDH_LEN] };
    DumpPlan { path: Some("vm1".into()), core, key: None }
}

fn image(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

/// Asserts that a frame asks for the server's hardware address; `false`, for it is no message.
fn assert_is_question(frame: &[u8]) -> bool {
    let question = ArpPacket::parse(&frame[14..]).unwrap();
    assert_eq!((question.operation, question.target_ip), (ArpOperation::Request, SERVER));
    assert_eq!((question.sender_mac, question.sender_ip), (OUR_MAC, CLIENT));
    false
}

impl Bench {
    fn new(config: ClientConfig, plan: DumpPlan) -> Self {
        let now = Instant::now();
        let image = image(match plan.core {
            CorePlan::Known { length, .. } => usize::try_from(length).unwrap(),
            CorePlan::Growing => GROWN,
        });
        Self { client: Client::new(config, plan, now).unwrap(), image, now }
    }

    /// With the server resolved and the HERALD acknowledged.
    fn accepted(config: ClientConfig, plan: DumpPlan) -> Self {
        let mut bench = Self::new(config, plan);
        bench.frames();
        bench.arp(ArpOperation::Reply, THEIR_MAC, SERVER).unwrap();
        assert_eq!(bench.messages().len(), 1);
        bench.ack(1).unwrap();
        bench
    }

    fn frames(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut packet = Packet::default();
        while self.client.poll_transmit(self.now, self.image.as_slice(), &mut packet).unwrap().is_some() {
            assert!(packet.frame().is_plain());
            frames.push(packet.frame().bytes.to_vec());
        }
        frames
    }

    fn messages(&mut self) -> Vec<Seen> {
        let mut frames = self.frames();
        // Of a server that is silent its hardware address is asked for again.
        frames.retain(|frame| frame.get(12..14) != Some(&[8, 6]) || assert_is_question(frame));
        let seen = |frame: &Vec<u8>| {
            let (route, payload) = Route::parse(frame).unwrap();
            assert_eq!((route.source_mac, route.destination_mac), (OUR_MAC, THEIR_MAC));
            assert_eq!(route.source, SocketAddrV4::new(CLIENT, 20024));
            assert_eq!(*route.destination.ip(), SERVER);
            let message = Message::parse(payload).unwrap();
            let aux = if message.kind == MessageKind::Herald { self.client.config.dump_id } else { 0 };
            assert_eq!(message.aux, aux);
            Seen {
                kind: message.kind,
                sequence: message.sequence,
                offset: message.offset,
                payload: message.payload.to_vec(),
                to: route.destination.port(),
            }
        };
        frames.iter().map(seen).collect()
    }

    fn ack_from(&mut self, source: SocketAddrV4, sequence: u32) -> Result<(), Ignored> {
        let route = Route {
            source_mac: THEIR_MAC,
            destination_mac: OUR_MAC,
            source,
            destination: SocketAddrV4::new(CLIENT, 20024),
        };
        let mut frame = Vec::new();
        route.emit(&Ack(sequence).to_bytes(), &mut frame);
        self.client.handle_frame(self.now, &frame)
    }

    fn ack(&mut self, sequence: u32) -> Result<(), Ignored> {
        self.ack_from(SocketAddrV4::new(SERVER, PORT), sequence)
    }

    fn arp(
        &mut self,
        operation: ArpOperation,
        sender_mac: MacAddr,
        sender_ip: Ipv4Addr,
    ) -> Result<(), Ignored> {
        let packet = ArpPacket { operation, sender_mac, sender_ip, target_mac: OUR_MAC, target_ip: CLIENT };
        let ethernet = EthernetHeader { destination: OUR_MAC, source: sender_mac, ethertype: EtherType::ARP };
        let mut frame = ethernet.to_bytes().to_vec();
        packet.emit(&mut frame);
        self.client.handle_frame(self.now, &frame)
    }

    /// Acknowledges everything as it comes, until the end.
    fn finish(&mut self) -> Vec<Seen> {
        self.finish_at(PORT)
    }

    fn finish_at(&mut self, port: u16) -> Vec<Seen> {
        let mut all = Vec::new();
        loop {
            let messages = self.messages();
            if messages.is_empty() {
                return all;
            }
            for message in &messages {
                self.ack_from(SocketAddrV4::new(SERVER, port), message.sequence).unwrap();
            }
            all.extend(messages);
        }
    }

    /// Lets time pass with a silent peer, until the end. Gives what was sent meanwhile, with the time since the start.
    fn silence(&mut self) -> Vec<(Duration, Seen)> {
        let start = self.now;
        let mut sent = Vec::new();
        while let Some(at) = self.client.poll_timeout() {
            assert!(at > self.now, "a drained client has nothing to do now");
            self.now = at;
            self.client.handle_timeout(at);
            sent.extend(self.messages().into_iter().map(|seen| (at - start, seen)));
        }
        sent
    }

    fn ending(&mut self) -> Option<Ending> {
        std::iter::from_fn(|| self.client.poll_event()).find_map(|event| match event {
            ClientEvent::Closed(ending) => Some(ending),
            _ => None,
        })
    }

    fn outcome_and_reason(&mut self) -> (Outcome, String) {
        let ending = self.ending().unwrap();
        (ending.outcome(), ending.reason().map_or_else(String::new, ToString::to_string))
    }
}

#[test]
fn a_dump_goes_through_its_phases_in_order() {
    let mut bench = Bench::new(config(), plan(4000));
    let arp = bench.frames();
    assert_eq!(arp.len(), 1);
    assert_eq!(arp[0][..6], MacAddr::BROADCAST.0);
    assert_eq!(ArpPacket::parse(&arp[0][14..]).unwrap().target_ip, SERVER);
    bench.arp(ArpOperation::Reply, THEIR_MAC, SERVER).unwrap();

    let image = bench.image.clone();
    let seen = |kind, sequence, offset: usize, payload: &[u8]| Seen {
        kind,
        sequence,
        offset: offset as u64,
        payload: payload.to_vec(),
        to: if kind == MessageKind::Herald { 20023 } else { PORT },
    };
    let want = [
        seen(MessageKind::Herald, 1, 0, b"vm1\0"),
        seen(MessageKind::Vmcore, 2, 0, &image[..1448]),
        seen(MessageKind::Vmcore, 3, 1448, &image[1448..2896]),
        seen(MessageKind::Vmcore, 4, 2896, &image[2896..]),
        seen(MessageKind::Kdh, 5, 0, &[0x4b; 512]),
        seen(MessageKind::Finished, 6, 0, b""),
    ];
    assert_eq!(bench.finish(), want);

    let events: Vec<_> =
        std::iter::from_fn(|| bench.client.poll_event()).map(|event| format!("{event:?}")).collect();
    let want = [
        "Reached(Resolve)",
        "Resolved { hop: Server, mac: 52:54:00:00:00:09 }",
        "Reached(Herald)",
        "Accepted { port: 42260 }",
        "Reached(Data)",
        "Reached(Header)",
        "Reached(Finish)",
        "Closed(Complete)",
    ];
    assert_eq!(events, want);
    let stats = bench.client.stats();
    assert_eq!((stats.messages, stats.resends, stats.bytes_sent, stats.bytes_acked), (6, 0, 4000, 4000));
    assert!(bench.client.missing().is_empty());
    assert_eq!((bench.client.poll_timeout(), bench.ack(6)), (None, Err(Ignored::Closed)));
}

#[test]
fn the_key_goes_before_the_data_one_message_at_a_time() {
    let key = image(2000);
    let mut bench = Bench::accepted(config(), DumpPlan { key: Some(key.clone()), path: None, ..plan(10) });
    for range in [0..1448, 1448..2000] {
        let messages = bench.messages();
        assert_eq!(messages.len(), 1);
        assert_eq!((messages[0].kind, messages[0].offset), (MessageKind::EkcdKey, range.start as u64));
        assert_eq!(messages[0].payload, key[range]);
        bench.ack(messages[0].sequence).unwrap();
    }
    let kinds: Vec<_> = bench.finish().iter().map(|seen| seen.kind).collect();
    assert_eq!(kinds, [MessageKind::Vmcore, MessageKind::Kdh, MessageKind::Finished]);
}

#[test]
fn a_dump_without_path_and_without_bytes_is_a_dump() {
    let mut bench = Bench::new(config(), DumpPlan { path: None, ..plan(0) });
    bench.frames();
    bench.arp(ArpOperation::Reply, THEIR_MAC, SERVER).unwrap();
    let sent = bench.finish();
    let kinds: Vec<_> = sent.iter().map(|seen| seen.kind).collect();
    assert_eq!(kinds, [MessageKind::Herald, MessageKind::Kdh, MessageKind::Finished]);
    assert!(sent[0].payload.is_empty());
    assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);
}

#[test]
fn the_header_waits_for_all_data_and_finished_for_the_header() {
    let mut bench = Bench::accepted(config(), plan(2000));
    assert_eq!(bench.messages().len(), 2);
    bench.ack(3).unwrap();
    assert!(bench.messages().is_empty());
    bench.ack(2).unwrap();
    assert_eq!(bench.messages()[0].kind, MessageKind::Kdh);
    assert!(bench.messages().is_empty());
    bench.ack(4).unwrap();
    assert_eq!(bench.messages()[0].kind, MessageKind::Finished);
}

#[test]
fn the_port_is_learned_from_the_heralds_ack_only() {
    let mut bench = Bench::new(config(), plan(2000));
    bench.frames();
    assert_eq!(bench.ack(1), Err(Ignored::UnknownAck), "nothing was sent");
    bench.arp(ArpOperation::Reply, THEIR_MAC, SERVER).unwrap();
    assert_eq!(bench.messages()[0].to, 20023);
    assert_eq!(bench.ack_from(SocketAddrV4::new(SERVER, 999), 7), Err(Ignored::UnknownAck));
    assert_eq!(bench.client.server().port(), 0);
    assert_eq!(bench.ack(1), Ok(()));
    assert_eq!(bench.client.server(), SocketAddrV4::new(SERVER, PORT));
    bench.messages();
    assert_eq!(bench.ack_from(SocketAddrV4::new(SERVER, 999), 2), Err(Ignored::OtherServerPort));
    assert_eq!(bench.ack_from(SocketAddrV4::new(SERVER, 20023), 2), Err(Ignored::OtherServerPort));
    assert_eq!(bench.ack_from(SocketAddrV4::new(STRANGER, PORT), 2), Err(Ignored::OtherSource));
    assert_eq!(bench.ack(1), Err(Ignored::RepeatedAck));
    assert_eq!(bench.ack(4), Err(Ignored::UnknownAck));
    assert_eq!(bench.ack(2), Ok(()));
    let ignored: u64 = bench.client.stats().ignored.iter().map(|(_, count)| count).sum();
    assert_eq!(ignored, 7);
}

#[test]
fn a_lost_message_is_sent_again_when_later_ones_are_acknowledged() {
    let mut bench = Bench::accepted(config(), plan(20 * 1448));
    let sent = bench.messages();
    assert_eq!(sent.len(), 20);
    for sequence in [3, 4, 5] {
        bench.ack(sequence).unwrap();
    }
    assert_eq!(bench.messages(), sent[..1]);
    assert_eq!(bench.client.stats().resends, 1);
}

#[test]
fn a_lost_last_message_costs_milliseconds() {
    let mut bench = Bench::accepted(config(), plan(5 * 1448));
    bench.messages();
    bench.now += Duration::from_millis(1);
    for sequence in 2..=5 {
        bench.ack(sequence).unwrap();
    }
    let started = bench.now;
    bench.now = bench.client.poll_timeout().unwrap();
    assert!(bench.now - started <= Duration::from_millis(200), "{:?}", bench.now - started);
    bench.client.handle_timeout(bench.now);
    assert_eq!(bench.messages()[0].sequence, 6);
}

#[test]
fn a_held_client_resends_but_begins_nothing_and_loses_no_patience() {
    let mut bench = Bench::accepted(config(), plan(100 * 1448));
    assert_eq!(bench.messages().len(), 64);
    bench.client.set_flow(Flow::Held);
    for sequence in 3..=65 {
        bench.ack(sequence).unwrap();
    }
    let again = bench.messages();
    assert_eq!((again.len(), again[0].sequence), (1, 2));
    bench.ack(2).unwrap();
    assert!(bench.messages().is_empty());
    assert_eq!(bench.client.poll_timeout(), None);
    bench.now += 100 * SECOND;
    bench.client.handle_timeout(bench.now);
    bench.client.set_flow(Flow::Open);
    assert!(!bench.messages().is_empty());
}

#[test]
fn nobody_answers_arp() {
    let mut bench = Bench::new(ClientConfig { gateway: Some(GATEWAY), ..config() }, plan(10));
    let start = bench.now;
    let mut asked = Vec::new();
    loop {
        asked.extend(bench.frames().iter().map(|frame| ArpPacket::parse(&frame[14..]).unwrap().target_ip));
        let Some(at) = bench.client.poll_timeout() else { break };
        bench.now = at;
        bench.client.handle_timeout(at);
    }
    assert_eq!(asked, [SERVER, SERVER, SERVER, GATEWAY, GATEWAY, GATEWAY]);
    assert_eq!(bench.now - start, 6 * SECOND);
    let want = "10.0.0.9 does not answer ARP, and neither does the gateway 10.0.0.1";
    assert_eq!(bench.outcome_and_reason(), (Outcome::Failed, want.to_owned()));
    assert_eq!(bench.client.missing(), [(0, 10)]);
}

#[test]
fn the_herald_is_repeated_for_the_originals_patience() {
    let mut bench = Bench::new(config(), plan(10));
    bench.frames();
    bench.arp(ArpOperation::Reply, THEIR_MAC, SERVER).unwrap();
    let first = bench.messages();
    let start = bench.now;
    let again = bench.silence();
    assert!((10..20).contains(&again.len()), "{} times", again.len());
    assert!(again.iter().all(|(_, seen)| *seen == first[0]), "a resend is the same message");
    assert_eq!(bench.now - start, 12 * SECOND);
    let want = "no netdump server answers at 10.0.0.9:20023 (UDP) within 12s";
    assert_eq!(bench.outcome_and_reason(), (Outcome::Failed, want.to_owned()));
}

#[test]
fn a_path_that_takes_only_short_messages_is_suspected() {
    let mut bench = Bench::accepted(config(), plan(20 * 1448 + 10));
    let last = bench.messages().last().unwrap().sequence;
    bench.ack(last).unwrap();
    bench.silence();
    let (outcome, reason) = bench.outcome_and_reason();
    assert_eq!(outcome, Outcome::Failed);
    let want = "no packet of 1500 bytes was acknowledged (is the MTU smaller on the way?)";
    assert!(reason.ends_with(want), "{reason}");
}

#[test]
fn a_silent_server_leaves_a_list_of_what_is_missing() {
    let mut bench = Bench::accepted(config(), plan(100 * 1448));
    bench.messages();
    for sequence in [2, 3, 7] {
        bench.ack(sequence).unwrap();
    }
    bench.silence();
    let want = "10.0.0.9:42260 stopped acknowledging while sending memory, 12s ago; 140456 bytes of the core are missing";
    assert_eq!(bench.outcome_and_reason(), (Outcome::Failed, want.to_owned()));
    assert_eq!(bench.client.missing(), [(2 * 1448, 5 * 1448), (6 * 1448, 100 * 1448)]);
}

#[test]
fn unanswered_finished_is_unconfirmed() {
    let mut bench = Bench::accepted(config(), plan(10));
    for _ in 0..2 {
        let sequence = bench.messages()[0].sequence;
        bench.ack(sequence).unwrap();
    }
    assert_eq!(bench.messages()[0].kind, MessageKind::Finished);
    let start = bench.now;
    bench.silence();
    assert_eq!(bench.now - start, 60 * SECOND);
    let want = "10.0.0.9:42260 has acknowledged the whole core but not within 60s that it is stored";
    assert_eq!(bench.outcome_and_reason(), (Outcome::Unconfirmed, want.to_owned()));
    assert!(bench.client.missing().is_empty());
}

#[test]
fn deadline_ends_the_dump_wherever_it_is() {
    let deadline = Some(3 * SECOND);
    let mut bench = Bench::accepted(ClientConfig { deadline, ..config() }, plan(10));
    bench.messages();
    let start = bench.now;
    bench.silence();
    assert_eq!(bench.now - start, 3 * SECOND);
    let want = "the dump's deadline of 3s passed while sending memory; 10 bytes of the core are missing";
    assert_eq!(bench.outcome_and_reason(), (Outcome::Failed, want.to_owned()));
}

#[test]
fn an_abort_is_final_and_counts_as_unconfirmed_once_only_finished_is_open() {
    let stopped = |phase| FailReason::Stopped { phase, why: "interrupted".into() };
    let mut bench = Bench::accepted(config(), plan(10));
    bench.client.abort(stopped(Phase::Data));
    bench.client.abort(stopped(Phase::Closed));
    assert_eq!(
        bench.outcome_and_reason(),
        (Outcome::Failed, "stopped while sending memory: interrupted".to_owned())
    );
    assert!(bench.ending().is_none(), "told once");

    let mut bench = Bench::accepted(config(), plan(0));
    let sequence = bench.messages()[0].sequence;
    bench.ack(sequence).unwrap();
    bench.client.abort(stopped(Phase::Finish));
    assert_eq!(bench.outcome_and_reason().0, Outcome::Unconfirmed);
}

#[test]
fn arp_requests_are_answered_at_any_time() {
    let mut bench = Bench::accepted(config(), plan(100_000));
    bench.messages();
    bench.arp(ArpOperation::Request, THEIR_MAC, SERVER).unwrap();
    let frames = bench.frames();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0][..6], THEIR_MAC.0);
    let answer = ArpPacket::parse(&frames[0][14..]).unwrap();
    let want = ArpPacket {
        operation: ArpOperation::Reply,
        sender_mac: OUR_MAC,
        sender_ip: CLIENT,
        target_mac: THEIR_MAC,
        target_ip: SERVER,
    };
    assert_eq!(answer, want);
}

#[test]
fn a_later_arp_answer_does_not_move_the_dump() {
    let mut bench = Bench::accepted(config(), plan(10));
    let hijacker = MacAddr([0x52, 0x54, 0, 0, 0, 0x66]);
    assert_eq!(bench.arp(ArpOperation::Reply, hijacker, SERVER), Err(Ignored::ArpNotAsked));
    // `messages` wants the old address in every frame.
    assert_eq!(bench.messages().len(), 1);
}

#[test]
fn a_server_that_falls_silent_is_asked_for_again_and_may_have_moved() {
    let new_mac = MacAddr([0x52, 0x54, 0, 0, 0, 0x77]);
    let mut bench = Bench::accepted(config(), plan(10));
    assert_eq!(bench.messages().len(), 1);
    let silent_since = bench.now;
    // Asked after a second of silence, and no answer of before counts.
    let mut questions = 0;
    while questions == 0 {
        assert_eq!(bench.arp(ArpOperation::Reply, new_mac, SERVER), Err(Ignored::ArpNotAsked));
        bench.now = bench.client.poll_timeout().unwrap();
        bench.client.handle_timeout(bench.now);
        questions = bench.frames().iter().filter(|frame| frame[12..14] == [8, 6]).count();
    }
    assert_eq!((questions, bench.now - silent_since), (1, Duration::from_secs(1)));
    assert_eq!(bench.arp(ArpOperation::Reply, new_mac, GATEWAY), Err(Ignored::ArpNotAsked));
    bench.arp(ArpOperation::Reply, new_mac, SERVER).unwrap();
    let hijacker = MacAddr([0x52, 0x54, 0, 0, 0, 0x66]);
    assert_eq!(
        bench.arp(ArpOperation::Reply, hijacker, SERVER),
        Err(Ignored::ArpNotAsked),
        "one answer counts"
    );
    // What is sent again goes to the new address.
    let frames = loop {
        bench.now = bench.client.poll_timeout().unwrap();
        bench.client.handle_timeout(bench.now);
        let mut frames = bench.frames();
        frames.retain(|frame| frame[12..14] == [8, 0]);
        if !frames.is_empty() {
            break frames;
        }
    };
    assert!(frames.iter().all(|frame| frame[..6] == new_mac.0), "{frames:x?}");
}

#[test]
fn an_answer_that_changes_nothing_brings_no_flood_of_questions() {
    let mut bench = Bench::accepted(config(), plan(10));
    assert_eq!(bench.messages().len(), 1);
    let (start, mut questions) = (bench.now, 0);
    while bench.now - start < Duration::from_secs(4) {
        bench.now = bench.client.poll_timeout().unwrap();
        bench.client.handle_timeout(bench.now);
        if bench.frames().iter().any(|frame| frame[12..14] == [8, 6]) {
            questions += 1;
            bench.arp(ArpOperation::Reply, THEIR_MAC, SERVER).unwrap();
        }
    }
    let wait = config().try_wait();
    let most = Duration::from_secs(3).as_millis() / wait.as_millis() + 1;
    assert!((2..=most).contains(&questions), "{questions} in 3 s, {wait:?} apart");
}

#[test]
fn an_address_conflict_is_told_once() {
    let mut bench = Bench::accepted(config(), plan(10));
    for _ in 0..3 {
        assert_eq!(bench.arp(ArpOperation::Request, THEIR_MAC, CLIENT), Err(Ignored::AddressConflict));
    }
    let conflicts = std::iter::from_fn(|| bench.client.poll_event())
        .filter(|event| matches!(event, ClientEvent::AddressConflict { mac: THEIR_MAC }));
    assert_eq!(conflicts.count(), 1);
    assert_eq!(bench.client.stats().ignored.of(Ignored::AddressConflict), 3);
}

const GUEST_BASE: u64 = 1 << 20;

/// A core that lies in guest memory.
struct InGuest(Vec<u8>);

impl ReadAt for InGuest {
    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.0.as_slice().read_at(offset, buf)
    }

    fn locate(&self, offset: u64, _len: usize) -> Option<u64> {
        Some(GUEST_BASE + offset)
    }
}

#[test]
fn gathering_leaves_the_core_out_of_the_frames() {
    let offloads = Offloads { gather: true, checksum: true, segments: 0 };
    let mut bench = Bench::new(ClientConfig { offloads, mtu: 9000, ..config() }, plan(5000));
    bench.frames();
    bench.arp(ArpOperation::Reply, THEIR_MAC, SERVER).unwrap();
    let (now, image) = (bench.now, InGuest(bench.image.clone()));
    let next = |bench: &mut Bench| {
        let mut packet = Packet::default();
        bench.client.poll_transmit(now, &image, &mut packet).unwrap().unwrap();
        packet
    };
    let herald = next(&mut bench);
    assert_eq!((herald.frame().is_plain(), herald.frame().len()), (true, PAYLOAD_AT + 4));
    bench.ack(1).unwrap();
    for (start, len) in [(0, 4096), (4096, 904)] {
        let packet = next(&mut bench);
        let piece = GuestPiece { at: PAYLOAD_AT, address: GUEST_BASE + start as u64, len };
        assert_eq!((packet.frame().guest, packet.frame().bytes.len()), (&[piece][..], PAYLOAD_AT));
        // What the device does: sum up from the UDP header on, over the partial sum in the field.
        let mut data = [packet.frame().bytes, &bench.image[start..start + len]].concat();
        let checksum = Checksum::of(&data[34..]).complete();
        data[40..42].copy_from_slice(&checksum);
        let (_, payload) = Route::parse(&data).unwrap();
        assert_eq!(Message::parse(payload).unwrap().payload, &bench.image[start..start + len]);
    }
}

#[test]
fn a_train_is_the_same_messages_behind_one_header() {
    let offloads = Offloads { gather: false, checksum: true, segments: 8 };
    let mut bench = Bench::accepted(config(), plan(1448 * 20 + 100));
    bench.client.config.offloads = offloads;
    let mut trains = Vec::new();
    let mut packet = Packet::default();
    while let Some(sent) = bench.client.poll_transmit(bench.now, bench.image.as_slice(), &mut packet).unwrap()
    {
        let frame = packet.frame();
        assert_eq!(frame.segment, (sent.messages > 1).then_some(1472));
        let mut whole = frame.bytes.to_vec();
        let checksum = Checksum::of(&whole[34..]).complete();
        whole[40..42].copy_from_slice(&checksum);
        let (_, payload) = Route::parse(&whole).unwrap();
        for (datagram, number) in payload.chunks(1472).zip(0_u64..) {
            let message = Message::parse(datagram).unwrap();
            let offset = sent.fresh.as_ref().unwrap().start + 1448 * number;
            let start = usize::try_from(offset).unwrap();
            assert_eq!((message.kind, message.offset), (MessageKind::Vmcore, offset));
            assert_eq!(message.payload, &bench.image[start..start + message.payload.len()]);
        }
        trains.push(sent.messages);
    }
    assert_eq!(trains, [8, 8, 5]);
}

#[test]
fn acks_in_a_train_count_one_by_one() {
    let mut bench = Bench::accepted(config(), plan(1448 * 6));
    assert_eq!(bench.messages().len(), 6);
    let route = Route {
        source_mac: THEIR_MAC,
        destination_mac: OUR_MAC,
        source: SocketAddrV4::new(SERVER, PORT),
        destination: SocketAddrV4::new(CLIENT, 20024),
    };
    let acks: Vec<u8> = [2_u32, 3, 99, 5].iter().flat_map(|number| number.to_be_bytes()).collect();
    let mut received = Received { segment: Some(4), checked: true, ..Received::default() };
    route.emit(&[&acks[..], &[0, 0]].concat(), &mut received.bytes);
    received.bytes[40] ^= 1;
    assert_eq!(bench.client.handle(bench.now, &received), Err(Ignored::UnknownAck));
    assert_eq!(bench.client.stats().bytes_acked, 3 * 1448);
    let ignored = bench.client.stats().ignored;
    assert_eq!((ignored.of(Ignored::UnknownAck), ignored.of(Ignored::NotAnAck)), (1, 1));
}

#[test]
fn an_unreadable_core_changes_nothing() {
    let mut bench = Bench::accepted(config(), plan(3000));
    let mut packet = Packet::default();
    let short = [0_u8; 1000];
    for _ in 0..2 {
        let error = bench.client.poll_transmit(bench.now, short.as_slice(), &mut packet).unwrap_err();
        assert_eq!(error.to_string(), "reading 1448 bytes at offset 0x0 of a core of 1000 bytes");
    }
    assert_eq!(bench.client.missing(), [(0, 3000)]);
    assert_eq!(bench.finish().len(), 5);
}

/// Frames that look right, with something wrong here and there.
fn odd_frame() -> impl Strategy<Value = Vec<u8>> {
    let ack = (any::<u16>(), 0..80_u32).prop_map(|(port, sequence)| {
        let route = Route {
            source_mac: THEIR_MAC,
            destination_mac: OUR_MAC,
            source: SocketAddrV4::new(SERVER, if port % 4 == 0 { port } else { PORT }),
            destination: SocketAddrV4::new(CLIENT, 20024),
        };
        let mut frame = Vec::new();
        route.emit(&Ack(sequence).to_bytes(), &mut frame);
        frame
    });
    let arp = prop::collection::vec(any::<u8>(), 28).prop_map(|mut packet| {
        let operation = 1 + (packet[7] & 1);
        packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
        packet[14..18].copy_from_slice(&SERVER.octets());
        packet[24..28].copy_from_slice(&CLIENT.octets());
        let header = EthernetHeader { destination: OUR_MAC, source: THEIR_MAC, ethertype: EtherType::ARP };
        [header.to_bytes().as_slice(), &packet].concat()
    });
    let flips = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let valid = (prop_oneof![ack, arp], flips).prop_map(|(mut frame, flips)| {
        for (at, xor) in flips {
            let at = at.index(frame.len());
            frame[at] ^= xor;
        }
        frame
    });
    prop_oneof![valid, prop::collection::vec(any::<u8>(), 0..100)]
}

proptest! {
    #[test]
    fn no_frames_make_the_client_panic_or_forget_its_bounds(
        frames in prop::collection::vec((odd_frame(), 0..300_u64), 1..200),
    ) {
        // Acks by chance can be so many that the window grows.
        let window = WindowChoice::Adaptive { cap: 64 };
        let mut bench = Bench::new(ClientConfig { window, ..config() }, plan(200_000));
        bench.arp(ArpOperation::Reply, THEIR_MAC, SERVER).unwrap();
        for (frame, pause) in frames {
            let _ = bench.client.handle_frame(bench.now, &frame);
            bench.now += Duration::from_millis(pause);
            bench.client.handle_timeout(bench.now);
            prop_assert!(bench.frames().len() <= 64 + 9);
            prop_assert!(bench.client.events.len() < 20);
            prop_assert!(bench.client.bytes_settled() <= 200_000);
            let missing: u64 = bench.client.missing().iter().map(|(start, end)| end - start).sum();
            prop_assert_eq!(missing + bench.client.bytes_settled(), 200_000);
        }
    }
}

#[test]
fn headers_fill_the_room_before_the_payload() {
    assert_eq!((HEADERS_LEN, PAYLOAD_AT), (42, 66));
}
