//! Frames written to a host tap and read from it.
//!
//! Checksums are the kernel's to make. Where it knows UDP segmentation (Linux 6.2) trains go in one write and arrive in
//! one read; elsewhere they are cut here, into the same datagrams. Payload goes from where it lies in guest memory.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use netdump::link::{Frame, Link, LinkError, Offloads, Received, Sent};
use netdump::wire::MacAddr;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use smallvec::SmallVec;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::train::{Cutter, MAX_SEGMENTS, Part, net_header, parts};
use crate::devices::virtio::net::header::{NetHeader, arrival};
use crate::memory::GuestMemory;
use crate::sys::interface::Interface;
use crate::sys::iovec::{Source, Target};
use crate::sys::tap::{Reading, Tap, VNET_HEADER_LEN};

/// Longest frame that a tap gives: an Ethernet header, a VLAN tag and the longest IP packet.
const MAX_FRAME: usize = 14 + 4 + 65_535;

/// Least MTU that a dump fits through: its 512-byte header goes in one message (24), in UDP (8) over IPv4 (20).
const MIN_MTU: u32 = 564;

/// Pieces of one write: net header, and for each message of a train its header and its payload, that is 129, and more
/// where a payload crosses from one region of guest memory to the next.
const PIECES: usize = 256;

/// A tap as a link: the guest's own, once its device is stopped, or one that serves dumps only.
pub struct TapLink {
    tap: Arc<Tap>,
    memory: GuestMemory,
    mac: MacAddr,
    trains: Trains,
    /// What is left of a train that was cut.
    cutter: Cutter,
    buffer: Box<[u8]>,
}

/// What becomes of trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trains {
    /// The kernel takes them.
    Whole,
    /// They are cut.
    Cut,
}

impl TapLink {
    /// Takes the tap over, sending from `mac` and from guest memory. What waited in it was not for the dumper and is
    /// thrown away.
    pub fn new(tap: Arc<Tap>, memory: GuestMemory, mac: MacAddr) -> Self {
        let trains = match tap.set_reading(Reading::TRAINS) {
            Ok(()) => Trains::Whole,
            Err(error) => {
                tracing::debug!(tap = %tap.name(), %error, "no segmentation offload");
                Trains::Cut
            }
        };
        tap.drain();
        let buffer = vec![0; MAX_FRAME].into_boxed_slice();
        Self { tap, memory, mac, trains, cutter: Cutter::default(), buffer }
    }

    /// Puts the next frame that is there into `received`; whether there was one.
    fn take(&mut self, received: &mut Received) -> Result<bool, LinkError> {
        let mut header = NetHeader::default();
        let mut room = [Target::from(&mut header[..]), Target::from(&mut self.buffer[..])];
        let came = self.tap.receive(&mut room).map_err(|error| failed(&self.tap, "receiving from", error))?;
        let bytes = came.and_then(|len| self.buffer.get(..len.checked_sub(VNET_HEADER_LEN)?));
        if let Some(bytes) = bytes {
            received.put(bytes);
            (received.segment, received.checked) = arrival(header);
        }
        Ok(bytes.is_some())
    }

    /// Sends what is left of a train that was cut.
    fn send_cut(&mut self) -> Result<Sent, LinkError> {
        while let Some(frame) = self.cutter.next() {
            match send(&self.tap, &self.memory, &frame)? {
                Taken::Yes => self.cutter.gone(),
                Taken::Busy => return Ok(Sent::Busy),
                Taken::Refused => return Err(bad_frame(&self.tap)),
            }
        }
        Ok(Sent::Yes)
    }

    /// Cuts a train. What there is no room for goes with the next call.
    fn cut(&mut self, train: &Frame<'_>) -> Result<Sent, LinkError> {
        net_header(train).ok_or_else(|| bad_frame(&self.tap))?;
        self.cutter.put(train);
        self.send_cut().map(|_| Sent::Yes)
    }
}

impl Link for TapLink {
    fn mtu(&self) -> Result<u32, LinkError> {
        usable(&self.tap).map(|interface| interface.mtu)
    }

    fn mac(&self) -> MacAddr {
        self.mac
    }

    fn offloads(&self) -> Offloads {
        let segments = if self.trains == Trains::Whole { MAX_SEGMENTS } else { 0 };
        Offloads { gather: true, checksum: true, segments }
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        if self.send_cut()? == Sent::Busy {
            return Ok(Sent::Busy);
        }
        if frame.segment.is_some() && self.trains == Trains::Cut {
            return self.cut(frame);
        }
        match send(&self.tap, &self.memory, frame)? {
            Taken::Yes => Ok(Sent::Yes),
            Taken::Busy => Ok(Sent::Busy),
            Taken::Refused if frame.segment.is_some() => {
                tracing::debug!(tap = %self.tap.name(), "a train was refused; from here on they are cut");
                self.trains = Trains::Cut;
                self.cut(frame)
            }
            Taken::Refused => Err(bad_frame(&self.tap)),
        }
    }

    fn receive(&mut self, received: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        self.send_cut()?;
        received.clear();
        Ok(self.take(received)? || wait_for_frame(&self.tap, wait)? && self.take(received)?)
    }
}

impl Drop for TapLink {
    /// Gives the tap back as it was, with nothing in it for the dumper.
    fn drop(&mut self) {
        // A tap that was removed has nobody to give it back to.
        let _ = self.tap.set_reading(Reading::Plain);
        self.tap.drain();
    }
}

impl fmt::Debug for TapLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TapLink")
            .field("tap", self.tap.name())
            .field("mac", &self.mac)
            .finish_non_exhaustive()
    }
}

/// What a tap did with a frame.
enum Taken {
    Yes,
    /// It has no room at present.
    Busy,
    /// It does not take such frames.
    Refused,
}

/// Writes a frame to a tap, the guest's pieces from where they are.
fn send(tap: &Tap, memory: &GuestMemory, frame: &Frame<'_>) -> Result<Taken, LinkError> {
    let header = net_header(frame).ok_or_else(|| bad_frame(tap))?;
    let mut pieces = SmallVec::<[Source<'_>; PIECES]>::new();
    pieces.push(Source::from(&header[..]));
    for part in parts(frame) {
        match part {
            Part::Own(bytes) => pieces.push(Source::from(bytes)),
            Part::Guest(piece) => {
                for slice in memory.get_slices(GuestAddress(piece.address), piece.len) {
                    pieces.push(Source::from(slice.map_err(|_| bad_frame(tap))?));
                }
            }
        }
    }
    match tap.send(&pieces) {
        Ok(()) => Ok(Taken::Yes),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Ok(Taken::Busy),
            // The interface is down: the frame is lost, but it may come up again.
            Some(libc::EIO) => Ok(Taken::Yes),
            Some(libc::EINVAL) => Ok(Taken::Refused),
            _ => Err(failed(tap, "sending to", error)),
        },
    }
}

/// What the tap's interface is now, if a dump can go through it.
pub(super) fn usable(tap: &Tap) -> Result<Interface, LinkError> {
    let bad = |problem| LinkError::Interface { name: tap.name().to_string(), problem };
    let interface = tap.interface().map_err(|error| failed(tap, "looking at", error))?;
    let interface = interface.ok_or_else(|| bad("it has been removed"))?;
    match interface {
        Interface { ethernet: false, .. } => Err(bad("it is not Ethernet, and netdump needs that")),
        Interface { up: false, .. } => Err(LinkError::Down { name: tap.name().to_string() }),
        Interface { mtu: ..MIN_MTU, .. } => {
            Err(bad("its MTU is below 564 bytes, too small for a dump header"))
        }
        usable => Ok(usable),
    }
}

/// Waits until the tap has a frame, at most `wait`. `false`: none came, or a signal did. The caller has just found
/// the tap empty, so without time to wait there is nothing to ask.
pub(super) fn wait_for_frame(tap: &Tap, wait: Duration) -> Result<bool, LinkError> {
    if wait.is_zero() {
        return Ok(false);
    }
    let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
    match ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(failed(tap, "waiting for", errno.into())),
    }
}

/// The frame is none, or asks for what the link does not offer, or has pieces outside of guest memory.
pub(super) fn bad_frame(tap: &Tap) -> LinkError {
    failed(
        tap,
        "a frame is too long, wrong or not in guest memory; sending to",
        io::ErrorKind::InvalidInput.into(),
    )
}

pub(super) fn failed(tap: &Tap, doing: &str, source: io::Error) -> LinkError {
    LinkError::Io { doing: format!("{doing} tap {}", tap.name()), source }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use netdump::link::GuestPiece;
    use netdump::wire::Route;
    use netdump::wire::datagram::HEADERS_LEN;
    use netdump::wire::udp::UdpChecksum;
    use vm_memory::Bytes;

    use super::*;
    use crate::devices::virtio::net::header::needs_checksum;
    use crate::sys::tap::fake;

    const ROUTE: Route = Route {
        source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        source: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 20024),
        destination: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 20023),
    };

    #[test]
    fn trains_are_cut_for_a_kernel_that_takes_none_and_what_finds_no_room_goes_later() {
        let (tap, host) = fake::tap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        memory.write_slice(&[7; 0x1000], GuestAddress(0)).unwrap();
        let mut link = TapLink::new(Arc::new(tap), memory, ROUTE.source_mac);
        assert_eq!(link.offloads(), Offloads { gather: true, checksum: true, segments: 0 });

        let mut sent = 0_u8;
        loop {
            let mut bytes = ROUTE.headers(3 * 500, UdpChecksum::Partial).to_vec();
            let mut guest = Vec::new();
            for number in sent..sent + 3 {
                bytes.push(number);
                guest.push(GuestPiece { at: bytes.len(), address: 0, len: 499 });
            }
            if link.send(&Frame { bytes: &bytes, guest: &guest, segment: Some(500) }).unwrap() == Sent::Busy {
                break;
            }
            sent += 3;
        }
        let mut arrived = 0_u8;
        let mut frame = [0; 2000];
        while arrived < sent {
            let Ok(len) = host.recv(&mut frame) else {
                link.receive(&mut Received::default(), Duration::ZERO).unwrap();
                continue;
            };
            assert_eq!(frame[..VNET_HEADER_LEN], needs_checksum(34, 6));
            let (route, payload) = Route::parse_checked(&frame[VNET_HEADER_LEN..len]).unwrap();
            assert_eq!((route, payload), (ROUTE, &[&[arrived][..], &[7; 499]].concat()[..]));
            assert_eq!(len, VNET_HEADER_LEN + HEADERS_LEN + 500);
            arrived += 1;
        }
        assert_eq!(link.send_cut().unwrap(), Sent::Yes);
        assert!(host.recv(&mut frame).is_err(), "nothing came twice");
    }
}
