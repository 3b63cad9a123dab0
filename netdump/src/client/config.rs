//! What a dump is sent with ([`ClientConfig`]) and what is sent ([`DumpPlan`]); everything that can be refused before
//! the first frame is refused here.

use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::time::Duration;

use thiserror::Error;

use crate::link::Offloads;
use crate::vmcore::kdh::KDH_LEN;
use crate::wire::message::{MAX_PATH, MAX_PAYLOAD};
use crate::wire::{CLIENT_PORT, MacAddr, SERVER_PORT, datagram};

/// The smallest IP MTU: a server wants the dump header whole in one datagram that is not a fragment.
#[expect(clippy::cast_possible_truncation, reason = "52 + 512")]
pub const MIN_MTU: u32 = (datagram::OVERHEAD + KDH_LEN) as u32;

/// Most messages on their way, whatever is asked for.
pub const MAX_WINDOW: u32 = 16_384;
/// FreeBSD's client looks for acks once in this time; its `polls` count in it.
pub(super) const POLL: Duration = Duration::from_micros(500);
/// No configured time is longer than a year, so that adding a few to a point in time cannot overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// A server writes everything to its disk before it acknowledges FINISHED, so that ack is given this much longer.
const FINISH_PATIENCE: u32 = 5;

/// Who sends to whom, and how patiently. Names and defaults are those of FreeBSD's `net.netdump` variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// The receiver's address.
    pub server: Ipv4Addr,
    /// The port that takes the HERALD.
    pub server_port: u16,
    /// The address to send from, which nobody else may speak for while the dump runs.
    pub client: Ipv4Addr,
    /// The port to send from; stock servers acknowledge to 20024 whatever it is.
    pub client_port: u16,
    /// Who forwards to the server, asked when the server itself does not answer ARP.
    pub gateway: Option<Ipv4Addr>,
    /// The hardware address to send from.
    pub mac: MacAddr,
    /// The IP MTU of the link in bytes.
    pub mtu: u32,
    /// How long one try waits at most, in polls of 0.5 ms. Resends come earlier where the path is known to be faster.
    pub polls: u32,
    /// Resends after the first; with `polls` this makes the time that a message may stay unacknowledged.
    pub retries: u32,
    /// ARP requests to each of server and gateway.
    pub arp_retries: u32,
    /// The longest that the whole dump may take.
    pub deadline: Option<Duration>,
    /// What is left to the link ([`crate::link::Link::offloads`]).
    pub offloads: Offloads,
    /// How much may be on its way.
    pub window: WindowChoice,
    /// Most bytes of frames sent in a second, evenly; no limit when absent.
    pub rate: Option<NonZeroU64>,
    /// A number that tells this dump from others of this client, sent in each HERALD's padding; 0: none. A receiver that
    /// knows it can go on with a dump after a restart.
    pub dump_id: u32,
}

/// How much of a dump may be on its way unacknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowChoice {
    /// As path and server bear, up to so many messages.
    Adaptive {
        /// The most.
        cap: u32,
    },
    /// FreeBSD's own algorithm: 64 KiB, then nothing until all of it is acknowledged, looked for every 0.5 ms.
    Classic,
}

impl Default for WindowChoice {
    fn default() -> Self {
        Self::Adaptive { cap: MAX_WINDOW }
    }
}

/// What a dump consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpPlan {
    /// The directory asked for, below the receiver's own.
    pub path: Option<String>,
    /// The core.
    pub core: CorePlan,
    /// The key block of an encrypted dump, sent before the data.
    pub key: Option<Vec<u8>>,
}

/// What is known of the core when the dump begins.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one for each dump")]
pub enum CorePlan {
    /// Everything.
    Known {
        /// Its bytes.
        length: u64,
        /// The dump header, sent last.
        header: [u8; KDH_LEN],
    },
    /// Nothing, as it is being made: [`Client::supply`](super::Client::supply) tells how far it is and
    /// [`Client::end_of_core`](super::Client::end_of_core) where it ends. It has no holes.
    Growing,
}

/// Why a dump cannot even be tried.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Too small for a dump header.
    #[error("an MTU of {0} bytes is too small for a netdump: its dump header needs {MIN_MTU}")]
    Mtu(u32),
    /// Not a host's address.
    #[error("{address} cannot be the {role}'s address: it is {problem}")]
    Address {
        /// Whose address it should be.
        role: &'static str,
        /// The address.
        address: Ipv4Addr,
        /// What it is instead.
        problem: &'static str,
    },
    /// Two parties with one address.
    #[error("{role} and client cannot both have the address {address}")]
    SameAddress {
        /// Who has the client's address.
        role: &'static str,
        /// The address.
        address: Ipv4Addr,
    },
    /// A hardware address that no host sends from.
    #[error("{0} is not a hardware address that frames can be sent from")]
    Mac(MacAddr),
    /// Port 0.
    #[error("the {0}'s port cannot be 0")]
    Port(&'static str),
    /// No time to wait for an answer.
    #[error("0 polls leave no time for an answer")]
    Polls,
    /// A path that is not below the receiver's directory.
    #[error("the path '{0}' is absolute; it must be relative to the server's dump directory")]
    PathAbsolute(String),
    /// A path that climbs.
    #[error("the path '{0}' leads out of the server's dump directory with '..'")]
    PathClimbs(String),
    /// A path that the protocol cannot carry.
    #[error("the path {0:?} holds a NUL character")]
    PathNul(String),
    /// A path that does not fit one HERALD.
    #[error("the path has {len} bytes; at most {limit} fit one message at this MTU")]
    PathLong {
        /// Its bytes.
        len: usize,
        /// The most that fit.
        limit: usize,
    },
}

impl ClientConfig {
    /// The original's ports, patience and retries.
    pub fn new(server: Ipv4Addr, client: Ipv4Addr, mac: MacAddr, mtu: u32) -> Self {
        Self {
            server,
            server_port: SERVER_PORT,
            client,
            client_port: CLIENT_PORT,
            gateway: None,
            mac,
            mtu,
            polls: 2000,
            retries: 10,
            arp_retries: 3,
            deadline: None,
            offloads: Offloads::default(),
            window: WindowChoice::default(),
            rate: None,
            dump_id: 0,
        }
    }

    /// Payload bytes of a full message.
    pub fn payload_limit(&self) -> usize {
        let room = usize::try_from(self.mtu).unwrap_or(usize::MAX).saturating_sub(datagram::OVERHEAD);
        room.min(MAX_PAYLOAD)
    }

    /// How long one try waits at most.
    pub(super) fn try_wait(&self) -> Duration {
        POLL.saturating_mul(self.polls).min(LONGEST)
    }

    /// How long a message may stay unacknowledged: the original's first try, retries, and the one that its count adds.
    pub(super) fn patience(&self) -> Duration {
        self.try_wait().saturating_mul(self.retries.saturating_add(2)).min(LONGEST)
    }

    /// How long FINISHED may stay unacknowledged.
    pub(super) fn finish_patience(&self) -> Duration {
        self.patience().saturating_mul(FINISH_PATIENCE).min(LONGEST)
    }

    /// The whole dump's limit.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.deadline.map(|limit| limit.min(LONGEST))
    }

    /// Refuses what cannot work. Loopback addresses are taken only as a pair: host sockets can use them, wires cannot.
    pub(super) fn check(&self, plan: &DumpPlan) -> Result<(), ConfigError> {
        if self.mtu < MIN_MTU {
            return Err(ConfigError::Mtu(self.mtu));
        }
        let parties =
            [("server", Some(self.server)), ("client", Some(self.client)), ("gateway", self.gateway)];
        for (role, address) in parties.into_iter().filter_map(|(role, address)| Some((role, address?))) {
            let local = address.is_loopback() && !(self.server.is_loopback() && self.client.is_loopback());
            let problem = match address {
                a if a.octets()[0] == 0 => Some("not a host's"),
                a if a.is_broadcast() => Some("the broadcast address"),
                a if a.is_multicast() => Some("a multicast address"),
                _ if local => Some("a loopback address, which no wire carries"),
                _ => None,
            };
            if let Some(problem) = problem {
                return Err(ConfigError::Address { role, address, problem });
            }
            if role != "client" && address == self.client {
                return Err(ConfigError::SameAddress { role, address });
            }
        }
        if self.mac.is_group() || self.mac == MacAddr::ZERO {
            return Err(ConfigError::Mac(self.mac));
        }
        if self.server_port == 0 || self.client_port == 0 {
            return Err(ConfigError::Port(if self.server_port == 0 { "server" } else { "client" }));
        }
        if self.polls == 0 {
            return Err(ConfigError::Polls);
        }
        plan.path.as_deref().map_or(Ok(()), |path| check_path(path, self.payload_limit()))
    }
}

/// A stock server ignores a path that breaks these rules and files the dump elsewhere, so they are enforced here.
pub fn check_path(path: &str, payload_limit: usize) -> Result<(), ConfigError> {
    let limit = payload_limit.min(MAX_PATH) - 1;
    if path.len() > limit {
        return Err(ConfigError::PathLong { len: path.len(), limit });
    }
    if path.contains('\0') {
        return Err(ConfigError::PathNul(path.to_owned()));
    }
    if path.starts_with('/') {
        return Err(ConfigError::PathAbsolute(path.to_owned()));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(ConfigError::PathClimbs(path.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn config() -> ClientConfig {
        ClientConfig::new(SERVER, CLIENT, MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]), 1500)
    }

    fn refused(config: &ClientConfig, path: Option<&str>) -> String {
        let plan = DumpPlan { path: path.map(str::to_owned), core: CorePlan::Growing, key: None };
        config.check(&plan).map_or_else(|e| e.to_string(), |()| String::new())
    }

    #[test]
    fn defaults_are_the_originals() {
        let config = config();
        assert_eq!(refused(&config, Some("vm1/today")), "");
        assert_eq!(config.try_wait(), Duration::from_secs(1));
        assert_eq!(config.patience(), Duration::from_secs(12));
        assert_eq!(config.payload_limit(), 1448);
        assert_eq!(ClientConfig { mtu: 4148, ..config.clone() }.payload_limit(), 4096);
        assert_eq!(ClientConfig { mtu: 65536, ..config }.payload_limit(), 4096);
    }

    #[test]
    fn a_dump_header_needs_564_bytes_of_mtu() {
        assert_eq!(refused(&ClientConfig { mtu: 564, ..config() }, None), "");
        let said = refused(&ClientConfig { mtu: 563, ..config() }, None);
        assert_eq!(said, "an MTU of 563 bytes is too small for a netdump: its dump header needs 564");
    }

    #[test]
    fn addresses_that_no_host_has_are_refused() {
        for (octets, problem) in [
            ([0, 0, 0, 0], "not a host's"),
            ([255, 255, 255, 255], "the broadcast address"),
            ([224, 0, 0, 1], "a multicast address"),
            ([127, 0, 0, 1], "a loopback address, which no wire carries"),
        ] {
            let odd = Ipv4Addr::from(octets);
            let said = |role| format!("{odd} cannot be the {role}'s address: it is {problem}");
            assert_eq!(refused(&ClientConfig { server: odd, ..config() }, None), said("server"));
            assert_eq!(refused(&ClientConfig { client: odd, ..config() }, None), said("client"));
            assert_eq!(refused(&ClientConfig { gateway: Some(odd), ..config() }, None), said("gateway"));
        }
    }

    #[test]
    fn host_sockets_may_use_loopback() {
        let [server, client] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
        assert_eq!(refused(&ClientConfig { server, client, ..config() }, None), "");
    }

    #[test]
    fn parties_need_addresses_of_their_own() {
        let said = refused(&ClientConfig { server: CLIENT, ..config() }, None);
        assert_eq!(said, "server and client cannot both have the address 10.0.0.2");
        let said = refused(&ClientConfig { gateway: Some(CLIENT), ..config() }, None);
        assert_eq!(said, "gateway and client cannot both have the address 10.0.0.2");
        let said = refused(&ClientConfig { mac: MacAddr::BROADCAST, ..config() }, None);
        assert_eq!(said, "ff:ff:ff:ff:ff:ff is not a hardware address that frames can be sent from");
        assert_eq!(
            refused(&ClientConfig { client_port: 0, ..config() }, None),
            "the client's port cannot be 0"
        );
        assert_eq!(
            refused(&ClientConfig { server_port: 0, ..config() }, None),
            "the server's port cannot be 0"
        );
    }

    #[test]
    fn paths_that_a_server_would_not_take_are_refused() {
        let path = |path: &str| refused(&config(), Some(path));
        assert_eq!(
            path("/var/crash"),
            "the path '/var/crash' is absolute; it must be relative to the server's dump directory"
        );
        for climbing in ["..", "../x", "a/../b", "a/.."] {
            assert_eq!(
                path(climbing),
                format!("the path '{climbing}' leads out of the server's dump directory with '..'")
            );
        }
        assert_eq!(path("a\0b"), "the path \"a\\0b\" holds a NUL character");
        assert_eq!(path("..a/b.."), "");
        assert_eq!(path(&"p".repeat(1023)), "");
        assert_eq!(
            path(&"p".repeat(1024)),
            "the path has 1024 bytes; at most 1023 fit one message at this MTU"
        );
        let small = ClientConfig { mtu: 564, ..config() };
        assert_eq!(refused(&small, Some(&"p".repeat(511))), "");
        assert_eq!(
            refused(&small, Some(&"p".repeat(512))),
            "the path has 512 bytes; at most 511 fit one message at this MTU"
        );
    }

    #[test]
    fn absurd_patience_does_not_overflow() {
        let config =
            ClientConfig { polls: u32::MAX, retries: u32::MAX, deadline: Some(Duration::MAX), ..config() };
        assert_eq!((config.patience(), config.finish_patience()), (LONGEST, LONGEST));
        assert_eq!(config.deadline(), Some(LONGEST));
        assert_eq!(
            refused(&ClientConfig { polls: 0, ..config }, None),
            "0 polls leave no time for an answer"
        );
    }
}
