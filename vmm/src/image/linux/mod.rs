//! Linux.
pub mod grub;
