//! Pairs of a writer and a reader that do nothing else: what a path bears. The writer sends what a dump of ours would, a
//! 24-byte header before each piece of guest memory, and waits for nobody; the reader counts bytes and throws them away.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
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
use vm_memory::{GuestAddress, GuestMemoryBackend};
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
}

/// Writes guest memory to a tap, to a socket of the host.
pub(crate) fn over_tap(wire: &Wire, guest: &Guest, cut: Cut) -> anyhow::Result<Sample> {
    let reader = Reader::start(wire.server)?;
    let route = Route {
        source_mac: wire.mac,
        destination_mac: wire.host_mac()?,
        source: SocketAddrV4::new(wire.client, CLIENT_PORT),
        destination: reader.address,
    };
    let headers = route.headers(cut.per_write * cut.datagram(), UdpChecksum::Partial);
    let vnet = vnet_header(u16::try_from(cut.datagram())?, cut.per_write);
    let pieces = [&vnet[..], &headers[..]].concat();
    let writes = usize::try_from(guest.touched())? / (cut.per_write * cut.payload);
    let started = Instant::now();
    let mut offset = 0;
    for _ in 0..writes {
        let messages: Vec<_> = (0..cut.per_write)
            .map(|index| header(offset + (index * cut.payload) as u64, cut.payload))
            .collect();
        let mut sources = Vec::with_capacity(1 + 2 * cut.per_write);
        sources.push(Source::from(&pieces[..]));
        for message in &messages {
            sources.push(Source::from(&message[..]));
            sources.push(Source::from(guest.memory.get_slice(GuestAddress(offset), cut.payload)?));
            offset += cut.payload as u64;
        }
        wire.tap.send(&sources)?;
    }
    reader.finish(started, offset)
}

/// Sends memory over loopback from a socket to another.
pub(crate) fn over_loopback(total: u64, cut: Cut) -> anyhow::Result<Sample> {
    let reader = Reader::start(Ipv4Addr::LOCALHOST)?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(reader.address)?;
    setsockopt(&socket, UdpGsoSegment, &i32::try_from(cut.datagram())?)?;
    let mut rng = Rng::new(1);
    let pool: Vec<u8> = (0..POOL / 8).flat_map(|_| rng.number().to_le_bytes()).collect();
    let bytes_per_write = cut.per_write * cut.payload;
    let started = Instant::now();
    let (mut offset, mut at) = (0, 0);
    while offset + bytes_per_write as u64 <= total {
        let messages: Vec<_> = (0..cut.per_write).map(|_| header(offset, cut.payload)).collect();
        let payloads = pool[at..at + bytes_per_write].chunks(cut.payload);
        let parts: Vec<_> = (messages.iter().zip(payloads))
            .flat_map(|(message, payload)| [IoSlice::new(message), IoSlice::new(payload)])
            .collect();
        sendmsg::<SockaddrIn>(socket.as_raw_fd(), &parts, &[], MsgFlags::empty(), None)?;
        offset += bytes_per_write as u64;
        at = if at + 2 * bytes_per_write <= POOL { at + bytes_per_write } else { 0 };
    }
    reader.finish(started, offset)
}

fn header(offset: u64, len: usize) -> [u8; message::HEADER_LEN] {
    message::header(MessageKind::Vmcore, 1, offset, len, 0)
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

impl Reader {
    fn start(address: Ipv4Addr) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_read_timeout(Some(SILENCE))?;
        if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER)?;
        }
        setsockopt(&socket, UdpGroSegment, &true)?;
        let address = SocketAddrV4::new(address, socket.local_addr()?.port());
        let writer_ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&writer_ended);
        let thread = thread::spawn(move || read(&socket, &told));
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

fn read(socket: &UdpSocket, writer_ended: &AtomicBool) -> anyhow::Result<Read> {
    let mut buffer = vec![0; 1 << 16];
    let mut control = nix::cmsg_space!(i32);
    let mut read = Read { bytes: 0, last: Instant::now() };
    loop {
        let ended = writer_ended.load(Ordering::Acquire);
        let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
        let message =
            recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty());
        match message {
            Ok(message) => {
                let segment = message.cmsgs()?.find_map(|control| match control {
                    ControlMessageOwned::UdpGroSegments(len) => usize::try_from(len).ok(),
                    _ => None,
                });
                let datagrams = segment.map_or(1, |segment| message.bytes.div_ceil(segment.max(1)));
                read.bytes += message.bytes.saturating_sub(message::HEADER_LEN * datagrams) as u64;
                read.last = Instant::now();
            }
            Err(_) if ended => return Ok(read),
            Err(_) => {}
        }
    }
}
