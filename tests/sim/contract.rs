//! Whatever the network does: in bounded time the core is stored as it is, or the client says truly what is missing; no
//! client and no server does what none may. The same scenarios as `netdump torture` plays, each with seeds of its own.
//!
//! `SIM_SEEDS=N` runs N seeds of each (200 otherwise), `SIM_SEED=S` one; a failure names its seed.

use std::ops::Range;

use netdump::torture::scenarios::Scenario;

fn holds(scenario: &str) {
    let scenario = Scenario::by_name(scenario).expect("a scenario of that name");
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<u64>().expect("a number"));
    let seeds: Range<u64> = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(200),
    };
    for seed in seeds {
        let faults = scenario.run(seed).faults;
        assert!(faults.is_empty(), "SIM_SEED={seed}: {faults:?}");
    }
}

#[test]
fn any_weather_ends_in_the_truth() {
    holds("ours");
}

#[test]
fn any_weather_behind_a_gateway_ends_in_the_truth() {
    holds("gateway");
}

#[test]
fn a_core_that_is_packed_on_its_way_arrives_or_the_truth_is_told() {
    holds("packed");
}

#[test]
fn a_receiver_that_is_killed_at_any_time_ends_in_the_truth() {
    holds("restart");
}

#[test]
fn a_disk_that_is_slow_or_full_ends_in_the_truth() {
    holds("disk");
}

#[test]
fn several_clients_do_not_disturb_one_another() {
    holds("crowd");
}

#[test]
fn any_server_in_any_weather_ends_in_the_truth() {
    holds("servers");
}

#[test]
fn a_stock_server_in_any_weather_ends_in_the_truth() {
    holds("netdumpd");
}

#[test]
fn freebsds_client_is_served_in_any_weather() {
    holds("freebsd");
}

#[test]
fn pranks_hurt_nobody() {
    holds("pranks");
}
