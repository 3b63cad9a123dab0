//! The product's two ends as stations: its client, and its receiver as a host.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::client::{Client, ClientConfig, ClientEvent, CorePlan, DumpPlan, Ending, Packet};
use crate::link::Frame;
use crate::receiver::host::{Host, HostConfig};
use crate::receiver::store::{MemoryDump, MemoryStore};
use crate::receiver::{self, Receiver, ReceiverConfig, ReceiverEvent};
use crate::vmcore::kdh::KDH_LEN;
use crate::wire::{MacAddr, Route};
use crate::{ReadAt, ReadError};

use super::core::{Core, header};
use crate::torture::judge::Stored;
use crate::torture::sim::Rng;
use crate::torture::sim::datagram::Datagram;
use crate::torture::sim::hosts::{CLIENT_IP, CLIENT_MAC, SERVER_IP, SERVER_MAC};
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
        let client = Client::new(config.clone(), plan, started).expect("a good configuration");
        Self {
            client,
            config,
            core,
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

impl Party for ClientStation {
    type Ending = Ending;

    fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    fn started(&self) -> Instant {
        self.started
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
            self.close(now);
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

impl Keeper for HostStation {
    fn close(&mut self, now: Instant) {
        self.host.shut_down(now);
        self.take_events();
    }

    fn stored(&self) -> Vec<Stored<'_>> {
        let dumps = self.dumps.iter();
        dumps.map(|(ending, dump)| Stored { core: &dump.core, is_complete: ending.is_complete() }).collect()
    }
}
