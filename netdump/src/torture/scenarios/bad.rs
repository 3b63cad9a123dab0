//! Peers with known faults, which the judges must find, and their twins without, which they must not accuse.

use super::Verdict;
use super::judging::{Accused, judged, outcome, play};
use super::others::{freebsd_with, netdumpd_of};
use super::ours::{Place, any_client};
use crate::torture::peers::{AckMask, Manner, Replay, Writes};
use crate::torture::sim::{Rng, SimNet, Weather};

/// FreeBSD's client as it is. A lost message is enough: its twin, 32 messages away, passes for it.
pub(super) fn int_mask(seed: u64) -> Verdict {
    let mut rng = Rng::new(seed);
    let weather = Weather::lossy(*rng.pick(&[5, 20, 50]));
    freebsd_with(AckMask::Int, "int-mask", seed, weather, &mut rng)
}

/// netdumpd as it is: what it acknowledged is lost when it is stopped, runs out of disk, or hears a HERALD late.
pub(super) fn ack_first(seed: u64) -> Verdict {
    writer(seed, "ack-first", Writes::Behind)
}

/// The same as it should be.
pub(super) fn careful(seed: u64) -> Verdict {
    writer(seed, "careful", Writes::BeforeAck)
}

fn writer(seed: u64, name: &str, writes: Writes) -> Verdict {
    let mut rng = Rng::new(seed);
    let weather = Weather::any(&mut rng);
    let client = any_client(&mut rng, Place::default());
    let (server, _) = netdumpd_of(&mut rng, writes, Manner::ByTheBook);
    let mut net = judged(SimNet::new(name, seed, weather, client, server));
    if rng.chance(500) {
        net = net.with(Replay::herald_after(rng.below(150)));
    }
    let faults = play(&mut net, Accused::Server);
    Verdict { outcome: outcome(&net.client), elapsed: net.elapsed(), faults }
}
