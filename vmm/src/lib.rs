//! A minimal KVM virtual machine monitor that dumps a panicked guest's memory.
//!
//! Calls point one way: `main` > [`machine`] > {[`boot`], [`devices`], [`mod@panic`], [`dump`], [`link`], [`vm`], [`vcpu`]} >
//! {[`bus`], [`memory`], [`x86_64`]} > `sys`. Devices and panic sources report through [`events`] and never know who
//! listens; [`machine`] decides.
#![deny(unsafe_code)]

mod account;
mod aftermath;
pub mod boot;
pub mod boot_disk;
pub mod bus;
pub mod config;
pub mod console;
pub mod devices;
pub mod dump;
pub mod events;
pub mod hyperv;
pub mod image;
mod input;
pub mod link;
pub mod machine;
pub mod memory;
mod msi;
pub mod nic;
pub mod output_file;
pub mod panic;
mod platform;
pub mod report;
mod signals;
pub mod sys;
pub mod vcpu;
pub mod vm;
pub mod x86_64;
