//! A real server under clients good and bad.

use std::fs;
use std::net::SocketAddrV4;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::files::{self, File};
use super::outside::RealServer;
use super::{LiveError, Played, play};
use crate::client::ClientConfig;
use crate::report::Outcome;
use crate::torture::control::{Control, play_all};
use crate::torture::judge::{AcksFrom, Fault, Judge};
use crate::torture::peers::{
    AckMask, Classic, ClassicEnding, ClientStation, Core, Crowd, Dumps, Home, Paths, Patience, PrankEnding,
    Prankster, Stranger, Wired, pranks,
};
use crate::torture::scenarios::Verdict;
use crate::torture::scenarios::judging::{Accused, accusations, outcome, untruth};
use crate::torture::scenarios::ours::{Place, any_config, any_core, must_complete};
use crate::torture::sim::hosts::{CLIENT_IP, CLIENT_MAC, SERVER_IP};
use crate::torture::sim::{Party, Rng, SimNet, Station, Weather};
use crate::torture::tally::Tally;
use crate::wire::MessageKind;

/// Runs at a time, where each client can have an address of its own. They mostly wait.
const PARALLEL: usize = 8;
/// How far file times may lag behind the clock.
const CLOCK_LAG: Duration = Duration::from_secs(2);

/// The server to torture.
#[derive(Debug, Clone)]
pub struct ServerUnderTest {
    /// Where it takes HERALDs.
    pub address: SocketAddrV4,
    /// Where it stores, if it can be looked at from here.
    pub dir: Option<PathBuf>,
}

/// What a server has to go through.
#[derive(Clone, Copy)]
struct LiveScenario {
    name: &'static str,
    about: &'static str,
    play: fn(&Run<'_>) -> Result<Option<Verdict>, LiveError>,
}

const SCENARIOS: [LiveScenario; 5] = [
    LiveScenario { name: "live-pranks", about: "hostile clients, then an honest one", play: pranks },
    LiveScenario { name: "live-ours", about: "our client in bad weather, strangers about", play: ours },
    LiveScenario { name: "live-freebsd", about: "FreeBSD's client in bad weather", play: freebsd },
    LiveScenario { name: "live-vanish", about: "a client that goes away in the middle", play: vanish },
    // Clients are told apart by their addresses, of which there are many on loopback only.
    LiveScenario { name: "live-crowd", about: "several clients at once", play: crowd },
];

/// Names of what a server has to go through, and what it is.
pub const SERVERS: [(&str, &str); 5] = {
    let mut names = [("", ""); 5];
    let mut at = 0;
    while at < names.len() {
        names[at] = (SCENARIOS[at].name, SCENARIOS[at].about);
        at += 1;
    }
    names
};

/// One run.
struct Run<'a> {
    server: &'a ServerUnderTest,
    seed: u64,
    since: SystemTime,
    control: &'a Control<'a>,
}

/// Plays these seeds against a server, each the scenario of its turn or all the same.
pub fn torture_server(
    server: &ServerUnderTest,
    seeds: Range<u64>,
    only: Option<&str>,
    control: &Control<'_>,
) -> Result<Tally, LiveError> {
    let is_loopback = server.address.ip().is_loopback();
    let fits = |scenario: &&LiveScenario| match only {
        Some(only) => scenario.name == only,
        None => is_loopback || scenario.name != "live-crowd",
    };
    let scenarios: Vec<LiveScenario> = SCENARIOS.iter().filter(fits).copied().collect();
    let empty = Tally::with_rows(scenarios.iter().map(|scenario| (scenario.name, scenario.about)));
    let threads = if is_loopback { PARALLEL } else { 1 };
    play_all(seeds, threads, &empty, control, &|seed| {
        let turn = usize::try_from(seed % scenarios.len() as u64).unwrap_or(0);
        let run = Run { server, seed, since: SystemTime::now() - CLOCK_LAG, control };
        Ok((scenarios[turn].play)(&run)?.map(|verdict| (scenarios[turn].name, verdict)))
    })
}

fn ours(run: &Run<'_>) -> Result<Option<Verdict>, LiveError> {
    let mut rng = Rng::new(run.seed);
    let weather = Weather::brief(&mut rng);
    let client = run.client(&mut rng, Place::default(), Instant::now());
    let must = must_complete(&weather, &client.config);
    let mut net = run.net("live-ours", weather, client);
    if rng.chance(500) {
        net = net.with(Stranger::new(run.seed));
    }
    run.judge_ours(net, |_| must)
}

fn crowd(run: &Run<'_>) -> Result<Option<Verdict>, LiveError> {
    let mut rng = Rng::new(run.seed);
    let weather = Weather::brief(&mut rng);
    let started = Instant::now();
    let clients = (0..8).map(|number| run.client(&mut rng, Place::number(number), started)).collect();
    let net = run.net("live-crowd", weather.clone(), Crowd::of(clients));
    run.judge_ours(net, |config| must_complete(&weather, config))
}

fn freebsd(run: &Run<'_>) -> Result<Option<Verdict>, LiveError> {
    let mut rng = Rng::new(run.seed);
    let weather = Weather::brief(&mut rng);
    let len = rng.index(300_000);
    let patience = Patience { polls: 400, ..Patience::default() };
    let classic = Classic::new(AckMask::Wide, 1500, patience, Core::solid(&mut rng, len));
    let home = Home { mac: CLIENT_MAC, address: CLIENT_IP, server: SERVER_IP };
    let mut net = run.net("live-freebsd", weather.clone(), Wired::new(Instant::now(), home, classic));
    if run.play(&mut net)? == Played::Stopped {
        return Ok(None);
    }
    let files = run.files();
    let mut faults = run.accusations(&mut net, files.as_deref());
    let ended = net.client.ending().copied();
    let outcome = match ended {
        Some(ClassicEnding::Finished) => Outcome::Complete,
        Some(ClassicEnding::TimedOut(Some(MessageKind::Finished))) => Outcome::Unconfirmed,
        Some(ClassicEnding::TimedOut(_)) | None => Outcome::Failed,
    };
    let is_core = |file: &File| {
        let stored = file.stored();
        stored.is_complete && stored.core == net.client.talker.core.bytes
    };
    if outcome == Outcome::Complete && files.is_some_and(|files| !files.iter().any(is_core)) {
        faults.push(Fault::FinishedAndLost { client: net.client.cores()[0].0 });
    }
    if outcome == Outcome::Failed && weather.is_modest() {
        faults.push(Fault::GaveUp(format!("{ended:?}")));
    }
    Ok(Some(Verdict { outcome, elapsed: net.elapsed(), faults }))
}

/// The prank, then an honest dump, from another address where there is one.
fn pranks(run: &Run<'_>) -> Result<Option<Verdict>, LiveError> {
    let mut rng = Rng::new(run.seed);
    let prank = *rng.pick(&pranks::ALL);
    let canary = Canary::new(run)?;
    let prankster = Prankster::new(prank, rng.index(8), &canary.paths);
    let home = Home { mac: CLIENT_MAC, address: CLIENT_IP, server: SERVER_IP };
    let mut net = run.net("live-prank", Weather::calm(), Wired::new(Instant::now(), home, prankster));
    if run.play(&mut net)? == Played::Stopped {
        return Ok(None);
    }
    let mut faults = run.accusations(&mut net, run.files().as_deref());
    if let Some(PrankEnding::Unanswered(number)) = net.client.ending() {
        faults.push(Fault::Unanswered(*number));
    }
    faults.extend(canary.escaped());
    let place = if run.server.address.ip().is_loopback() { Place::number(1) } else { Place::default() };
    let honest = run.client(&mut rng, place, Instant::now());
    let honest = run.judge_ours(run.net("live-honest", Weather::calm(), honest), |_| true)?;
    Ok(honest.map(|honest| Verdict { faults: [faults, honest.faults].concat(), ..honest }))
}

/// What was acknowledged must be there when the client never comes back, and at once: an ack promises as much.
fn vanish(run: &Run<'_>) -> Result<Option<Verdict>, LiveError> {
    let mut rng = Rng::new(run.seed);
    let client = run.client(&mut rng, Place::default(), Instant::now());
    let len = 50_000 + rng.index(200_000);
    let core = Core::solid(&mut rng, len);
    let plan = ClientStation::plan(&core);
    let client = ClientStation::new(client.config, plan, core);
    let after = rng.below(client.file_length);
    let mut net = run.net("live-vanish", Weather::calm(), Vanishing { client, after });
    if run.play(&mut net)? == Played::Stopped {
        return Ok(None);
    }
    let faults = run.accusations(&mut net, run.files().as_deref());
    Ok(Some(Verdict { outcome: outcome(&net.client.client), elapsed: net.elapsed(), faults }))
}

impl Run<'_> {
    /// A client of ours with patience for a few seconds.
    fn client(&self, rng: &mut Rng, place: Place, started: Instant) -> ClientStation {
        let pieces = 1 + rng.below(3);
        let any = any_config(rng, place);
        let core = any_core(rng, &any, pieces);
        let mtu = if self.server.address.ip().is_loopback() { any.mtu } else { any.mtu.min(1500) };
        let config = ClientConfig { mtu, polls: 600, retries: 10, deadline: None, rate: None, ..any };
        ClientStation::starting_at(started, config, ClientStation::plan(&core), core)
    }

    fn net<C: Party>(&self, name: &str, weather: Weather, client: C) -> SimNet<RealServer, C> {
        let server = RealServer::new(self.server.address, self.seed);
        let judge = Judge::new(SERVER_IP, AcksFrom::LearnedPort);
        SimNet::new(name, self.seed, weather, client, server).with_judge(judge)
    }

    fn play<C: Party>(&self, net: &mut SimNet<RealServer, C>) -> Result<Played, LiveError> {
        play(net, |net| &mut net.server, &|| !(self.control.stops)())
    }

    /// What a client says names the simulated server; what people are told names the real one.
    fn with_address(&self, fault: Fault) -> Fault {
        let real = self.server.address.ip().to_string();
        match fault {
            Fault::GaveUp(why) => Fault::GaveUp(why.replace(&SERVER_IP.to_string(), &real)),
            other => other,
        }
    }

    /// What the server has stored, where that can be seen.
    fn files(&self) -> Option<Vec<File>> {
        self.server.dir.as_ref().map(|dir| files::since(dir, self.since))
    }

    /// What the server did that it must not.
    fn accusations<C: Party + Dumps>(
        &self,
        net: &mut SimNet<RealServer, C>,
        files: Option<&[File]>,
    ) -> Vec<Fault> {
        let SimNet { client, judge: Some(judge), .. } = net else { return Vec::new() };
        let stored = files.map(|files| files.iter().map(File::stored).collect::<Vec<_>>());
        accusations(judge, client, stored.as_deref(), Accused::Server)
    }

    fn judge_ours<C: Party + Dumps + Ours>(
        &self,
        mut net: SimNet<RealServer, C>,
        must: impl Fn(&ClientConfig) -> bool,
    ) -> Result<Option<Verdict>, LiveError> {
        if self.play(&mut net)? == Played::Stopped {
            return Ok(None);
        }
        let files = self.files();
        let mut faults = self.accusations(&mut net, files.as_deref());
        let stored = files.as_ref().map(|files| files.iter().map(File::stored).collect::<Vec<_>>());
        let clients = net.client.ours();
        let untruths =
            clients.iter().filter_map(|client| untruth(client, stored.as_deref(), must(&client.config)));
        // What a server has acknowledged and lost is its own fault: a client cannot know of it.
        let clients_own = |fault: &Fault| !matches!(fault, Fault::MissingUntrue | Fault::UnconfirmedUntrue);
        faults.extend(untruths.filter(clients_own).map(|fault| self.with_address(fault)));
        let unlucky = clients.iter().map(outcome).find(|outcome| *outcome != Outcome::Complete);
        let outcome = unlucky.unwrap_or(Outcome::Complete);
        Ok(Some(Verdict { outcome, elapsed: net.elapsed(), faults }))
    }
}

/// Clients that are ours.
trait Ours {
    fn ours(&self) -> &[ClientStation];
}

impl Ours for ClientStation {
    fn ours(&self) -> &[ClientStation] {
        std::slice::from_ref(self)
    }
}

impl Ours for Crowd<ClientStation> {
    fn ours(&self) -> &[ClientStation] {
        &self.clients
    }
}

/// A client that is gone when so many bytes are acknowledged.
#[derive(Debug)]
struct Vanishing {
    client: ClientStation,
    after: u64,
}

impl Vanishing {
    fn is_gone(&self) -> bool {
        self.client.client.stats().bytes_acked > self.after
    }
}

impl Station for Vanishing {
    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        self.client.handle_frame(now, frame);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.client.handle_timeout(now);
    }

    fn poll_transmit(&mut self, now: Instant, frame: &mut Vec<u8>) -> bool {
        !self.is_gone() && self.client.poll_transmit(now, frame)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.client.poll_timeout()
    }
}

impl Party for Vanishing {
    type Ending = ();

    fn ending(&self) -> Option<&()> {
        (self.is_gone() || self.client.ending.is_some()).then_some(&())
    }

    fn started(&self) -> Instant {
        self.client.started()
    }
}

impl Dumps for Vanishing {
    fn cores(&self) -> Vec<(SocketAddrV4, &[u8])> {
        self.client.cores()
    }
}

/// A directory beside the server's, in which it must store nothing.
struct Canary {
    paths: Paths,
    dir: Option<PathBuf>,
}

impl Canary {
    fn new(run: &Run<'_>) -> Result<Self, LiveError> {
        let Some(dir) = &run.server.dir else { return Ok(Self { paths: Paths::default(), dir: None }) };
        let failed = |source| LiveError::Io { doing: "making a directory beside the server's", source };
        let name = format!("netdump-torture-{}-{}", std::process::id(), run.seed);
        let dir = dir.canonicalize().map_err(failed)?.with_file_name(&name);
        fs::create_dir(&dir).map_err(failed)?;
        // As wide open as a careless host has it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(&dir, open).map_err(failed)?;
        let paths = Paths { relative: format!("../{name}"), absolute: dir.to_string_lossy().into_owned() };
        Ok(Self { paths, dir: Some(dir) })
    }

    fn escaped(&self) -> Option<Fault> {
        let mut stored = fs::read_dir(self.dir.as_ref()?).ok()?;
        stored.next().map(|_| Fault::Escaped(self.paths.absolute.clone()))
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        // What was stored there by mistake is left as a proof.
        if let Some(dir) = &self.dir {
            let _ = fs::remove_dir(dir);
        }
    }
}
