//! The same wire with the world at one end of it: a server or a client behind real UDP sockets, real time, and between
//! them the simulator's weather.

mod clients;
mod files;
mod outside;
mod servers;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

pub use clients::{CLIENTS, ClientUnderTest, torture_client};
pub use servers::{SERVERS, ServerUnderTest, torture_server};

use super::sim::{Party, SimNet, Station};

/// How often the caller is asked whether to go on.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Why real sockets cannot be used.
#[derive(Debug, Error)]
pub enum LiveError {
    /// An address could not be had.
    #[error("taking UDP address {address}")]
    Bind {
        /// The address.
        address: std::net::SocketAddrV4,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Something else was refused.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// A station that stands for somebody behind real sockets.
trait Outside: Station {
    /// Takes what has come, and says what went wrong, if something did.
    fn pump(&mut self, now: Instant) -> Result<(), LiveError>;

    /// What to wait for.
    fn sockets(&self) -> Vec<BorrowedFd<'_>>;
}

/// Whether a run was played to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Played {
    ToTheEnd,
    /// The caller did not want to go on.
    Stopped,
}

/// Plays a run in real time until its client has come to its end, with the world behind `outside`.
fn play<S: Station, C: Party>(
    net: &mut SimNet<S, C>,
    outside: fn(&mut SimNet<S, C>) -> &mut dyn Outside,
    more: &dyn Fn() -> bool,
) -> Result<Played, LiveError> {
    loop {
        let now = Instant::now();
        outside(net).pump(now)?;
        net.wake();
        net.advance(now);
        if net.client.ending().is_some() {
            return Ok(Played::ToTheEnd);
        }
        if !more() {
            return Ok(Played::Stopped);
        }
        let next = net.next_event().map_or(ASK_EVERY, |at| at.saturating_duration_since(Instant::now()));
        wait(&outside(net).sockets(), next.min(ASK_EVERY))?;
    }
}

/// Until a datagram has come or the time is over.
fn wait(sockets: &[BorrowedFd<'_>], most: Duration) -> Result<(), LiveError> {
    let mut waited: Vec<_> = sockets.iter().map(|socket| PollFd::new(*socket, PollFlags::POLLIN)).collect();
    // Rounded up, so that it does not spin before the time has come.
    let millis = u16::try_from(most.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
    match poll(&mut waited, PollTimeout::from(millis)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(LiveError::Io { doing: "waiting for datagrams", source: error.into() }),
    }
}

#[cfg(test)]
mod tests;
