//! The product's two ends as stations: its client, and its receiver as a host.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::client::{Client, ClientConfig, ClientEvent, CorePlan, DumpPlan, Ending, Packet};
use crate::link::Frame;
use crate::receiver::host::{FrameIgnored, Host, HostConfig};
use crate::receiver::{Receiver, ReceiverConfig};
use crate::vmcore::KernelDumpHeader;
use crate::vmcore::kdh::KDH_LEN;
use crate::wire::{MacAddr, Route};
use crate::{ReadAt, ReadError};

use super::Dumps;
use super::core::{Core, header};
use super::store::{DiskKind, SimStore, StoredFile};
use crate::torture::judge::Stored;
use crate::torture::sim::Rng;
use crate::torture::sim::datagram::Datagram;
use crate::torture::sim::hosts::{CLIENT_IP, CLIENT_MAC, SERVER_IP, SERVER_MAC, port_unreachable};
use crate::torture::sim::{Keeper, Party, Station};

/// A client that dumps a [`Core`].
#[derive(Debug)]
pub struct ClientStation {
    /// The client under test.
    pub client: Client,
    /// What it was made with.
    pub config: ClientConfig,
    /// What it sends.
    pub core: Core,
    /// How much of that is the file; what follows is padding.
    pub file_length: u64,
    /// What it told so far, but for its end.
    pub events: Vec<ClientEvent>,
    /// How it ended, once it has.
    pub ending: Option<Ending>,
    started: Instant,
    growth: Option<Growth>,
    packet: Packet,
    /// Where in a train the next frame begins; 0 when all of it was sent.
    next_of_train: usize,
}

/// How a core comes that is made while it is sent.
#[derive(Debug)]
struct Growth {
    rng: Rng,
    /// Bytes there are.
    available: u64,
    /// When there are more, or the end is known.
    next: Instant,
    header: [u8; KDH_LEN],
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
        Self::starting_at(Instant::now(), config, plan, core)
    }

    /// The same at a time that several have in common.
    pub fn starting_at(started: Instant, config: ClientConfig, plan: DumpPlan, core: Core) -> Self {
        let file_length = core.length();
        let client = Client::new(config.clone(), plan, started).expect("a good configuration");
        Self {
            client,
            config,
            core,
            file_length,
            events: Vec::new(),
            ending: None,
            started,
            growth: None,
            packet: Packet::default(),
            next_of_train: 0,
        }
    }

    /// The same with a core that comes piece by piece, and with its header in the end.
    pub fn growing(
        config: ClientConfig,
        key: Option<Vec<u8>>,
        core: Core,
        header: [u8; KDH_LEN],
        rng: Rng,
    ) -> Self {
        let plan = DumpPlan { path: None, core: CorePlan::Growing, key };
        let station = Self::new(config, plan, core);
        let next = station.started + Duration::from_micros(1);
        let file_length = KernelDumpHeader::parse(&header).expect("a good header").dump_length;
        Self { growth: Some(Growth { rng, available: 0, next, header }), file_length, ..station }
    }

    /// Whether its core is made while it is sent.
    pub fn is_growing(&self) -> bool {
        self.growth.is_some()
    }

    /// What was not acknowledged; what was not made yet is missing too.
    pub fn missing(&self) -> Vec<(u64, u64)> {
        let mut missing = self.client.missing();
        if self.growth.is_some() {
            let made = self.client.acked_to().max(missing.last().map_or(0, |last| last.1));
            missing.push((made, self.core.length()));
            missing.retain(|(start, end)| start < end);
        }
        missing
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

    /// Takes the client's next frame or train of frames.
    fn next_packet(&mut self, now: Instant) -> bool {
        let transmit = match &self.growth {
            None => self.client.poll_transmit(now, &self.core, &mut self.packet),
            Some(growth) => {
                let kept = Kept { core: &self.core, range: self.client.acked_to()..growth.available };
                self.client.poll_transmit(now, &kept, &mut self.packet)
            }
        };
        transmit.expect("memory can be read").is_some()
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

/// One datagram of a train as a frame of its own with a checksum, as a card would send it: where the next one begins, 0
/// behind the last. What is no datagram is left as it is.
fn take_segment(train: &[u8], segment: usize, at: usize, frame: &mut Vec<u8>) -> usize {
    frame.clear();
    let (Some(datagram), Some((&to, rest))) = (Datagram::of(train), train.split_first_chunk()) else {
        frame.extend_from_slice(train);
        return 0;
    };
    let route = Route {
        source_mac: MacAddr(*rest.first_chunk().expect("it is longer than its header")),
        destination_mac: MacAddr(to),
        source: datagram.source,
        destination: datagram.destination,
    };
    let end = (at + segment).min(datagram.payload.len());
    route.emit(&datagram.payload[at..end], frame);
    if end < datagram.payload.len() { end } else { 0 }
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
        if self.next_of_train == 0 && !self.next_packet(now) {
            return false;
        }
        let Frame { bytes, segment, .. } = self.packet.frame();
        if !self.config.offloads.checksum {
            frame.clear();
            frame.extend_from_slice(bytes);
            return true;
        }
        let segment = segment.map_or(bytes.len(), usize::from);
        self.next_of_train = take_segment(bytes, segment, self.next_of_train, frame);
        true
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.growth.as_ref().map(|growth| growth.next).into_iter().chain(self.client.poll_timeout()).min()
    }
}

impl Dumps for ClientStation {
    fn cores(&self) -> Vec<(SocketAddrV4, &[u8])> {
        vec![(SocketAddrV4::new(self.config.client, self.config.client_port), &self.core.bytes)]
    }
}

impl Party for ClientStation {
    type Ending = Ending;

    fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    fn started(&self) -> Instant {
        self.started
    }
}

/// What a receiver that was killed knows of the dumps on its disk when it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Nothing.
    Lost,
    /// Those that can go on.
    Kept,
}

/// The product's receiver.
#[derive(Debug)]
pub struct HostStation {
    host: Host<SimStore>,
    store: SimStore,
    restart: Option<(Instant, Memory)>,
    /// Whether it answers for closed ports.
    refuses: bool,
    answers: VecDeque<Vec<u8>>,
    /// The dumps that it has on disk, once it was closed.
    pub files: Vec<StoredFile>,
}

impl HostStation {
    /// A receiver with room for any core.
    pub fn new() -> Self {
        Self::with_disk(DiskKind::default())
    }

    /// A receiver with such a disk.
    pub fn with_disk(kind: DiskKind) -> Self {
        let store = SimStore::new(kind);
        Self {
            host: Self::host(&store, |_| {}),
            store,
            restart: None,
            refuses: false,
            answers: VecDeque::new(),
            files: Vec::new(),
        }
    }

    /// One that is killed at that time, and started again with the same disk.
    pub fn restarting_at(restart: Instant, memory: Memory) -> Self {
        Self { restart: Some((restart, memory)), ..Self::new() }
    }

    /// It says by ICMP that a port is closed.
    pub fn refusing(self) -> Self {
        Self { refuses: true, ..self }
    }

    fn host(store: &SimStore, begin: impl FnOnce(&mut Receiver<SimStore>)) -> Host<SimStore> {
        let mut receiver = Receiver::new(ReceiverConfig::default(), store.clone());
        begin(&mut receiver);
        Host::new(HostConfig { mac: SERVER_MAC, address: SERVER_IP }, receiver)
    }

    /// What a person would be told.
    fn skip_events(&mut self) {
        while self.host.poll_event().is_some() {}
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
        let taken = self.host.handle_frame(now, frame);
        if let Err(FrameIgnored::ClosedPort(_)) = taken {
            self.answers.extend(port_unreachable(frame).filter(|_| self.refuses));
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if let Some((_, memory)) = self.restart.take_if(|(at, _)| *at <= now) {
            self.host = Self::host(&self.store, |receiver| match memory {
                Memory::Lost => {}
                Memory::Kept => drop(receiver.restore_unfinished(now)),
            });
        }
        self.host.handle_timeout(now);
    }

    fn poll_transmit(&mut self, _now: Instant, frame: &mut Vec<u8>) -> bool {
        if let Some(answer) = self.answers.pop_front() {
            *frame = answer;
            return true;
        }
        let sends = self.host.poll_transmit(frame);
        self.skip_events();
        sends
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.restart.map(|(at, _)| at).into_iter().chain(self.host.poll_timeout()).min()
    }
}

impl Keeper for HostStation {
    fn close(&mut self, now: Instant) {
        self.host.shut_down(now);
        self.skip_events();
        self.files = self.store.take_files();
    }

    fn stored(&self) -> Vec<Stored<'_>> {
        self.files.iter().map(|file| Stored { core: &file.core, is_complete: file.is_complete }).collect()
    }
}
