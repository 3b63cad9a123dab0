//! The window over modelled paths: a link with a rate, a delay and chance losses, a server with a speed and a socket
//! buffer, and a sender that is not infinitely fast either. Time is simulated, so the figures are the same everywhere.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::*;

const US: Duration = Duration::from_micros(1);
const MIB: u64 = 1 << 20;

/// What lies between a client and a stored core.
#[derive(Debug, Clone)]
struct Path {
    mtu: u32,
    /// Datagrams in a train at most.
    segments: usize,
    /// Of the sender: for each frame or train, and for each message in it.
    send: [Duration; 2],
    /// Bytes a second.
    link: f64,
    /// One way.
    delay: Duration,
    /// Of each message and each ack, the share lost.
    loss: f64,
    /// A message takes up to so much longer than another.
    jitter: Duration,
    /// Of the server: for each time it looks, and for each message.
    serve: [Duration; 2],
    /// Messages taken at a time at most; they are acknowledged together.
    batch: usize,
    /// Memory that the kernel charges to the server's socket at most.
    buffer: usize,
    /// The server does nothing for so long, every so often.
    pause: Option<[Duration; 2]>,
}

/// Our receiver at the other end of a tap, as measured: 5 GB/s behind trains, and a large buffer.
fn tap() -> Path {
    Path {
        mtu: 1500,
        segments: 44,
        send: [4 * US, Duration::from_nanos(180)],
        link: 1e12,
        delay: 5 * US,
        loss: 0.0,
        jitter: Duration::ZERO,
        serve: [10 * US, Duration::from_nanos(230)],
        batch: 1000,
        buffer: 64 << 20,
        pause: None,
    }
}

/// A stock netdumpd: 270 MB/s of small messages or 500 MB/s of large ones, one at a time.
fn stock(mtu: u32) -> Path {
    let service = if mtu < 4148 { 5300 } else { 8200 };
    Path {
        mtu,
        segments: 1,
        send: [2 * US, US / 2],
        delay: 20 * US,
        serve: [Duration::ZERO, Duration::from_nanos(service)],
        batch: 1,
        // Doubled by the kernel.
        buffer: 2 * 128 * 1024,
        ..tap()
    }
}

/// Two hosts on a 10 Gbit/s network and our receiver.
fn ethernet(delay: Duration) -> Path {
    Path { segments: 1, link: 1.25e9, delay, send: [US / 10, US / 10], ..tap() }
}

/// How a dump went.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Bytes a second.
    rate: f64,
    /// Messages for which the server had no room.
    overflows: u64,
    resends: u64,
    messages: u64,
}

enum Event {
    Arrival(u32),
    Served,
    Acks(Vec<u32>),
}

struct Sim {
    path: Path,
    start: Instant,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64)>>,
    payloads: std::collections::HashMap<u64, Event>,
    count: u64,
    link_free: Duration,
    queue: VecDeque<u32>,
    is_serving: bool,
    serving: Vec<u32>,
    overflows: u64,
    random: u64,
}

/// A core without a byte of memory.
struct Nothing(u64);

impl ReadAt for Nothing {
    fn length(&self) -> u64 {
        self.0
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), ReadError> {
        Ok(())
    }

    fn locate(&self, offset: u64, _len: usize) -> Option<u64> {
        Some(offset)
    }
}

impl Sim {
    fn chance(&mut self) -> f64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(self.random >> 33).unwrap()) / f64::from(u32::MAX >> 1)
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.count += 1;
        self.payloads.insert(self.count, event);
        self.events.push(Reverse((time, self.count)));
    }

    /// What the kernel charges for a datagram.
    fn charge(&self) -> usize {
        if self.path.mtu < 4148 { 2320 } else { 8456 }
    }

    fn send(&mut self, first: u32, messages: u32, len: usize) {
        self.now += self.path.send[0] + self.path.send[1] * messages;
        for number in first..first + messages {
            let wire = Duration::from_secs_f64(len as f64 / self.path.link);
            self.link_free = self.link_free.max(self.now) + wire;
            let jitter = self.path.jitter.mul_f64(self.chance());
            if self.chance() >= self.path.loss {
                self.at(self.link_free + self.path.delay + jitter, Event::Arrival(number));
            }
        }
    }

    fn serve(&mut self, now: Duration) {
        if !self.is_serving && !self.queue.is_empty() {
            self.is_serving = true;
            let count = self.queue.len().min(self.path.batch);
            self.serving = self.queue.drain(..count).collect();
            let mut done = now + self.path.serve[0] + self.path.serve[1] * u32::try_from(count).unwrap();
            if let Some([every, pause]) = self.path.pause
                && done.as_nanos() / every.as_nanos() != now.as_nanos() / every.as_nanos()
            {
                done += pause;
            }
            self.at(done, Event::Served);
        }
    }

    /// Lets happen what is due; gives the acks that arrive.
    fn advance(&mut self, until: Duration) -> Vec<u32> {
        let mut acks = Vec::new();
        while let Some(Reverse((at, number))) =
            self.events.peek().copied().filter(|Reverse((at, _))| *at <= until)
        {
            self.events.pop();
            match self.payloads.remove(&number).unwrap() {
                Event::Arrival(message) => {
                    let used = (self.queue.len() + self.serving.len()) * self.charge();
                    if used + self.charge() > self.path.buffer {
                        self.overflows += 1;
                    } else {
                        self.queue.push_back(message);
                        self.serve(at);
                    }
                }
                Event::Served => {
                    let served = std::mem::take(&mut self.serving);
                    let mut acks = Vec::new();
                    for number in served {
                        if self.chance() >= self.path.loss {
                            acks.push(number);
                        }
                    }
                    self.at(at + self.path.delay, Event::Acks(acks));
                    self.is_serving = false;
                    self.serve(at);
                }
                Event::Acks(numbers) => acks.extend(numbers),
            }
        }
        acks
    }
}

fn run(path: &Path, length: u64, tune: impl FnOnce(&mut Client)) -> Run {
    let offloads = Offloads { gather: true, checksum: true, segments: path.segments };
    let config = ClientConfig { offloads, ..ClientConfig::new(SERVER, CLIENT, OUR_MAC, path.mtu) };
    let core = CorePlan::Known { length, header: [0; KDH_LEN] };
    let mut bench = Bench::new(config, DumpPlan { path: None, core: CorePlan::Growing, key: None });
    bench.client =
        Client::new(bench.client.config.clone(), DumpPlan { path: None, core, key: None }, bench.now)
            .unwrap();
    bench.frames();
    bench.arp(ArpOperation::Reply, THEIR_MAC, SERVER).unwrap();
    bench.frames();
    bench.ack(1).unwrap();
    tune(&mut bench.client);
    let mut sim = Sim {
        path: path.clone(),
        start: bench.now,
        now: Duration::ZERO,
        events: BinaryHeap::new(),
        payloads: std::collections::HashMap::new(),
        count: 0,
        link_free: Duration::ZERO,
        queue: VecDeque::new(),
        is_serving: false,
        serving: Vec::new(),
        overflows: 0,
        random: length,
    };
    let (client, image) = (&mut bench.client, Nothing(length));
    let mut packet = Packet::default();
    // As the driver does: send all, then take what has come, then wait.
    while client.phase() == Phase::Data {
        let now = sim.start + sim.now;
        client.handle_timeout(now);
        while let Some(transmit) = client.poll_transmit(now, &image, &mut packet).unwrap() {
            let frame = packet.frame();
            let mut at = PAYLOAD_AT - 24;
            let len = frame.segment.map_or(frame.len() - 42, usize::from) + 66;
            for _ in 0..transmit.messages {
                let number = u32::from_be_bytes(frame.bytes[at + 4..at + 8].try_into().unwrap());
                sim.send(number, 1, len);
                sim.now -= sim.path.send[0];
                at += 24;
            }
            sim.now += sim.path.send[0];
        }
        let mut acks = sim.advance(sim.now);
        if acks.is_empty() {
            let next = sim.events.peek().map(|Reverse((at, _))| *at);
            let timer = client.poll_timeout().map(|at| at.saturating_duration_since(sim.start));
            sim.now = sim.now.max(next.into_iter().chain(timer).min().expect("something happens"));
            acks = sim.advance(sim.now);
        }
        let now = sim.start + sim.now;
        for number in acks {
            let _ = client.take_ack(now, PORT, Sequence(number));
        }
        if sim.now > Duration::from_secs(20) {
            break;
        }
    }
    let stats = client.stats();
    Run {
        rate: stats.bytes_acked as f64 / sim.now.as_secs_f64(),
        overflows: sim.overflows,
        resends: stats.resends,
        messages: stats.messages,
    }
}

fn adaptive(path: &Path, length: u64) -> Run {
    run(path, length, |_| {})
}

/// The best of windows that do not change.
fn best_fixed(path: &Path, length: u64) -> (usize, Run) {
    [8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384]
        .into_iter()
        .map(|limit| (limit, run(path, length, |client| client.window.fix_limit(limit))))
        .max_by(|(_, one), (_, other)| one.rate.total_cmp(&other.rate))
        .unwrap()
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    let lossy = |loss, path| Path { loss, ..path };
    let ms = Duration::from_millis(1);
    let slow = Path { serve: [10 * US, 10 * US], pause: Some([100 * ms, 60 * ms]), ..tap() };
    for (name, path, mib) in [
        ("tap", tap(), 256),
        ("tap 1 GiB", tap(), 1024),
        ("tap, single frames", Path { segments: 1, ..tap() }, 256),
        ("tap, 9000", Path { mtu: 9000, segments: 15, ..tap() }, 256),
        ("tap, 1 %", lossy(0.01, tap()), 256),
        ("tap, 5 %", lossy(0.05, tap()), 256),
        ("tap, 200 KiB buffer", Path { buffer: 425_984, ..tap() }, 256),
        ("pausing disk", slow, 256),
        ("stock 1500", stock(1500), 128),
        ("stock 9000", stock(9000), 128),
        ("stock 1500, trains", Path { segments: 44, ..stock(1500) }, 128),
        ("stock 9000, trains", Path { segments: 15, ..stock(9000) }, 128),
        ("stock 1500, 1 %", lossy(0.01, stock(1500)), 128),
        ("stock 1500, 5 %", lossy(0.05, stock(1500)), 128),
        ("stock 9000, 5 %", lossy(0.05, stock(9000)), 128),
        ("stock 1500, 1 ms", Path { delay: ms, ..stock(1500) }, 128),
        ("ethernet 50 us", ethernet(50 * US), 256),
        ("ethernet 50 us, 5 %", lossy(0.05, ethernet(50 * US)), 256),
        ("ethernet 10 ms", ethernet(10 * ms), 256),
        ("ethernet 10 ms, 1 %", lossy(0.01, ethernet(10 * ms)), 256),
        ("ethernet, jitter", Path { jitter: 200 * US, ..ethernet(50 * US) }, 256),
    ] {
        let ours = adaptive(&path, mib * MIB);
        let (limit, best) = best_fixed(&path, mib * MIB);
        println!(
            "{name:22} {:6.0} MB/s, best fixed ({limit:5}) {:6.0} MB/s: {:4.0} %; resends {:4.1} %, overflows {:4.1} % (fixed {:4.1} %)",
            ours.rate / 1e6,
            best.rate / 1e6,
            100.0 * ours.rate / best.rate,
            100.0 * ours.resends as f64 / ours.messages as f64,
            100.0 * ours.overflows as f64 / ours.messages as f64,
            100.0 * best.overflows as f64 / best.messages as f64,
        );
    }
}
