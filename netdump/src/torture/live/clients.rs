//! A real client before servers good and bad.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::AsFd;

use super::outside::{RealClient, bind, receive};
use super::{ASK_EVERY, LiveError, Outside, Played, play, wait};
use crate::report::Outcome;
use crate::torture::control::Control;
use crate::torture::judge::{AcksFrom, Fault, Judge};
use crate::torture::peers::{FakeServer, Manner, Writes};
use crate::torture::scenarios::Verdict;
use crate::torture::sim::hosts::{CLIENT_IP, SERVER_IP};
use crate::torture::sim::{Rng, SimNet, Weather};
use crate::torture::tally::Tally;
use crate::wire::{Message, MessageKind};

/// Longest HERALD, and more.
const BUFFER: usize = 8192;

/// Names of the servers that a client has to deal with, and what they are.
pub const CLIENTS: [(&str, &str); Manner::ALL.len()] = {
    let mut names = [("", ""); Manner::ALL.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = (Manner::ALL[at].name(), Manner::ALL[at].about());
        at += 1;
    }
    names
};

/// Where HERALDs are waited for.
#[derive(Debug)]
pub struct ClientUnderTest {
    herald: UdpSocket,
}

impl ClientUnderTest {
    /// Waits at this port, of every address of the host; 0 takes any free one.
    pub fn at_port(port: u16) -> Result<Self, LiveError> {
        Ok(Self { herald: bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))? })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.herald.local_addr().map_or(0, |address| address.port())
    }
}

/// Serves a dump for each of these seeds, each with the manner of its turn or all with the same. `waits` is told what
/// the next dump is to meet before its HERALD has come.
pub fn torture_client(
    client: &ClientUnderTest,
    seeds: Range<u64>,
    only: Option<&str>,
    control: &Control<'_>,
    waits: &dyn Fn(u64, Manner),
) -> Result<Tally, LiveError> {
    let manners: Vec<Manner> =
        Manner::ALL.into_iter().filter(|manner| only.is_none_or(|only| manner.name() == only)).collect();
    let mut tally = Tally::with_rows(manners.iter().map(|manner| (manner.name(), manner.about())));
    for seed in seeds {
        let manner = manners[usize::try_from(seed % manners.len() as u64).unwrap_or(0)];
        waits(seed, manner);
        let Some((from, herald)) = await_herald(&client.herald, control)? else { break };
        let real = RealClient::new(&client.herald, from, &herald)?;
        let Some(verdict) = serve(real, seed, manner, control)? else { break };
        tally.add(manner.name(), seed, verdict);
        (control.ended)();
    }
    Ok(tally)
}

fn serve(
    client: RealClient,
    seed: u64,
    manner: Manner,
    control: &Control<'_>,
) -> Result<Option<Verdict>, LiveError> {
    let weather = Weather::brief(&mut Rng::new(seed));
    // A kernel looks at the server's address, not at its port.
    let judge = Judge::new(SERVER_IP, AcksFrom::AnyPort);
    // A kernel's core may be larger than this machine.
    let server = FakeServer::new(manner).writing(Writes::Nowhere, 0);
    let mut net = SimNet::new("live-client", seed, weather.clone(), client, server).with_judge(judge);
    if play(&mut net, outside, &|| !(control.stops)())? == Played::Stopped {
        return Ok(None);
    }
    let SimNet { server, judge: Some(judge), .. } = &mut net else { return Ok(None) };
    let mut faults: Vec<_> = judge.client_faults().cloned().collect();
    let outcome = match (server.finished, judge.client(CLIENT_IP).has_finished()) {
        (true, _) if manner.acks_finished() => Outcome::Complete,
        (_, true) => Outcome::Unconfirmed,
        _ => Outcome::Failed,
    };
    if outcome != Outcome::Complete && manner.lets_finish() && weather.is_modest() {
        faults.push(Fault::GaveUp("it fell silent".into()));
    }
    Ok(Some(Verdict { outcome, elapsed: net.elapsed(), faults }))
}

/// The world is at the client's end, and is told when the dump is done.
fn outside(net: &mut SimNet<FakeServer, RealClient>) -> &mut dyn Outside {
    net.client.is_done = net.server.finished;
    &mut net.client
}

/// The next HERALD, and who sent it.
fn await_herald(
    socket: &UdpSocket,
    control: &Control<'_>,
) -> Result<Option<(SocketAddrV4, Vec<u8>)>, LiveError> {
    let mut buffer = vec![0; BUFFER];
    while !(control.stops)() {
        while let Some((len, from)) = receive(socket, &mut buffer) {
            let is_herald = |message: Message<'_>| message.kind == MessageKind::Herald;
            if Message::parse(&buffer[..len]).is_ok_and(is_herald) {
                return Ok(Some((from, buffer[..len].to_vec())));
            }
        }
        wait(&[socket.as_fd()], ASK_EVERY)?;
    }
    Ok(None)
}
