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
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rival(mac) => write!(f, "{mac} uses the guest's address too and may get the acks"),
            Self::NarrowPath(len) => {
                write!(f, "no packet of {len} bytes was acknowledged (is the MTU smaller on the way?)")
            }
        }
    }
}

impl Client {
    /// When acks have been waited for long enough.
    pub(super) fn gives_up_at(&self) -> Option<Instant> {
        Some(self.window.silent_since()? + self.patience())
    }

    /// The reason of a dump that ends because nothing is acknowledged any more.
    pub(super) fn silence(&self) -> FailReason {
        let (waited, suspicion) = (self.patience(), self.suspicion());
        match self.phase {
            Phase::Herald => {
                let server = SocketAddrV4::new(self.config.server, self.config.server_port);
                FailReason::NoServer { server, waited, suspicion }
            }
            Phase::Finish => FailReason::Unfinished { server: self.server(), waited },
            phase => {
                let missing = self.lacking();
                FailReason::Silent { server: self.server(), phase, waited, missing, suspicion }
            }
        }
    }

    fn patience(&self) -> Duration {
        match self.phase {
            Phase::Finish => self.config.finish_patience(),
            _ => self.config.patience(),
        }
    }

    fn suspicion(&self) -> Option<Suspicion> {
        let longest = self.payload_limit;
        let sent_in_vain = || self.window.unacknowledged().any(|chunk| chunk.len == longest);
        match self.conflict {
            Some(mac) => Some(Suspicion::Rival(mac)),
            None if self.phase == Phase::Data && self.longest_acked < longest && sent_in_vain() => {
                Some(Suspicion::NarrowPath(datagram::OVERHEAD + longest))
            }
            None => None,
        }
    }
}
