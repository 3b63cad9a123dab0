//! A server that does not acknowledge: how long it is waited for, and what may be behind its silence.

use std::fmt;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::Client;
use super::phase::{FailReason, Phase};
use crate::wire::{MacAddr, datagram};

/// What may be behind a server's silence, so that the reason of a failure points there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// Another host uses the client's address.
    Rival(MacAddr),
    /// Short messages arrived, and none as long as the link takes: IP packets of so many bytes.
    NarrowPath(usize),
    /// The server's host says that nobody has the port.
    ClosedPort,
    /// The same of a server that may close it when all is stored.
    ClosedWhenDone,
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rival(mac) => write!(f, "{mac} uses the guest's address too and may get the acks"),
            Self::NarrowPath(len) => {
                write!(f, "no packet of {len} bytes was acknowledged (is the MTU smaller on the way?)")
            }
            Self::ClosedPort => f.write_str("its host says that the port is closed (does the server run?)"),
            Self::ClosedWhenDone => {
                f.write_str("its port is closed, as a stock server's is when the core is stored")
            }
        }
    }
}

/// A server that had answered and is silent for so long may have another hardware address by now.
const DOUBT: Duration = Duration::from_secs(1);

impl Client {
    /// When the next hop's hardware address is to be asked for again.
    pub(super) fn doubts_at(&self) -> Option<Instant> {
        self.learned_port?;
        Some(self.silent_since()? + DOUBT)
    }

    /// When acks, or the answer to a HERALD, have been waited for long enough.
    pub(super) fn gives_up_at(&self) -> Option<Instant> {
        Some(self.silent_since()? + self.whole_patience())
    }

    /// The reason of a dump that ends because nothing is acknowledged any more.
    pub(super) fn silence(&self) -> FailReason {
        let (waited, suspicion) = (self.whole_patience(), self.suspicion());
        match self.phase {
            Phase::Herald => {
                let server = SocketAddrV4::new(self.config.server, self.config.server_port);
                FailReason::NoServer { server, waited, suspicion }
            }
            Phase::Finish => FailReason::Unfinished { server: self.server(), waited, suspicion },
            phase => {
                let missing = self.lacking();
                FailReason::Silent { server: self.server(), phase, waited, missing, suspicion }
            }
        }
    }

    /// How long a server is waited for that may be alive.
    pub(super) fn patience(&self) -> Duration {
        match self.phase {
            Phase::Finish => self.config.finish_patience(),
            _ => self.config.patience(),
        }
    }

    /// The same and, where it can be asked whether it was started anew, as long again.
    fn whole_patience(&self) -> Duration {
        if self.may_ask() { self.patience() * 2 } else { self.patience() }
    }

    fn silent_since(&self) -> Option<Instant> {
        let asked = || self.resume.open_since().max(self.window.acked_at());
        self.window.silent_since().or_else(|| asked().filter(|_| self.resume.is_open()))
    }

    fn suspicion(&self) -> Option<Suspicion> {
        let longest = self.payload_limit;
        let sent_in_vain = || self.window.unacknowledged().any(|chunk| chunk.len == longest);
        match self.conflict {
            Some(mac) => Some(Suspicion::Rival(mac)),
            None if self.resume.is_closed_since(self.silent_since()) => Some(match self.phase {
                Phase::Finish => Suspicion::ClosedWhenDone,
                _ => Suspicion::ClosedPort,
            }),
            None if self.phase == Phase::Data && self.longest_acked < longest && sent_in_vain() => {
                Some(Suspicion::NarrowPath(datagram::OVERHEAD + longest))
            }
            None => None,
        }
    }
}
