//! The test bench: fakes, independent readers and what the test binaries share. Nothing here is linked into the product.

pub mod fake_guest;
pub mod fake_kernel;
pub mod fake_linux;
pub mod fake_minidump;
pub mod guests;
pub mod lab;
pub mod needs;
pub mod netns;
pub mod pcap;
pub mod programs;
pub mod readers;
pub mod ufs_disk;

/// The network simulator and everyone on its wire.
pub mod simnet {
    pub use netdump::torture::peers::*;
    pub use netdump::torture::sim::*;
}
