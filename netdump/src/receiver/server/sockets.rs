//! UDP sockets that take many datagrams at a time (`UDP_GRO`) and send many acks at a time (`UDP_SEGMENT`), udp(7).
//!
//! Measured on Linux 6.18: a train of 44 messages of 1472 bytes costs 7 µs to receive, as much as 8 of these messages one
//! by one. `recvmmsg` gains nothing more with trains, and 10 % without; the buffer would have to be cut into slots of
//! 64 KiB for it, most of them empty where there are no trains.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ipv4PacketInfo, RcvBuf, RcvBufForce, UdpGroSegment};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, getsockopt, recvmsg, sendmsg, setsockopt,
};

use crate::receiver::{ACK_SEGMENT, Arrived, Endpoint};
use crate::wire::message::ACK_LEN;

/// Bytes that are received before they are stored. They stay in the processor's cache meanwhile.
const BATCH: usize = 512 << 10;
/// Room for one more datagram or train: an IPv4 packet.
const ROOM: usize = 1 << 16;
/// Most datagrams and trains in a batch.
const MAX_ARRIVED: usize = 1024;

/// A UDP socket that never waits.
#[derive(Debug)]
pub(super) struct Socket {
    socket: UdpSocket,
    /// Whether the kernel, and the network card if there is one, cut trains of acks.
    sends_trains: bool,
}

impl Socket {
    /// For HERALDs: of each the address that it came to is told.
    pub(super) fn for_heralds(address: SocketAddrV4, receive_buffer: usize) -> io::Result<Self> {
        let socket = Self::bind(address, receive_buffer)?;
        setsockopt(&socket, Ipv4PacketInfo, &true)?;
        Ok(socket)
    }

    /// For a session: the kernel drops what does not come from its client.
    pub(super) fn for_session(
        local: Ipv4Addr,
        peer: SocketAddrV4,
        receive_buffer: usize,
    ) -> io::Result<Self> {
        let socket = Self::bind(SocketAddrV4::new(local, 0), receive_buffer)?;
        socket.connect(peer)?;
        Ok(socket)
    }

    fn bind(address: SocketAddrV4, receive_buffer: usize) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        // Kernels before 5.0 have no trains.
        let _ = setsockopt(&socket, UdpGroSegment, &true);
        // As much as may be had: beyond the system's limit as root, else up to it.
        if setsockopt(&socket, RcvBufForce, &receive_buffer).is_err() {
            let _ = setsockopt(&socket, RcvBuf, &receive_buffer);
        }
        Ok(Self { socket, sends_trains: true })
    }

    /// The client is elsewhere from now on.
    pub(super) fn connect(&self, peer: SocketAddrV4) -> io::Result<()> {
        self.socket.connect(peer)
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Bytes of receive buffer that the kernel gave, as they are asked for: it counts twice as many (socket(7)).
    pub(super) fn receive_buffer(&self) -> usize {
        getsockopt(&self.socket, RcvBuf).unwrap_or_default() / 2
    }

    /// Sends acks to the client, a datagram each, or loses them: then their messages come again.
    pub(super) fn send(&mut self, train: &[u8]) {
        if self.sends_trains && train.len() > ACK_LEN {
            match self.send_once(train, &[ControlMessage::UdpGsoSegments(&ACK_SEGMENT)]) {
                Err(Errno::EIO | Errno::EINVAL | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => {
                    tracing::debug!("acks cannot be sent in trains here");
                    self.sends_trains = false;
                }
                _ => return,
            }
        }
        for ack in train.chunks(ACK_LEN) {
            let _ = self.send_once(ack, &[]);
        }
    }

    fn send_once(&self, bytes: &[u8], control: &[ControlMessage<'_>]) -> nix::Result<usize> {
        let send = || {
            let parts = [IoSlice::new(bytes)];
            sendmsg::<SockaddrIn>(
                self.socket.as_raw_fd(),
                &parts,
                control,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                None,
            )
        };
        match send() {
            // What ICMP said of an earlier datagram.
            Err(Errno::ECONNREFUSED | Errno::EINTR) => send(),
            sent => sent,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What was received from one socket, one behind the other in one buffer that is used again and again.
#[derive(Debug)]
pub(super) struct Batch {
    buffer: Vec<u8>,
    parts: Vec<Part>,
    control: Vec<u8>,
}

/// One datagram or train.
#[derive(Debug)]
struct Part {
    bytes: Range<usize>,
    from: SocketAddrV4,
    segment: Option<u16>,
    /// Of ours, if the socket tells.
    local: Option<Ipv4Addr>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BATCH + ROOM],
            parts: Vec::with_capacity(MAX_ARRIVED),
            control: nix::cmsg_space!(i32, nix::libc::in_pktinfo),
        }
    }

    /// Takes what waits at a socket, as far as there is room: the others want their turn.
    pub(super) fn fill(&mut self, socket: &Socket) {
        self.parts.clear();
        let mut used = 0;
        while used <= BATCH && self.parts.len() < MAX_ARRIVED {
            match self.receive(socket, used) {
                Ok(part) => {
                    used = part.bytes.end;
                    self.parts.push(part);
                }
                // The client's host said that nobody takes our acks there. The client may yet come back.
                Err(Errno::ECONNREFUSED | Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    /// What was taken. Where it came to is the socket's endpoint, or for HERALDs the address of ours.
    pub(super) fn arrived(&self, endpoint: Option<Endpoint>) -> Vec<Arrived<'_>> {
        let arrived = self.parts.iter().filter_map(|part| {
            let to = endpoint.or_else(|| Some(Endpoint::Herald { local: part.local? }))?;
            let bytes = self.buffer.get(part.bytes.clone())?;
            Some(Arrived { to, from: part.from, bytes, segment: part.segment })
        });
        arrived.collect()
    }

    fn receive(&mut self, socket: &Socket, at: usize) -> nix::Result<Part> {
        let room = self.buffer.get_mut(at..at + ROOM).expect("there is room behind a batch");
        let mut parts = [IoSliceMut::new(room)];
        let fd = socket.socket.as_raw_fd();
        let message = recvmsg::<SockaddrIn>(fd, &mut parts, Some(&mut self.control), MsgFlags::MSG_DONTWAIT)?;
        let from = message.address.ok_or(Errno::EINTR)?;
        let (mut segment, mut local) = (None, None);
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::UdpGroSegments(len) => segment = u16::try_from(len).ok(),
                // The local address, which for a broadcast is not the one in the datagram.
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    local = Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)));
                }
                _ => {}
            }
        }
        let from = SocketAddrV4::new(from.ip(), from.port());
        Ok(Part { bytes: at..at + message.bytes, from, segment, local })
    }
}
