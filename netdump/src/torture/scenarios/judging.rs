//! From a wire with everyone on it to what was wrong in the end.

use super::Verdict;
use crate::client::Ending;
use crate::report::Outcome;
use crate::torture::judge::{AcksFrom, Fault, Judge, Stored};
use crate::torture::peers::{ClientStation, Dumps};
use crate::torture::sim::hosts::SERVER_IP;
use crate::torture::sim::{Keeper, Party, SimNet};

/// Whose faults count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::torture) enum Accused {
    Client,
    Server,
    Both,
}

/// Puts a judge on the wire who is strict about ports, as our client is.
pub(super) fn judged<S: Keeper, C: Party>(net: SimNet<S, C>) -> SimNet<S, C> {
    net.with_judge(Judge::new(SERVER_IP, AcksFrom::LearnedPort))
}

/// Plays it to the end and says what was wrong by the judge on the wire.
pub(super) fn play<S: Keeper, C: Party + Dumps>(net: &mut SimNet<S, C>, accused: Accused) -> Vec<Fault> {
    let ended = net.run().map(drop);
    net.settle();
    net.server.close(net.now());
    let mut faults: Vec<_> = ended.err().map(Fault::NoEnd).into_iter().collect();
    let SimNet { client, server, judge: Some(judge), .. } = net else { return faults };
    faults.extend(accusations(judge, client, Some(&server.stored()), accused));
    faults
}

/// What a judge has to say who has seen everything; where it is known what the server has stored, about that too.
pub(in crate::torture) fn accusations(
    judge: &mut Judge,
    clients: &impl Dumps,
    stored: Option<&[Stored<'_>]>,
    accused: Accused,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (address, core) in clients.cores().into_iter().filter(|_| stored.is_some()) {
        judge.server.compare(address, core, stored.unwrap_or_default());
    }
    if accused != Accused::Server {
        faults.extend(judge.client_faults().cloned());
    }
    if accused != Accused::Client {
        faults.extend(judge.server.faults().iter().cloned());
    }
    faults
}

/// The whole verdict over one client of ours, which `must` complete or may fail.
pub(super) fn verdict<S: Keeper>(mut net: SimNet<S>, accused: Accused, must: bool) -> Verdict {
    let mut faults = play(&mut net, accused);
    faults.extend(untruth(&net.client, Some(&net.server.stored()), must));
    Verdict { outcome: outcome(&net.client), elapsed: net.elapsed(), faults }
}

/// How it ended for our client; without an end it failed.
pub(in crate::torture) fn outcome(client: &ClientStation) -> Outcome {
    client.ending.as_ref().map_or(Outcome::Failed, Ending::outcome)
}

/// What our client says of its end, against what the server has, where that is known: what of it is not so.
pub(in crate::torture) fn untruth(
    client: &ClientStation,
    stored: Option<&[Stored<'_>]>,
    must: bool,
) -> Option<Fault> {
    let (ending, missing) = (client.ending.as_ref()?, client.missing());
    if let Some(why) = ending.reason().filter(|_| must) {
        return Some(Fault::GaveUp(why.to_string()));
    }
    let stored = stored?;
    let bytes = client.core.bytes.as_slice();
    // What lies behind the end of a packed core is padding.
    let is_core = |core: &[u8]| bytes.starts_with(core) && core.len() as u64 >= client.file_length;
    match ending {
        Ending::Complete => {
            let is_stored = stored.iter().any(|stored| stored.is_complete && is_core(stored.core));
            (!is_stored || !missing.is_empty()).then_some(Fault::CompleteUntrue)
        }
        Ending::Unconfirmed(_) => {
            let is_there = stored.iter().any(|stored| is_core(stored.core));
            (!is_there || !missing.is_empty()).then_some(Fault::UnconfirmedUntrue)
        }
        Ending::Failed(_) => {
            // A server may have heard nothing at all.
            let nothing = Stored { core: &[], is_complete: false };
            let mut cores = stored.iter().chain([&nothing]);
            let fits = cores.any(|stored| client.core.agrees_but_for(stored.core, &missing));
            (!fits).then_some(Fault::MissingUntrue)
        }
    }
}
