//! What the guest sees beside its processors and its RAM: one device a file.

pub mod virtio;
