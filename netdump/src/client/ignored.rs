//! Why a frame was ignored, and how often: nothing that arrives is an error, everything odd is counted.

use std::fmt;

use crate::wire::arp::ArpError;
use crate::wire::ipv4::Ipv4Error;
use crate::wire::udp::UdpError;

/// Why a frame changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ignored {
    /// The dump is over.
    Closed,
    /// Shorter than an Ethernet header.
    Runt,
    /// For another host.
    OtherStation,
    /// Sent by ourselves: the network echoes.
    OwnFrame,
    /// Neither ARP nor IPv4, or with a VLAN tag.
    OtherProtocol,
    /// Not ARP for IPv4 over Ethernet.
    MalformedArp,
    /// ARP from a hardware address that no host has.
    ArpSender,
    /// Another host claims our IP address.
    AddressConflict,
    /// ARP that asks for another host.
    ArpForOther,
    /// ARP that answers what was not asked, or no longer.
    ArpNotAsked,
    /// More ARP requests at once than are answered.
    ArpFlood,
    /// IPv4 lengths or version are wrong.
    MalformedIp,
    /// IPv4 options.
    IpOptions,
    /// Part of a larger packet.
    IpFragment,
    /// The IPv4 header is damaged.
    IpChecksum,
    /// Not from the server.
    OtherSource,
    /// Not for our IP address.
    OtherDestination,
    /// Not UDP.
    NotUdp,
    /// UDP lengths are wrong.
    MalformedUdp,
    /// The datagram is damaged.
    UdpChecksum,
    /// Not for our port.
    OtherPort,
    /// From the server, but not from the port that it gave this dump.
    OtherServerPort,
    /// Not the 4 bytes of an ack.
    NotAnAck,
    /// It acknowledges what was never sent.
    UnknownAck,
    /// It acknowledges what had been acknowledged before.
    RepeatedAck,
    /// It acknowledges FINISHED while it is not known whether the server still has the dump.
    DoubtfulAck,
    /// A router, or the server's host, says that a datagram of ours cannot get there.
    Unreachable,
    /// Word of another datagram that was not delivered.
    OtherUnreachable,
}

impl Ignored {
    /// Every reason, in order of their numbers.
    pub const ALL: [Self; 28] = [
        Self::Closed,
        Self::Runt,
        Self::OtherStation,
        Self::OwnFrame,
        Self::OtherProtocol,
        Self::MalformedArp,
        Self::ArpSender,
        Self::AddressConflict,
        Self::ArpForOther,
        Self::ArpNotAsked,
        Self::ArpFlood,
        Self::MalformedIp,
        Self::IpOptions,
        Self::IpFragment,
        Self::IpChecksum,
        Self::OtherSource,
        Self::OtherDestination,
        Self::NotUdp,
        Self::MalformedUdp,
        Self::UdpChecksum,
        Self::OtherPort,
        Self::OtherServerPort,
        Self::NotAnAck,
        Self::UnknownAck,
        Self::RepeatedAck,
        Self::DoubtfulAck,
        Self::Unreachable,
        Self::OtherUnreachable,
    ];
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "after the end",
            Self::Runt => "too short for Ethernet",
            Self::OtherStation => "for another station",
            Self::OwnFrame => "our own frame",
            Self::OtherProtocol => "neither ARP nor IPv4",
            Self::MalformedArp => "malformed ARP",
            Self::ArpSender => "ARP from an impossible address",
            Self::AddressConflict => "another host claims our address",
            Self::ArpForOther => "ARP for another host",
            Self::ArpNotAsked => "ARP answer not asked for",
            Self::ArpFlood => "too many ARP requests at once",
            Self::MalformedIp => "malformed IPv4",
            Self::IpOptions => "IPv4 options",
            Self::IpFragment => "IPv4 fragment",
            Self::IpChecksum => "IPv4 checksum",
            Self::OtherSource => "not from the server",
            Self::OtherDestination => "not for our address",
            Self::NotUdp => "not UDP",
            Self::MalformedUdp => "malformed UDP",
            Self::UdpChecksum => "UDP checksum",
            Self::OtherPort => "not for our port",
            Self::OtherServerPort => "from another port of the server",
            Self::NotAnAck => "not an ack",
            Self::UnknownAck => "ack of nothing sent",
            Self::RepeatedAck => "repeated ack",
            Self::DoubtfulAck => "ack while the server is in doubt",
            Self::Unreachable => "the server is said to be unreachable",
            Self::OtherUnreachable => "ICMP for another datagram",
        })
    }
}

impl From<ArpError> for Ignored {
    fn from(_: ArpError) -> Self {
        Self::MalformedArp
    }
}

impl From<Ipv4Error> for Ignored {
    fn from(error: Ipv4Error) -> Self {
        match error {
            Ipv4Error::Short(_) | Ipv4Error::Version(_) | Ipv4Error::Length { .. } => Self::MalformedIp,
            Ipv4Error::Options(len) if len < 20 => Self::MalformedIp,
            Ipv4Error::Options(_) => Self::IpOptions,
            Ipv4Error::Checksum => Self::IpChecksum,
            Ipv4Error::Fragment(_) => Self::IpFragment,
        }
    }
}

impl From<UdpError> for Ignored {
    fn from(error: UdpError) -> Self {
        match error {
            UdpError::Short(_) | UdpError::Length { .. } => Self::MalformedUdp,
            UdpError::Checksum => Self::UdpChecksum,
        }
    }
}

/// How often each reason occurred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IgnoredCounts([u64; Ignored::ALL.len()]);

impl IgnoredCounts {
    /// One more.
    pub(super) fn count(&mut self, reason: Ignored) {
        self.0[reason as usize] += 1;
    }

    /// How often `reason` occurred.
    pub fn of(&self, reason: Ignored) -> u64 {
        self.0[reason as usize]
    }

    /// The reasons that occurred, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (Ignored, u64)> + '_ {
        Ignored::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_counted_under_its_own_name() {
        let mut counts = IgnoredCounts::default();
        for (number, reason) in Ignored::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
            counts.count(reason);
        }
        let mut names: Vec<_> = counts.iter().map(|(reason, _)| reason.to_string()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Ignored::ALL.len());
        assert!(counts.iter().all(|(_, count)| count == 1));
    }
}
