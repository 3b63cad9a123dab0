//! The host's UDP socket: trains of datagrams in one call each way (`UDP_SEGMENT`, `UDP_GRO`), and what ICMP has to say
//! of what was sent (`IP_RECVERR`).
//!
//! Reference: udp(7), ip(7); Linux `net/ipv4/udp.c`.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::sockopt::{
    Ipv4RecvErr, RcvBuf, RcvBufForce, SndBuf, SndBufForce, UdpGroSegment, UdpGsoSegment,
};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, getsockopt, recvmsg, sendmsg, setsockopt,
};
use nix::sys::time::TimeSpec;
use nix::{cmsg_space, libc};

use crate::link::Sent;

/// Most datagrams in a train. Newer kernels take 128 (`UDP_MAX_SEGMENTS`), but 64 KiB hold more than 64 of them only
/// where the MTU is below 1052.
pub(super) const MAX_SEGMENTS: usize = 64;
/// Room asked for on either side: some dozens of trains, or the acks of thousands.
const BUFFER: usize = 4 << 20;
/// The longest payload of a datagram, or of a train of them.
const MAX_PAYLOAD: usize = 65_535 - 20 - 8;
/// An earlier datagram's fate comes up in place of the send; it is asked again as often, for as many may be known.
const ATTEMPTS: usize = 4;

/// A socket that does not block.
#[derive(Debug)]
pub(super) struct Socket {
    socket: UdpSocket,
    trains: Trains,
    /// What is left of a train that is cut.
    rest: Rest,
    /// Whether the last send found the socket full; one can wait for room in it.
    is_full: bool,
    buffer: Box<[u8]>,
    control: Vec<u8>,
}

/// How trains are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trains {
    /// In one call.
    Whole,
    /// Datagram by datagram.
    Cut,
}

/// Datagrams of `segment` bytes, `sent` bytes of which are gone.
#[derive(Debug)]
struct Rest {
    payload: Vec<u8>,
    sent: usize,
    segment: usize,
    to: SocketAddrV4,
}

/// What became of a call that sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// It is on its way, or lost.
    Yes,
    /// There is no room for it in the socket; one can wait for that.
    Full,
    /// There is no room for it further down, and nobody tells when there is.
    Congested,
    /// This kernel, or the way to there, takes no such trains.
    Refused,
}

/// What was received.
#[derive(Debug)]
pub(super) struct Datagrams<'a> {
    pub(super) source: SocketAddrV4,
    pub(super) payload: &'a [u8],
    /// Of a train: the length of each datagram; the last one may be shorter.
    pub(super) segment: Option<u16>,
}

/// An ICMP message that told of a datagram which did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Undelivered {
    /// Who says so.
    pub(super) from: Ipv4Addr,
    pub(super) icmp_type: u8,
    pub(super) icmp_code: u8,
    /// Whom the datagram was for.
    pub(super) destination: SocketAddrV4,
}

/// What woke a waiting socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) datagrams: bool,
    pub(super) errors: bool,
}

impl Socket {
    /// Takes that address.
    pub(super) fn bind(local: SocketAddrV4) -> io::Result<Self> {
        let socket = UdpSocket::bind(local)?;
        socket.set_nonblocking(true)?;
        // What a kernel does not know of these it does without.
        let _ = setsockopt(&socket, Ipv4RecvErr, &true);
        let _ = setsockopt(&socket, UdpGroSegment, &true);
        let _ = setsockopt(&socket, SndBufForce, &BUFFER).or_else(|_| setsockopt(&socket, SndBuf, &BUFFER));
        let _ = setsockopt(&socket, RcvBufForce, &BUFFER).or_else(|_| setsockopt(&socket, RcvBuf, &BUFFER));
        let (sends, receives) = (getsockopt(&socket, SndBuf), getsockopt(&socket, RcvBuf));
        // An older kernel would send a train as one datagram in fragments.
        let whole = setsockopt(&socket, UdpGsoSegment, &0).is_ok();
        tracing::debug!(%local, trains = whole, ?sends, ?receives, "socket");
        Ok(Self {
            socket,
            trains: if whole { Trains::Whole } else { Trains::Cut },
            rest: Rest { payload: Vec::new(), sent: 0, segment: 1, to: local },
            is_full: false,
            buffer: vec![0; MAX_PAYLOAD].into_boxed_slice(),
            control: cmsg_space!(i32),
        })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddrV4> {
        address_of(&self.socket)
    }

    /// Most datagrams in a train.
    pub(super) fn segments(&self) -> usize {
        if self.trains == Trains::Whole { MAX_SEGMENTS } else { 0 }
    }

    /// Sends `payload` as one datagram, or as a train whose datagrams have `segment` bytes each, the last one perhaps
    /// fewer.
    pub(super) fn send(
        &mut self,
        payload: &[u8],
        segment: Option<u16>,
        to: SocketAddrV4,
    ) -> io::Result<Sent> {
        if self.flush()? == Sent::Busy {
            return Ok(Sent::Busy);
        }
        if segment.is_none() || self.trains == Trains::Whole {
            let taken = attempt(&self.socket, payload, segment, to)?;
            if taken != Taken::Refused {
                return Ok(self.note(taken));
            }
            tracing::debug!(%to, "a train was refused; from here on they are cut");
            self.trains = Trains::Cut;
        }
        self.rest.put(payload, segment.map_or(usize::MAX, usize::from), to);
        self.flush().map(|_| Sent::Yes)
    }

    /// Sends what is left of a train that was cut.
    pub(super) fn flush(&mut self) -> io::Result<Sent> {
        while let Some(datagram) = self.rest.next() {
            let len = datagram.len();
            let taken = attempt(&self.socket, datagram, None, self.rest.to)?;
            if self.note(taken) == Sent::Busy {
                return Ok(Sent::Busy);
            }
            self.rest.sent += len;
        }
        Ok(Sent::Yes)
    }

    fn note(&mut self, taken: Taken) -> Sent {
        self.is_full = taken == Taken::Full;
        if matches!(taken, Taken::Full | Taken::Congested) { Sent::Busy } else { Sent::Yes }
    }

    /// Takes what has come first, if anything has.
    pub(super) fn receive(&mut self) -> io::Result<Option<Datagrams<'_>>> {
        let (source, len, segment) = loop {
            let mut parts = [IoSliceMut::new(&mut self.buffer)];
            let control = Some(&mut self.control[..]);
            match recvmsg::<SockaddrIn>(self.socket.as_raw_fd(), &mut parts, control, MsgFlags::empty()) {
                Ok(message) => {
                    let segment = message.cmsgs().ok().and_then(|mut all| all.find_map(segment_of));
                    if let Some(source) = message.address {
                        break (source.into(), message.bytes, segment);
                    }
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) if errno == Errno::EINTR || is_loss(errno) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        let payload = self.buffer.get(..len).unwrap_or_default();
        Ok(Some(Datagrams { source, payload, segment: segment.filter(|size| usize::from(*size) < len) }))
    }

    /// What ICMP said first of what was sent; `None` when there is no more to say.
    pub(super) fn undelivered(&mut self) -> Option<Undelivered> {
        let mut control = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
        loop {
            let fd = self.socket.as_raw_fd();
            let message =
                recvmsg::<SockaddrIn>(fd, &mut [], Some(&mut control), MsgFlags::MSG_ERRQUEUE).ok()?;
            let destination = message.address.map(SocketAddrV4::from);
            let told = message.cmsgs().ok().and_then(|mut all| all.find_map(error_of));
            if let (Some(destination), Some((error, offender))) = (destination, told)
                && error.ee_origin == libc::SO_EE_ORIGIN_ICMP
            {
                return Some(Undelivered {
                    from: offender.unwrap_or_else(|| *destination.ip()),
                    icmp_type: error.ee_type,
                    icmp_code: error.ee_code,
                    destination,
                });
            }
        }
    }

    /// Waits at most `wait` for datagrams, errors, and room if there was none.
    pub(super) fn wait(&self, wait: Duration) -> io::Result<Ready> {
        let events = if self.is_full { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
        let mut fds = [PollFd::new(self.socket.as_fd(), events)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let seen = fds[0].revents().unwrap_or(PollFlags::empty());
        Ok(Ready { datagrams: seen.contains(PollFlags::POLLIN), errors: seen.contains(PollFlags::POLLERR) })
    }
}

impl Rest {
    fn put(&mut self, payload: &[u8], segment: usize, to: SocketAddrV4) {
        self.payload.clear();
        self.payload.extend_from_slice(payload);
        (self.sent, self.segment, self.to) = (0, segment, to);
    }

    fn next(&self) -> Option<&[u8]> {
        let left = self.payload.get(self.sent..)?;
        Some(left.get(..self.segment).unwrap_or(left)).filter(|datagram| !datagram.is_empty())
    }
}

fn attempt(socket: &UdpSocket, payload: &[u8], segment: Option<u16>, to: SocketAddrV4) -> io::Result<Taken> {
    let control = segment.as_ref().map(ControlMessage::UdpGsoSegments);
    let (parts, address) = ([IoSlice::new(payload)], SockaddrIn::from(to));
    for _ in 0..ATTEMPTS {
        match sendmsg(socket.as_raw_fd(), &parts, control.as_slice(), MsgFlags::empty(), Some(&address)) {
            Ok(_) => return Ok(Taken::Yes),
            Err(Errno::EAGAIN) => return Ok(Taken::Full),
            Err(Errno::ENOBUFS) => return Ok(Taken::Congested),
            Err(Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::EOPNOTSUPP) if segment.is_some() => {
                return Ok(Taken::Refused);
            }
            Err(errno) if errno == Errno::EINTR || is_loss(errno) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(Taken::Yes)
}

/// The address that a socket has.
pub(super) fn address_of(socket: &UdpSocket) -> io::Result<SocketAddrV4> {
    match socket.local_addr()? {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(_) => Err(ErrorKind::Unsupported.into()),
    }
}

fn segment_of(control: ControlMessageOwned) -> Option<u16> {
    match control {
        ControlMessageOwned::UdpGroSegments(size) => u16::try_from(size).ok().filter(|size| *size > 0),
        _ => None,
    }
}

fn error_of(control: ControlMessageOwned) -> Option<(libc::sock_extended_err, Option<Ipv4Addr>)> {
    match control {
        ControlMessageOwned::Ipv4RecvErr(error, offender) => {
            let offender = offender.map(|address| Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()));
            Some((error, offender))
        }
        _ => None,
    }
}

/// What ICMP or a firewall said of an earlier datagram: datagrams may be lost, and a server that is restarting says such
/// things too.
fn is_loss(errno: Errno) -> bool {
    let errors = [
        Errno::ECONNREFUSED,
        Errno::EHOSTUNREACH,
        Errno::EHOSTDOWN,
        Errno::EMSGSIZE,
        Errno::ENETDOWN,
        Errno::ENETUNREACH,
        Errno::ENONET,
        Errno::ENOPROTOOPT,
        Errno::EOPNOTSUPP,
        Errno::EPROTO,
        Errno::EPERM,
        Errno::EACCES,
    ];
    errors.contains(&errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trains_go_datagram_by_datagram_where_the_kernel_takes_none() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let server = UdpSocket::bind(any).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut socket = Socket::bind(any).unwrap();
        socket.trains = Trains::Cut;
        let to = address_of(&server).unwrap();
        let payload: Vec<u8> = (0..=250).cycle().take(10_001).collect();
        let mut buffer = [0; 2000];
        for _ in 0..3 {
            assert_eq!(socket.send(&payload, Some(500), to).unwrap(), Sent::Yes);
            for datagram in payload.chunks(500) {
                let len = server.recv(&mut buffer).unwrap();
                assert!(buffer[..len] == *datagram);
            }
        }
    }
}
