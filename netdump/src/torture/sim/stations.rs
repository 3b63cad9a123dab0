//! Who is on the wire: the client, the product's receiver as a host, a gateway.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::client::{Client, ClientConfig, ClientEvent, CorePlan, DumpPlan, Ending};
use crate::receiver::host::{Host, HostConfig};
use crate::receiver::store::{MemoryDump, MemoryStore};
use crate::receiver::{self, Receiver, ReceiverConfig, ReceiverEvent};
use crate::wire::MacAddr;
use crate::wire::arp::{ArpOperation, ArpPacket};
use crate::{ReadAt, ReadError};

use super::Station;
use super::rng::Rng;

/// The client's hardware address.
pub const CLIENT_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
/// The server's.
pub const SERVER_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 9]);
/// The gateway's.
pub const GATEWAY_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
/// The client's address.
pub const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The server's.
pub const SERVER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
/// The gateway's.
pub const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// Bytes to dump, some of which are untouched zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// All of them.
    pub bytes: Vec<u8>,
    /// Where something may be.
    runs: Vec<Range<u64>>,
}

impl Core {
    /// These bytes.
    pub fn of(bytes: Vec<u8>) -> Self {
        let whole = 0..bytes.len() as u64;
        Self { bytes, runs: Vec::from([whole]) }
    }

    /// Random bytes without holes.
    pub fn solid(rng: &mut Rng, len: usize) -> Self {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&rng.number().to_le_bytes());
        }
        bytes.truncate(len);
        Self::of(bytes)
    }

    /// Random bytes with holes in between, some of which a client leaves out.
    pub fn sparse(rng: &mut Rng, pieces: u64) -> Self {
        let mut core = Self { bytes: Vec::new(), runs: Vec::new() };
        for _ in 0..pieces {
            let hole = *rng.pick(&[0, 1, 4096, 262_143, 262_144, 300_000]);
            let len = usize::try_from(rng.below(60_000)).expect("small");
            let start = core.bytes.len() + hole;
            core.bytes.resize(start, 0);
            core.bytes.extend(Self::solid(rng, len).bytes);
            core.runs.push(start as u64..core.bytes.len() as u64);
        }
        let tail = *rng.pick(&[0, 1, 500_000]);
        core.bytes.resize(core.bytes.len() + tail, 0);
        core
    }

    /// Whether `stored`, with zeros behind its end, agrees with the core everywhere but in `missing`.
    pub fn agrees_but_for(&self, stored: &[u8], missing: &[(u64, u64)]) -> bool {
        if stored.len() > self.bytes.len() {
            return false;
        }
        let mut mended = stored.to_vec();
        mended.resize(self.bytes.len(), 0);
        for (start, end) in missing {
            let range = usize::try_from(*start).expect("small")..usize::try_from(*end).expect("small");
            mended[range.clone()].copy_from_slice(&self.bytes[range]);
        }
        mended == self.bytes
    }
}

impl ReadAt for Core {
    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.bytes.as_slice().read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let run = self.runs.iter().find(|run| run.end > offset)?;
        Some(run.start.max(offset)..run.end)
    }
}

/// A client that dumps a [`Core`].
#[derive(Debug)]
pub struct ClientStation {
    /// The client under test.
    pub client: Client,
    /// What it was made with.
    pub config: ClientConfig,
    /// What it sends.
    pub core: Core,
    /// What it told so far, but for its end.
    pub events: Vec<ClientEvent>,
    /// How it ended, once it has.
    pub ending: Option<Ending>,
    started: Instant,
    growth: Option<Growth>,
}

/// How a core comes that is made while it is sent.
#[derive(Debug)]
struct Growth {
    rng: Rng,
    /// Bytes there are.
    available: u64,
    /// When there are more, or the end is known.
    next: Instant,
    header: [u8; 512],
}

/// What a client may read of a core that is made while it is sent: nothing that it has seen acknowledged, and nothing
/// that is not there yet.
struct Kept<'a> {
    core: &'a Core,
    range: Range<u64>,
}

impl ReadAt for Kept<'_> {
    fn length(&self) -> u64 {
        self.range.end
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let end = offset + buf.len() as u64;
        assert!(self.range.start <= offset && end <= self.range.end, "{offset} is not in {:?}", self.range);
        self.core.read_at(offset, buf)
    }
}

impl ClientStation {
    /// The configuration that simulations begin with.
    pub fn config(mtu: u32) -> ClientConfig {
        ClientConfig::new(SERVER_IP, CLIENT_IP, CLIENT_MAC, mtu)
    }

    /// A plan for a core of `length` bytes.
    pub fn plan(core: &Core) -> DumpPlan {
        let known = CorePlan::Known { length: core.length(), header: header(core.length()) };
        DumpPlan { path: Some("vm1".into()), core: known, key: None }
    }

    /// Ready to begin.
    pub fn new(config: ClientConfig, plan: DumpPlan, core: Core) -> Self {
        let started = Instant::now();
        let client = Client::new(config.clone(), plan, started).expect("a good configuration");
        Self { client, config, core, events: Vec::new(), ending: None, started, growth: None }
    }

    /// The same with a core that comes piece by piece, and with its header in the end.
    pub fn growing(
        config: ClientConfig,
        key: Option<Vec<u8>>,
        core: Core,
        header: [u8; 512],
        rng: Rng,
    ) -> Self {
        let plan = DumpPlan { path: None, core: CorePlan::Growing, key };
        let station = Self::new(config, plan, core);
        let next = station.started + Duration::from_micros(1);
        Self { growth: Some(Growth { rng, available: 0, next, header }), ..station }
    }

    fn grow(&mut self, now: Instant) {
        let Some(growth) = self.growth.as_mut().filter(|growth| growth.next <= now) else { return };
        if growth.available == self.core.length() && growth.rng.chance(500) {
            self.client.end_of_core(growth.available, growth.header);
            // Nothing follows.
            growth.next = now + Duration::from_secs(1_000_000);
            return;
        }
        let more = *growth.rng.pick(&[0, 1, 511, 1448, 4096, 10_000, 70_000]);
        growth.available = (growth.available + more).min(self.core.length());
        growth.next = now + growth.rng.time(&(Duration::from_micros(1)..Duration::from_millis(2)));
        self.client.supply(growth.available);
    }

    /// The beginning of its time.
    pub fn started(&self) -> Instant {
        self.started
    }

    fn take_events(&mut self) {
        while let Some(event) = self.client.poll_event() {
            assert!(self.ending.is_none(), "nothing follows the end");
            match event {
                ClientEvent::Closed(ending) => self.ending = Some(ending),
                event => self.events.push(event),
            }
        }
    }
}

/// A dump header as the product writes it.
pub fn header(length: u64) -> [u8; 512] {
    let header = crate::vmcore::KernelDumpHeader {
        architecture: "amd64".into(),
        architecture_version: 2,
        dump_length: length,
        dump_extent: length,
        block_size: 4096,
        host_name: "vm1".into(),
        panic_string: "simulated".into(),
        ..Default::default()
    };
    header.to_bytes()
}

impl Station for ClientStation {
    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        // What it ignores it counts.
        let _ = self.client.handle_frame(now, frame);
        self.take_events();
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.grow(now);
        self.client.handle_timeout(now);
        self.take_events();
    }

    fn poll_transmit(&mut self, now: Instant, frame: &mut Vec<u8>) -> bool {
        let transmit = match &self.growth {
            None => self.client.poll_transmit(now, &self.core, frame),
            Some(growth) => {
                let kept = Kept { core: &self.core, range: self.client.acked_to()..growth.available };
                self.client.poll_transmit(now, &kept, frame)
            }
        };
        transmit.expect("memory can be read").is_some()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.growth.as_ref().map(|growth| growth.next).into_iter().chain(self.client.poll_timeout()).min()
    }
}

/// The product's receiver, storing in memory.
#[derive(Debug)]
pub struct HostStation {
    host: Host<MemoryStore>,
    restart: Option<Instant>,
    /// The dumps that ended.
    pub dumps: Vec<(receiver::Ending, MemoryDump)>,
}

impl HostStation {
    /// A receiver with room for any core of these tests.
    pub fn new() -> Self {
        Self { host: Self::host(), restart: None, dumps: Vec::new() }
    }

    /// One that forgets everything at that time.
    pub fn restarting_at(restart: Instant) -> Self {
        Self { restart: Some(restart), ..Self::new() }
    }

    /// Ends what is still open, which keeps what has come.
    pub fn shut_down(&mut self, now: Instant) {
        self.host.shut_down(now);
        self.take_events();
    }

    fn host() -> Host<MemoryStore> {
        let receiver = Receiver::new(ReceiverConfig::default(), MemoryStore::with_limit(1 << 30));
        Host::new(HostConfig { mac: SERVER_MAC, address: SERVER_IP }, receiver)
    }

    fn take_events(&mut self) {
        while let Some(event) = self.host.poll_event() {
            if let ReceiverEvent::Ended { ending, stored, .. } = event {
                self.dumps.push((ending, stored.expect("memory takes everything")));
            }
        }
    }
}

impl Default for HostStation {
    fn default() -> Self {
        Self::new()
    }
}

impl Station for HostStation {
    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        // What it ignores it counts.
        let _ = self.host.handle_frame(now, frame);
        self.take_events();
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.restart.is_some_and(|at| at <= now) {
            self.restart = None;
            self.shut_down(now);
            self.host = Self::host();
        }
        self.host.handle_timeout(now);
        self.take_events();
    }

    fn poll_transmit(&mut self, _now: Instant, frame: &mut Vec<u8>) -> bool {
        self.host.poll_transmit(frame)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.restart.into_iter().chain(self.host.poll_timeout()).min()
    }
}

/// A router with a server behind it: the wire sees the router only, the server sees frames from it.
#[derive(Debug)]
pub struct Gateway<S> {
    /// The server behind it.
    pub server: S,
    answers: VecDeque<ArpPacket>,
}

impl<S: Station> Gateway<S> {
    /// Before this server.
    pub fn before(server: S) -> Self {
        Self { server, answers: VecDeque::new() }
    }
}

impl<S: Station> Station for Gateway<S> {
    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        if let Some(question) = question_for(GATEWAY_IP, frame) {
            self.answers.push_back(question.reply_from(GATEWAY_MAC));
        } else if frame[..6] == GATEWAY_MAC.0 && frame[12..14] == [8, 0] {
            self.server.handle_frame(now, &forwarded(frame, SERVER_MAC, GATEWAY_MAC));
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.server.handle_timeout(now);
    }

    fn poll_transmit(&mut self, now: Instant, frame: &mut Vec<u8>) -> bool {
        if let Some(answer) = self.answers.pop_front() {
            put_arp(&answer, frame);
            return true;
        }
        if !self.server.poll_transmit(now, frame) {
            return false;
        }
        *frame = forwarded(frame, CLIENT_MAC, GATEWAY_MAC);
        true
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.server.poll_timeout()
    }
}

/// What a router makes of a frame: new hardware addresses, one hop less to live.
fn forwarded(frame: &[u8], to: MacAddr, from: MacAddr) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame[22] -= 1;
    frame[24..26].fill(0);
    let words = frame[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded twice");
    frame[24..26].copy_from_slice(&(!folded).to_be_bytes());
    frame
}

/// An ARP request for that address, if the frame is one.
pub(super) fn question_for(address: Ipv4Addr, frame: &[u8]) -> Option<ArpPacket> {
    let packet = ArpPacket::parse(frame.get(14..)?).ok().filter(|_| frame[12..14] == [8, 6])?;
    (packet.operation == ArpOperation::Request && packet.target_ip == address).then_some(packet)
}

/// A frame with this packet for whom it is meant.
pub(super) fn put_arp(packet: &ArpPacket, frame: &mut Vec<u8>) {
    let to = if packet.target_mac == MacAddr::ZERO { MacAddr::BROADCAST } else { packet.target_mac };
    frame.clear();
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&packet.sender_mac.0);
    frame.extend_from_slice(&[8, 6]);
    packet.emit(frame);
}

/// A round number of milliseconds.
pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
