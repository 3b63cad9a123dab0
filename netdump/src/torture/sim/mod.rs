//! A network in a nutshell: a netdump client, a server and whoever else is on the wire, under a clock that only jumps
//! from event to event, and all chance from one seed. A run that is repeated with its seed is the same to the last bit.
//!
//! With `PCAP_DIR` set every run is recorded there, under its name, with its own time.

pub mod fake_server;
pub mod mischief;
pub mod rng;
pub mod stations;
pub mod weather;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::client::Ending;
use crate::link::pcap::PcapFile;

pub use fake_server::{FakeServer, Manner};
pub use mischief::{Echo, Replay, Vandal};
pub use rng::Rng;
pub use stations::{ClientStation, Core, Gateway, HostStation};
pub use weather::Weather;

/// More events than any honest run has: each of a thousand messages may well be sent a hundred times.
pub const MAX_STEPS: u64 = 300_000;

/// Someone on the wire, sans-IO.
pub trait Station {
    /// A frame has arrived; it may be for somebody else.
    fn handle_frame(&mut self, now: Instant, frame: &[u8]);

    /// Time has passed.
    fn handle_timeout(&mut self, now: Instant);

    /// The next frame to send, replacing what is in `frame`.
    fn poll_transmit(&mut self, now: Instant, frame: &mut Vec<u8>) -> bool;

    /// When [`Self::handle_timeout`] has something to do.
    fn poll_timeout(&self) -> Option<Instant>;
}

/// Why a run came to no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEnd {
    /// Much happened and nothing came of it.
    Livelock,
    /// Nothing can happen any more.
    Deadlock,
}

/// Where a station is on the wire: the client first, then the server, then the others.
type Place = usize;
const CLIENT: Place = 0;
const SERVER: Place = 1;

/// Picks frames.
type Pick = Box<dyn FnMut(&[u8]) -> bool>;

/// One simulated wire.
#[expect(missing_debug_implementations, reason = "it holds closures and nobody prints it")]
pub struct SimNet<S> {
    /// The client under test.
    pub client: ClientStation,
    /// Its server.
    pub server: S,
    others: Vec<Box<dyn Station>>,
    weather: Weather,
    rng: Rng,
    start: Instant,
    now: Instant,
    steps: u64,
    launched: u64,
    /// Frames under way, the next to arrive on top.
    air: BinaryHeap<Reverse<Flying>>,
    /// How many frames each station has under way.
    flying: Vec<usize>,
    /// How many it may have; a link that is full takes no more.
    capacity: usize,
    lose: Pick,
    last_lost: bool,
    frame: Vec<u8>,
    recording: Option<PcapFile<BufWriter<File>>>,
}

/// A frame under way. Frames that arrive at the same time do so in the order of `number`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    arrives: Instant,
    number: u64,
    from: Place,
    to: Place,
    bytes: Vec<u8>,
}

impl<S: Station> SimNet<S> {
    /// A wire between these two; `name` is what a recording of the run is called.
    pub fn new(name: &str, seed: u64, weather: Weather, client: ClientStation, server: S) -> Self {
        let start = client.started();
        let recording = std::env::var_os("PCAP_DIR").map(|dir| {
            let path = Path::new(&dir).join(format!("{name}-{seed}.pcap"));
            PcapFile::create(&path)
                .unwrap_or_else(|error| panic!("cannot record to {}: {error}", path.display()))
        });
        Self {
            client,
            server,
            others: Vec::new(),
            weather,
            rng: Rng::new(seed ^ 0x6e65_7464_756d_7021),
            start,
            now: start,
            steps: 0,
            launched: 0,
            air: BinaryHeap::new(),
            flying: vec![0; 2],
            capacity: usize::MAX,
            lose: Box::new(|_| false),
            last_lost: false,
            frame: Vec::new(),
            recording,
        }
    }

    /// Puts someone else on the wire.
    pub fn with(mut self, other: impl Station + 'static) -> Self {
        self.others.push(Box::new(other));
        self.flying.push(0);
        self
    }

    /// Each station may have so many frames under way, and must wait with a further one.
    pub fn with_capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Loses the frames that `lose` picks. It sees each frame as it is sent, once.
    pub fn losing(mut self, lose: impl FnMut(&[u8]) -> bool + 'static) -> Self {
        self.lose = Box::new(lose);
        self
    }

    /// Runs until the client has come to its end.
    pub fn run(&mut self) -> Result<&Ending, NoEnd> {
        self.drain();
        while self.client.ending.is_none() {
            self.step()?;
        }
        Ok(self.client.ending.as_ref().expect("just looked at"))
    }

    /// Lets arrive what is still under way.
    pub fn settle(&mut self) {
        while let Some(Reverse(flying)) = self.air.pop() {
            self.now = self.now.max(flying.arrives);
            self.flying[flying.from] -= 1;
            let now = self.now;
            self.station(flying.to).handle_frame(now, &flying.bytes);
        }
    }

    fn step(&mut self) -> Result<(), NoEnd> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(NoEnd::Livelock);
        }
        let arrival = self.air.peek().map(|Reverse(flying)| flying.arrives);
        let timeouts = (0..self.flying.len()).filter_map(|place| self.station(place).poll_timeout()).min();
        let next = arrival.into_iter().chain(timeouts).min().ok_or(NoEnd::Deadlock)?;
        self.now = self.now.max(next);
        let now = self.now;
        if arrival.is_some_and(|at| at <= now) {
            let Reverse(flying) = self.air.pop().expect("just looked at");
            self.flying[flying.from] -= 1;
            self.station(flying.to).handle_frame(now, &flying.bytes);
        }
        for place in 0..self.flying.len() {
            if self.station(place).poll_timeout().is_some_and(|at| at <= now) {
                self.station(place).handle_timeout(now);
            }
        }
        self.drain();
        Ok(())
    }

    /// Takes from each station what it has to send and the wire has room for.
    fn drain(&mut self) {
        let now = self.now;
        for place in 0..self.flying.len() {
            let mut frame = std::mem::take(&mut self.frame);
            while self.flying[place] < self.capacity && self.station(place).poll_transmit(now, &mut frame) {
                self.send(place, &frame);
            }
            self.frame = frame;
        }
        let blocked = self.flying[CLIENT] >= self.capacity;
        let due = self.client.poll_timeout().is_some_and(|at| at <= now);
        assert!(blocked || !due, "a client that was asked for everything has nothing to do now");
    }

    /// Everybody else on the wire gets the frame, as the weather has it.
    fn send(&mut self, from: Place, frame: &[u8]) {
        let elapsed = self.elapsed();
        if let Some(recording) = &mut self.recording {
            recording.record(elapsed, frame).expect("PCAP_DIR has room");
        }
        if (self.lose)(frame) {
            return;
        }
        for to in (0..self.flying.len()).filter(|to| *to != from) {
            let lost = self.rng.chance(if self.last_lost { self.weather.burst } else { 0 })
                || self.rng.chance(self.weather.loss)
                || self.weather.outage.contains(&elapsed);
            self.last_lost = lost;
            if lost {
                continue;
            }
            let copies = if self.rng.chance(self.weather.duplicate) { 2 } else { 1 };
            for _ in 0..copies {
                self.launch(from, to, frame.to_vec());
            }
        }
    }

    fn launch(&mut self, from: Place, to: Place, mut bytes: Vec<u8>) {
        let mut delay = self.rng.time(&self.weather.delay);
        if self.rng.chance(self.weather.straggle) {
            delay += self.rng.time(&self.weather.straggle_by);
        }
        let (ethernet, packet) = bytes.split_at_mut(14);
        let is_ip = ethernet[12..] == [0x08, 0x00] && !packet.is_empty();
        if is_ip && self.rng.chance(self.weather.corrupt) {
            let at = self.rng.index(packet.len());
            packet[at] ^= 1 << self.rng.below(8);
        }
        self.flying[from] += 1;
        let number = self.launched;
        self.launched += 1;
        self.air.push(Reverse(Flying { arrives: self.now + delay, number, from, to, bytes }));
    }

    fn station(&mut self, place: Place) -> &mut dyn Station {
        match place {
            CLIENT => &mut self.client,
            SERVER => &mut self.server,
            other => self.others[other - 2].as_mut(),
        }
    }
}
