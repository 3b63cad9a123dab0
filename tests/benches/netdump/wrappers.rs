//! Links with something between them and the client: no trains, or loss.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::thread;
use std::time::Duration;

use harness::simnet::rng::Rng;
use netdump::link::{Frame, GuestPiece, Link, LinkError, Offloads, Received, Sent};
use netdump::wire::datagram::HEADERS_LEN;
use netdump::wire::udp::UdpChecksum;
use netdump::wire::{MacAddr, Route};

/// How often the later parts of a train that has lost datagrams are offered again to a link that is busy.
const OFFERS: u32 = 1000;

/// A link that cuts no trains, as on kernels that cannot.
#[derive(Debug)]
pub(crate) struct NoTrains<L>(pub(crate) L);

impl<L: Link> Link for NoTrains<L> {
    fn mtu(&self) -> Result<u32, LinkError> {
        self.0.mtu()
    }

    fn mac(&self) -> MacAddr {
        self.0.mac()
    }

    fn offloads(&self) -> Offloads {
        Offloads { segments: 1, ..self.0.offloads() }
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        self.0.send(frame)
    }

    fn receive(&mut self, frame: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        self.0.receive(frame, wait)
    }
}

/// A link that loses frames in both directions at random. Of a train each datagram is lost by itself: what is left goes
/// on as shorter trains, as if a wire had lost some of its frames.
#[derive(Debug)]
pub(crate) struct Lossy<L> {
    link: L,
    rng: Rng,
    /// Chance of a loss in a thousand.
    per_mille: u32,
    bytes: Vec<u8>,
    pieces: Vec<GuestPiece>,
}

impl<L: Link> Lossy<L> {
    /// Loses so many frames in a thousand; which ones, `seed` repeats.
    pub(crate) fn new(link: L, per_mille: u32, seed: u64) -> Self {
        Self { link, rng: Rng::new(seed), per_mille, bytes: Vec::new(), pieces: Vec::new() }
    }

    fn loses(&mut self) -> bool {
        self.rng.chance(self.per_mille)
    }

    /// Runs of datagrams that arrive, of so many.
    fn survivors(&mut self, datagrams: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for index in 0..datagrams {
            if self.loses() {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ => runs.push(index..index + 1),
            }
        }
        runs
    }

    /// Takes what is lost out of what was received; whether anything is left.
    fn thin_out(&mut self, frame: &mut Received) -> bool {
        let Some(segment) = frame.segment else { return !self.loses() };
        let each = usize::from(segment);
        let (headers, payload) = frame.bytes.split_at(HEADERS_LEN);
        let route = route(headers);
        let kept: Vec<_> = payload.chunks(each).filter(|_| !self.rng.chance(self.per_mille)).collect();
        let kept = kept.concat();
        frame.bytes.clear();
        frame.bytes.extend_from_slice(&route.headers(kept.len(), UdpChecksum::Partial));
        frame.bytes.extend_from_slice(&kept);
        frame.segment = (kept.len() > each).then_some(segment);
        // The sum in the new header is of no datagram that was ever sent.
        frame.checked = true;
        !kept.is_empty()
    }

    /// Sends some of a train's bytes, counted from the start of its UDP payload.
    fn send_part(&mut self, train: &Frame<'_>, part: Range<usize>, segment: u16) -> Result<Sent, LinkError> {
        let headers = route(train.bytes).headers(part.len(), UdpChecksum::Partial);
        self.bytes.clear();
        self.bytes.extend_from_slice(&headers);
        self.pieces.clear();
        cut(train, part.clone(), &mut self.bytes, &mut self.pieces);
        let segment = (part.len() > usize::from(segment)).then_some(segment);
        self.link.send(&Frame { bytes: &self.bytes, guest: &self.pieces, segment })
    }
}

impl<L: Link> Link for Lossy<L> {
    fn mtu(&self) -> Result<u32, LinkError> {
        self.link.mtu()
    }

    fn mac(&self) -> MacAddr {
        self.link.mac()
    }

    fn offloads(&self) -> Offloads {
        self.link.offloads()
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        let Some(segment) = frame.segment else {
            return if self.loses() { Ok(Sent::Yes) } else { self.link.send(frame) };
        };
        let len = frame.len() - HEADERS_LEN;
        let each = usize::from(segment);
        let before = self.rng.clone();
        for (index, run) in self.survivors(len.div_ceil(each)).into_iter().enumerate() {
            let part = run.start * each..len.min(run.end * each);
            let mut offers = 0;
            while self.send_part(frame, part.clone(), segment)? == Sent::Busy {
                if index == 0 {
                    // The client keeps the train, and what is lost of it stays the same.
                    self.rng = before;
                    return Ok(Sent::Busy);
                }
                offers += 1;
                if offers == OFFERS {
                    break;
                }
                thread::yield_now();
            }
        }
        Ok(Sent::Yes)
    }

    fn receive(&mut self, frame: &mut Received, mut wait: Duration) -> Result<bool, LinkError> {
        while self.link.receive(frame, wait)? {
            if self.thin_out(frame) {
                return Ok(true);
            }
            wait = Duration::ZERO;
        }
        Ok(false)
    }
}

/// Appends a part of a train's UDP payload, what lies in guest memory as pieces.
fn cut(train: &Frame<'_>, part: Range<usize>, bytes: &mut Vec<u8>, pieces: &mut Vec<GuestPiece>) {
    let inside = |start: usize, len: usize| {
        let from = part.start.clamp(start, start + len);
        let to = part.end.clamp(start, start + len);
        (from - start)..(to - start)
    };
    // How far we are, in the frame's own bytes and in its UDP payload.
    let (mut own, mut at) = (HEADERS_LEN, 0);
    let last = GuestPiece { at: train.bytes.len(), address: 0, len: 0 };
    for piece in train.guest.iter().chain([&last]) {
        let taken = inside(at, piece.at - own);
        bytes.extend_from_slice(&train.bytes[own..piece.at][taken]);
        at += piece.at - own;
        own = piece.at;
        let taken = inside(at, piece.len);
        if !taken.is_empty() {
            let address = piece.address + taken.start as u64;
            pieces.push(GuestPiece { at: bytes.len(), address, len: taken.len() });
        }
        at += piece.len;
    }
}

/// From where to where a frame goes that holds a UDP datagram, whatever its lengths and checksums.
fn route(frame: &[u8]) -> Route {
    let mac = |at: usize| MacAddr(frame[at..at + 6].try_into().expect("6 bytes"));
    let ip = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).expect("4 bytes"));
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    Route {
        destination_mac: mac(0),
        source_mac: mac(6),
        source: SocketAddrV4::new(ip(26), port(34)),
        destination: SocketAddrV4::new(ip(30), port(36)),
    }
}
