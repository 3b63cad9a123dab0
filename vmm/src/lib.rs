//! A minimal KVM virtual machine monitor that dumps a panicked guest's memory.

pub mod bus;
