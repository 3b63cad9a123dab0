//! The only unsafe code of the crate: system calls that no safe wrapper offers, one kind a file.
#![allow(unsafe_code)]

pub mod interface;
pub mod iovec;
pub mod tap;
