//! Our client against others' servers, and others' clients against our receiver.

use std::time::{Duration, Instant};

use super::Verdict;
use super::judging::{Accused, judged, outcome, play, untruth, verdict};
use super::ours::{Place, any_client, any_config, any_core, must_complete};
use crate::report::Outcome;
use crate::torture::judge::{AcksFrom, Fault, Judge, Stored};
use crate::torture::peers::{
    AckMask, Both, Classic, ClassicEnding, ClientStation, Core, FakeServer, Home, HostStation, Manner, Paths,
    Patience, PrankEnding, Prankster, Replay, Vandal, Wired, Writes, pranks,
};
use crate::torture::sim::hosts::{CLIENT_IP, CLIENT_MAC, SERVER_IP};
use crate::torture::sim::{Keeper, Party, Rng, SimNet, Weather};
use crate::wire::MessageKind;

/// Servers with bad manners: our client must tell the truth.
pub(super) fn servers(seed: u64) -> Verdict {
    let mut rng = Rng::new(seed);
    let manner = *rng.pick(&Manner::ALL);
    let client = any_client(&mut rng, Place::default());
    let weather = Weather::any(&mut rng);
    let must = manner.lets_finish() && is_calm(&weather) && must_complete(&weather, &client.config);
    let mut net =
        judged(SimNet::new("servers", seed, weather, client, any_host(&mut rng, FakeServer::new(manner))));
    if rng.chance(300) {
        net = net.with(Vandal::new(seed));
    }
    verdict(net, Accused::Client, must)
}

/// Hosts say by ICMP that a port is closed, or the network keeps that from the client.
fn any_host(rng: &mut Rng, server: FakeServer) -> FakeServer {
    if rng.chance(500) { server.refusing() } else { server }
}

/// A server that is sure to lose nothing for want of an ack: a last ack that is lost makes a stock server's dump
/// unconfirmed, and a HERALD that comes late makes it begin anew.
fn is_calm(weather: &Weather) -> bool {
    weather.loss == 0
        && weather.duplicate == 0
        && weather.straggle == 0
        && weather.corrupt == 0
        && weather.outage.is_empty()
}

/// A stock netdumpd, with its buffers before the socket and before the disk, stopped or out of room at times.
pub(super) fn netdumpd(seed: u64) -> Verdict {
    let mut rng = Rng::new(seed);
    let weather = Weather::any(&mut rng);
    let client = any_client(&mut rng, Place::default());
    let (server, is_in_trouble) = netdumpd_of(&mut rng, Writes::Behind, Manner::StockBuffer);
    let must = !is_in_trouble && is_calm(&weather) && must_complete(&weather, &client.config);
    let net = SimNet::new("netdumpd", seed, weather, client, server);
    let mut verdict = verdict(judged(net), Accused::Client, must);
    // What this server has acknowledged and lost, no client can know of.
    verdict.faults.retain(|fault| !matches!(fault, Fault::MissingUntrue | Fault::UnconfirmedUntrue));
    verdict
}

/// One that has no trouble, or is stopped at some time, or has a small disk.
pub(super) fn netdumpd_of(rng: &mut Rng, writes: Writes, manner: Manner) -> (FakeServer, bool) {
    let server = any_host(rng, FakeServer::new(manner));
    match rng.below(3) {
        0 => (server.writing(writes, 1 << 30), false),
        1 => (server.writing(writes, 1 << 30).stopping_after(1 + rng.below(150)), true),
        _ => (server.writing(writes, rng.index(300_000)), true),
    }
}

/// FreeBSD's client as it is meant, against our receiver.
pub(super) fn freebsd(seed: u64) -> Verdict {
    let mut rng = Rng::new(seed);
    let weather = Weather::any(&mut rng);
    freebsd_with(AckMask::Wide, "freebsd", seed, weather, &mut rng)
}

/// The same with either mask in any weather.
pub(super) fn freebsd_with(mask: AckMask, name: &str, seed: u64, weather: Weather, rng: &mut Rng) -> Verdict {
    let len = rng.index(400_000);
    let core = Core::solid(rng, len);
    let home = Home { mac: CLIENT_MAC, address: CLIENT_IP, server: SERVER_IP };
    let classic = Classic::new(mask, *rng.pick(&[1500, 1500, 9000]), Patience::default(), core);
    let client = Wired::new(Instant::now(), home, classic);
    // It looks at the address of who acknowledges, not at the port.
    let judge = Judge::new(SERVER_IP, AcksFrom::AnyPort);
    let mut net = SimNet::new(name, seed, weather.clone(), client, HostStation::new()).with_judge(judge);
    if rng.chance(200) {
        net = net.with(Replay::herald_after(rng.below(300)));
    }
    let mut faults = play(&mut net, Accused::Both);
    let is_stored = |stored: &Stored<'_>| stored.is_complete && stored.core == net.client.talker.core.bytes;
    let outcome = match net.client.ending() {
        Some(ClassicEnding::Finished) => {
            if !net.server.stored().iter().any(is_stored) {
                faults.push(Fault::CompleteUntrue);
            }
            Outcome::Complete
        }
        Some(ClassicEnding::TimedOut(Some(MessageKind::Finished))) => Outcome::Unconfirmed,
        Some(ClassicEnding::TimedOut(_)) | None => Outcome::Failed,
    };
    if outcome != Outcome::Complete && is_bearable(&weather) {
        faults.push(Fault::GaveUp(format!("{:?}", net.client.ending())));
    }
    Verdict { outcome, elapsed: net.elapsed(), faults }
}

/// Whether FreeBSD's client must get through: 12 tries, of which each loses a few messages of a chunk.
fn is_bearable(weather: &Weather) -> bool {
    weather.is_modest() && weather.delay.end < Duration::from_millis(400)
}

/// A prank, and at the same time an honest dump that must not suffer.
pub(super) fn pranks(seed: u64) -> Verdict {
    let mut rng = Rng::new(seed);
    let started = Instant::now();
    let prank = *rng.pick(&pranks::ALL);
    let Place { client: address, mac, .. } = Place::number(1);
    let home = Home { mac, address, server: SERVER_IP };
    let prankster = Prankster::new(prank, rng.index(8), &Paths::default());
    let config = any_config(&mut rng, Place::default());
    let core = any_core(&mut rng, &config, 2);
    let honest = ClientStation::starting_at(started, config, ClientStation::plan(&core), core);
    let clients = Both { first: Wired::new(started, home, prankster), second: honest };
    let weather = Weather { duplicate: *rng.pick(&[0, 200]), ..Weather::calm() };
    let mut net = SimNet::new("pranks", seed, weather.clone(), clients, HostStation::new());
    // Pranksters are bad clients: they are not judged, only what the server makes of them.
    net.judge = Some(Judge::new(SERVER_IP, AcksFrom::LearnedPort));
    let mut faults = play(&mut net, Accused::Server);
    let honest = &net.client.second;
    faults.extend(untruth(honest, Some(&net.server.stored()), must_complete(&weather, &honest.config)));
    if let Some(PrankEnding::Unanswered(number)) = net.client.first.ending() {
        faults.push(Fault::Unanswered(*number));
    }
    Verdict { outcome: outcome(honest), elapsed: net.elapsed(), faults }
}
