//! ARP, both ways: finding the next hop (RFC 826; the server is asked first, then the gateway, as there is no netmask),
//! and keeping our own address, for which nobody else speaks while the guest is stopped: questions are answered, and a
//! claim by another host is met with our own (RFC 5227, 2.4), as a server sends its acks to whom it heard last.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::config::ClientConfig;
use super::ignored::Ignored;
use crate::wire::MacAddr;
use crate::wire::arp::{ArpOperation, ArpPacket};

/// Answers that wait for room on the link; further requests are dropped, and asked again by who needs them.
const MAX_REPLIES: usize = 8;
/// Least time between two claims of our address, so that two hosts that both defend it do not flood their network
/// (RFC 5227, `DEFEND_INTERVAL`).
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// Who takes our frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// The server itself.
    Server,
    /// The gateway, which forwards them.
    Gateway,
}

/// What an ARP packet has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArpNews {
    /// The next hop's hardware address is known now.
    Resolved(NextHop),
    /// The next hop has another hardware address than before.
    Moved(NextHop),
    /// It has the same as before.
    Confirmed,
    /// Somebody asked for us and gets an answer.
    Asked,
    /// Another host sends from our address.
    Conflict(MacAddr),
}

#[derive(Debug)]
enum State {
    Asking { hop: NextHop, target: Ipv4Addr, tries_left: u32, unsent: bool, until: Instant },
    Known { mac: MacAddr, target: Ipv4Addr, hop: NextHop },
    Silent,
}

/// Our side of ARP.
#[derive(Debug)]
pub(super) struct Neighbor {
    mac: MacAddr,
    client: Ipv4Addr,
    server: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
    tries: u32,
    wait: Duration,
    state: State,
    replies: VecDeque<ArpPacket>,
    /// Whether our address is to be claimed as soon as there is room on the link.
    claim_unsent: bool,
    /// Whether it is to be claimed when that may be done next.
    contested: bool,
    /// When it may be claimed next.
    claim_at: Instant,
    /// The next hop is asked for again, and its answer waited for.
    doubt: Option<Doubt>,
}

/// A next hop that may have another hardware address by now.
#[derive(Debug)]
struct Doubt {
    unsent: bool,
    /// The question is not answered yet: one answer counts.
    is_open: bool,
    /// When to ask again, answered or not.
    ask_at: Instant,
}

impl Neighbor {
    /// Begins with the question for the server.
    pub(super) fn new(config: &ClientConfig, now: Instant) -> Self {
        let tries = config.arp_retries.max(1);
        let wait = config.try_wait();
        Self {
            mac: config.mac,
            client: config.client,
            server: config.server,
            gateway: config.gateway.filter(|gateway| *gateway != config.server),
            tries,
            wait,
            state: State::Asking {
                hop: NextHop::Server,
                target: config.server,
                tries_left: tries - 1,
                unsent: true,
                until: now + wait,
            },
            replies: VecDeque::with_capacity(MAX_REPLIES),
            claim_unsent: false,
            contested: false,
            claim_at: now,
            doubt: None,
        }
    }

    /// The next hop, once it is known. It changes only by an answer to a question of ours that was asked because of the
    /// server's silence ([`Self::ask_again`]): any other may be stale or forged.
    pub(super) fn next_hop(&self) -> Option<MacAddr> {
        match self.state {
            State::Known { mac, .. } => Some(mac),
            State::Asking { .. } | State::Silent => None,
        }
    }

    /// Whether the server has been silent: its host, or the gateway, may have another card by now, or the one before it may
    /// have lost its place (a server that moved to another machine, a gateway that failed over). Asks at once and then as
    /// often as at first, as long as there is silence; meanwhile everything goes to the address known.
    pub(super) fn ask_again(&mut self, now: Instant, is_silent: bool) {
        match &self.doubt {
            _ if !is_silent || !matches!(self.state, State::Known { .. }) => self.doubt = None,
            Some(doubt) if now < doubt.ask_at => {}
            _ => self.doubt = Some(Doubt { unsent: true, is_open: true, ask_at: now + self.wait }),
        }
    }

    /// Whether the next hop is asked for again.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    /// Whether everyone has been asked in vain.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self.state, State::Silent)
    }

    /// The packet to send now, if any.
    pub(super) fn poll_transmit(&mut self) -> Option<ArpPacket> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(reply);
        }
        if std::mem::take(&mut self.claim_unsent) {
            // A question for the own address: whoever knows it takes our hardware address from it.
            return Some(self.question(self.client));
        }
        match &mut self.state {
            State::Asking { target, unsent, .. } if *unsent => {
                *unsent = false;
                let target = *target;
                Some(self.question(target))
            }
            State::Known { target, .. } => {
                let doubt = self.doubt.as_mut().filter(|doubt| doubt.unsent)?;
                doubt.unsent = false;
                let target = *target;
                Some(self.question(target))
            }
            State::Asking { .. } | State::Silent => None,
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let next_question = match self.state {
            State::Asking { until, .. } => Some(until),
            State::Known { .. } => self.doubt.as_ref().map(|doubt| doubt.ask_at),
            State::Silent => None,
        };
        let next_claim = self.contested.then_some(self.claim_at);
        next_question.into_iter().chain(next_claim).min()
    }

    /// Claims our address again; asks again, or the gateway instead, or gives up.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.contested {
            self.claim(now);
        }
        let State::Asking { hop, target, tries_left, unsent, until } = &mut self.state else { return };
        if now < *until {
            return;
        }
        if *tries_left == 0 {
            match self.gateway.filter(|_| *hop == NextHop::Server) {
                Some(gateway) => (*hop, *target, *tries_left) = (NextHop::Gateway, gateway, self.tries),
                None => {
                    self.state = State::Silent;
                    return;
                }
            }
        }
        *tries_left -= 1;
        *unsent = true;
        *until = now + self.wait;
    }

    /// Takes one packet.
    pub(super) fn handle(&mut self, now: Instant, packet: &ArpPacket) -> Result<ArpNews, Ignored> {
        if packet.sender_mac == self.mac {
            return Err(Ignored::OwnFrame);
        }
        if packet.sender_mac.is_group() || packet.sender_mac == MacAddr::ZERO {
            return Err(Ignored::ArpSender);
        }
        if packet.sender_ip == self.client {
            self.claim(now);
            return Ok(ArpNews::Conflict(packet.sender_mac));
        }
        if packet.target_ip != self.client {
            return Err(Ignored::ArpForOther);
        }
        match packet.operation {
            ArpOperation::Request => {
                if self.replies.len() >= MAX_REPLIES {
                    return Err(Ignored::ArpFlood);
                }
                self.replies.push_back(packet.reply_from(self.mac));
                Ok(ArpNews::Asked)
            }
            ArpOperation::Reply => self.handle_reply(packet),
        }
    }

    /// Has our address claimed now, or when that may be done next.
    fn claim(&mut self, now: Instant) {
        self.contested = now < self.claim_at;
        if !self.contested {
            self.claim_unsent = true;
            self.claim_at = now + DEFEND_INTERVAL;
        }
    }

    fn question(&self, target_ip: Ipv4Addr) -> ArpPacket {
        ArpPacket {
            operation: ArpOperation::Request,
            sender_mac: self.mac,
            sender_ip: self.client,
            target_mac: MacAddr::ZERO,
            target_ip,
        }
    }

    /// The server's answer counts also while the gateway is asked: it is only late.
    fn handle_reply(&mut self, packet: &ArpPacket) -> Result<ArpNews, Ignored> {
        let asked = match self.state {
            State::Asking { hop, .. } => hop,
            State::Known { mac, target, hop } => {
                let question = self.doubt.as_mut().filter(|doubt| doubt.is_open && !doubt.unsent);
                let question = question.filter(|_| packet.sender_ip == target).ok_or(Ignored::ArpNotAsked)?;
                question.is_open = false;
                if packet.sender_mac == mac {
                    return Ok(ArpNews::Confirmed);
                }
                self.state = State::Known { mac: packet.sender_mac, target, hop };
                return Ok(ArpNews::Moved(hop));
            }
            State::Silent => return Err(Ignored::ArpNotAsked),
        };
        let hop = match packet.sender_ip {
            ip if ip == self.server => NextHop::Server,
            ip if asked == NextHop::Gateway && Some(ip) == self.gateway => NextHop::Gateway,
            _ => return Err(Ignored::ArpNotAsked),
        };
        self.state = State::Known { mac: packet.sender_mac, target: packet.sender_ip, hop };
        Ok(ArpNews::Resolved(hop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const OUR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    const THEIR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn neighbor(gateway: Option<Ipv4Addr>) -> (Neighbor, Instant) {
        let now = Instant::now();
        let config = ClientConfig { gateway, ..ClientConfig::new(SERVER, CLIENT, OUR_MAC, 1500) };
        (Neighbor::new(&config, now), now)
    }

    fn packet(
        operation: ArpOperation,
        sender: (MacAddr, Ipv4Addr),
        target: (MacAddr, Ipv4Addr),
    ) -> ArpPacket {
        ArpPacket {
            operation,
            sender_mac: sender.0,
            sender_ip: sender.1,
            target_mac: target.0,
            target_ip: target.1,
        }
    }

    fn reply(mac: MacAddr, ip: Ipv4Addr) -> ArpPacket {
        packet(ArpOperation::Reply, (mac, ip), (OUR_MAC, CLIENT))
    }

    /// Targets asked until silence, with the seconds since the start.
    fn asked(mut neighbor: Neighbor, start: Instant) -> Vec<(u64, Ipv4Addr)> {
        let mut asked = Vec::new();
        let mut now = start;
        loop {
            while let Some(packet) = neighbor.poll_transmit() {
                asked.push(((now - start).as_secs(), packet.target_ip));
            }
            let Some(next) = neighbor.poll_timeout() else { break };
            now = next;
            neighbor.handle_timeout(now);
        }
        assert!(neighbor.is_silent());
        asked
    }

    #[test]
    fn server_is_asked_three_times_and_then_the_gateway() {
        let (only_server, now) = neighbor(None);
        assert_eq!(asked(only_server, now), [(0, SERVER), (1, SERVER), (2, SERVER)]);
        let (same, now) = neighbor(Some(SERVER));
        assert_eq!(asked(same, now).len(), 3);
        let (both, now) = neighbor(Some(GATEWAY));
        let want = [(0, SERVER), (1, SERVER), (2, SERVER), (3, GATEWAY), (4, GATEWAY), (5, GATEWAY)];
        assert_eq!(asked(both, now), want);
    }

    #[test]
    fn first_answer_is_kept() {
        let (mut neighbor, now) = neighbor(Some(GATEWAY));
        assert_eq!(neighbor.handle(now, &reply(THEIR_MAC, SERVER)), Ok(ArpNews::Resolved(NextHop::Server)));
        let later = MacAddr([2, 0, 0, 0, 0, 66]);
        assert_eq!(neighbor.handle(now, &reply(later, SERVER)), Err(Ignored::ArpNotAsked));
        assert_eq!(neighbor.next_hop(), Some(THEIR_MAC));
        assert_eq!(neighbor.poll_timeout(), None);
    }

    #[test]
    fn gateway_counts_only_when_it_is_asked() {
        let (mut neighbor, start) = neighbor(Some(GATEWAY));
        assert_eq!(neighbor.handle(start, &reply(THEIR_MAC, GATEWAY)), Err(Ignored::ArpNotAsked));
        for second in 1..=3 {
            neighbor.handle_timeout(start + Duration::from_secs(second));
        }
        assert_eq!(
            neighbor.handle(start, &reply(THEIR_MAC, GATEWAY)),
            Ok(ArpNews::Resolved(NextHop::Gateway))
        );
    }

    #[test]
    fn answers_from_strangers_and_impossible_addresses_are_ignored() {
        let (mut neighbor, now) = neighbor(None);
        let stranger = Ipv4Addr::new(10, 0, 0, 66);
        assert_eq!(neighbor.handle(now, &reply(THEIR_MAC, stranger)), Err(Ignored::ArpNotAsked));
        assert_eq!(neighbor.handle(now, &reply(MacAddr::BROADCAST, SERVER)), Err(Ignored::ArpSender));
        assert_eq!(neighbor.handle(now, &reply(MacAddr::ZERO, SERVER)), Err(Ignored::ArpSender));
        assert_eq!(neighbor.handle(now, &reply(OUR_MAC, SERVER)), Err(Ignored::OwnFrame));
        let for_other = packet(ArpOperation::Reply, (THEIR_MAC, SERVER), (OUR_MAC, stranger));
        assert_eq!(neighbor.handle(now, &for_other), Err(Ignored::ArpForOther));
        assert_eq!(neighbor.next_hop(), None);
    }

    #[test]
    fn requests_for_us_are_answered_before_our_own_question() {
        let (mut neighbor, now) = neighbor(None);
        let request = packet(ArpOperation::Request, (THEIR_MAC, SERVER), (MacAddr::ZERO, CLIENT));
        assert_eq!(neighbor.handle(now, &request), Ok(ArpNews::Asked));
        let answer = packet(ArpOperation::Reply, (OUR_MAC, CLIENT), (THEIR_MAC, SERVER));
        assert_eq!(neighbor.poll_transmit(), Some(answer));
        assert_eq!(neighbor.poll_transmit().map(|question| question.target_ip), Some(SERVER));
        let other = packet(ArpOperation::Request, (THEIR_MAC, SERVER), (MacAddr::ZERO, GATEWAY));
        assert_eq!(neighbor.handle(now, &other), Err(Ignored::ArpForOther));
    }

    #[test]
    fn a_flood_of_requests_is_bounded() {
        let (mut neighbor, now) = neighbor(None);
        let request = packet(ArpOperation::Request, (THEIR_MAC, SERVER), (MacAddr::ZERO, CLIENT));
        let results: Vec<_> = (0..100).map(|_| neighbor.handle(now, &request)).collect();
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), MAX_REPLIES);
        assert_eq!(results[99], Err(Ignored::ArpFlood));
    }

    #[test]
    fn another_owner_of_our_address_is_noticed_and_answered_with_our_claim_once_in_ten_seconds() {
        let (mut neighbor, start) = neighbor(None);
        neighbor.poll_transmit();
        assert_eq!(neighbor.handle(start, &reply(THEIR_MAC, SERVER)), Ok(ArpNews::Resolved(NextHop::Server)));
        let theirs = packet(ArpOperation::Request, (THEIR_MAC, CLIENT), (MacAddr::ZERO, SERVER));
        let ours = packet(ArpOperation::Request, (OUR_MAC, CLIENT), (MacAddr::ZERO, CLIENT));
        let mut claims = Vec::new();
        for second in 0..25 {
            let now = start + Duration::from_secs(second);
            neighbor.handle_timeout(now);
            if second < 20 {
                assert_eq!(neighbor.handle(now, &theirs), Ok(ArpNews::Conflict(THEIR_MAC)));
            }
            assert!(neighbor.poll_timeout().is_none_or(|at| at > now), "what is due waits for the link only");
            while let Some(packet) = neighbor.poll_transmit() {
                assert_eq!(packet, ours);
                claims.push(second);
            }
        }
        assert_eq!(claims, [0, 10, 20]);
        assert_eq!(neighbor.poll_timeout(), None);
    }
}
