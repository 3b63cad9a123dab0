//! `netdump serve`: the receiver on real sockets.

mod ended;
mod hook;
mod metrics;
mod options;
mod telling;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use netdump::receiver::server::RECEIVE_BUFFER;
use netdump::receiver::{
    DiskStore, HostNames, Ipv4Net, Receiver, ReceiverConfig, ReceiverEvent, Server, StoredDump,
};

use self::options::{Limits, Outlets};
use self::telling::Teller;
use super::Exit;
use super::signals::Signals;

/// With --once: how long after the dump's end a FINISHED is acknowledged again. A stock client repeats it each second.
const LAST_WORDS: Duration = Duration::from_millis(1500);
/// The names of clients.
const HOSTS_FILE: &str = "/etc/hosts";

/// Receive dumps and store them as files, as FreeBSD's netdumpd does.
///
/// A dump from HOST is stored as vmcore.HOST.N with info.HOST.N beside it, where HOST is the client's name in /etc/hosts up
/// to its first dot, else its address. One that stops early is kept as vmcore.HOST.N.incomplete. Paths of stored cores are
/// printed on standard output.
///
/// Ends on Ctrl-C or SIGTERM: with code 0, or with 1 when that cut a dump short.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Directory to store in; it must exist. Clients may name directories below it.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Address to receive at; port 0 takes any free one.
    #[arg(long, value_name = "IP[:PORT]", default_value = "0.0.0.0", value_parser = super::socket_address)]
    listen: SocketAddrV4,
    /// Receive one dump only, and exit with code 0 only if it is complete.
    #[arg(long)]
    once: bool,
    /// Events as JSON, a line each, on standard output.
    #[arg(long)]
    json: bool,
    /// Give up a client that is silent for this long.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// Go on with dumps that an earlier run in this directory left unfinished, and leave them so when stopped. Only clients
    /// that name their dumps can go on, as vmm and netdump send do; others begin anew.
    #[arg(long, conflicts_with = "once")]
    resume: bool,
    /// Most dumps at a time.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    max_sessions: u16,
    /// Receive from these addresses only; may be given more than once.
    #[arg(long, value_name = "IP[/BITS]", value_parser = network)]
    allow: Vec<Ipv4Net>,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    outlets: Outlets,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let mut store = DiskStore::open(&self.dir, HostNames::from_hosts_file(HOSTS_FILE))?
            .with_limits(self.limits.for_store());
        let signals = Signals::take().context("preparing to be interrupted")?;
        let mut teller = Teller::new(self.json, &self.dir, self.outlets.start(&self.dir)?);
        let leftovers = store.take_over(self.resume);
        let receiver = Receiver::new(self.config(), store);
        let mut server = Server::bind(self.listen, RECEIVE_BUFFER, receiver)
            .with_context(|| format!("listening on {}", self.listen))?;
        server.wake_by(&signals).context("waiting for signals")?;
        let address = server.address().context("asking for the address of the socket")?;
        teller.listening(address, server.receive_buffer());
        leftovers.into_iter().for_each(|leftover| teller.leftover(leftover));
        if self.resume {
            let count = server.restore_unfinished();
            tracing::info!(count, "unfinished dumps may go on");
        }
        let (once, last_words) = (self.once, None);
        Service { server, signals, teller, once, last_words, stopped: false, all_complete: true }.run()
    }

    fn config(&self) -> ReceiverConfig {
        ReceiverConfig {
            timeout: Duration::from_secs(self.timeout.into()),
            max_sessions: if self.once { 1 } else { self.max_sessions.into() },
            allow: self.allow.clone(),
            resume: self.resume,
            ..ReceiverConfig::default()
        }
    }
}

/// An address alone is a network of one.
fn network(text: &str) -> Result<Ipv4Net, String> {
    let alone = |address: Ipv4Addr| Ipv4Net::from(address);
    let parsed = text.parse().or_else(|error| text.parse().map(alone).map_err(|_| error));
    parsed.map_err(|_| "an address such as 10.0.0.2, or a network such as 10.0.0.0/24, is wanted".into())
}

/// The server and what is around it.
struct Service {
    server: Server<DiskStore>,
    signals: Signals,
    teller: Teller,
    once: bool,
    /// With --once, when the program ends: the dump has ended.
    last_words: Option<Instant>,
    /// A signal has come.
    stopped: bool,
    /// With --once whether the dump is complete, else whether no dump was cut short.
    all_complete: bool,
}

impl Service {
    fn run(mut self) -> anyhow::Result<Exit> {
        loop {
            let now = Instant::now();
            self.follow(now);
            let over = self.stopped || self.last_words.is_some_and(|end| end <= now);
            if over && self.server.receiver().is_settled() && self.teller.is_settled() {
                break;
            }
            let due = self.last_words.into_iter().chain(self.teller.due(now, self.server.receiver())).min();
            let woken = self.server.turn(due).context("waiting for datagrams")?;
            if woken && self.signals.received().is_some() {
                if self.stopped {
                    tracing::warn!("stopped again: a dump, its manifest or a hook is left unfinished");
                    return Ok(Exit::Failed);
                }
                self.stopped = true;
                self.server.shut_down();
            }
        }
        self.teller.ending(self.server.receiver());
        let nothing_came = self.once && self.last_words.is_none();
        Ok(Exit::when(self.all_complete && !nothing_came))
    }

    /// Tells what has happened and does what follows, until nothing does.
    fn follow(&mut self, now: Instant) {
        while let Some(event) = self.server.poll_event() {
            self.teller.tell(now, &event);
            self.act(now, &event);
        }
        self.teller.progress(now, self.server.receiver());
    }

    fn act(&mut self, now: Instant, event: &ReceiverEvent<StoredDump>) {
        match event {
            ReceiverEvent::Ended { ending, .. } if self.once => self.end_of_once(now, ending.is_complete()),
            ReceiverEvent::Refused { .. } if self.once => self.end_of_once(now, false),
            ReceiverEvent::Ended { ending, .. } => {
                let cut_short = self.stopped && !ending.is_complete();
                self.all_complete &= !cut_short;
            }
            ReceiverEvent::Opened { .. }
            | ReceiverEvent::Resumed { .. }
            | ReceiverEvent::Suspended { .. }
            | ReceiverEvent::Refused { .. }
            | ReceiverEvent::Header { .. }
            | ReceiverEvent::Closed { .. } => {}
        }
    }

    fn end_of_once(&mut self, now: Instant, complete: bool) {
        self.all_complete &= complete;
        self.last_words = Some(if complete { now + LAST_WORDS } else { now });
        self.server.shut_down();
    }
}
