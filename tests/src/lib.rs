//! The test bench.

pub mod fake_guest;
pub mod fake_kernel;
pub mod readers;
pub mod simnet;
