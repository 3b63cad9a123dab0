//! Netdump under bad conditions: a simulated network, peers good and bad, and what they must live through.

pub mod judge;
pub mod peers;
pub mod sim;
