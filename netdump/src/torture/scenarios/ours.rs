//! Our client against our receiver.

use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::Verdict;
use super::judging::{Accused, judged, outcome, play, untruth, verdict};
use crate::client::{ClientConfig, DumpPlan, WindowChoice};
use crate::link::Offloads;
use crate::report::Outcome;
use crate::torture::judge::{AcksFrom, Judge};
use crate::torture::peers::{ClientStation, Core, Crowd, DiskKind, HostStation, Memory, Stranger, Vandal};
use crate::torture::sim::hosts::{CLIENT_IP, CLIENT_MAC, GATEWAY_IP, SERVER_IP};
use crate::torture::sim::{Gateway, Keeper, Party, Rng, SimNet, Weather};
use crate::vmcore::KernelDumpHeader;
use crate::vmcore::kdh::Compression;
use crate::wire::MacAddr;

/// Any weather, hostile company at times.
pub(super) fn receiver(seed: u64) -> Verdict {
    let mut rng = Rng::new(seed);
    let weather = Weather::any(&mut rng);
    let client = any_client(&mut rng, Place::default());
    let must = must_complete(&weather, &client.config);
    let net = SimNet::new("ours", seed, weather.clone(), client, HostStation::new());
    let mut net = with_company(net, seed, &mut rng);
    // A frame holds its place until it arrives, so with long delays this would be a very slow link.
    if weather.delay.end < Duration::from_millis(5) && weather.straggle == 0 && rng.chance(300) {
        net = net.with_capacity(*rng.pick(&[1, 2, 16]));
    }
    verdict(net, Accused::Both, must)
}

pub(super) fn gateway(seed: u64) -> Verdict {
    let mut rng = Rng::new(seed);
    let weather = Weather::any(&mut rng);
    let gateway = rng.chance(800).then_some(GATEWAY_IP);
    let client = any_client(&mut rng, Place { gateway, ..Place::default() });
    let must = gateway.is_some() && must_complete(&weather, &client.config);
    let net = SimNet::new("gateway", seed, weather, client, Gateway::before(HostStation::new()));
    verdict(judged(net), Accused::Both, must)
}

/// A packed core each time.
pub(super) fn packed(seed: u64) -> Verdict {
    let mut rng = Rng::new(seed);
    let weather = Weather::any(&mut rng);
    let config = any_config(&mut rng, Place::default());
    let client = packed_client(&mut rng, config);
    let must = must_complete(&weather, &client.config);
    let net = SimNet::new("packed", seed, weather, client, HostStation::new());
    verdict(with_company(net, seed, &mut rng), Accused::Both, must)
}

/// At any time of a dump, most often in its middle. A dump that has a name goes on, or begins anew where the receiver has
/// forgotten it.
pub(super) fn restart(seed: u64) -> Verdict {
    let mut rng = Rng::new(seed);
    let weather = Weather::lossy(*rng.pick(&[0, 20, 100]));
    let client = any_client(&mut rng, Place::default());
    let at = Duration::from_micros(rng.below(5_000));
    let memory = *rng.pick(&[Memory::Lost, Memory::Kept]);
    let mut server = HostStation::restarting_at(client.started() + at, memory);
    if rng.chance(500) {
        server = server.refusing();
    }
    let is_named = client.config.dump_id != 0;
    // What was made while it was sent cannot be sent again.
    let must = is_named && !client.is_growing() && must_complete(&weather, &client.config);
    let judge = Judge::new(SERVER_IP, AcksFrom::LearnedPort).expecting_restart(at);
    let net = SimNet::new("restart", seed, weather, client, server).with_judge(judge);
    verdict(net, Accused::Both, must)
}

pub(super) fn disk(seed: u64) -> Verdict {
    let mut rng = Rng::new(seed);
    let weather = Weather::any(&mut rng);
    let client = any_client(&mut rng, Place::default());
    let room = if rng.chance(500) { rng.below(200_000) } else { 1 << 30 };
    let disk = DiskKind { room, slow: *rng.pick(&[0, 1, 100, 1000]) };
    let fits = disk.room >= MAX_KEY.max(client.core.bytes.len()) as u64;
    let must = fits && must_complete(&weather, &client.config);
    let net = SimNet::new("disk", seed, weather, client, HostStation::with_disk(disk));
    verdict(judged(net), Accused::Both, must)
}

/// Several at once, told apart by their addresses.
pub(super) fn crowd(seed: u64) -> Verdict {
    let mut rng = Rng::new(seed);
    let weather = Weather::any(&mut rng);
    let started = Instant::now();
    let count = 2 + u8::try_from(rng.below(6)).expect("few");
    let clients = (0..count).map(|number| {
        let config = any_config(&mut rng, Place::number(number));
        let core = any_core(&mut rng, &config, 2);
        ClientStation::starting_at(started, config, ClientStation::plan(&core), core)
    });
    let crowd = Crowd::of(clients.collect());
    let mut net = judged(SimNet::new("crowd", seed, weather.clone(), crowd, HostStation::new()));
    let mut faults = play(&mut net, Accused::Both);
    let stored = net.server.stored();
    let clients = &net.client.clients;
    faults.extend(
        clients
            .iter()
            .filter_map(|client| untruth(client, Some(&stored), must_complete(&weather, &client.config))),
    );
    // As well as it went for the unluckiest.
    let all = |wanted| clients.iter().all(|client| outcome(client) == wanted);
    let outcome = if all(Outcome::Complete) { Outcome::Complete } else { Outcome::Failed };
    Verdict { outcome, elapsed: net.elapsed(), faults }
}

/// Longest key.
const MAX_KEY: usize = 2048;

/// Where a client is, and how it is to differ from the others.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Its address.
    pub client: Ipv4Addr,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its gateway.
    pub gateway: Option<Ipv4Addr>,
}

impl Default for Place {
    fn default() -> Self {
        Self { client: CLIENT_IP, mac: CLIENT_MAC, gateway: None }
    }
}

impl Place {
    /// Of one among several.
    pub(in crate::torture) fn number(number: u8) -> Self {
        let MacAddr([a, b, c, d, e, _]) = CLIENT_MAC;
        let mac = MacAddr([a, b, c, d, e, 100 + number]);
        Self { client: Ipv4Addr::new(10, 0, 0, 100 + number), mac, gateway: None }
    }
}

/// A client, its core, its window and its patience, all from the seed.
pub fn any_client(rng: &mut Rng, place: Place) -> ClientStation {
    let config = any_config(rng, place);
    if rng.chance(200) {
        return packed_client(rng, config);
    }
    let pieces = rng.below(5);
    let core = any_core(rng, &config, pieces);
    let plan = DumpPlan { key: any_key(rng), ..ClientStation::plan(&core) };
    ClientStation::new(config, plan, core)
}

/// One whose core is packed while it is sent: nobody knows its length beforehand, and it is padded to whole blocks.
fn packed_client(rng: &mut Rng, config: ClientConfig) -> ClientStation {
    let len = rng.index(200_000);
    let core = Core::solid(rng, len).padded(4096);
    let key = any_key(rng);
    let header = KernelDumpHeader {
        dump_length: len as u64,
        dump_extent: 10 * len as u64,
        key_size: key.as_ref().map_or(0, |key| u32::try_from(key.len()).expect("short")),
        compression: *rng.pick(&[Compression::Gzip, Compression::Zstd]),
        block_size: 4096,
        ..Default::default()
    };
    let growth = Rng::new(rng.number());
    ClientStation::growing(config, key, core, header.to_bytes(), growth)
}

/// Small and sparse, now and then so large that windows have time to grow. What leaves parts out must say so by naming its
/// dump.
pub(in crate::torture) fn any_core(rng: &mut Rng, config: &ClientConfig, pieces: u64) -> Core {
    if rng.chance(50) {
        return Core::solid(rng, 4 << 20);
    }
    if config.dump_id == 0 {
        let len = rng.index(200_000);
        return Core::solid(rng, len);
    }
    Core::sparse(rng, pieces)
}

fn any_key(rng: &mut Rng) -> Option<Vec<u8>> {
    let len = *rng.pick(&[0, 0, 0, 1, MAX_KEY]);
    (len > 0).then(|| Core::solid(rng, len).bytes)
}

/// Enough patience for any weather in which a dump must get through, most often.
pub(in crate::torture) fn any_config(rng: &mut Rng, place: Place) -> ClientConfig {
    let segments = *rng.pick(&[0, 0, 2, 44]);
    let cap = *rng.pick(&[1, 16, 64, 1000, 16_384, 16_384, 16_384]);
    let window = if rng.chance(100) { WindowChoice::Classic } else { WindowChoice::Adaptive { cap } };
    ClientConfig {
        client: place.client,
        mac: place.mac,
        gateway: place.gateway,
        arp_retries: 10,
        retries: *rng.pick(&[10, 10, 2]),
        deadline: *rng.pick(&[None, None, None, Some(Duration::from_secs(20))]),
        offloads: Offloads { segments, checksum: segments > 0, gather: false },
        window,
        rate: rng.chance(50).then_some(NonZeroU64::new(10_000_000)).flatten(),
        dump_id: *rng.pick(&[0, 1, 0xffff_ffff]),
        ..ClientStation::config(*rng.pick(&[564, 1500, 1500, 9000]))
    }
}

/// Whether the dump must get through.
pub(in crate::torture) fn must_complete(weather: &Weather, config: &ClientConfig) -> bool {
    weather.is_modest() && config.deadline.is_none() && config.retries >= 10
}

/// Hostile company at times, and frames that come together or one by one.
fn with_company<S: Keeper>(net: SimNet<S>, seed: u64, rng: &mut Rng) -> SimNet<S> {
    let net = judged(net).with_batch(*rng.pick(&[1, 64]));
    match rng.below(4) {
        0 => net.with(Vandal::new(seed)),
        1 => net.with(Stranger::new(seed)),
        _ => net,
    }
}
