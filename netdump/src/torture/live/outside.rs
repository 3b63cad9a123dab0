//! Stations that stand for a server, or for a client, behind real sockets: they turn frames into datagrams and back.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::{LiveError, Outside};
use crate::torture::sim::datagram::Datagram;
use crate::torture::sim::hosts::{CLIENT_IP, CLIENT_MAC, SERVER_IP, SERVER_MAC, put_arp, question_for};
use crate::torture::sim::{Party, Station};
use crate::wire::{CLIENT_PORT, MacAddr, Message, Route, SERVER_PORT};

/// Longest datagram.
const BUFFER: usize = 65_536;
/// A client that says nothing for this long is gone, whatever it waited for.
const GONE: Duration = Duration::from_secs(5);
/// And when its FINISHED was acknowledged, after this long: it may repeat it.
const DONE: Duration = Duration::from_millis(1500);

/// Binds an address, for datagrams without waiting.
pub(super) fn bind(address: SocketAddrV4) -> Result<UdpSocket, LiveError> {
    let socket = UdpSocket::bind(address).map_err(|source| LiveError::Bind { address, source })?;
    let set = socket.set_nonblocking(true);
    set.map_err(|source| LiveError::Io { doing: "preparing a socket", source })?;
    Ok(socket)
}

/// The next datagram that has come. A port that is closed at the other end is no failure.
pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddrV4)> {
    loop {
        match socket.recv_from(buffer) {
            Ok((len, SocketAddr::V4(from))) => return Some((len, from)),
            Ok((_, SocketAddr::V6(_))) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionRefused) => {}
            Err(_) => return None,
        }
    }
}

/// A real server.
#[derive(Debug)]
pub(super) struct RealServer {
    server: SocketAddrV4,
    /// The last two bytes of its clients' addresses, of which there are many on loopback.
    run: [u8; 2],
    clients: Vec<Local>,
    inbox: VecDeque<Vec<u8>>,
    failure: Option<LiveError>,
    buffer: Vec<u8>,
}

/// A simulated client's address, and the socket that stands for it.
#[derive(Debug)]
struct Local {
    client: SocketAddrV4,
    mac: MacAddr,
    socket: UdpSocket,
}

impl RealServer {
    /// That server, to which clients of this run speak from addresses of their own if it is on loopback.
    pub(super) fn new(server: SocketAddrV4, run: u64) -> Self {
        let [low, high, ..] = run.to_le_bytes();
        let (clients, inbox) = (Vec::new(), VecDeque::new());
        Self { server, run: [high, low], clients, inbox, failure: None, buffer: vec![0; BUFFER] }
    }

    fn send(&mut self, mac: MacAddr, datagram: &Datagram<'_>) -> Result<(), LiveError> {
        let known = self.clients.iter().position(|local| local.client == datagram.source);
        let index = match known {
            Some(index) => index,
            None => {
                let socket = bind(self.real(datagram.source))?;
                self.clients.push(Local { client: datagram.source, mac, socket });
                self.clients.len() - 1
            }
        };
        let port = match datagram.destination.port() {
            SERVER_PORT => self.server.port(),
            port => port,
        };
        // What cannot be sent is lost, as on any wire.
        let to = SocketAddrV4::new(*self.server.ip(), port);
        let _ = self.clients[index].socket.send_to(datagram.payload, to);
        Ok(())
    }

    /// Where a simulated client lives.
    fn real(&self, client: SocketAddrV4) -> SocketAddrV4 {
        let [high, low] = self.run;
        let address = match client.ip().octets() {
            [.., place] if self.server.ip().is_loopback() => Ipv4Addr::new(127, 128 | place, high, low),
            _ => Ipv4Addr::UNSPECIFIED,
        };
        SocketAddrV4::new(address, client.port())
    }
}

impl Outside for RealServer {
    fn pump(&mut self, _now: Instant) -> Result<(), LiveError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        for Local { client, mac, socket } in &self.clients {
            while let Some((len, from)) = receive(socket, &mut self.buffer) {
                let port = if from.port() == self.server.port() { SERVER_PORT } else { from.port() };
                let address = if from.ip() == self.server.ip() { SERVER_IP } else { *from.ip() };
                let route = Route {
                    source_mac: SERVER_MAC,
                    destination_mac: *mac,
                    source: SocketAddrV4::new(address, port),
                    destination: *client,
                };
                let mut frame = Vec::new();
                route.emit(&self.buffer[..len], &mut frame);
                self.inbox.push_back(frame);
            }
        }
        Ok(())
    }

    fn sockets(&self) -> Vec<BorrowedFd<'_>> {
        self.clients.iter().map(|local| local.socket.as_fd()).collect()
    }
}

impl Station for RealServer {
    fn handle_frame(&mut self, _now: Instant, frame: &[u8]) {
        if let Some(question) = question_for(SERVER_IP, frame) {
            let mut answer = Vec::new();
            put_arp(&question.reply_from(SERVER_MAC), &mut answer);
            self.inbox.push_back(answer);
        } else if Route::parse(frame).is_ok_and(|(route, _)| *route.destination.ip() == SERVER_IP)
            && let (Some(datagram), Some(&mac)) = (Datagram::of(frame), frame[6..].first_chunk())
            && let Err(failure) = self.send(MacAddr(mac), &datagram)
        {
            self.failure = Some(failure);
        }
    }

    fn handle_timeout(&mut self, _now: Instant) {}

    fn poll_transmit(&mut self, _now: Instant, frame: &mut Vec<u8>) -> bool {
        self.inbox.pop_front().map(|next| *frame = next).is_some()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

/// A real client, from its HERALD until it falls silent.
#[derive(Debug)]
pub(super) struct RealClient {
    herald: UdpSocket,
    /// The port that it speaks to for HERALDs.
    address: SocketAddrV4,
    client: SocketAddrV4,
    /// Ports of the simulated server, and the sockets that stand for them.
    ports: Vec<(SocketAddrV4, UdpSocket)>,
    inbox: VecDeque<Vec<u8>>,
    started: Instant,
    heard: Instant,
    /// Whether the server has acknowledged the end; told by who runs this.
    pub(super) is_done: bool,
    /// The last word of its HERALD, by which our client names its dump.
    dump: u32,
    /// Whether it has sent more than HERALDs.
    has_begun: bool,
    ending: Option<Silent>,
    failure: Option<LiveError>,
    buffer: Vec<u8>,
}

/// It says nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Silent;

impl RealClient {
    /// The client whose HERALD has come to that socket.
    pub(super) fn new(herald: &UdpSocket, client: SocketAddrV4, datagram: &[u8]) -> Result<Self, LiveError> {
        let failed = |doing| move |source| LiveError::Io { doing, source };
        // What the host would send from.
        let route = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(failed("making a socket"))?;
        route.connect(client).map_err(failed("finding the way to the client"))?;
        let SocketAddr::V4(address) = route.local_addr().map_err(failed("finding the way to the client"))?
        else {
            unreachable!("it was bound to an IPv4 address");
        };
        let now = Instant::now();
        let mut real = Self {
            herald: herald.try_clone().map_err(failed("making a socket"))?,
            address,
            client,
            ports: Vec::new(),
            inbox: VecDeque::new(),
            started: now,
            heard: now,
            is_done: false,
            dump: Message::parse(datagram).map_or(0, |herald| herald.aux),
            has_begun: false,
            ending: None,
            failure: None,
            buffer: vec![0; BUFFER],
        };
        real.take(SocketAddrV4::new(SERVER_IP, SERVER_PORT), datagram);
        Ok(real)
    }

    fn take(&mut self, to: SocketAddrV4, payload: &[u8]) {
        let route = Route {
            source_mac: CLIENT_MAC,
            destination_mac: SERVER_MAC,
            source: SocketAddrV4::new(CLIENT_IP, CLIENT_PORT),
            destination: to,
        };
        let mut frame = Vec::new();
        route.emit(payload, &mut frame);
        self.inbox.push_back(frame);
    }

    fn send(&mut self, datagram: &Datagram<'_>) -> Result<(), LiveError> {
        let known = self.ports.iter().position(|(source, _)| *source == datagram.source);
        let index = match known {
            Some(index) => index,
            None => {
                let address = match *datagram.source.ip() {
                    SERVER_IP => *self.address.ip(),
                    // Another host: on loopback there are plenty.
                    _ if self.address.ip().is_loopback() => Ipv4Addr::new(127, 77, 77, 77),
                    _ => return Ok(()),
                };
                self.ports.push((datagram.source, bind(SocketAddrV4::new(address, 0))?));
                self.ports.len() - 1
            }
        };
        let _ = self.ports[index].1.send_to(datagram.payload, self.client);
        Ok(())
    }

    /// Whether this begins another dump: then the present one is over, and the HERALD is repeated for the next run.
    fn is_next_dump(&self, port: SocketAddrV4, payload: &[u8]) -> bool {
        let goes_on = |herald: Message<'_>| herald.aux != 0 && herald.aux == self.dump && !self.is_done;
        let is_herald = port.port() == SERVER_PORT && self.has_begun;
        is_herald && !Message::parse(payload).is_ok_and(goes_on)
    }

    fn gone_at(&self) -> Instant {
        self.heard + if self.is_done { DONE } else { GONE }
    }
}

impl Outside for RealClient {
    fn pump(&mut self, now: Instant) -> Result<(), LiveError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut came = Vec::new();
        let herald = (SocketAddrV4::new(SERVER_IP, SERVER_PORT), &self.herald);
        let ports = self.ports.iter().map(|(port, socket)| (*port, socket));
        for (port, socket) in ports.chain([herald]) {
            while let Some((len, from)) = receive(socket, &mut buffer) {
                // Others have to wait until this one is done.
                if from == self.client {
                    came.push((port, buffer[..len].to_vec()));
                }
            }
        }
        self.buffer = buffer;
        for (port, payload) in came {
            if self.is_next_dump(port, &payload) {
                self.ending = Some(Silent);
                break;
            }
            self.has_begun |= port.port() != SERVER_PORT;
            self.heard = now;
            self.take(port, &payload);
        }
        Ok(())
    }

    fn sockets(&self) -> Vec<BorrowedFd<'_>> {
        self.ports.iter().map(|(_, socket)| socket).chain([&self.herald]).map(AsFd::as_fd).collect()
    }
}

impl Station for RealClient {
    fn handle_frame(&mut self, _now: Instant, frame: &[u8]) {
        if let Some(question) = question_for(CLIENT_IP, frame) {
            let mut answer = Vec::new();
            put_arp(&question.reply_from(CLIENT_MAC), &mut answer);
            self.inbox.push_back(answer);
        } else if Route::parse(frame).is_ok_and(|(route, _)| *route.destination.ip() == CLIENT_IP)
            && let Some(datagram) = Datagram::of(frame)
            && let Err(failure) = self.send(&datagram)
        {
            self.failure = Some(failure);
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.gone_at() <= now {
            self.ending = Some(Silent);
        }
    }

    fn poll_transmit(&mut self, _now: Instant, frame: &mut Vec<u8>) -> bool {
        self.inbox.pop_front().map(|next| *frame = next).is_some()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.gone_at()).filter(|_| self.ending.is_none())
    }
}

impl Party for RealClient {
    type Ending = Silent;

    fn ending(&self) -> Option<&Silent> {
        self.ending.as_ref()
    }

    fn started(&self) -> Instant {
        self.started
    }
}
