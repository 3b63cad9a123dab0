//! The receiver's UDP sockets: one for HERALDs, one for each session.

use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::sockopt::{Ipv4PacketInfo, RcvBuf, RcvBufForce};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt};

/// What is asked of the kernel for datagrams that wait; it may give less. A stock client has 64 KiB on the way.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The socket that HERALDs come to.
#[derive(Debug)]
pub(super) struct HeraldSocket(UdpSocket);

/// A HERALD, or what else came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrived {
    pub(super) len: usize,
    pub(super) from: SocketAddrV4,
    /// Which of our addresses it came to, also when the socket is bound to all of them.
    pub(super) local: Ipv4Addr,
}

impl HeraldSocket {
    pub(super) fn bind(address: SocketAddrV4) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, Ipv4PacketInfo, &true)?;
        Ok(Self(socket))
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// The next datagram, put into `buffer`; `None` when none waits.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Option<Arrived> {
        let mut parts = [IoSliceMut::new(buffer)];
        let mut control = nix::cmsg_space!(nix::libc::in_pktinfo);
        let message =
            recvmsg::<SockaddrIn>(self.0.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT);
        let message = message.ok()?;
        let from = message.address?;
        let local = message.cmsgs().ok()?.find_map(|control| match control {
            // The local address, which for a broadcast is not the one in the datagram.
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)))
            }
            _ => None,
        })?;
        Some(Arrived { len: message.bytes, from: SocketAddrV4::new(from.ip(), from.port()), local })
    }
}

impl AsFd for HeraldSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The socket of one session; the kernel drops what does not come from its client.
#[derive(Debug)]
pub(super) struct SessionSocket(UdpSocket);

impl SessionSocket {
    pub(super) fn open(local: Ipv4Addr, peer: SocketAddrV4) -> io::Result<Self> {
        let socket = UdpSocket::bind((local, 0))?;
        socket.set_nonblocking(true)?;
        // As much as may be had: beyond the system's limit as root, else up to it.
        if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER);
        }
        socket.connect(peer)?;
        Ok(Self(socket))
    }

    /// Length and source of the next datagram, put into `buffer`; `None` when none waits. One that came before the
    /// socket was connected can be a stranger's.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Option<(usize, SocketAddrV4)> {
        loop {
            match self.0.recv_from(buffer) {
                Ok((len, SocketAddr::V4(from))) => return Some((len, from)),
                Ok((_, SocketAddr::V6(_))) => {}
                // The client's host said that nobody takes our acks there. The client may yet come back.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::Interrupted) => {}
                Err(_) => return None,
            }
        }
    }

    /// Sends an ack, or loses it: then its message comes again.
    pub(super) fn send(&self, ack: &[u8]) {
        if let Err(error) = self.0.send(ack) {
            tracing::trace!(%error, "ack not sent");
        }
    }
}

impl AsFd for SessionSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
