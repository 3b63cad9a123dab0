//! Netdump under bad conditions: a simulated network, peers good and bad, and what they must live through.

mod control;
pub mod judge;
pub mod live;
pub mod peers;
pub mod scenarios;
pub mod sim;
mod simulate;
mod tally;

pub use control::Control;
pub use simulate::{find_known_bad, simulate};
pub use tally::{Discovery, Failure, Row, Tally};
