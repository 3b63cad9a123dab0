//! The links that a dump can travel over: which one the operator chose, its check before the guest starts, and its
//! opening when the guest is stopped.

mod open;
mod tap;
mod train;
mod virtqueue;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use netdump::link::{Link, LinkError};
use netdump::wire::MacAddr;
use thiserror::Error;

pub use self::open::OpenError;
pub(crate) use self::open::OpenLink;
pub use self::tap::TapLink;
pub use self::virtqueue::VirtqueueLink;
use crate::devices::virtio::net::Net;
use crate::memory::GuestMemory;
use crate::sys::interface::{InterfaceName, Interfaces, ParseInterfaceNameError};
use crate::sys::tap::{Tap, TapError};

/// The link that a dump shall take, as `--netdump-link` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkSpec {
    /// `tap`: the tap of the guest's network card.
    GuestTap,
    /// `tap:NAME`: a tap by its name.
    Tap(InterfaceName),
    /// `virtio`: the queues of the guest's network card.
    Virtio,
    /// `embedded`: the receiver inside this process.
    Embedded,
    /// `udp`: the host's own sockets.
    Udp,
}

/// The text names no link.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseLinkError {
    /// No such kind of link.
    #[error("'{0}' is no link: tap, tap:NAME, virtio, embedded or udp")]
    Unknown(String),
    /// The name behind `tap:` cannot be one.
    #[error(transparent)]
    Name(#[from] ParseInterfaceNameError),
}

impl FromStr for LinkSpec {
    type Err = ParseLinkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "tap" => Self::GuestTap,
            "virtio" => Self::Virtio,
            "embedded" => Self::Embedded,
            "udp" => Self::Udp,
            _ => match text.strip_prefix("tap:") {
                Some(name) => Self::Tap(name.parse()?),
                None => return Err(ParseLinkError::Unknown(text.to_owned())),
            },
        })
    }
}

impl fmt::Display for LinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestTap => f.write_str("tap"),
            Self::Tap(name) => write!(f, "tap:{name}"),
            Self::Virtio => f.write_str("virtio"),
            Self::Embedded => f.write_str("embedded"),
            Self::Udp => f.write_str("udp"),
        }
    }
}

impl LinkSpec {
    /// Checks, before the guest starts, the interface that the link will use: there, up, Ethernet, and wide enough.
    /// `own` is the tap of the guest's network card. `None`: this link uses no tap.
    pub fn check(&self, own: Option<&Arc<Tap>>) -> Result<Option<TapRoute>, LinkError> {
        let of_guest = || own.cloned().ok_or_else(|| no_card(self));
        let (tap, through) = match self {
            Self::Embedded | Self::Udp => return Ok(None),
            Self::Virtio => (of_guest()?, Through::Card),
            Self::GuestTap => (of_guest()?, Through::Tap),
            Self::Tap(name) => match own.filter(|tap| tap.name() == name) {
                Some(tap) => (Arc::clone(tap), Through::Tap),
                None => (Arc::new(existing(name)?), Through::Tap),
            },
        };
        tap::usable(&tap)?;
        Ok(Some(TapRoute { tap, through }))
    }
}

/// The way over a tap that was found good. It keeps the tap open, so that nobody takes it before a dump needs it.
#[derive(Debug)]
pub struct TapRoute {
    tap: Arc<Tap>,
    through: Through,
}

#[derive(Debug)]
enum Through {
    /// Frames go to the tap itself.
    Tap,
    /// Frames go through the guest's network card.
    Card,
}

impl TapRoute {
    /// Takes tap or card over for one dump of the stopped guest, whose device is quiet from here on. Frames are sent
    /// from `mac`, the guest's own address.
    pub fn open(
        &self,
        net: Option<&Mutex<Net>>,
        memory: &GuestMemory,
        mac: MacAddr,
    ) -> Result<Box<dyn Link>, LinkError> {
        let mut net = net.map(|net| net.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(net) = &mut net {
            net.stop();
        }
        Ok(match self.through {
            Through::Tap => Box::new(TapLink::new(Arc::clone(&self.tap), memory.clone(), mac)),
            Through::Card => {
                let net = net.as_mut().ok_or_else(|| no_card(&LinkSpec::Virtio))?;
                Box::new(VirtqueueLink::new(net, memory)?)
            }
        })
    }
}

fn no_card(spec: &LinkSpec) -> LinkError {
    let problem = "the guest has no network card; give it one with --tap, or choose another link";
    LinkError::Unfit { link: spec.to_string(), problem }
}

/// Opens a tap that has to be there: one made now would lead nowhere.
fn existing(name: &InterfaceName) -> Result<Tap, LinkError> {
    let io = |doing: String, source| LinkError::Io { doing, source };
    let bad = |problem| LinkError::Interface { name: name.to_string(), problem };
    let found = Interfaces::here().and_then(|interfaces| interfaces.find(name));
    if found.map_err(|error| io(format!("looking for interface {name}"), error))?.is_none() {
        return Err(bad("there is no such interface"));
    }
    Tap::open(name.clone()).map_err(|error| match error {
        TapError::NoDriver { .. } => bad("/dev/net/tun is missing; load the kernel's tun module"),
        TapError::NoAccess { .. } => bad("there is no permission to open /dev/net/tun"),
        TapError::MayNotCreate { .. } => bad("there is no such interface"),
        TapError::NotOurs { .. } => {
            bad("it belongs to another user; use it as its owner or with CAP_NET_ADMIN")
        }
        TapError::Busy { .. } => bad("it is in use by another process"),
        TapError::NotATap { .. } => bad("it is no tap with a single queue, but another kind of interface"),
        TapError::Io { doing, source, .. } => io(format!("tap {name}: {doing}"), source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_is_written_as_it_is_read() {
        for text in ["tap", "tap:br-dump0", "virtio", "embedded", "udp"] {
            assert_eq!(text.parse::<LinkSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_words_are_no_links() {
        for text in ["", "TAP", "tap0", "virtio:", "udp:1", "tap: "] {
            assert!(text.parse::<LinkSpec>().is_err(), "{text}");
        }
        let error = "vhost".parse::<LinkSpec>().unwrap_err().to_string();
        assert_eq!(error, "'vhost' is no link: tap, tap:NAME, virtio, embedded or udp");
        assert!("tap:".parse::<LinkSpec>().unwrap_err().to_string().contains("network interface"));
    }

    #[test]
    fn links_that_need_the_guests_card_say_so() {
        for spec in [LinkSpec::GuestTap, LinkSpec::Virtio] {
            let error = spec.check(None).unwrap_err().to_string();
            assert!(error.contains("the guest has no network card"), "{error}");
        }
        assert!(LinkSpec::Embedded.check(None).unwrap().is_none());
        assert!(LinkSpec::Udp.check(None).unwrap().is_none());
    }

    #[test]
    fn a_tap_that_does_not_exist_is_not_made() {
        let error = LinkSpec::Tap("no-such-tap".parse().unwrap()).check(None).unwrap_err();
        assert_eq!(error.to_string(), "interface no-such-tap: there is no such interface");
    }
}
