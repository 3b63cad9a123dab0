//! Dumps over real networks of the kernel's own: taps, bridges, a router, in network namespaces that each test makes for
//! itself.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod addresses;
mod failures;
mod interfaces;
mod lab;
mod links;
mod rates;
mod reset;
mod routing;
mod wedge;
mod wire;

/// Ends a test on a machine without network namespaces and taps, or without KVM.
macro_rules! needs_network {
    () => {
        if !harness::needs::Need::Network.or_skip() || !harness::needs::Need::Kvm.or_skip() {
            return;
        }
    };
}
pub(crate) use needs_network;
