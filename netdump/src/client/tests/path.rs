//! The window over modelled paths: a link with a rate, a delay and chance losses, a server with a speed and a socket
//! buffer, and a sender that is not infinitely fast either. Time is simulated, so the figures are the same everywhere.

use std::collections::{BTreeMap, VecDeque};

use super::*;

const US: Duration = Duration::from_micros(1);
const MIB: u64 = 1 << 20;
/// A run that has come to no end by then counts with what it has done.
const LONGEST: Duration = Duration::from_secs(20);

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
    /// By time; what happens at the same time does so in the order in which it was foreseen.
    events: BTreeMap<(Duration, u64), Event>,
    foreseen: u64,
    link_free: Duration,
    queue: VecDeque<u32>,
    is_serving: bool,
    serving: Vec<u32>,
    overflows: u64,
    random: u64,
}

/// A core that takes no memory.
struct Nothing(u64);

impl ReadAt for Nothing {
    fn length(&self) -> u64 {
        self.0
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        buf.fill(0xff);
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
        self.foreseen += 1;
        self.events.insert((time, self.foreseen), event);
    }

    /// What the kernel charges for a datagram.
    fn charge(&self) -> usize {
        if self.path.mtu < 4148 { 2320 } else { 8456 }
    }

    /// Sends a frame or train.
    fn send(&mut self, frame: &Frame<'_>, messages: usize) {
        self.now += self.path.send[0];
        let len = frame.segment.map_or(frame.len() - HEADERS_LEN, usize::from) + HEADERS_LEN;
        for number in 0..messages {
            let at = HEADERS_LEN + 24 * number + 4;
            let number = u32::from_be_bytes(frame.bytes[at..at + 4].try_into().unwrap());
            self.now += self.path.send[1];
            self.link_free =
                self.link_free.max(self.now) + Duration::from_secs_f64(len as f64 / self.path.link);
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
        while let Some(((at, _), _)) = self.events.first_key_value().filter(|((at, _), _)| *at <= until) {
            let at = *at;
            let Some((_, event)) = self.events.pop_first() else { break };
            match event {
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
    let mut bench = Bench::new(config.clone(), plan(0));
    bench.client = Client::new(config, DumpPlan { path: None, core, key: None }, bench.now).unwrap();
    bench.frames();
    bench.arp(ArpOperation::Reply, THEIR_MAC, SERVER).unwrap();
    bench.frames();
    bench.ack(1).unwrap();
    tune(&mut bench.client);
    let mut sim = Sim {
        path: path.clone(),
        start: bench.now,
        now: Duration::ZERO,
        events: BTreeMap::new(),
        foreseen: 0,
        link_free: Duration::ZERO,
        queue: VecDeque::new(),
        is_serving: false,
        serving: Vec::new(),
        overflows: 0,
        random: length,
    };
    let (client, image) = (&mut bench.client, Nothing(length));
    let mut packet = Packet::default();
    // As the driver does: send some, then take what has come, then wait.
    while client.phase() == Phase::Data && sim.now < LONGEST {
        let now = sim.start + sim.now;
        client.handle_timeout(now);
        let mut is_all_sent = false;
        for _ in 0..16 {
            let Some(transmit) = client.poll_transmit(now, &image, &mut packet).unwrap() else {
                is_all_sent = true;
                break;
            };
            sim.send(&packet.frame(), transmit.messages);
        }
        let mut acks = sim.advance(sim.now);
        if acks.is_empty() && is_all_sent {
            let next = sim.events.first_key_value().map(|((at, _), _)| *at);
            let timer = client.poll_timeout().map(|at| at.saturating_duration_since(sim.start));
            sim.now = sim.now.max(next.into_iter().chain(timer).min().expect("something happens"));
            acks = sim.advance(sim.now);
        }
        let now = sim.start + sim.now;
        for number in acks {
            let _ = client.take_ack(now, PORT, Sequence(number));
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
fn best_fixed(path: &Path, length: u64, limits: &[usize]) -> (usize, Run) {
    let fixed = |limit| run(path, length, |client| client.window.fix_limit(limit));
    limits
        .iter()
        .map(|&limit| (limit, fixed(limit)))
        .max_by(|(_, one), (_, other)| one.rate.total_cmp(&other.rate))
        .unwrap()
}

fn lossy(loss: f64, path: Path) -> Path {
    Path { loss, ..path }
}

#[test]
fn chance_losses_leave_most_of_the_rate() {
    for path in [tap(), ethernet(50 * US), stock(1500), stock(9000)] {
        let calm = adaptive(&path, 64 * MIB).rate;
        for (loss, least) in [(0.01, 0.7), (0.05, 0.4)] {
            let run = adaptive(&lossy(loss, path.clone()), 64 * MIB);
            assert!(run.rate > least * calm, "{loss}: {run:?} of {calm}, {path:?}");
        }
    }
}

#[test]
fn a_stock_server_is_served_as_by_the_best_window() {
    for path in
        [stock(1500), stock(9000), Path { segments: 44, ..stock(1500) }, Path { segments: 15, ..stock(9000) }]
    {
        let (limit, best) = best_fixed(&path, 64 * MIB, &[16, 24, 32, 64, 96]);
        let ours = adaptive(&path, 64 * MIB);
        assert!(ours.rate > 0.9 * best.rate, "{ours:?}; {limit}: {best:?}, {path:?}");
        assert!(ours.overflows * 50 < ours.messages, "{ours:?}");
    }
}

#[test]
fn a_fixed_window_overflows_a_stock_server_where_ours_hardly_does() {
    let path = Path { segments: 15, ..stock(9000) };
    let (_, wide) = best_fixed(&path, 16 * MIB, &[4096]);
    let ours = adaptive(&path, 16 * MIB);
    assert!(ours.rate >= wide.rate && wide.overflows > 20 * ours.overflows, "{ours:?}, {wide:?}");
}

#[test]
fn a_small_core_gets_nearly_all_that_the_path_bears() {
    for path in
        [tap(), Path { segments: 1, ..tap() }, Path { mtu: 9000, segments: 15, ..tap() }, ethernet(50 * US)]
    {
        let (limit, best) = best_fixed(&path, 256 * MIB, &[64, 1024, 16_384]);
        let ours = adaptive(&path, 256 * MIB);
        assert!(ours.rate > 0.9 * best.rate, "{ours:?}; {limit}: {best:?}, {path:?}");
    }
}

#[test]
fn a_middling_buffer_is_found_out() {
    let path = Path { buffer: 425_984, ..tap() };
    let (limit, best) = best_fixed(&path, 256 * MIB, &[32, 64, 128, 256]);
    let ours = adaptive(&path, 256 * MIB);
    assert!(ours.rate > 0.9 * best.rate, "{ours:?}; {limit}: {best:?}");
}

#[test]
fn a_server_that_pauses_gets_little_twice() {
    let ms = Duration::from_millis(1);
    let path = Path { serve: [10 * US, 10 * US], pause: Some([100 * ms, 60 * ms]), ..tap() };
    let run = adaptive(&path, 32 * MIB);
    assert!(run.resends * 10 < run.messages, "{run:?}");
}

#[test]
fn a_path_that_reorders_sees_few_resends() {
    let path = Path { jitter: 200 * US, ..ethernet(50 * US) };
    let run = adaptive(&path, 64 * MIB);
    assert!(run.resends * 50 < run.messages, "{run:?}");
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    let ms = Duration::from_millis(1);
    let limits = [8, 16, 24, 32, 64, 96, 128, 256, 1024, 4096, 16_384];
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
        let (limit, best) = best_fixed(&path, mib * MIB, &limits);
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
