//! A minimal KVM virtual machine monitor that dumps a panicked guest's memory.
#![deny(unsafe_code)]

pub mod bus;
pub mod devices;
pub mod link;
pub mod memory;
pub mod sys;
