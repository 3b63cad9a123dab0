//! What the host says of a network interface: asked by name, in one network namespace.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::str::FromStr;

use libc::{c_char, c_short, c_ulong, ifreq};
use netdump::wire::MacAddr;
use thiserror::Error;

/// A name that an interface can have: 1 to 15 printable bytes, without `/`, `:` and `%`.
///
/// The kernel would read `%` as the pattern of a name yet to be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InterfaceName(String);

/// The text cannot be the name of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' cannot be the name of a network interface: 1 to 15 printable characters without / : %")]
pub struct ParseInterfaceNameError(String);

impl FromStr for InterfaceName {
    type Err = ParseInterfaceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..libc::IFNAMSIZ).contains(&text.len()) && text != "." && text != "..";
        let plain = text.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b));
        if fits && plain { Ok(Self(text.to_owned())) } else { Err(ParseInterfaceNameError(text.to_owned())) }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an interface is at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether it carries Ethernet frames (`ARPHRD_ETHER`).
    pub ethernet: bool,
    /// Its MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// The host's own address on it; meaningless when it is not Ethernet.
    pub mac: MacAddr,
}

/// The interfaces of the network namespace that the caller was in when it opened this.
#[derive(Debug)]
pub struct Interfaces {
    socket: OwnedFd,
}

impl Interfaces {
    /// Opens the view. Needs no rights.
    pub fn here() -> io::Result<Self> {
        // SAFETY: creates a descriptor; no memory of ours is involved.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just created and checked, and nothing else knows of it.
        Ok(Self { socket: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Looks at an interface; `None` when there is none of that name.
    pub fn find(&self, name: &InterfaceName) -> io::Result<Option<Interface>> {
        let mut request = request(name);
        match self.ask(libc::SIOCGIFFLAGS, &mut request) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            answer => answer?,
        }
        // SAFETY: every field of the union is plain integers, so any bytes are valid; SIOCGIFFLAGS filled this one.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        self.ask(libc::SIOCGIFMTU, &mut request)?;
        // SAFETY: as above; SIOCGIFMTU filled this one.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        self.ask(libc::SIOCGIFHWADDR, &mut request)?;
        // SAFETY: as above; SIOCGIFHWADDR filled this one.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr };
        let [a, b, c, d, e, f, ..] = address.sa_data.map(c_char::cast_unsigned);
        Ok(Some(Interface {
            up: i32::from(flags) & libc::IFF_UP != 0,
            ethernet: address.sa_family == libc::ARPHRD_ETHER,
            mtu: mtu.try_into().unwrap_or(0),
            mac: MacAddr([a, b, c, d, e, f]),
        }))
    }

    /// Sets an interface up (`IFF_UP`), as `ip link set NAME up` does. Needs CAP_NET_ADMIN.
    pub fn bring_up(&self, name: &InterfaceName) -> io::Result<()> {
        let mut request = request(name);
        self.ask(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: every field of the union is plain integers, so any bytes are valid; SIOCGIFFLAGS filled this one.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let up = c_short::try_from(libc::IFF_UP).expect("IFF_UP is 1");
        request.ifr_ifru.ifru_flags = flags | up;
        self.ask(libc::SIOCSIFFLAGS, &mut request)
    }

    /// One of the SIOC[GS]IF requests that read and write no more than an `ifreq`.
    fn ask(&self, operation: c_ulong, request: &mut ifreq) -> io::Result<()> {
        // SAFETY: the operations that this file passes take a pointer to an ifreq, read its NUL-terminated name and
        // write at most the ifreq; the reference keeps it valid and exclusive during the call.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), operation, request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// An `ifreq` that carries the name and is zero otherwise.
pub(super) fn request(name: &InterfaceName) -> ifreq {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    // A name is shorter than IFNAMSIZ, so the last byte stays NUL.
    for (to, from) in ifr_name.iter_mut().zip(name.0.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the union holds integers and a pointer, for all of which zero is a valid value.
    let ifr_ifru = unsafe { std::mem::zeroed() };
    ifreq { ifr_name, ifr_ifru }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_misread_are_refused() {
        for bad in ["", ".", "..", "a/b", "eth0:1", "tap%d", "has space", "sixteen-letters!", "näme", "nul\0"]
        {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?}");
        }
        assert_eq!("fifteen-letters".parse::<InterfaceName>().unwrap().to_string(), "fifteen-letters");
    }

    #[test]
    fn loopback_is_found_and_is_not_ethernet() {
        let lo = Interfaces::here().unwrap().find(&"lo".parse().unwrap()).unwrap().unwrap();
        assert!(!lo.ethernet);
        assert!(lo.mtu >= 1280, "{lo:?}");
    }

    #[test]
    fn a_name_that_nobody_has_is_not_found() {
        assert_eq!(Interfaces::here().unwrap().find(&"no-such-if".parse().unwrap()).unwrap(), None);
    }
}
