//! A stock netdumpd's socket buffer holds about 100 datagrams of 1448 bytes or 30 of 4096, and it stores 270 MB/s of the
//! small or 500 MB/s of the large ones. What does not fit is lost without a word.

use std::time::Duration;

use harness::simnet::{FakeServer, Manner, SimNet, Weather};
use netdump::client::Ending;

use crate::client;

/// Bytes a second of simulated time, and datagrams that the server had no room for.
fn rate(mtu: u32, weather: Weather) -> (f64, u64) {
    let len = 32 << 20;
    let mut net =
        SimNet::new("stock", mtu.into(), weather, client(mtu, len), FakeServer::new(Manner::StockBuffer));
    assert!(matches!(net.run(), Ok(Ending::Complete)));
    assert!(net.server.core() == net.client.core.bytes);
    (len as f64 / net.elapsed().as_secs_f64(), net.server.overflows)
}

#[test]
fn small_messages_fill_its_buffer_without_loss() {
    let (rate, overflows) = rate(1500, Weather::calm());
    assert!(rate > 0.9 * 270e6, "{:.0} MB/s", rate / 1e6);
    assert_eq!(overflows, 0);
}

#[test]
fn large_messages_do_not_collapse() {
    let (rate, overflows) = rate(9000, Weather::calm());
    assert!(rate > 0.8 * 500e6, "{:.0} MB/s with {overflows} overflows", rate / 1e6);
}

#[test]
fn stray_losses_cost_little() {
    let (rate, _) = rate(1500, Weather::lossy(1));
    assert!(rate > 0.5 * 270e6, "{:.0} MB/s", rate / 1e6);
}

#[test]
fn losses_on_a_path_with_a_round_trip_do_not_collapse_the_rate() {
    let delay = Duration::from_millis(1);
    let far = |loss| Weather { delay: delay..delay, ..Weather::lossy(loss) };
    let (calm, _) = rate(1500, far(0));
    let (stormy, _) = rate(1500, far(50));
    assert!(stormy > 0.3 * calm, "{:.1} of {:.1} MB/s", stormy / 1e6, calm / 1e6);
}
