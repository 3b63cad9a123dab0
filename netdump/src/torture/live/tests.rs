//! The kit's two live halves, and known-bad peers, over loopback.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::outside::RealServer;
use super::*;
use crate::torture::control::Control;
use crate::torture::judge::Fault;
use crate::torture::peers::{AckMask, Classic, Core, Home, Patience, Wired, pranks};
use crate::torture::sim::hosts::{CLIENT_IP, CLIENT_MAC, SERVER_IP};
use crate::torture::sim::{Rng, Weather};
use crate::torture::tally::Tally;

/// Tortures FreeBSD's client with this mask, dump after dump, and says what came of it.
fn torture_freebsd(mask: AckMask, seeds: std::ops::Range<u64>, run: u64) -> Tally {
    let kit = ClientUnderTest::at_port(0).unwrap();
    let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, kit.port());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                dump(mask, server, run, &|| !is_over.load(Ordering::Relaxed));
            }
        });
        let control = Control { stops: &|| false, ended: &|| {} };
        let tally = torture_client(&kit, seeds, Some("by-the-book"), &control, &|_, _| {});
        is_over.store(true, Ordering::Relaxed);
        tally.unwrap()
    })
}

/// One dump of a FreeBSD that is in a hurry.
fn dump(mask: AckMask, server: SocketAddrV4, run: u64, more: &dyn Fn() -> bool) {
    let patience = Patience { polls: 200, ..Patience::default() };
    let classic = Classic::new(mask, 1500, patience, Core::solid(&mut Rng::new(run), 300_000));
    let home = Home { mac: CLIENT_MAC, address: CLIENT_IP, server: SERVER_IP };
    let client = Wired::new(Instant::now(), home, classic);
    let mut net = SimNet::new("freebsd", run, Weather::calm(), client, RealServer::new(server, run));
    play(&mut net, |net| &mut net.server, more).unwrap();
}

fn faults(tally: &Tally) -> Vec<&str> {
    let failures = tally.rows().iter().flat_map(|row| &row.failures);
    failures.flat_map(|failure| &failure.faults).map(String::as_str).collect()
}

/// Seeds whose weather loses 5 % or more.
fn lossy_seeds() -> impl Iterator<Item = u64> {
    (0..).filter(|seed| Weather::brief(&mut Rng::new(*seed)).loss >= 50)
}

#[test]
fn freebsds_mask_is_found_over_real_sockets_and_its_twin_is_not_accused() {
    let is_hole = |seed: u64| {
        let tally = torture_freebsd(AckMask::Int, seed..seed + 1, 0x7001);
        faults(&tally).iter().any(|fault| fault.starts_with("the client sent FINISHED, though bytes"))
    };
    let found = lossy_seeds().take(10).find(|seed| is_hole(*seed)).expect("it is found");
    let tally = torture_freebsd(AckMask::Wide, found..found + 1, 0x7002);
    assert_eq!(faults(&tally), [""; 0]);
}

#[test]
fn a_server_that_acknowledges_the_end_of_half_a_stream_is_found() {
    // netdumpd does so, and the fake server does as netdumpd.
    let bad = ClientUnderTest::at_port(0).unwrap();
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, bad.port());
    let is_over = AtomicBool::new(false);
    let prank =
        |seed: &u64| Rng::new(*seed).pick(&pranks::ALL).name == "FINISHED of a packed core without its end";
    let seed = (0..).find(prank).expect("each is played");
    let tally = thread::scope(|scope| {
        scope.spawn(|| {
            let control = Control { stops: &|| is_over.load(Ordering::Relaxed), ended: &|| {} };
            let calm =
                (0..).find(|seed| is_calm(&Weather::brief(&mut Rng::new(*seed)))).expect("there is one");
            torture_client(&bad, calm..calm + 100, Some("by-the-book"), &control, &|_, _| {}).unwrap();
        });
        let control = Control { stops: &|| false, ended: &|| {} };
        let server = ServerUnderTest { address, dir: None };
        let tally = torture_server(&server, seed..seed + 1, Some("live-pranks"), &control);
        is_over.store(true, Ordering::Relaxed);
        tally.unwrap()
    });
    let text = Fault::FinishedShort { announced: 8000, sent: 8 }.to_string();
    assert!(faults(&tally).contains(&text.as_str()), "{:?}", faults(&tally));
}

fn is_calm(weather: &Weather) -> bool {
    weather.loss == 0 && weather.corrupt == 0 && weather.outage.is_empty()
}
