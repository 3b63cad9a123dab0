//! A link opened for one dump, with what only its kind knows: the addresses at its two ends, and where the core went.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use netdump::link::udp::UdpLink;
use netdump::link::{Link, LinkError};
use netdump::receiver::{EmbeddedLink, StoreError};
use netdump::wire::SERVER_PORT;
use thiserror::Error;

use super::{LinkSpec, TapRoute};
use crate::config::Target;
use crate::memory::GuestMemory;
use crate::nic::Nic;

/// The embedded link's own addresses, for guests that have none (RFC 5737: never on a real network).
const EMBEDDED_SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const EMBEDDED_CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Wide enough for the longest message, whose payload is a page.
const EMBEDDED_MTU: u32 = 9000;

/// Why no link could be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The interface or socket.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The embedded receiver's folder.
    #[error("the embedded receiver cannot store in {folder}")]
    Store {
        /// Where it was to store.
        folder: PathBuf,
        /// Why it cannot.
        #[source]
        source: StoreError,
    },
    /// Nobody said where to send to.
    #[error("the {link} link needs a server: give --netdump-server, or set net.dump.server in the guest")]
    NoServer {
        /// The link.
        link: LinkSpec,
    },
}

impl OpenError {
    /// Whether the host's client port is another socket's.
    pub(crate) fn is_port_in_use(&self) -> bool {
        matches!(self, Self::Link(LinkError::Io { source, .. }) if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// An open link.
pub(crate) enum OpenLink {
    /// Over a tap, to a server elsewhere.
    Wire(Box<dyn Link>, SocketAddrV4),
    /// Over the host's own network.
    Udp(Box<UdpLink>, SocketAddrV4),
    /// To the receiver in this process.
    Embedded(Box<EmbeddedLink>, Option<Ipv4Addr>),
}

impl OpenLink {
    /// Opens the link that `target` names. `ready` is the way over a tap that was found good before the guest started.
    pub(crate) fn open(
        target: &Target,
        ready: Option<&TapRoute>,
        crash_dir: &Path,
        memory: &GuestMemory,
        nic: Option<&Nic>,
    ) -> Result<Self, OpenError> {
        let server = target.server.ok_or_else(|| OpenError::NoServer { link: target.link.clone() });
        match &target.link {
            LinkSpec::Embedded => {
                let link = EmbeddedLink::open(crash_dir, EMBEDDED_SERVER, EMBEDDED_MTU)
                    .map_err(|source| OpenError::Store { folder: crash_dir.to_owned(), source })?;
                Ok(Self::Embedded(Box::new(link), target.client.filter(|&client| client != EMBEDDED_SERVER)))
            }
            LinkSpec::Udp => {
                let server = server?;
                Ok(Self::Udp(Box::new(UdpLink::open(server, None)?), server))
            }
            tap => {
                let server = server?;
                let found = if ready.is_none() { tap.check(nic.map(Nic::tap))? } else { None };
                let route = ready.or(found.as_ref()).ok_or_else(|| super::no_card(tap))?;
                let mac = nic.map_or(crate::nic::DEFAULT_MAC, Nic::mac);
                let device = nic.and_then(Nic::device);
                Ok(Self::Wire(route.open(device.map(AsRef::as_ref), memory, mac)?, server))
            }
        }
    }

    /// What carries the frames.
    pub(crate) fn as_link(&mut self) -> &mut dyn Link {
        match self {
            Self::Wire(link, _) => link.as_mut(),
            Self::Udp(link, _) => link.as_mut(),
            Self::Embedded(link, _) => link.as_mut(),
        }
    }

    /// Where to send to.
    pub(crate) fn server(&self) -> SocketAddrV4 {
        match self {
            Self::Wire(_, server) | Self::Udp(_, server) => *server,
            Self::Embedded(..) => SocketAddrV4::new(EMBEDDED_SERVER, SERVER_PORT),
        }
    }

    /// The address to send from, where the link decides it and not the guest.
    pub(crate) fn client(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Wire(..) => None,
            Self::Udp(link, _) => Some(link.local_ip()),
            Self::Embedded(_, client) => Some(client.unwrap_or(EMBEDDED_CLIENT)),
        }
    }

    /// Closes the link; the core, if it was stored here.
    pub(crate) fn close(self) -> Option<PathBuf> {
        match self {
            Self::Embedded(mut link, _) => link.finish().map(|stored| stored.core.clone()),
            Self::Wire(..) | Self::Udp(..) => None,
        }
    }
}
