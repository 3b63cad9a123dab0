//! The only unsafe code of the crate: system calls that no safe wrapper offers, one kind a file.
#![allow(unsafe_code)]

pub(crate) mod eventfd;
pub mod interface;
pub mod iovec;
mod kvm;
pub mod tap;

pub(crate) use kvm::{add_memory_slot, internal_suberror};
