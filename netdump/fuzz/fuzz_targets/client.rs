//! Frames, waits and the caller's wishes into a client, in any order: what it sends is always right, what it believes
//! was acknowledged, and at the end an honest server brings it to completion, or silence to an end in bounded time.
//!
//! An input is the configuration (see `configured`) and steps (see `World::step`).

#![no_main]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use netdump::client::{
    Client, ClientConfig, ClientEvent, CorePlan, DumpPlan, Ending, FailReason, Flow, Packet, Phase,
    WindowChoice,
};
use netdump::link::{Offloads, Received};
use netdump::vmcore::KernelDumpHeader;
use netdump::wire::arp::{ArpOperation, ArpPacket};
use netdump::wire::checksum::Checksum;
use netdump::wire::ethernet::{EtherType, EthernetHeader};
use netdump::wire::udp::UdpChecksum;
use netdump::wire::{Ack, MacAddr, MessageKind, Route};
use netdump_fuzz::image::Image;
use netdump_fuzz::sent::{ABLE, Ledger, Payloads};
use netdump_fuzz::{Script, repair, trace};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const OUR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const THEIR_MACS: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 0, 9]), MacAddr([2, 0, 0, 0, 0, 10])];
/// Where an honest server acknowledges from, and another.
const PORTS: [u16; 2] = [40_000, 40_001];
const MAX_STEPS: usize = 200;
/// Frames in a row without a wait: there is much less to send.
const ENDLESS: usize = 2_000;
/// Waits until a client ends, whatever happens.
const PATIENCE: usize = 20_000;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let honest_end = script.byte() & 1 == 0;
    let mut world = World::new(&mut script);
    world.settle(ENDLESS);
    for _ in 0..MAX_STEPS {
        if script.is_over() || world.ending.is_some() {
            break;
        }
        world.step(&mut script);
    }
    world.end(honest_end);
});

struct World {
    client: Client,
    config: ClientConfig,
    ledger: Ledger,
    image: Image,
    header: [u8; 512],
    is_growing: bool,
    now: Instant,
    packet: Packet,
    phase: Phase,
    ending: Option<Ending>,
    was_aborted: bool,
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let flags = script.byte();
        let config = configured(script);
        let hole = u64::from(flags & 1) * 300 * 1024;
        let (before, behind) = (u64::from(script.word() % 20_000), u64::from(script.word() % 20_000));
        let image = Image::new(before + hole + behind, before..before + hole);
        let is_growing = flags & 2 != 0 && hole == 0;
        let header =
            KernelDumpHeader { dump_length: image.length, block_size: 4096, ..Default::default() }.to_bytes();
        let payloads = Payloads {
            path: if flags & 4 != 0 { b"a/b\0".to_vec() } else { Vec::new() },
            key: if flags & 8 != 0 { (0..700_u32).map(|i| i as u8).collect() } else { Vec::new() },
            header,
        };
        let core = match is_growing {
            true => CorePlan::Growing,
            false => CorePlan::Known { length: image.length, header },
        };
        if is_growing {
            image.readable.set((0, 0));
        }
        let plan = DumpPlan {
            path: (flags & 4 != 0).then(|| "a/b".to_owned()),
            core,
            key: (flags & 8 != 0).then(|| payloads.key.clone()),
        };
        let now = Instant::now();
        Self {
            client: Client::new(config.clone(), plan, now).expect("a configuration that works"),
            ledger: Ledger::new(config.clone(), payloads),
            config,
            image,
            header,
            is_growing,
            now,
            packet: Packet::default(),
            phase: Phase::Resolve,
            ending: None,
            was_aborted: false,
        }
    }

    /// One thing happens; then the client does what it has to do.
    fn step(&mut self, script: &mut Script<'_>) {
        let mut room = ENDLESS;
        match script.byte() % 20 {
            0 => self.answer_arp(script.one_of(&[SERVER, GATEWAY, CLIENT]), script.one_of(&THEIR_MACS)),
            1 => self.ask_arp(script.one_of(&[SERVER, GATEWAY, CLIENT])),
            2 => {
                let some: Vec<_> = self.ledger.open().take(usize::from(script.byte())).collect();
                self.acknowledge(&some);
            }
            3 => {
                let some: Vec<_> = self.ledger.open().skip(usize::from(script.byte())).take(1).collect();
                self.acknowledge(&some);
            }
            4 => {
                let count = usize::from(script.byte());
                let train: Vec<_> = self.ledger.open().take(count).collect();
                let segment = Some(script.one_of(&[4, 0, 3, 5, 8]));
                let bytes = self.ack_frame(PORTS[0], &train);
                self.receive(Received { bytes, segment, checked: script.byte() & 1 == 1 });
            }
            5 => {
                let bytes = self.ack_frame(script.one_of(&PORTS), &[script.long()]);
                self.receive(Received { bytes, ..Received::default() });
            }
            6 => self.receive_altered(script),
            7 => {
                let len = usize::from(script.byte());
                self.receive(Received { bytes: script.bytes(len).to_vec(), ..Received::default() });
            }
            8 => self.wait(Duration::from_micros(u64::from(script.word()) * 4)),
            9 => self.wait_for_timeout(),
            10 => self.client.set_flow(script.one_of(&[Flow::Held, Flow::Open])),
            11 if self.is_growing => self.supply(u64::from(script.word())),
            12 if self.is_growing => self.end_of_core(),
            13 => room = usize::from(script.byte() % 8),
            14 => self.image.is_broken.set(script.byte() & 1 == 1),
            15 if script.byte() == 0xff => self.abort(),
            16 => self.refuse_port(script.one_of(&PORTS)),
            17 => self.answer(script.one_of(&PORTS), |asked| !asked),
            18 => self.answer(script.one_of(&PORTS), |asked| asked),
            19 => self.answer(script.one_of(&PORTS), |asked| asked ^ ABLE),
            _ => {}
        }
        self.settle(room);
    }

    /// Lets the client send at most `room` frames, and hears what it has to tell.
    fn settle(&mut self, room: usize) {
        if self.is_growing {
            let (_, available) = self.image.readable.get();
            self.image.readable.set((self.client.acked_to(), available));
        }
        for sent in 0.. {
            assert!(sent < ENDLESS, "it sends without end");
            if sent >= room {
                break;
            }
            match self.client.poll_transmit(self.now, &self.image, &mut self.packet) {
                Ok(Some(transmit)) => {
                    trace(|| format!("{transmit:?}"));
                    self.ledger.send(self.now, &self.packet, &transmit, &self.image);
                }
                Ok(None) => break,
                Err(_) => {
                    assert!(self.image.is_broken.get());
                    break;
                }
            }
        }
        while let Some(event) = self.client.poll_event() {
            self.hear(event);
        }
        self.check();
    }

    fn hear(&mut self, event: ClientEvent) {
        trace(|| format!("{event:?}"));
        assert!(self.ending.is_none(), "{event:?} behind the end");
        match event {
            ClientEvent::Resolved { mac, .. } => assert!(self.ledger.offered.contains(&mac)),
            ClientEvent::Accepted { port } | ClientEvent::Resumed { port } => assert_ne!(port, 0),
            ClientEvent::Restarted { .. } => self.phase = Phase::Herald,
            ClientEvent::Reached(phase) => {
                assert!(phase >= self.phase, "from {:?} back to {phase:?}", self.phase);
                self.phase = phase;
            }
            ClientEvent::AddressConflict { mac } => assert_ne!(mac, OUR_MAC),
            ClientEvent::Closed(ending) => {
                let has = |kind| self.ledger.has(kind);
                let has_all_but_the_end = has(MessageKind::Kdh) && self.ledger.has_core(&self.image);
                match &ending {
                    Ending::Complete => assert!(has_all_but_the_end && has(MessageKind::Finished)),
                    Ending::Unconfirmed(_) => assert!(has_all_but_the_end),
                    Ending::Failed(_) => assert!(!has(MessageKind::Finished)),
                }
                self.ending = Some(ending);
            }
        }
    }

    /// What holds at any time.
    fn check(&self) {
        let stats = self.client.stats();
        assert_eq!(stats.bytes_acked, self.ledger.acked_bytes());
        assert!(self.client.bytes_settled() <= self.image.length);
        assert_eq!(self.client.phase() == Phase::Closed, self.ending.is_some());
        assert!(self.ending.is_none() || self.client.poll_timeout().is_none());
    }

    fn receive(&mut self, received: Received) {
        if self.ending.is_none() {
            self.ledger.receive(&received);
        }
        let before = self.ignored();
        let taken = self.client.handle(self.now, &received);
        trace(|| format!("{} bytes received (in {:?}): {taken:?}", received.bytes.len(), received.segment));
        assert_eq!(taken.is_ok(), self.ignored() == before);
    }

    fn ignored(&self) -> u64 {
        self.client.stats().ignored.iter().map(|(_, count)| count).sum()
    }

    /// An ack frame with a byte changed; whether its checksums still fit is up to the script.
    fn receive_altered(&mut self, script: &mut Script<'_>) {
        let open = self.ledger.open().next().unwrap_or(1);
        let mut bytes = self.ack_frame(self.port(), &[open]);
        let at = usize::from(script.byte()) % bytes.len();
        bytes[at] ^= script.byte();
        let cut = usize::from(script.byte());
        if cut < bytes.len() {
            bytes.truncate(bytes.len() - cut);
        }
        let how = script.byte();
        if how & 1 == 1 {
            repair(&mut bytes);
        }
        self.receive(Received { bytes, segment: None, checked: how & 2 == 2 });
    }

    fn port(&self) -> u16 {
        self.ledger.port.unwrap_or(PORTS[0])
    }

    /// One frame for each.
    fn acknowledge(&mut self, numbers: &[u32]) {
        for number in numbers {
            let bytes = self.ack_frame(self.port(), &[*number]);
            self.receive(Received { bytes, ..Received::default() });
        }
    }

    fn ack_frame(&self, port: u16, numbers: &[u32]) -> Vec<u8> {
        let route = Route {
            source_mac: THEIR_MACS[0],
            destination_mac: OUR_MAC,
            source: SocketAddrV4::new(SERVER, port),
            destination: SocketAddrV4::new(CLIENT, self.config.client_port),
        };
        let acks: Vec<u8> = numbers.iter().flat_map(|number| Ack(*number).to_bytes()).collect();
        let mut frame = Vec::new();
        route.emit(&acks, &mut frame);
        frame
    }

    /// Answers the HERALD that asks for the dump, or the first one.
    fn answer(&mut self, port: u16, word: impl Fn(u32) -> u32) {
        let bytes = self.ack_frame(port, &[word(self.ledger.question.unwrap_or(1))]);
        self.receive(Received { bytes, ..Received::default() });
    }

    /// The server's host says that nobody has a port (ICMP type 3, code 3; RFC 792).
    fn refuse_port(&mut self, port: u16) {
        let mut bytes = self.ack_frame(port, &[0; 7]);
        bytes[23] = 1;
        bytes[24..26].fill(0);
        let sum = Checksum::of(&bytes[14..34]).complete();
        bytes[24..26].copy_from_slice(&sum);
        let route = Route {
            source_mac: OUR_MAC,
            destination_mac: THEIR_MACS[0],
            source: SocketAddrV4::new(CLIENT, self.config.client_port),
            destination: SocketAddrV4::new(SERVER, port),
        };
        bytes.truncate(34);
        bytes.extend_from_slice(&[3, 3, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&route.headers(100, UdpChecksum::Partial)[14..]);
        let sum = Checksum::of(&bytes[34..]).complete();
        bytes[36..38].copy_from_slice(&sum);
        self.receive(Received { bytes, ..Received::default() });
    }

    fn answer_arp(&mut self, whose: Ipv4Addr, mac: MacAddr) {
        self.ledger.offered.insert(mac);
        self.receive_arp(ArpPacket {
            operation: ArpOperation::Reply,
            sender_mac: mac,
            sender_ip: whose,
            target_mac: OUR_MAC,
            target_ip: CLIENT,
        });
    }

    fn ask_arp(&mut self, from: Ipv4Addr) {
        self.receive_arp(ArpPacket {
            operation: ArpOperation::Request,
            sender_mac: THEIR_MACS[1],
            sender_ip: from,
            target_mac: MacAddr::ZERO,
            target_ip: CLIENT,
        });
    }

    fn receive_arp(&mut self, packet: ArpPacket) {
        let header =
            EthernetHeader { destination: OUR_MAC, source: packet.sender_mac, ethertype: EtherType::ARP };
        let mut bytes = header.to_bytes().to_vec();
        packet.emit(&mut bytes);
        self.receive(Received { bytes, ..Received::default() });
    }

    fn wait(&mut self, time: Duration) {
        trace(|| format!("{time:?} later"));
        self.now += time;
        self.client.handle_timeout(self.now);
    }

    /// Waits as long as the client says. Asking at once again must not be the answer.
    fn wait_for_timeout(&mut self) {
        if let Some(until) = self.client.poll_timeout() {
            trace(|| format!("{:?} later", until.saturating_duration_since(self.now)));
            self.now = self.now.max(until);
            self.client.handle_timeout(self.now);
        }
    }

    fn supply(&mut self, more: u64) {
        let (from, available) = self.image.readable.get();
        let available = self.image.length.min(available + more);
        self.image.readable.set((from, available));
        self.client.supply(available);
    }

    fn end_of_core(&mut self) {
        let (from, _) = self.image.readable.get();
        self.image.readable.set((from, self.image.length));
        self.client.end_of_core(self.image.length, self.header);
    }

    fn abort(&mut self) {
        self.was_aborted = true;
        self.client.abort(FailReason::Stopped { phase: self.phase, why: "the script says so".to_owned() });
    }

    /// Everything that hindered is over; either all is answered from now on, or nothing.
    fn end(mut self, is_answered: bool) {
        self.check_missing();
        self.image.is_broken.set(false);
        self.client.set_flow(Flow::Open);
        if self.is_growing {
            self.end_of_core();
        }
        let had_ended = self.ending.is_some();
        for _ in 0..PATIENCE {
            self.settle(ENDLESS);
            if self.ending.is_some() {
                break;
            }
            let open: Vec<_> = self.ledger.open().collect();
            if is_answered && self.phase == Phase::Resolve {
                self.answer_arp(SERVER, THEIR_MACS[0]);
            } else if is_answered && self.ledger.question.is_some() {
                self.answer(self.port(), |asked| !asked);
            } else if is_answered && !open.is_empty() {
                self.acknowledge(&open);
            } else {
                let before = self.now;
                self.wait_for_timeout();
                self.settle(ENDLESS);
                let until = self.client.poll_timeout();
                assert!(until.is_none_or(|until| until > self.now), "busy at {:?}", self.now - before);
            }
        }
        let ending = self.ending.as_ref().expect("the client ends");
        let complete = matches!(ending, Ending::Complete);
        if !had_ended && is_answered && self.config.deadline.is_none() {
            assert!(complete, "an honest server is not enough: {ending:?}");
        }
        assert!(is_answered || had_ended || !complete, "nobody has acknowledged that");
        self.check_missing();
        assert!(
            self.client.poll_transmit(self.now, &self.image, &mut self.packet).is_ok_and(|t| t.is_none())
        );
    }

    /// What the client says is missing, and what the server has, are all of the core, and nothing is both.
    fn check_missing(&self) {
        let missing = self.client.missing();
        assert!(missing.iter().all(|(start, end)| start < end));
        assert!(missing.windows(2).all(|pair| pair[0].1 < pair[1].0), "{missing:?}");
        if self.is_growing {
            return;
        }
        let settled = self.ledger.settled(&self.image);
        let mut at = 0;
        while at < self.image.length {
            let holding = |ranges: &[(u64, u64)]| {
                ranges.iter().find(|(start, end)| *start <= at && at < *end).map(|(_, end)| *end)
            };
            at = holding(&missing).or_else(|| holding(&settled)).expect("neither missing nor settled");
        }
    }
}

fn configured(script: &mut Script<'_>) -> ClientConfig {
    let mtu = script.one_of(&[1500, 564, 9000, 4148]);
    let flags = script.byte();
    let segments = usize::from(script.byte() % 65);
    // Neither gathering nor trains go without checksums left to the link.
    let offloads = match flags & 4 {
        0 => Offloads::default(),
        _ => Offloads { gather: flags & 2 != 0, checksum: true, segments },
    };
    ClientConfig {
        gateway: (flags & 1 != 0).then_some(GATEWAY),
        polls: 200,
        retries: 2,
        arp_retries: 2,
        offloads,
        deadline: (flags & 8 != 0).then_some(Duration::from_secs(1)),
        window: match script.byte() {
            0 => WindowChoice::default(),
            1 => WindowChoice::Classic,
            cap => WindowChoice::Adaptive { cap: cap.into() },
        },
        rate: NonZeroU64::new(u64::from(script.byte()) * 20_000),
        dump_id: u32::from(script.byte()),
        ..ClientConfig::new(SERVER, CLIENT, OUR_MAC, mtu)
    }
}
