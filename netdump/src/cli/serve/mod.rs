//! `netdump serve`: the receiver on real sockets.

mod sockets;
mod telling;

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use netdump::receiver::{
    Cause, DiskStore, Endpoint, HostNames, Receiver, ReceiverConfig, ReceiverEvent, SessionId, StoredDump,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::sockets::{HeraldSocket, SessionSocket};
use self::telling::Teller;
use super::Exit;
use super::signals::Signals;

/// Longest message, and enough more that a longer one is seen to be too long.
const BUFFER: usize = 8192;
/// Datagrams taken from one socket before the others have their turn.
const BATCH: usize = 256;
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
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let store = DiskStore::open(&self.dir, HostNames::from_hosts_file(HOSTS_FILE))?;
        let signals = Signals::take().context("preparing to be interrupted")?;
        let herald =
            HeraldSocket::bind(self.listen).with_context(|| format!("listening on {}", self.listen))?;
        let teller = Teller::new(self.json);
        teller.listening(herald.address().context("asking for the address of the socket")?, &self.dir);

        let defaults = ReceiverConfig::default();
        let config = ReceiverConfig {
            timeout: Duration::from_secs(self.timeout.into()),
            max_sessions: if self.once { 1 } else { defaults.max_sessions },
            ..defaults
        };
        let mut server = Server {
            receiver: Receiver::new(config, store),
            herald,
            sessions: BTreeMap::new(),
            signals,
            teller,
            once: self.once,
            buffer: vec![0; BUFFER],
            train: Vec::new(),
            last_words: None,
            stopped: false,
            all_complete: true,
        };
        server.serve()
    }
}

struct Server {
    receiver: Receiver<DiskStore>,
    herald: HeraldSocket,
    sessions: BTreeMap<SessionId, SessionSocket>,
    signals: Signals,
    teller: Teller,
    once: bool,
    buffer: Vec<u8>,
    train: Vec<u8>,
    /// With --once, when the program ends: the dump has ended.
    last_words: Option<Instant>,
    /// A signal has come.
    stopped: bool,
    /// With --once whether the dump is complete, else whether no dump was cut short.
    all_complete: bool,
}

impl Server {
    fn serve(&mut self) -> anyhow::Result<Exit> {
        loop {
            let now = Instant::now();
            self.receiver.handle_timeout(now);
            self.follow(now);
            self.teller.progress(now, &self.receiver);
            let over = self.stopped || self.last_words.is_some_and(|end| end <= now);
            if over && self.receiver.is_settled() {
                break;
            }
            if self.wait(now)? {
                if self.stopped {
                    tracing::warn!("stopped again: a dump is left unfinished");
                    return Ok(Exit::Failed);
                }
                self.stop(Instant::now());
            }
            self.receive();
        }
        self.teller.ending(&self.receiver);
        let nothing_came = self.once && self.last_words.is_none();
        Ok(Exit::when(self.all_complete && !nothing_came))
    }

    /// Waits for datagrams, a signal or the next due time. `true`: a signal.
    fn wait(&self, now: Instant) -> anyhow::Result<bool> {
        let due = [self.receiver.poll_timeout(), self.last_words, self.teller.due(&self.receiver)];
        let wait = due.into_iter().flatten().min().map(|due| due.saturating_duration_since(now));
        // Rounded up: a wait of less than a millisecond must not become a busy loop.
        let timeout = wait.map_or(PollTimeout::NONE, |wait| {
            let millis = wait.as_millis().saturating_add(1);
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        let sockets = self.sessions.values().map(AsFd::as_fd);
        let mut waited: Vec<PollFd<'_>> = [self.signals.as_fd(), self.herald.as_fd()]
            .into_iter()
            .chain(sockets)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut waited, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(self.signals.received().is_some()),
            Err(error) => Err(error).context("waiting for datagrams"),
        }
    }

    /// Takes what waits at the sockets, from each so much at most; the rest is there the next time.
    fn receive(&mut self) {
        let now = Instant::now();
        let Self { receiver, herald, sessions, buffer, .. } = self;
        // What is ignored, the receiver counts.
        for (&session, socket) in &*sessions {
            for _ in 0..BATCH {
                let Some((len, from)) = socket.receive(buffer) else { break };
                let _ = receiver.handle_datagram(now, Endpoint::Session(session), from, &buffer[..len]);
            }
        }
        for _ in 0..BATCH {
            let Some(arrived) = herald.receive(buffer) else { break };
            let to = Endpoint::Herald { local: arrived.local };
            let _ = receiver.handle_datagram(now, to, arrived.from, &buffer[..arrived.len]);
        }
        self.follow(now);
    }

    /// Does what the receiver asks for, until it asks for nothing more.
    fn follow(&mut self, now: Instant) {
        let mut idle = false;
        while !idle {
            idle = true;
            while let Some(event) = self.receiver.poll_event() {
                idle = false;
                self.teller.tell(now, &event);
                self.act(now, event);
            }
            while let Some(reply) = self.receiver.poll_transmit(&mut self.train) {
                idle = false;
                if let Some(socket) = self.sessions.get(&reply.session) {
                    self.train.chunks(4).for_each(|ack| socket.send(ack));
                }
            }
        }
    }

    fn act(&mut self, now: Instant, event: ReceiverEvent<StoredDump>) {
        match event {
            ReceiverEvent::Opened { session, local, peer } => match SessionSocket::open(local, peer) {
                Ok(socket) => {
                    self.sessions.insert(session, socket);
                }
                Err(error) => {
                    tracing::error!(%peer, %error, "no socket for the dump");
                    self.receiver.abandon(now, session, Cause::NoSocket);
                }
            },
            ReceiverEvent::Closed { session } => {
                self.sessions.remove(&session);
            }
            ReceiverEvent::Ended { ending, .. } if self.once => self.end_of_once(now, ending.is_complete()),
            ReceiverEvent::Ended { ending, .. } => {
                let cut_short = self.stopped && !ending.is_complete();
                self.all_complete &= !cut_short;
            }
            ReceiverEvent::Refused { .. } if self.once => self.end_of_once(now, false),
            ReceiverEvent::Refused { .. } | ReceiverEvent::Header { .. } => {}
        }
    }

    fn end_of_once(&mut self, now: Instant, complete: bool) {
        self.all_complete &= complete;
        self.last_words = Some(if complete { now + LAST_WORDS } else { now });
        self.receiver.shut_down(now);
    }

    fn stop(&mut self, now: Instant) {
        self.stopped = true;
        self.receiver.shut_down(now);
        self.follow(now);
    }
}
