//! Readers of stored dumps that share nothing with the product: own offsets, own types, written from the formats'
//! descriptions. They are for tests, so anything odd is an error.

pub mod elf;
pub mod freebsd;
pub mod full;
pub mod kdump;
pub mod minidump;
pub mod unpack;
