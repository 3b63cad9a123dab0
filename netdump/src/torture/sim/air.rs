//! Frames under way: what the weather makes of them, and when each arrives.
//!
//! A simulation spends its time here, so frames are kept in slots whose memory is used again and again, and only their
//! times are sorted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::Place;
use super::rng::Rng;
use super::weather::Weather;

/// The air between the stations. Times are since the start of the run.
#[derive(Debug)]
pub(super) struct Air {
    weather: Weather,
    rng: Rng,
    /// The next to arrive on top; of frames that arrive at the same time the one that was sent first.
    arrivals: BinaryHeap<Reverse<Arrival>>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    launched: u64,
    last_lost: bool,
}

/// Arrival time, number of the frame, its slot.
type Arrival = (Duration, u64, usize);

/// A frame under way, or one that was.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) from: Place,
    pub(super) to: Place,
    pub(super) bytes: Vec<u8>,
    /// Whether the weather has left it as it was sent.
    pub(super) intact: bool,
}

impl Air {
    pub(super) fn new(weather: Weather, rng: Rng) -> Self {
        Self {
            weather,
            rng,
            arrivals: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            launched: 0,
            last_lost: false,
        }
    }

    /// Sends a frame on its way; how many copies of it are.
    pub(super) fn send(&mut self, elapsed: Duration, from: Place, to: Place, frame: &[u8]) -> usize {
        let lost = self.rng.chance(if self.last_lost { self.weather.burst } else { 0 })
            || self.rng.chance(self.weather.loss)
            || self.weather.outage.contains(&elapsed);
        self.last_lost = lost;
        if lost {
            return 0;
        }
        let copies = if self.rng.chance(self.weather.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            self.launch(elapsed, from, to, frame);
        }
        copies
    }

    /// When the next frame arrives.
    pub(super) fn next_arrival(&self) -> Option<Duration> {
        self.arrivals.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next frame that has arrived by then. It is to be handed back with [`Self::recycle`].
    pub(super) fn land(&mut self, by: Duration) -> Option<Slot> {
        let &Reverse((at, _, slot)) = self.arrivals.peek()?;
        if at > by {
            return None;
        }
        self.arrivals.pop();
        self.free.push(slot);
        Some(std::mem::take(&mut self.slots[slot]))
    }

    /// Takes the memory of the frame that landed last back.
    pub(super) fn recycle(&mut self, landed: Slot) {
        if let Some(&slot) = self.free.last() {
            self.slots[slot] = landed;
        }
    }

    fn launch(&mut self, elapsed: Duration, from: Place, to: Place, frame: &[u8]) {
        let mut delay = self.rng.time(&self.weather.delay);
        if self.rng.chance(self.weather.straggle) {
            delay += self.rng.time(&self.weather.straggle_by);
        }
        let free = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[free];
        (slot.from, slot.to, slot.intact) = (from, to, true);
        slot.bytes.clear();
        slot.bytes.extend_from_slice(frame);
        let (ethernet, packet) = slot.bytes.split_at_mut(14);
        let is_ip = ethernet[12..] == [0x08, 0x00] && !packet.is_empty();
        if is_ip && self.rng.chance(self.weather.corrupt) {
            let at = self.rng.index(packet.len());
            packet[at] ^= 1 << self.rng.below(8);
            slot.intact = false;
        }
        self.arrivals.push(Reverse((elapsed + delay, self.launched, free)));
        self.launched += 1;
    }
}
