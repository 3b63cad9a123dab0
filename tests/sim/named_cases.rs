//! What has gone wrong before, one case a test, each on a network that does nothing else.

use std::time::Duration;

use harness::simnet::hosts::{GATEWAY_IP, ms};
use harness::simnet::{
    ClientStation, Core, Echo, FakeServer, Gateway, HostStation, Keeper, Manner, Memory, Party, Replay, Rng,
    SimNet, Station, Weather,
};
use netdump::client::{ClientConfig, ClientEvent, Ending, Ignored, NextHop};
use netdump::wire::MessageKind;

use crate::{client, ignored, reason};

const LEN: usize = 150 * 1448;

/// A calm network between a client that dumps 150 full messages and this server.
fn net<S: Station>(name: &str, server: S) -> SimNet<S> {
    SimNet::new(name, 0, Weather::calm(), client(1500, LEN), server)
}

/// Runs to the end and expects the receiver to have the whole core.
fn complete(net: &mut SimNet<HostStation>) {
    let ending = net.run().expect("an end");
    assert!(matches!(ending, Ending::Complete), "{ending:?}");
    net.server.close(net.now());
    let stored = net.server.stored()[0];
    assert!(stored.is_complete);
    assert!(stored.core == net.client.core.bytes, "the stored core differs");
}

fn failed<S: Station>(net: &mut SimNet<S>) -> String {
    let ending = net.run().expect("an end");
    assert!(matches!(ending, Ending::Failed(_)), "{ending:?}");
    reason(ending)
}

fn unconfirmed<S: Station>(net: &mut SimNet<S>) -> String {
    let ending = net.run().expect("an end");
    assert!(matches!(ending, Ending::Unconfirmed(_)), "{ending:?}");
    reason(ending)
}

/// Kind and number of the message in this frame of the client.
fn message(frame: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    (frame.len() >= 66 && frame[12..14] == [8, 0]).then(|| (word(42), word(46)))
}

/// The number that this frame acknowledges.
fn ack(frame: &[u8]) -> Option<u32> {
    (frame.len() == 46 && frame[12..14] == [8, 0])
        .then(|| u32::from_be_bytes([frame[42], frame[43], frame[44], frame[45]]))
}

/// Loses the first frame that `pick` picks.
fn once(pick: impl Fn(&[u8]) -> bool + 'static) -> impl FnMut(&[u8]) -> bool + 'static {
    let mut done = false;
    move |frame| {
        let lose = !done && pick(frame);
        done |= lose;
        lose
    }
}

#[test]
fn a_calm_network_needs_no_resends() {
    for mtu in [564, 1500, 9000, 65536] {
        let server = FakeServer::new(Manner::ByTheBook);
        let mut net = SimNet::new("calm", mtu.into(), Weather::calm(), client(mtu, LEN), server);
        assert!(matches!(net.run(), Ok(Ending::Complete)));
        assert!(net.server.core() == net.client.core.bytes);
        assert_eq!(net.client.client.stats().resends, 0);
        assert_eq!(net.server.headers.len(), 1);
        let order = [MessageKind::Herald, MessageKind::Vmcore, MessageKind::Kdh, MessageKind::Finished];
        assert_eq!(net.server.order, order);
    }
}

#[test]
fn last_ack_lost_is_made_good_by_our_receiver() {
    let finished = 1 + 150 + 2;
    let mut net = net("last-ack", HostStation::new()).losing(once(move |frame| ack(frame) == Some(finished)));
    complete(&mut net);
    assert_eq!(net.client.client.stats().resends, 1);
}

#[test]
fn last_ack_lost_of_a_stock_server_is_unconfirmed() {
    let mut net = net("last-ack-stock", FakeServer::new(Manner::LosesLastAck));
    let why = unconfirmed(&mut net);
    assert_eq!(why, "10.0.0.9:40000 has acknowledged the whole core but not within 60s that it is stored");
    assert!(net.server.core() == net.client.core.bytes);
    assert!(net.server.finished);
}

#[test]
fn herald_duplicated_after_data_began_is_harmless_to_our_receiver() {
    let mut net = net("late-herald", HostStation::new()).with(Replay::herald_after(20));
    complete(&mut net);
}

#[test]
fn herald_duplicated_after_data_began_makes_a_stock_server_forget_and_the_client_says_so() {
    let mut net = net("late-herald-stock", FakeServer::new(Manner::ByTheBook)).with(Replay::herald_after(20));
    let why = failed(&mut net);
    assert!(why.starts_with("10.0.0.9:40000 stopped acknowledging while sending memory"), "{why}");
    assert_eq!(net.server.earlier.len(), 1);
    assert!(ignored(&net.client.client, Ignored::OtherServerPort) > 0);
}

#[test]
fn late_acks_of_old_messages_are_ignored() {
    let mut net =
        net("late-acks", FakeServer::new(Manner::LateAcks { every: 7, by: Duration::from_micros(300) }));
    assert!(matches!(net.run(), Ok(Ending::Complete)));
    assert!(net.server.core() == net.client.core.bytes);
    assert!(ignored(&net.client.client, Ignored::RepeatedAck) > 0);
}

#[test]
fn a_server_that_moves_its_port_is_not_followed() {
    let mut net = net("moved-port", FakeServer::new(Manner::MovesPort { after: 100 }));
    let why = failed(&mut net);
    assert!(why.starts_with("10.0.0.9:40000 stopped acknowledging"), "{why}");
    assert_eq!(net.client.client.missing(), [(100 * 1448, LEN as u64)]);
    assert!(ignored(&net.client.client, Ignored::OtherServerPort) > 0);
}

#[test]
fn acks_from_another_host_do_not_count() {
    let mut net = net("other-host", FakeServer::new(Manner::AcksFromAnotherHost));
    failed(&mut net);
    assert_eq!(net.client.client.missing(), [(0, LEN as u64)]);
    assert!(ignored(&net.client.client, Ignored::OtherSource) > 0);
}

#[test]
fn a_server_behind_the_gateway_is_reached_through_it() {
    let core = Core::solid(&mut Rng::new(1), LEN);
    let config = ClientConfig { gateway: Some(GATEWAY_IP), ..ClientStation::config(1500) };
    let client = ClientStation::new(config, ClientStation::plan(&core), core);
    let mut net = SimNet::new("gateway", 0, Weather::calm(), client, Gateway::before(HostStation::new()));
    assert!(matches!(net.run(), Ok(Ending::Complete)));
    let by = net.client.events.iter().find_map(|event| match event {
        ClientEvent::Resolved { hop, .. } => Some(*hop),
        _ => None,
    });
    assert_eq!(by, Some(NextHop::Gateway));
    assert!((ms(3000)..ms(3200)).contains(&net.elapsed()), "{:?}", net.elapsed());
}

#[test]
fn a_server_behind_an_unknown_gateway_is_not_found() {
    let mut net = net("no-gateway", Gateway::before(HostStation::new()));
    let why = failed(&mut net);
    assert_eq!(why, "10.0.0.9 does not answer ARP, and no gateway is configured (is it on this network?)");
    assert_eq!(net.elapsed(), ms(3000));
}

#[test]
fn a_host_without_a_server_is_named_with_its_port() {
    let mut net = net("deaf", FakeServer::new(Manner::Deaf));
    let why = failed(&mut net);
    assert_eq!(why, "no netdump server answers at 10.0.0.9:20023 (UDP) within 12s");
}

#[test]
fn a_server_that_asks_for_our_address_in_the_middle_gets_it() {
    let mut net = net("forgetful", FakeServer::new(Manner::ForgetsNeighbor { every: 20 }));
    assert!(matches!(net.run(), Ok(Ending::Complete)));
    assert!(net.server.core() == net.client.core.bytes);
    assert!(net.elapsed() < ms(500), "{:?}", net.elapsed());
}

#[test]
fn a_server_that_never_finishes_is_unconfirmed() {
    let mut net = net("unfinished", FakeServer::new(Manner::NeverAcksFinished));
    unconfirmed(&mut net);
    assert!((ms(60_000)..ms(60_500)).contains(&net.elapsed()), "{:?}", net.elapsed());
}

#[test]
fn messages_lost_at_the_edges_of_31_32_and_64_bits_are_missed_and_sent_again() {
    let edges: [&[u32]; 11] = [
        &[1],
        &[31],
        &[32],
        &[33],
        &[63],
        &[64],
        &[65],
        &[1, 33],
        &[31, 63],
        &[32, 64],
        &[1, 2, 31, 32, 33, 63, 64],
    ];
    for (case, lost) in edges.into_iter().enumerate() {
        let mut left = lost.to_vec();
        let lose = move |frame: &[u8]| {
            // Data begins with message 2.
            let found =
                message(frame).and_then(|(_, number)| left.iter().position(|lost| lost + 1 == number));
            found.map(|index| left.remove(index)).is_some()
        };
        let client = client(1500, LEN);
        let mut net =
            SimNet::new("edges", case as u64, Weather::calm(), client, HostStation::new()).losing(lose);
        complete(&mut net);
        assert_eq!(net.client.client.stats().resends, lost.len() as u64, "{lost:?}");
    }
}

#[test]
fn any_one_lost_frame_costs_a_second_at_most_and_one_of_data_less_than_half() {
    // All frames of a dump of 20 messages: ARP and its answer, HERALD, data, KDH and FINISHED with their acks.
    for lost in 0..2 + 2 * (20 + 3) {
        let mut count = 0;
        let lose = move |_: &[u8]| {
            count += 1;
            count == lost + 1
        };
        let client = client(1500, 20 * 1448);
        let mut net = SimNet::new("one-lost", lost, Weather::calm(), client, HostStation::new()).losing(lose);
        complete(&mut net);
        // What opens and closes the dump has the original's patience.
        let data = 4..4 + 2 * 20;
        let limit = if data.contains(&lost) { ms(500) } else { ms(1100) };
        assert!(net.elapsed() < limit, "without frame {lost}: {:?}", net.elapsed());
    }
}

#[test]
fn any_one_frame_may_come_twice_and_late() {
    for copied in 0..2 + 2 * (20 + 3) {
        /// Sends one frame of everybody again.
        struct Again {
            left: u64,
            frame: Option<Vec<u8>>,
        }
        impl Station for Again {
            fn handle_frame(&mut self, _now: std::time::Instant, frame: &[u8]) {
                if self.left == 0 {
                    self.frame = Some(frame.to_vec());
                }
                self.left = self.left.wrapping_sub(1);
            }
            fn handle_timeout(&mut self, _now: std::time::Instant) {}
            fn poll_transmit(&mut self, _now: std::time::Instant, frame: &mut Vec<u8>) -> bool {
                self.frame.take().map(|again| *frame = again).is_some()
            }
            fn poll_timeout(&self) -> Option<std::time::Instant> {
                None
            }
        }
        let client = client(1500, 20 * 1448);
        let mut net = SimNet::new("one-twice", copied, Weather::calm(), client, HostStation::new())
            .with(Again { left: copied, frame: None });
        complete(&mut net);
    }
}

#[test]
fn a_full_link_only_slows_the_dump() {
    for capacity in [1, 2, 7, 63] {
        let mut net = net("full-link", HostStation::new()).with_capacity(capacity);
        complete(&mut net);
        assert_eq!(net.client.client.stats().resends, 0, "{capacity}");
    }
}

#[test]
fn a_receiver_that_restarts_is_missed() {
    let client = client(1500, LEN);
    let restart = client.started() + Duration::from_micros(320);
    let mut net =
        SimNet::new("restart", 0, Weather::calm(), client, HostStation::restarting_at(restart, Memory::Lost));
    let why = failed(&mut net);
    assert!(why.starts_with("10.0.0.9:49152 stopped acknowledging while sending memory, 12s ago"), "{why}");
    let missing = net.client.client.missing();
    assert!(missing[0].0 > 0 && missing[0].0 < LEN as u64, "{missing:?}");
    net.server.close(net.now());
    assert!(net.client.core.agrees_but_for(net.server.stored()[0].core, &missing));
}

#[test]
fn a_link_that_goes_away_for_seconds_is_waited_for() {
    let away = |until| Weather { outage: Duration::from_micros(400)..until, ..Weather::calm() };
    let mut short = SimNet::new("away", 5, away(ms(5000)), client(1500, LEN), HostStation::new());
    complete(&mut short);
    assert!(short.elapsed() < ms(6500), "{:?}", short.elapsed());
    let mut long = SimNet::new("away", 30, away(ms(30_000)), client(1500, LEN), HostStation::new());
    failed(&mut long);
}

#[test]
fn our_own_frames_coming_back_are_ignored() {
    let mut net = net("echo", HostStation::new()).with(Echo::default());
    complete(&mut net);
    assert!(ignored(&net.client.client, Ignored::OwnFrame) > 150);
    assert_eq!(ignored(&net.client.client, Ignored::AddressConflict), 0);
}

#[test]
fn a_slow_path_sees_few_resends() {
    for delay in [ms(100), ms(200), ms(300)] {
        let weather = Weather { delay: delay..delay, ..Weather::calm() };
        let mut net = SimNet::new("slow", 0, weather, client(1500, 1000 * 1448), HostStation::new());
        complete(&mut net);
        let resends = net.client.client.stats().resends;
        assert!(resends < 200, "{resends} of 1000 at {delay:?}");
    }
}
