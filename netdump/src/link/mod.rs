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

/// A frame to send: its bytes and, on links that gather, a rest that stays in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Ethernet header first, without preamble and FCS.
    pub bytes: &'a [u8],
    /// Guest-physical address and length of the bytes that follow; only for links that gather.
    pub guest: Option<(u64, usize)>,
}

/// Sends and receives whole Ethernet frames, untagged, without FCS.
pub trait Link {
    /// The IP MTU in bytes: what fits behind the 14 bytes of an Ethernet header. Asked when a dump starts.
    fn mtu(&self) -> Result<u32, LinkError>;

    /// The address to send from.
    fn mac(&self) -> MacAddr;

    /// Whether frames may end in guest memory ([`Frame::guest`]) and leave their UDP checksum to the device. The
    /// checksum field of every UDP frame, also of one without such an end, then holds the sum of the pseudo header, as
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM` wants it. Frames received are always whole.
    fn gathers(&self) -> bool {
        false
    }

    /// Sends one frame without waiting.
    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError>;

    /// Waits at most `wait` for a frame and puts it into `frame` (replacing what is there). `false`: none came, or
    /// something else woke the link.
    fn receive(&mut self, frame: &mut Vec<u8>, wait: Duration) -> Result<bool, LinkError>;
}

impl<L: Link + ?Sized> Link for &mut L {
    fn mtu(&self) -> Result<u32, LinkError> {
        (**self).mtu()
    }

    fn mac(&self) -> MacAddr {
        (**self).mac()
    }

    fn gathers(&self) -> bool {
        (**self).gathers()
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        (**self).send(frame)
    }

    fn receive(&mut self, frame: &mut Vec<u8>, wait: Duration) -> Result<bool, LinkError> {
        (**self).receive(frame, wait)
    }
}
