//! Host taps: an Ethernet interface of the host whose other end is a file descriptor.
//!
//! Each frame read or written starts with a virtio-net header of 12 bytes, little-endian on x86-64, and then the
//! Ethernet header. Frames that we read are plain, with whole checksums and no segments left to cut, unless a reader
//! asks for what [`Reading`] names. Frames that we write may leave both to the kernel in any case.
//! Reference: Linux `Documentation/networking/tuntap.rst`, `drivers/net/tun.c`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_short, c_ulong};
use thiserror::Error;

use super::interface::{Interface, InterfaceName, Interfaces, request};
use super::iovec::{Source, Target, readv, writev};

/// Bytes of the virtio-net header before each frame (virtio 1.2, 5.1.6, with VERSION_1).
pub const VNET_HEADER_LEN: usize = 12;

/// Most frames that [`Tap::drain`] discards: more than any interface queues (1000 by default).
const DRAIN_LIMIT: usize = 16_384;

/// Work on frames that the kernel leaves to their reader (`TUNSETOFFLOAD`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// None.
    Plain,
    /// Checksums of what the host itself sends, and cutting into packets what it sends of these kinds.
    Unfinished {
        /// TCP over IPv4.
        tcp4: bool,
        /// TCP over IPv6.
        tcp6: bool,
        /// Trains of UDP datagrams. Linux 6.2 or newer.
        udp: bool,
    },
}

impl Reading {
    /// UDP checksums, and trains of UDP datagrams.
    pub const TRAINS: Self = Self::Unfinished { tcp4: false, tcp6: false, udp: true };
}

const CLONE_DEVICE: &str = "/dev/net/tun";

/// Why a tap could not be opened.
#[derive(Debug, Error)]
pub enum TapError {
    /// The host has no tun/tap driver.
    #[error("tap {name}: {CLONE_DEVICE} is missing; load the kernel's tun module")]
    NoDriver {
        /// The tap asked for.
        name: InterfaceName,
    },
    /// We may not use the driver.
    #[error("tap {name}: no permission to open {CLONE_DEVICE}")]
    NoAccess {
        /// The tap asked for.
        name: InterfaceName,
    },
    /// The tap is not there and we may not create it.
    #[error(
        "tap {name} does not exist and creating it needs CAP_NET_ADMIN; as root: \
         ip tuntap add {name} mode tap user USER && ip link set {name} up"
    )]
    MayNotCreate {
        /// The tap asked for.
        name: InterfaceName,
    },
    /// The tap is there, for another user.
    #[error("tap {name} belongs to another user; use it as its owner or with CAP_NET_ADMIN")]
    NotOurs {
        /// The tap asked for.
        name: InterfaceName,
    },
    /// Someone has it open.
    #[error("tap {name} is in use by another process")]
    Busy {
        /// The tap asked for.
        name: InterfaceName,
    },
    /// The interface is of another kind.
    #[error("{name} is no tap with a single queue, but another kind of interface")]
    NotATap {
        /// The interface asked for.
        name: InterfaceName,
    },
    /// The operating system refused something else.
    #[error("tap {name}: {doing}")]
    Io {
        /// The tap asked for.
        name: InterfaceName,
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// An open tap, ours alone. It does not block: what cannot be done at once is an error or `None`.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: InterfaceName,
    interfaces: Interfaces,
}

impl Tap {
    /// Opens the tap of that name, or creates it and sets it up; a tap created here is gone when this is dropped.
    pub fn open(name: InterfaceName) -> Result<Self, TapError> {
        let io = |doing| {
            let name = name.clone();
            move |source| TapError::Io { name, doing, source }
        };
        let interfaces = Interfaces::here().map_err(io("opening a socket to look at interfaces"))?;
        let found = interfaces.find(&name).map_err(io("looking for the interface"))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(CLONE_DEVICE)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver { name: name.clone() },
                Some(libc::EACCES | libc::EPERM) => TapError::NoAccess { name: name.clone() },
                _ => io("opening /dev/net/tun")(error),
            })?;
        attach(&file, &name).map_err(|error| {
            let name = name.clone();
            match (error.raw_os_error(), found) {
                (Some(libc::EPERM), None) => TapError::MayNotCreate { name },
                (Some(libc::EPERM), Some(_)) => TapError::NotOurs { name },
                (Some(libc::EBUSY), _) => TapError::Busy { name },
                (Some(libc::EINVAL), Some(_)) => TapError::NotATap { name },
                _ => TapError::Io { name, doing: "attaching to it", source: error },
            }
        })?;
        if found.is_none() {
            interfaces.bring_up(&name).map_err(io("setting it up"))?;
        }
        Ok(Self { file, name, interfaces })
    }

    /// The interface's name when it was opened.
    pub fn name(&self) -> &InterfaceName {
        &self.name
    }

    /// What the interface is now; `None` when it was removed or renamed meanwhile.
    pub fn interface(&self) -> io::Result<Option<Interface>> {
        self.interfaces.find(&self.name)
    }

    /// Sends one frame: its virtio-net header, then the Ethernet header and the rest.
    ///
    /// Errors lose this frame only, unless the tap was removed (`EBADFD`): `EIO` is an interface that is down,
    /// `EINVAL` a header that asks for what the frame cannot bear.
    pub fn send(&self, frame: &[Source<'_>]) -> io::Result<()> {
        writev(self.file.as_fd(), frame).map(drop)
    }

    /// Takes one frame, header first; how many bytes came, at most as many as there was room. `None`: none is there.
    ///
    /// What does not fit is lost without a word, so a caller that cares offers one byte more than it needs. Of the
    /// header the kernel writes 10 bytes and leaves the last two alone.
    pub fn receive(&self, room: &mut [Target<'_>]) -> io::Result<Option<usize>> {
        match readv(self.file.as_fd(), room) {
            Ok(len) => Ok(Some(len)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// How frames that arrive from now on are read; those that wait already stay as they are.
    ///
    /// `EINVAL`: this kernel knows no trains, neither for reading nor for writing.
    pub fn set_reading(&self, reading: Reading) -> io::Result<()> {
        set_reading(&self.file, reading)
    }

    /// Throws away the frames that are waiting.
    pub fn drain(&self) {
        let mut junk = [0; VNET_HEADER_LEN];
        for _ in 0..DRAIN_LIMIT {
            match self.receive(&mut [Target::from(&mut junk[..])]) {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes `file`, an open `/dev/net/tun`, the other end of the tap `name`.
fn attach(file: &File, name: &InterfaceName) -> io::Result<()> {
    let mut request = request(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = c_short::try_from(flags).expect("tap flags fit in 15 bits");
    // SAFETY: TUNSETIFF reads and writes one ifreq, which the reference keeps valid and exclusive during the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    let header_len = c_int::try_from(VNET_HEADER_LEN).expect("12 fits");
    // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &header_len) })?;
    set_reading(file, Reading::Plain)
}

fn set_reading(file: &File, reading: Reading) -> io::Result<()> {
    let offloads = c_ulong::from(match reading {
        Reading::Plain => 0,
        Reading::Unfinished { tcp4, tcp6, udp } => {
            let bits = |wanted: bool, bits| if wanted { bits } else { 0 };
            // The two USO bits go together only.
            let udp = bits(udp, libc::TUN_F_USO4 | libc::TUN_F_USO6);
            libc::TUN_F_CSUM | bits(tcp4, libc::TUN_F_TSO4) | bits(tcp6, libc::TUN_F_TSO6) | udp
        }
    });
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A tap without an interface, for tests that need no rights.
#[cfg(test)]
pub(crate) mod fake {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use super::{File, Interfaces, OpenOptions, Tap};

    /// A tap whose host side is a socket: datagrams keep the borders of frames, headers included, as a tap does.
    pub(crate) fn tap() -> (Tap, UnixDatagram) {
        let (ours, host) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        host.set_nonblocking(true).unwrap();
        (over(File::from(OwnedFd::from(ours))), host)
    }

    /// A tap that was removed: every read and write fails.
    pub(crate) fn gone() -> Tap {
        over(OpenOptions::new().write(true).open("/dev/full").unwrap())
    }

    fn over(file: File) -> Tap {
        Tap { file, name: "fake".parse().unwrap(), interfaces: Interfaces::here().unwrap() }
    }
}
