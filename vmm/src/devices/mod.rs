//! What the guest sees beside its processors and its RAM: one device a file. They know the bus and guest memory, and
//! report through [`crate::events`].

pub mod i8042;
pub mod pci;
pub mod reset;
pub mod rtc;
pub mod serial;
pub mod sleep;
pub mod virtio;
