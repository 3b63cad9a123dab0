//! The stations of a dump, and the ways in which it can end.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use thiserror::Error;

use super::neighbor::NextHop;
use super::silence::Suspicion;
use crate::ReadError;
use crate::link::LinkError;
use crate::report::Outcome;
use crate::stream::StreamError;
use crate::wire::MacAddr;

/// Where a dump is. They follow one another in this order, but that a server which has lost everything takes the dump back
/// to [`Self::Key`] or [`Self::Data`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Asking by ARP for the next hop.
    Resolve,
    /// Announcing the dump.
    Herald,
    /// Sending the key block of an encrypted dump.
    Key,
    /// Sending the core.
    Data,
    /// Sending the dump header.
    Header,
    /// Everything is acknowledged; waiting for the server to say that it is on stable storage.
    Finish,
    /// Over.
    Closed,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "looking for the server",
            Self::Herald => "announcing the dump",
            Self::Key => "sending the key",
            Self::Data => "sending memory",
            Self::Header => "sending the dump header",
            Self::Finish => "waiting for the server to finish",
            Self::Closed => "done",
        })
    }
}

/// What the client has to tell.
#[derive(Debug)]
pub enum ClientEvent {
    /// The next hop answered ARP.
    Resolved {
        /// Who it is.
        hop: NextHop,
        /// Its hardware address, used for the whole dump.
        mac: MacAddr,
    },
    /// The server takes the dump, at this port.
    Accepted {
        /// The port that it gave this dump.
        port: u16,
    },
    /// The server had fallen silent, perhaps was started anew, and goes on with the dump where it was.
    Resumed {
        /// The port that the dump has now.
        port: u16,
    },
    /// The server was started anew and has nothing of the dump: everything is sent again.
    Restarted {
        /// The port that the dump has now.
        port: u16,
    },
    /// A phase was reached.
    Reached(Phase),
    /// Another host uses our IP address; told once.
    AddressConflict {
        /// Its hardware address.
        mac: MacAddr,
    },
    /// The dump is over. Nothing follows.
    Closed(Ending),
}

/// How a dump ended, and why.
#[derive(Debug)]
pub enum Ending {
    /// The server has acknowledged FINISHED.
    Complete,
    /// Everything but FINISHED was acknowledged: the server very likely has the core.
    Unconfirmed(FailReason),
    /// Something is missing at the server.
    Failed(FailReason),
}

impl Ending {
    /// The same without the reason.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Complete => Outcome::Complete,
            Self::Unconfirmed(_) => Outcome::Unconfirmed,
            Self::Failed(_) => Outcome::Failed,
        }
    }

    /// Why it is not complete.
    pub fn reason(&self) -> Option<&FailReason> {
        match self {
            Self::Complete => None,
            Self::Unconfirmed(reason) | Self::Failed(reason) => Some(reason),
        }
    }
}

/// Why a dump ended before the server had acknowledged everything.
#[derive(Debug, Error)]
pub enum FailReason {
    /// Nobody answered ARP.
    #[error("{server} does not answer ARP{}", or_gateway(.gateway.as_ref()))]
    NoNeighbor {
        /// The server.
        server: Ipv4Addr,
        /// The gateway that was asked too.
        gateway: Option<Ipv4Addr>,
    },
    /// The HERALD was not acknowledged.
    #[error("no netdump server answers at {server} (UDP) within {waited:?}{}", or_nothing(*.suspicion))]
    NoServer {
        /// Where the HERALD went.
        server: SocketAddrV4,
        /// How long the client waited.
        waited: Duration,
        /// What may be behind it.
        suspicion: Option<Suspicion>,
    },
    /// The server fell silent.
    #[error(
        "{server} stopped acknowledging while {phase}, {waited:?} ago; {}{}",
        lacking(*.phase, *.missing),
        or_nothing(*.suspicion)
    )]
    Silent {
        /// The server, with the port of this dump.
        server: SocketAddrV4,
        /// How far the dump was.
        phase: Phase,
        /// How long the client waited.
        waited: Duration,
        /// What of the core was not acknowledged.
        missing: Missing,
        /// What may be behind it.
        suspicion: Option<Suspicion>,
    },
    /// FINISHED was not acknowledged.
    #[error(
        "{server} has acknowledged the whole core but not within {waited:?} that it is stored{}",
        or_nothing(*.suspicion)
    )]
    Unfinished {
        /// The server, with the port of this dump.
        server: SocketAddrV4,
        /// How long the client waited.
        waited: Duration,
        /// What may be behind it.
        suspicion: Option<Suspicion>,
    },
    /// The server has lost a core of which the beginning is not there any more.
    #[error(
        "{server} was started anew while {phase} and has nothing of the dump, and what it had acknowledged of a packed \
         core is not kept; {}",
        lacking(Phase::Data, *.missing)
    )]
    Forgotten {
        /// The server, with the dump's new port.
        server: SocketAddrV4,
        /// How far the dump was.
        phase: Phase,
        /// What of the core was not acknowledged.
        missing: Missing,
    },
    /// The server loses the dump again and again.
    #[error("{server} has begun the dump anew {restarts} times; {}", lacking(Phase::Data, *.missing))]
    Restarts {
        /// The server, with the dump's new port.
        server: SocketAddrV4,
        /// How often.
        restarts: u64,
        /// What of the core was not acknowledged.
        missing: Missing,
    },
    /// The whole dump took too long.
    #[error("the dump's deadline of {limit:?} passed while {phase}; {}", lacking(*.phase, *.missing))]
    Deadline {
        /// The deadline.
        limit: Duration,
        /// How far the dump was.
        phase: Phase,
        /// What of the core was not acknowledged.
        missing: Missing,
    },
    /// The link failed.
    #[error("the link failed while {phase}")]
    Link {
        /// How far the dump was.
        phase: Phase,
        /// What the link said.
        #[source]
        source: LinkError,
    },
    /// The core could not be read.
    #[error("the core cannot be read")]
    Read(#[source] ReadError),
    /// The core could not be packed.
    #[error("the core cannot be packed")]
    Pack(#[source] StreamError),
    /// The caller ended it.
    #[error("stopped while {phase}: {why}")]
    Stopped {
        /// How far the dump was.
        phase: Phase,
        /// The caller's words.
        why: String,
    },
}

/// What of a core was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// So many bytes.
    Bytes(u64),
    /// Everything from this offset on, of a core whose end is not known.
    From(u64),
}

/// What the server lacks when the dump ends in this phase.
fn lacking(phase: Phase, missing: Missing) -> String {
    match phase {
        Phase::Header => "only the dump header is missing".to_owned(),
        Phase::Finish | Phase::Closed => "only the server's word is missing that it is stored".to_owned(),
        Phase::Resolve | Phase::Herald | Phase::Key | Phase::Data => match missing {
            Missing::Bytes(bytes) => format!("{bytes} bytes of the core are missing"),
            Missing::From(0) => "all of the core is missing".to_owned(),
            Missing::From(offset) => format!("the core is missing from byte {offset} on"),
        },
    }
}

fn or_nothing(suspicion: Option<Suspicion>) -> String {
    suspicion.map_or_else(String::new, |suspicion| format!("; {suspicion}"))
}

fn or_gateway(gateway: Option<&Ipv4Addr>) -> String {
    gateway.map_or_else(
        || ", and no gateway is configured (is it on this network?)".to_owned(),
        |gateway| format!(", and neither does the gateway {gateway}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_what_is_missing() {
        let server = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 4000);
        let waited = Duration::from_secs(12);
        let said = FailReason::NoNeighbor { server: *server.ip(), gateway: None }.to_string();
        assert_eq!(
            said,
            "10.0.0.9 does not answer ARP, and no gateway is configured (is it on this network?)"
        );
        let gateway = Some(Ipv4Addr::new(10, 0, 0, 1));
        let said = FailReason::NoNeighbor { server: *server.ip(), gateway }.to_string();
        assert_eq!(said, "10.0.0.9 does not answer ARP, and neither does the gateway 10.0.0.1");
        let said = FailReason::Silent {
            server,
            phase: Phase::Data,
            waited,
            missing: Missing::Bytes(7),
            suspicion: None,
        }
        .to_string();
        let want = "10.0.0.9:4000 stopped acknowledging while sending memory, 12s ago; 7 bytes of the core are missing";
        assert_eq!(said, want);
        let suspicion = Some(Suspicion::Rival(MacAddr([2, 0, 0, 0, 0, 7])));
        let said = FailReason::NoServer { server, waited, suspicion }.to_string();
        let want = "no netdump server answers at 10.0.0.9:4000 (UDP) within 12s; \
                    02:00:00:00:00:07 uses the guest's address too and may get the acks";
        assert_eq!(said, want);
        let said = FailReason::Silent {
            server,
            phase: Phase::Header,
            waited,
            missing: Missing::Bytes(0),
            suspicion: None,
        }
        .to_string();
        let want = "10.0.0.9:4000 stopped acknowledging while sending the dump header, 12s ago; only the dump header is missing";
        assert_eq!(said, want);
        let said = FailReason::Deadline { limit: waited, phase: Phase::Finish, missing: Missing::Bytes(0) }
            .to_string();
        let want = "the dump's deadline of 12s passed while waiting for the server to finish; \
                    only the server's word is missing that it is stored";
        assert_eq!(said, want);
        let said = FailReason::Deadline { limit: waited, phase: Phase::Data, missing: Missing::From(9) };
        let want =
            "the dump's deadline of 12s passed while sending memory; the core is missing from byte 9 on";
        assert_eq!(said.to_string(), want);
    }
}
