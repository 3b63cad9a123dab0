//! A [`Receiver`] on the host's own UDP sockets: one for HERALDs, and one for each session, connected to its client.
//!
//! One thread does it all: what a socket has ready is received, stored and acknowledged before the next socket has its
//! turn, so a slow disk slows its senders by late acks, and what waits meanwhile, waits in the kernel's buffers. A second
//! thread that receives while this one writes gains 10 to 20 % on 2 cores when the sender does nothing but send, and nothing
//! when it reads or hashes: the cores are busy then. Nine tenths of this thread's time go into `pwritev`.

mod sockets;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{DumpStore, Endpoint, Receiver, ReceiverEvent, SessionId};
use sockets::{Batch, Socket};

/// A receive buffer, in bytes of the kernel's own count, that holds what a client sends while the disk takes a rest; the
/// kernel gives as much only to root, others get `net.core.rmem_max`.
pub const RECEIVE_BUFFER: usize = 64 << 20;

/// What epoll calls the socket for HERALDs, and the descriptor that wakes; sessions have their own numbers.
const HERALDS: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

/// The receiver and its sockets.
#[derive(Debug)]
pub struct Server<S: DumpStore> {
    receiver: Receiver<S>,
    heralds: Socket,
    sessions: BTreeMap<SessionId, Socket>,
    /// Asked of the kernel for each socket.
    receive_buffer: usize,
    epoll: Epoll,
    events: VecDeque<ReceiverEvent<S::Stored>>,
    // Used again and again.
    ready: Vec<EpollEvent>,
    batch: Batch,
    train: Vec<u8>,
}

impl<S: DumpStore> Server<S> {
    /// Listens for HERALDs. Of [`RECEIVE_BUFFER`], or what else is asked for, the kernel may give less.
    pub fn bind(address: SocketAddrV4, receive_buffer: usize, receiver: Receiver<S>) -> io::Result<Self> {
        let heralds = Socket::for_heralds(address, receive_buffer)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&heralds, EpollEvent::new(EpollFlags::EPOLLIN, HERALDS))?;
        Ok(Self {
            receiver,
            heralds,
            sessions: BTreeMap::new(),
            receive_buffer,
            epoll,
            events: VecDeque::new(),
            ready: Vec::new(),
            batch: Batch::new(),
            train: Vec::new(),
        })
    }

    /// Lets [`Self::turn`] end when there is something to read, such as a signal.
    pub fn wake_by(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?)
    }

    /// Where HERALDs come to.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.heralds.address()
    }

    /// The receive buffer of a socket in bytes, as the kernel gave it.
    pub fn receive_buffer(&self) -> usize {
        self.heralds.receive_buffer()
    }

    /// The receiver, for what it counts.
    pub fn receiver(&self) -> &Receiver<S> {
        &self.receiver
    }

    /// Waits for datagrams until then at most, takes what has come, and does what is due. `true`: it was woken by what
    /// [`Self::wake_by`] named. Fails only if the kernel does.
    pub fn turn(&mut self, until: Option<Instant>) -> io::Result<bool> {
        self.follow(Instant::now());
        self.wait(until)?;
        // One time for all: what is due after a slow write may have come meanwhile, so the sockets are asked first.
        let now = Instant::now();
        let ready = std::mem::take(&mut self.ready);
        let (mut heralds, mut woken) = (false, false);
        for event in &ready {
            match event.data() {
                HERALDS => heralds = true,
                WAKE => woken = true,
                session => self.receive_for(now, SessionId(session)),
            }
        }
        // Behind the sessions: what tells that a dump goes on counts for more than a HERALD.
        if heralds {
            self.batch.fill(&self.heralds);
            self.receiver.handle_batch(now, &self.batch.arrived(None));
            self.follow(now);
        }
        self.ready = ready;
        self.receiver.handle_timeout(now);
        self.follow(now);
        Ok(woken)
    }

    /// The next event. Sockets need no care.
    pub fn poll_event(&mut self) -> Option<ReceiverEvent<S::Stored>> {
        self.events.pop_front()
    }

    /// As [`Receiver::shut_down`].
    pub fn shut_down(&mut self) {
        let now = Instant::now();
        self.receiver.shut_down(now);
        self.follow(now);
    }

    /// As [`Receiver::restore_unfinished`].
    pub fn restore_unfinished(&mut self) -> usize {
        self.receiver.restore_unfinished(Instant::now())
    }

    /// Waits until a socket is ready, or something else is due.
    fn wait(&mut self, until: Option<Instant>) -> io::Result<()> {
        let due = until.into_iter().chain(self.receiver.poll_timeout()).min();
        // Rounded up: a wait of less than a millisecond must not become a busy loop.
        let millis = due.map(|due| due.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000));
        let timeout = millis
            .map_or(EpollTimeout::NONE, |millis| EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX));
        self.ready.resize(self.sessions.len() + 2, EpollEvent::empty());
        let count = match self.epoll.wait(&mut self.ready, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        self.ready.truncate(count);
        Ok(())
    }

    fn receive_for(&mut self, now: Instant, session: SessionId) {
        let Some(socket) = self.sessions.get(&session) else { return };
        self.batch.fill(socket);
        self.receiver.handle_batch(now, &self.batch.arrived(Some(Endpoint::Session(session))));
        self.follow(now);
    }

    /// Does what the receiver asks for, until it asks for nothing more.
    fn follow(&mut self, now: Instant) {
        loop {
            let before = self.events.len();
            while let Some(event) = self.receiver.poll_event() {
                self.act(now, &event);
                self.events.push_back(event);
            }
            while let Some(reply) = self.receiver.poll_transmit(&mut self.train) {
                if let Some(socket) = self.sessions.get_mut(&reply.session) {
                    socket.send(&self.train);
                }
            }
            if self.events.len() == before {
                return;
            }
        }
    }

    fn act(&mut self, now: Instant, event: &ReceiverEvent<S::Stored>) {
        match *event {
            ReceiverEvent::Opened { session, local, peer }
            | ReceiverEvent::Resumed { session, local, peer, .. } => {
                let done = match self.sessions.get(&session) {
                    Some(socket) => socket.connect(peer),
                    None => self.open(session, local, peer),
                };
                if let Err(error) = done {
                    self.sessions.remove(&session);
                    self.receiver.no_socket(now, session, error);
                }
            }
            // A socket that is closed leaves the epoll by itself.
            ReceiverEvent::Closed { session } => drop(self.sessions.remove(&session)),
            ReceiverEvent::Refused { .. }
            | ReceiverEvent::Header { .. }
            | ReceiverEvent::Suspended { .. }
            | ReceiverEvent::Ended { .. } => {}
        }
    }

    fn open(&mut self, session: SessionId, local: Ipv4Addr, peer: SocketAddrV4) -> io::Result<()> {
        let socket = Socket::for_session(local, peer, self.receive_buffer)?;
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, session.number()))?;
        self.sessions.insert(session, socket);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
