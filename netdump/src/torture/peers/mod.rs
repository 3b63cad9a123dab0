//! Who is on the wire: clients and servers, ours and others', good and bad.

use std::net::SocketAddrV4;

pub mod classic;
pub mod core;
pub mod crowd;
pub mod fake_server;
pub mod mischief;
pub mod pranks;
pub mod stations;
pub mod store;
pub mod talker;

pub use self::core::Core;
pub use classic::{AckMask, Classic, ClassicEnding, Patience};
pub use crowd::{Both, Crowd};
pub use fake_server::{FakeServer, Manner, Writes};
pub use mischief::{Echo, Replay, Stranger, Vandal};
pub use pranks::{Paths, Prank, PrankEnding, Prankster};
pub use stations::{ClientStation, HostStation, Memory};
pub use store::DiskKind;
pub use talker::{Home, Wired};

/// Clients whose cores are known.
pub trait Dumps {
    /// Who dumps what.
    fn cores(&self) -> Vec<(SocketAddrV4, &[u8])>;
}
