//! Pairs of a writer and a reader that do nothing else: what a path bears. The writer sends what a dump of ours would, a
//! 24-byte header before each piece of guest memory, and waits for nobody; the reader counts bytes and throws them away.
//!
//! One pair does more: both ends hash what passes, and the reader stores it. That is the least that a dump has to do,
//! so it tells how much of a dump's time goes into that on this machine, whatever the dump's design.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use harness::simnet::rng::Rng;
use netdump::wire::udp::UdpChecksum;
use netdump::wire::{CLIENT_PORT, MessageKind, Route, message};
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm::sys::iovec::Source;
use vmm::sys::tap::VNET_HEADER_LEN;

use super::guest::Guest;
use super::lab::Wire;
use super::outcome::Sample;

/// No reader falls so far behind that more waits.
const RECEIVE_BUFFER: usize = 256 << 20;
/// Silence after which a reader looks whether the writer has ended.
const SILENCE: Duration = Duration::from_millis(20);
/// Memory that the loopback pair sends again and again: more than any cache holds.
const POOL: usize = 128 << 20;
/// What is hashed and stored at a time.
const STORE_AT: usize = 1 << 20;
/// Bytes of UDP payload behind one IPv4 header.
const MAX_UDP: usize = 65_535 - 20 - 8;

/// How the stream is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    /// Bytes of the core in a datagram.
    pub(crate) payload: usize,
    /// Datagrams in a write.
    pub(crate) per_write: usize,
}

impl Cut {
    /// As many datagrams to a write as IPv4 lets through.
    pub(crate) fn trains(payload: usize) -> Self {
        Self { payload, per_write: MAX_UDP / (message::HEADER_LEN + payload) }
    }

    /// A write for each datagram.
    pub(crate) fn single(payload: usize) -> Self {
        Self { payload, per_write: 1 }
    }

    fn datagram(self) -> usize {
        message::HEADER_LEN + self.payload
    }

    /// The same before each payload: nobody reads it.
    fn header(self) -> [u8; message::HEADER_LEN] {
        message::header(MessageKind::Vmcore, 1, 0, self.payload, 0)
    }

    /// Bytes of the core in a write.
    fn bytes(self) -> u64 {
        (self.per_write * self.payload) as u64
    }
}

/// Writes guest memory to a tap, to a socket of the host.
pub(crate) fn over_tap(wire: &Wire, guest: &Guest, cut: Cut) -> anyhow::Result<Sample> {
    let reader = Reader::start(wire.server, Discard)?;
    let writer = TapWriter::new(wire, reader.address, cut)?;
    let started = Instant::now();
    let mut offset = 0;
    for _ in 0..guest.in_a_row() / cut.bytes() {
        writer.write(|index| {
            let start = offset + (index * cut.payload) as u64;
            Ok(Source::from(guest.memory.get_slice(GuestAddress(start), cut.payload)?))
        })?;
        offset += cut.bytes();
    }
    reader.finish(started, offset)
}

/// The same, and the writer hashes what it writes, the reader hashes and stores what it reads, in the order in which it
/// came. Neither of them has more than a core.
pub(crate) fn with_duties(wire: &Wire, guest: &Guest, cut: Cut, folder: &Path) -> anyhow::Result<Sample> {
    let reader = Reader::start(wire.server, Keep::new(folder)?)?;
    let writer = TapWriter::new(wire, reader.address, cut)?;
    let mut buffer = vec![0; usize::try_from(cut.bytes())?];
    let mut hash = blake3::Hasher::new();
    let started = Instant::now();
    let mut offset = 0;
    for _ in 0..guest.in_a_row() / cut.bytes() {
        guest.memory.read_slice(&mut buffer, GuestAddress(offset))?;
        hash.update(&buffer);
        let pieces = buffer.as_slice();
        writer.write(|index| Ok(Source::from(&pieces[index * cut.payload..][..cut.payload])))?;
        offset += cut.bytes();
    }
    reader.finish(started, offset)
}

struct TapWriter<'a> {
    wire: &'a Wire,
    cut: Cut,
    headers: Vec<u8>,
    message: [u8; message::HEADER_LEN],
}

impl<'a> TapWriter<'a> {
    fn new(wire: &'a Wire, to: SocketAddrV4, cut: Cut) -> anyhow::Result<Self> {
        let route = Route {
            source_mac: wire.mac,
            destination_mac: wire.host_mac()?,
            source: SocketAddrV4::new(wire.client, CLIENT_PORT),
            destination: to,
        };
        let headers = route.headers(cut.per_write * cut.datagram(), UdpChecksum::Partial);
        let vnet = vnet_header(u16::try_from(cut.datagram())?, cut.per_write);
        Ok(Self { wire, cut, headers: [&vnet[..], &headers[..]].concat(), message: cut.header() })
    }

    /// Writes datagrams whose payloads `payload` gives by their numbers.
    fn write<'p>(&self, payload: impl Fn(usize) -> anyhow::Result<Source<'p>>) -> anyhow::Result<()> {
        let mut sources = Vec::with_capacity(1 + 2 * self.cut.per_write);
        sources.push(Source::from(&self.headers[..]));
        for index in 0..self.cut.per_write {
            sources.push(Source::from(&self.message[..]));
            sources.push(payload(index)?);
        }
        Ok(self.wire.tap.send(&sources)?)
    }
}

/// Sends memory over loopback from a socket to another.
pub(crate) fn over_loopback(total: u64, cut: Cut) -> anyhow::Result<Sample> {
    let reader = Reader::start(Ipv4Addr::LOCALHOST, Discard)?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(reader.address)?;
    setsockopt(&socket, UdpGsoSegment, &i32::try_from(cut.datagram())?)?;
    let mut rng = Rng::new(1);
    let pool: Vec<u8> = (0..POOL / 8).flat_map(|_| rng.number().to_le_bytes()).collect();
    let bytes_per_write = usize::try_from(cut.bytes())?;
    let message = cut.header();
    let started = Instant::now();
    let (mut offset, mut at) = (0, 0);
    while offset + bytes_per_write as u64 <= total {
        let payloads = pool[at..at + bytes_per_write].chunks(cut.payload);
        let parts: Vec<_> =
            payloads.flat_map(|payload| [IoSlice::new(&message), IoSlice::new(payload)]).collect();
        sendmsg::<SockaddrIn>(socket.as_raw_fd(), &parts, &[], MsgFlags::empty(), None)?;
        offset += bytes_per_write as u64;
        at = if at + 2 * bytes_per_write <= POOL { at + bytes_per_write } else { 0 };
    }
    reader.finish(started, offset)
}

/// The virtio-net header of a frame whose checksum the kernel completes, and that it cuts if it is a train (virtio 1.2,
/// 5.1.6): flags `NEEDS_CSUM`, gso type `UDP_L4`, header length, segment, where UDP starts, where its checksum is.
fn vnet_header(segment: u16, datagrams: usize) -> [u8; VNET_HEADER_LEN] {
    let (kind, segment) = if datagrams > 1 { (5, segment) } else { (0, 0) };
    let [low, high] = segment.to_le_bytes();
    [1, kind, 42, 0, low, high, 34, 0, 6, 0, 0, 0]
}

/// A thread that reads datagrams.
struct Reader {
    address: SocketAddrV4,
    writer_ended: Arc<AtomicBool>,
    thread: thread::JoinHandle<anyhow::Result<Read>>,
}

struct Read {
    /// Without message headers.
    bytes: u64,
    last: Instant,
}

/// What a reader does with what it has read, without message headers.
trait Take: Send + 'static {
    /// Takes the payload of one message.
    fn take(&mut self, payload: &[u8]) -> anyhow::Result<()>;
    /// No more comes.
    fn end(&mut self) -> anyhow::Result<()>;
}

/// Throws it away.
struct Discard;

impl Take for Discard {
    fn take(&mut self, _payload: &[u8]) -> anyhow::Result<()> {
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Hashes and stores it, a MiB at a time.
struct Keep {
    buffer: Vec<u8>,
    hash: blake3::Hasher,
    file: File,
}

impl Keep {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        Ok(Self { buffer: Vec::with_capacity(STORE_AT), hash: blake3::Hasher::new(), file })
    }
}

impl Take for Keep {
    fn take(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        let (fits, rest) = payload.split_at(payload.len().min(STORE_AT - self.buffer.len()));
        self.buffer.extend_from_slice(fits);
        if self.buffer.len() == STORE_AT {
            self.end()?;
            self.buffer.extend_from_slice(rest);
        }
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.hash.update(&self.buffer);
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

impl Reader {
    fn start(address: Ipv4Addr, take: impl Take) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_read_timeout(Some(SILENCE))?;
        if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER)?;
        }
        setsockopt(&socket, UdpGroSegment, &true)?;
        let address = SocketAddrV4::new(address, socket.local_addr()?.port());
        let writer_ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&writer_ended);
        let reader = thread::Builder::new().name("reader".into());
        let thread = reader.spawn(move || read(&socket, &told, take))?;
        Ok(Self { address, writer_ended, thread })
    }

    /// The writer has sent all of it.
    fn finish(self, started: Instant, sent: u64) -> anyhow::Result<Sample> {
        self.writer_ended.store(true, Ordering::Release);
        let read = self.thread.join().expect("readers do not panic")?;
        ensure!(read.bytes > 0, "nothing arrived");
        let sample = Sample::rate(read.bytes, read.last - started);
        let lost = sent.saturating_sub(read.bytes);
        Ok(if lost > 0 { sample.with_note(format!("{} MB lost", lost / 1_000_000)) } else { sample })
    }
}

fn read(socket: &UdpSocket, writer_ended: &AtomicBool, mut take: impl Take) -> anyhow::Result<Read> {
    let mut buffer = vec![0; 1 << 16];
    let mut control = nix::cmsg_space!(i32);
    let mut read = Read { bytes: 0, last: Instant::now() };
    loop {
        let ended = writer_ended.load(Ordering::Acquire);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message =
            recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty());
        let Ok(message) = message else {
            if ended {
                take.end()?;
                return Ok(read);
            }
            continue;
        };
        let len = message.bytes;
        let segment = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(len) => usize::try_from(len).ok(),
            _ => None,
        });
        for datagram in buffer[..len].chunks(segment.unwrap_or(len).max(1)) {
            let payload = datagram.get(message::HEADER_LEN..).unwrap_or_default();
            take.take(payload)?;
            read.bytes += payload.len() as u64;
        }
        read.last = Instant::now();
    }
}
