//! Whatever the network does: in bounded time the core is stored as it is, or the client says truly what is missing.
//!
//! `SIM_SEEDS=N` runs N seeds (1,000 otherwise), `SIM_SEED=S` one; a failure names its seed.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use harness::simnet::hosts::GATEWAY_IP;
use harness::simnet::{
    ClientStation, Core, FakeServer, Gateway, HostStation, Keeper, Manner, NoEnd, Party, Rng, SimNet,
    Station, Vandal, Weather,
};
use netdump::client::{ClientConfig, DumpPlan, Ending};

/// Runs `test` for every seed wanted.
pub(super) fn for_seeds(test: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<u64>().expect("a number"));
    let seeds: Range<u64> = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(1000),
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed))) {
            eprintln!("repeat with SIM_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

/// A client, its core and its patience, all from the seed.
fn any_client(rng: &mut Rng, gateway: Option<Ipv4Addr>) -> ClientStation {
    let pieces = rng.below(5);
    let core = Core::sparse(rng, pieces);
    // Enough for any weather in which a dump must get through.
    let arp_retries = 10;
    let key_len = *rng.pick(&[0, 0, 0, 1, 2048]);
    let key = (key_len > 0).then(|| Core::solid(rng, key_len).bytes);
    let config = ClientConfig {
        gateway,
        arp_retries,
        retries: *rng.pick(&[10, 10, 2]),
        deadline: *rng.pick(&[None, None, None, Some(Duration::from_secs(20))]),
        ..ClientStation::config(*rng.pick(&[564, 1500, 1500, 9000]))
    };
    let plan = DumpPlan { key, ..ClientStation::plan(&core) };
    ClientStation::new(config, plan, core)
}

/// What the client says of its end, against what a server has got: whichever of its dumps (core, key, whole) fits best.
fn assert_true(client: &ClientStation, dumps: &[(Vec<u8>, bool)]) {
    let missing = client.client.missing();
    // A server may have heard nothing at all.
    let nothing = [(Vec::new(), false)];
    let fits = dumps.iter().chain(&nothing).any(|(core, _)| client.core.agrees_but_for(core, &missing));
    match client.ending.as_ref().expect("it has ended") {
        Ending::Complete => {
            assert!(missing.is_empty());
            assert!(dumps.iter().any(|(core, whole)| *whole && *core == client.core.bytes));
        }
        Ending::Unconfirmed(_) => {
            assert!(missing.is_empty());
            assert!(dumps.iter().any(|(core, _)| *core == client.core.bytes));
        }
        Ending::Failed(reason) => assert!(fits, "{reason}: {missing:?}"),
    }
}

pub(super) fn run<S: Station>(net: &mut SimNet<S>) {
    match net.run() {
        Ok(_) => {}
        Err(NoEnd::Livelock) => panic!("livelock after {:?}", net.elapsed()),
        Err(NoEnd::Deadlock) => panic!("deadlock after {:?}", net.elapsed()),
    }
    net.settle();
}

/// Whether the dump must get through.
pub(super) fn must_complete(weather: &Weather, config: &ClientConfig) -> bool {
    weather.is_modest() && config.deadline.is_none() && config.retries >= 10
}

/// The server's cores, and whether they are whole.
fn dumps(server: &mut impl Keeper) -> Vec<(Vec<u8>, bool)> {
    server.close(Instant::now());
    server.stored().iter().map(|stored| (stored.core.to_vec(), stored.is_complete)).collect()
}

pub(super) fn assert_complete(weather: &Weather, client: &ClientStation) {
    assert!(matches!(client.ending, Some(Ending::Complete)), "{weather:?}: {:?}", client.ending);
}

#[test]
fn any_weather_ends_in_the_truth() {
    for_seeds(|seed| {
        let mut rng = Rng::new(seed);
        let weather = Weather::any(&mut rng);
        let client = any_client(&mut rng, None);
        let mut net = SimNet::new("any-weather", seed, weather.clone(), client, HostStation::new());
        if rng.chance(300) {
            net = net.with(Vandal::new(seed));
        }
        // A frame holds its place until it arrives, so with long delays this would be a very slow link.
        if weather.delay.end < Duration::from_millis(5) && weather.straggle == 0 && rng.chance(300) {
            net = net.with_capacity(*rng.pick(&[1, 2, 16]));
        }
        run(&mut net);
        let dumps = dumps(&mut net.server);
        assert_true(&net.client, &dumps);
        if must_complete(&weather, &net.client.config) {
            assert_complete(&weather, &net.client);
        }
    });
}

#[test]
fn any_weather_behind_a_gateway_ends_in_the_truth() {
    for_seeds(|seed| {
        let mut rng = Rng::new(!seed);
        let weather = Weather::any(&mut rng);
        let gateway = rng.chance(800).then_some(GATEWAY_IP);
        let client = any_client(&mut rng, gateway);
        let mut net =
            SimNet::new("gateway", seed, weather.clone(), client, Gateway::before(HostStation::new()));
        run(&mut net);
        let dumps = dumps(&mut net.server.server);
        assert_true(&net.client, &dumps);
        if gateway.is_none() {
            assert!(dumps.is_empty());
        } else if must_complete(&weather, &net.client.config) {
            assert_complete(&weather, &net.client);
        }
    });
}

#[test]
fn any_server_in_any_weather_ends_in_the_truth() {
    let manners = [
        Manner::ByTheBook,
        Manner::Deaf,
        Manner::NeverAcksFinished,
        Manner::LosesLastAck,
        Manner::MovesPort { after: 50 },
        Manner::AcksFromAnotherHost,
        Manner::LateAcks { every: 5, by: Duration::from_millis(700) },
        Manner::ForgetsNeighbor { every: 40 },
        Manner::StockBuffer,
    ];
    for_seeds(|seed| {
        let mut rng = Rng::new(seed.rotate_left(32));
        let manner = *rng.pick(&manners);
        let client = any_client(&mut rng, None);
        let weather = Weather::any(&mut rng);
        let mut net = SimNet::new("any-server", seed, weather, client, FakeServer::new(manner));
        if rng.chance(300) {
            net = net.with(Vandal::new(seed));
        }
        run(&mut net);
        let dumps = dumps(&mut net.server);
        assert_true(&net.client, &dumps);
    });
}

#[test]
fn a_receiver_that_restarts_at_any_time_ends_in_the_truth() {
    for_seeds(|seed| {
        let mut rng = Rng::new(seed.wrapping_mul(3));
        let client = any_client(&mut rng, None);
        let restart = client.started() + Duration::from_micros(rng.below(5_000));
        let server = HostStation::restarting_at(restart);
        let weather = Weather::lossy(*rng.pick(&[0, 20]));
        let mut net = SimNet::new("restart", seed, weather, client, server);
        run(&mut net);
        let dumps = dumps(&mut net.server);
        assert_true(&net.client, &dumps);
    });
}

#[test]
fn a_seed_repeats_its_run() {
    let run = |seed| {
        let mut rng = Rng::new(seed);
        let weather = Weather::any(&mut rng);
        let mut net = SimNet::new("repeat", seed, weather, any_client(&mut rng, None), HostStation::new());
        run(&mut net);
        (net.elapsed(), *net.client.client.stats())
    };
    for seed in 0..20 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
