//! Who is on the wire: clients and servers, ours and others', good and bad.

pub mod classic;
pub mod core;
pub mod crowd;
pub mod fake_server;
pub mod mischief;
pub mod pranks;
pub mod stations;
pub mod talker;

pub use self::core::Core;
pub use classic::{AckMask, Classic};
pub use crowd::Crowd;
pub use fake_server::{FakeServer, Manner, Writes};
pub use mischief::{Echo, Replay, Vandal};
pub use stations::{ClientStation, HostStation};
