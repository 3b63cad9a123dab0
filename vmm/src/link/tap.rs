//! Frames written to a host tap and read from it.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use netdump::link::{Frame, Link, LinkError, Received, Sent};
use netdump::wire::MacAddr;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::sys::interface::Interface;
use crate::sys::iovec::{Source, Target};
use crate::sys::tap::{Tap, VNET_HEADER_LEN};

/// Longest frame that a tap gives: an Ethernet header, a VLAN tag and the longest IP packet.
const MAX_FRAME: usize = 14 + 4 + 65_535;

/// Least MTU that a dump fits through: its 512-byte header goes in one message (24), in UDP (8) over IPv4 (20).
const MIN_MTU: u32 = 564;

/// A tap as a link: the guest's own, once its device is stopped, or one that serves dumps only.
pub struct TapLink {
    tap: Arc<Tap>,
    mac: MacAddr,
    buffer: Box<[u8]>,
}

impl TapLink {
    /// Takes the tap over, sending from `mac`. What waited in it was not for the dumper and is thrown away.
    pub fn new(tap: Arc<Tap>, mac: MacAddr) -> Self {
        tap.drain();
        Self { tap, mac, buffer: vec![0; MAX_FRAME].into_boxed_slice() }
    }

    /// Puts the next frame that is there into `frame`; whether there was one.
    fn take(&mut self, frame: &mut Vec<u8>) -> Result<bool, LinkError> {
        let mut header = [0; VNET_HEADER_LEN];
        let mut room = [Target::from(&mut header[..]), Target::from(&mut self.buffer[..])];
        let came = self.tap.receive(&mut room).map_err(|error| failed(&self.tap, "receiving from", error))?;
        let bytes = came.and_then(|len| self.buffer.get(..len.checked_sub(VNET_HEADER_LEN)?));
        if let Some(bytes) = bytes {
            frame.clear();
            frame.extend_from_slice(bytes);
        }
        Ok(bytes.is_some())
    }
}

impl Link for TapLink {
    fn mtu(&self) -> Result<u32, LinkError> {
        usable(&self.tap).map(|interface| interface.mtu)
    }

    fn mac(&self) -> MacAddr {
        self.mac
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        if !frame.is_plain() {
            return Err(failed(&self.tap, "gathering a frame for", io::ErrorKind::Unsupported.into()));
        }
        let header = [0; VNET_HEADER_LEN];
        match self.tap.send(&[Source::from(&header[..]), Source::from(frame.bytes)]) {
            Ok(()) => Ok(Sent::Yes),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Ok(Sent::Busy),
                // The interface is down: the frame is lost, but it may come up again.
                Some(libc::EIO) => Ok(Sent::Yes),
                _ => Err(failed(&self.tap, "sending to", error)),
            },
        }
    }

    fn receive(&mut self, received: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        let frame = received.clear();
        Ok(self.take(frame)? || wait_for_frame(&self.tap, wait)? && self.take(frame)?)
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

pub(super) fn failed(tap: &Tap, doing: &str, source: io::Error) -> LinkError {
    LinkError::Io { doing: format!("{doing} tap {}", tap.name()), source }
}
