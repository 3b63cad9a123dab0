//! Whole Ethernet frames out and in: the [`Link`] that a dump travels over, and what can be wrapped around any link.

pub mod pcap;
pub mod pipe;
pub mod udp;

use std::time::Duration;

pub use pcap::PcapWriter;
pub use udp::UdpLink;

use crate::wire::MacAddr;

/// Why a link failed for good. A frame lost on the way is no failure.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The interface cannot be used: missing, not Ethernet, or its MTU is too small.
    #[error("interface {name}: {problem}")]
    Interface {
        /// The interface.
        name: String,
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// The interface is there, but switched off.
    #[error("interface {name} is down; as root: ip link set {name} up")]
    Down {
        /// The interface.
        name: String,
    },
    /// The link cannot do what is asked of it, whatever the interface.
    #[error("link {link}: {problem}")]
    Unfit {
        /// The link, as options name it.
        link: String,
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// The operating system refused an operation.
    #[error("{doing}")]
    Io {
        /// What was being done, with names.
        doing: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
}

/// What became of a frame handed to [`Link::send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way, or lost as frames may be lost.
    Yes,
    /// No room at present: wait with [`Link::receive`], then hand it over again.
    Busy,
}

/// What a link, or the device behind it, does for whoever sends through it. Nothing, by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Parts of a frame may stay in guest memory ([`Frame::guest`]). Needs `checksum`, as nobody else sees every byte.
    pub gather: bool,
    /// The checksum field of every UDP frame holds the sum of the pseudo header, as `VIRTIO_NET_HDR_F_NEEDS_CSUM` wants
    /// it, and the device completes it.
    pub checksum: bool,
    /// Most datagrams in a train ([`Frame::segment`]); 0 and 1 mean that there are no trains. Trains need `checksum`.
    pub segments: usize,
}

/// A frame to send, or a train: a frame longer than the MTU, whose UDP payload the device cuts into datagrams. On links
/// that gather, parts of it stay in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Ethernet header first, without preamble and FCS. IPv4 and UDP lengths of a train are those of the whole.
    pub bytes: &'a [u8],
    /// What belongs between these bytes, in ascending order; only for links that gather.
    pub guest: &'a [GuestPiece],
    /// Of a train: the UDP payload of each of its datagrams, in bytes; the last one may be shorter.
    pub segment: Option<u16>,
}

/// Bytes of a frame that lie in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestPiece {
    /// How many of [`Frame::bytes`] come before.
    pub at: usize,
    /// Guest-physical address.
    pub address: u64,
    /// How many there are.
    pub len: usize,
}

impl<'a> Frame<'a> {
    /// One whole frame.
    pub fn plain(bytes: &'a [u8]) -> Self {
        Self { bytes, guest: &[], segment: None }
    }

    /// Bytes with those in guest memory.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.guest.iter().map(|piece| piece.len).sum::<usize>()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it asks for nothing of a link.
    pub fn is_plain(&self) -> bool {
        self.guest.is_empty() && self.segment.is_none()
    }
}

/// A frame, or a train of datagrams, that a link has received. The buffer is used again and again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Received {
    /// Ethernet header first.
    pub bytes: Vec<u8>,
    /// Of a train: the UDP payload of each of its datagrams, in bytes; the last one may be shorter.
    pub segment: Option<u16>,
    /// Whether the UDP checksum was checked already, or was never made as the frame has not left this host; the field
    /// then holds anything.
    pub checked: bool,
}

impl Received {
    /// A plain frame takes the place of what is there.
    pub fn put(&mut self, frame: &[u8]) {
        self.clear().extend_from_slice(frame);
    }

    /// Makes room for a plain frame, whose bytes the caller adds.
    pub fn clear(&mut self) -> &mut Vec<u8> {
        self.segment = None;
        self.checked = false;
        self.bytes.clear();
        &mut self.bytes
    }
}

/// Sends and receives whole Ethernet frames, untagged, without FCS.
pub trait Link {
    /// The IP MTU in bytes: what fits behind the 14 bytes of an Ethernet header. Asked when a dump starts.
    fn mtu(&self) -> Result<u32, LinkError>;

    /// The address to send from.
    fn mac(&self) -> MacAddr;

    /// What may be left to the link. Asked when a dump starts.
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    /// Sends one frame or train without waiting; one that asks for what the link does not offer is an error.
    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError>;

    /// Waits at most `wait` for a frame and puts it into `frame` (replacing what is there). `false`: none came, or
    /// something else woke the link.
    fn receive(&mut self, frame: &mut Received, wait: Duration) -> Result<bool, LinkError>;
}

impl<L: Link + ?Sized> Link for &mut L {
    fn mtu(&self) -> Result<u32, LinkError> {
        (**self).mtu()
    }

    fn mac(&self) -> MacAddr {
        (**self).mac()
    }

    fn offloads(&self) -> Offloads {
        (**self).offloads()
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        (**self).send(frame)
    }

    fn receive(&mut self, frame: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        (**self).receive(frame, wait)
    }
}
