//! The client against servers good and bad, over simulated networks good and bad.

mod contract;
mod freebsd_session;
mod named_cases;
mod stock_server;

use harness::simnet::{ClientStation, Core, Rng};
use netdump::client::{Client, Ending};

/// A client with this many random bytes to send.
fn client(mtu: u32, len: usize) -> ClientStation {
    let core = Core::solid(&mut Rng::new(len as u64), len);
    ClientStation::new(ClientStation::config(mtu), ClientStation::plan(&core), core)
}

/// Why a dump did not end well.
fn reason(ending: &Ending) -> String {
    ending.reason().map_or_else(String::new, ToString::to_string)
}

/// How often frames were ignored for this reason.
fn ignored(client: &Client, reason: netdump::client::Ignored) -> u64 {
    client.stats().ignored.of(reason)
}
