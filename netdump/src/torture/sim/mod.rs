//! A network in a nutshell: a netdump client, a server and whoever else is on the wire, under a clock that only jumps
//! from event to event, and all chance from one seed. A run that is repeated with its seed is the same to the last bit.
//!
//! With `PCAP_DIR` set every run is recorded there, under its name, with its own time.

mod air;
pub mod datagram;
pub mod hosts;
pub mod rng;
pub mod weather;

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::{Duration, Instant};

use thiserror::Error;

use self::air::Air;
use super::judge::{From, Judge, Stored};
use super::peers::ClientStation;
use crate::link::pcap::PcapFile;

pub use hosts::Gateway;
pub use rng::Rng;
pub use weather::Weather;

/// More frames and timeouts than any honest run has: each of some thousand messages may well be sent a hundred times.
pub const MAX_STEPS: u64 = 1_000_000;

/// Steps at one point in time in which a client still has something to do.
const MAX_OVERDUE: u32 = 4;

/// Someone on the wire, sans-IO.
pub trait Station {
    /// A frame has arrived; it may be for somebody else.
    fn handle_frame(&mut self, now: Instant, frame: &[u8]);

    /// Time has passed.
    fn handle_timeout(&mut self, now: Instant);

    /// The next frame to send, replacing what is in `frame`.
    fn poll_transmit(&mut self, now: Instant, frame: &mut Vec<u8>) -> bool;

    /// When [`Self::handle_timeout`] has something to do. Only what is called on a station changes that.
    fn poll_timeout(&self) -> Option<Instant>;
}

/// A station whose end is the end of the run.
pub trait Party: Station {
    /// How it can end.
    type Ending;

    /// How it has ended, once it has.
    fn ending(&self) -> Option<&Self::Ending>;

    /// The beginning of its time.
    fn started(&self) -> Instant;
}

/// A server whose store can be looked at.
pub trait Keeper: Station {
    /// Ends what is open, as when it is told to stop.
    fn close(&mut self, now: Instant);

    /// Every dump that it has stored, whole or not, and the one that it is receiving.
    fn stored(&self) -> Vec<Stored<'_>>;
}

/// Why a run came to no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoEnd {
    /// Much happened and nothing came of it.
    #[error("too much happened")]
    Livelock,
    /// Nothing can happen any more.
    #[error("everyone waits for the other")]
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
pub struct SimNet<S, C = ClientStation> {
    /// The client, or whoever has the end of the run in hand.
    pub client: C,
    /// Its server.
    pub server: S,
    others: Vec<Box<dyn Station>>,
    air: Air,
    start: Instant,
    now: Instant,
    steps: u64,
    /// What the stations told last of when they have something to do.
    timeouts: Vec<Option<Instant>>,
    /// Stations that may have something to send.
    touched: Vec<bool>,
    /// How many frames each station has under way.
    flying: Vec<usize>,
    /// How many it may have; a link that is full takes no more.
    capacity: usize,
    /// How many frames that have arrived are handed over before anyone is asked for answers.
    batch: usize,
    lose: Option<Pick>,
    /// Who watches, if anyone does.
    pub judge: Option<Judge>,
    frame: Vec<u8>,
    recording: Option<PcapFile<BufWriter<File>>>,
}

impl<S: Station, C: Party> SimNet<S, C> {
    /// A wire between these two; `name` is what a recording of the run is called.
    pub fn new(name: &str, seed: u64, weather: Weather, client: C, server: S) -> Self {
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
            air: Air::new(weather, Rng::new(seed ^ 0x6e65_7464_756d_7021)),
            start,
            now: start,
            steps: 0,
            timeouts: vec![None; 2],
            touched: vec![true; 2],
            flying: vec![0; 2],
            capacity: usize::MAX,
            batch: 1,
            lose: None,
            judge: None,
            frame: Vec::new(),
            recording,
        }
    }

    /// Puts someone else on the wire.
    pub fn with(mut self, other: impl Station + 'static) -> Self {
        self.others.push(Box::new(other));
        self.timeouts.push(None);
        self.touched.push(true);
        self.flying.push(0);
        self
    }

    /// Each station may have so many frames under way, and must wait with a further one.
    pub fn with_capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// Frames that arrive together are handed over together, so many at most.
    pub fn with_batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }

    /// Someone who watches.
    pub fn with_judge(mut self, judge: Judge) -> Self {
        self.judge = Some(judge);
        self
    }

    /// Loses the frames that `lose` picks. It sees each frame as it is sent, once.
    pub fn losing(mut self, lose: impl FnMut(&[u8]) -> bool + 'static) -> Self {
        self.lose = Some(Box::new(lose));
        self
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Runs until the client has come to its end.
    pub fn run(&mut self) -> Result<&C::Ending, NoEnd> {
        self.advance(self.start);
        let mut overdue = 0;
        while self.client.ending().is_none() {
            let before = self.now;
            let next = self.next_event().ok_or(NoEnd::Deadlock)?;
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(NoEnd::Livelock);
            }
            self.advance(next);
            // What became due by a frame is done in the next step; what stays due would be done for ever.
            let blocked = self.flying[CLIENT] >= self.capacity;
            let due = self.timeouts[CLIENT].is_some_and(|at| at <= self.now);
            overdue = if due && !blocked && self.now == before { overdue + 1 } else { 0 };
            assert!(overdue < MAX_OVERDUE, "a client that was asked for everything has nothing to do now");
        }
        Ok(self.client.ending().expect("just looked at"))
    }

    /// Lets arrive what is still under way.
    pub fn settle(&mut self) {
        while let Some(at) = self.air.next_arrival() {
            self.now = self.now.max(self.start + at);
            self.deliver(usize::MAX);
        }
    }

    /// Everyone may have something to send, whatever happened elsewhere.
    pub fn wake(&mut self) {
        self.touched.fill(true);
    }

    /// When something happens next.
    pub fn next_event(&self) -> Option<Instant> {
        let arrival = self.air.next_arrival().map(|at| self.start + at);
        self.timeouts.iter().copied().flatten().chain(arrival).min()
    }

    /// What happens until `now`: frames arrive, stations act and answer.
    pub fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
        self.deliver(self.batch);
        for place in 0..self.timeouts.len() {
            if self.timeouts[place].is_some_and(|at| at <= self.now) {
                let now = self.now;
                self.station(place).handle_timeout(now);
                self.touched[place] = true;
            }
        }
        self.drain();
    }

    fn deliver(&mut self, most: usize) {
        let elapsed = self.elapsed();
        for _ in 0..most {
            let Some(landed) = self.air.land(elapsed) else { break };
            if landed.to == CLIENT
                && let Some(judge) = &mut self.judge
            {
                judge.arrived(&landed.bytes, landed.intact);
            }
            // Who sent it may have been waiting for room.
            self.flying[landed.from] -= 1;
            self.touched[landed.from] |= self.capacity != usize::MAX;
            self.touched[landed.to] = true;
            let now = self.now;
            self.station(landed.to).handle_frame(now, &landed.bytes);
            self.air.recycle(landed);
        }
    }

    /// Takes from each station what it has to send and the wire has room for.
    fn drain(&mut self) {
        let now = self.now;
        for place in 0..self.touched.len() {
            if !std::mem::take(&mut self.touched[place]) {
                continue;
            }
            let mut frame = std::mem::take(&mut self.frame);
            while self.flying[place] < self.capacity && self.station(place).poll_transmit(now, &mut frame) {
                self.send(place, &frame);
            }
            self.frame = frame;
            self.timeouts[place] = self.station(place).poll_timeout();
        }
    }

    /// Everybody else on the wire gets the frame, as the weather has it.
    fn send(&mut self, from: Place, frame: &[u8]) {
        let elapsed = self.elapsed();
        if let Some(recording) = &mut self.recording {
            recording.record(elapsed, frame).expect("PCAP_DIR has room");
        }
        if let Some(judge) = &mut self.judge {
            judge.sent(
                elapsed,
                [From::Client, From::Server].get(from).copied().unwrap_or(From::Other),
                frame,
            );
        }
        if self.lose.as_mut().is_some_and(|lose| lose(frame)) {
            return;
        }
        for to in (0..self.flying.len()).filter(|to| *to != from) {
            self.flying[from] += self.air.send(elapsed, from, to, frame);
        }
    }

    fn station(&mut self, place: Place) -> &mut dyn Station {
        match place {
            CLIENT => &mut self.client,
            SERVER => &mut self.server,
            other => self.others[other - 2].as_mut(),
        }
    }
}
