//! Small networks: the VMM's host with a bridge, a collector that runs the receiver, and what may lie between them.
//!
//! ```text
//! host: tap0 -- br0 -- up0 ======== eth0 :collector 10.0.0.9
//! host: tap0 -- br0 -- up0 ======== lan0 :router: wan0 ======== eth0 :collector 10.0.0.9
//!                          10.0.1.1              10.0.0.1
//! ```

use std::path::{Path, PathBuf};

use harness::guests::{Bench, assert_code, verify};
use harness::netns::{Namespace, until};
use harness::programs::{Ended, Running, arg, program};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// Where the receiver is.
pub(crate) const SERVER: &str = "10.0.0.9";
/// The guest on the collector's network.
pub(crate) const CLIENT: &str = "10.0.0.5";
/// The guest on the network behind the router.
pub(crate) const FAR_CLIENT: &str = "10.0.1.5";
/// The router on that network.
pub(crate) const GATEWAY: &str = "10.0.1.1";
/// The address of a guest's card that was given none.
pub(crate) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x6e, 0x64, 0x01];
/// The options of a guest on `tap0` that dumps to the collector.
pub(crate) const TO_COLLECTOR: [&str; 6] =
    ["--tap", "tap0", "--netdump-server", SERVER, "--netdump-client", CLIENT];
/// A guest with little memory that it fills a little of, for tests that look at each frame.
pub(crate) const SMALL: [&str; 3] = ["--memory=24M", "--kenv", "fill=4M"];
/// Little patience, for dumps that are to fail: 20 ms a try, 100 ms in all.
pub(crate) const IMPATIENT: [&str; 6] =
    ["--netdump-polls", "40", "--netdump-retries", "3", "--netdump-arp-retries", "5"];

/// A host with a bridge, and a collector.
pub(crate) struct Lab {
    /// Where `vmm` runs.
    pub(crate) host: Namespace,
    /// Where `netdump serve` runs.
    pub(crate) collector: Namespace,
    /// What is between their networks.
    router: Option<Namespace>,
}

impl Lab {
    /// Host and collector on one network.
    pub(crate) fn bridged() -> Self {
        Self::bridged_with_mtu(1500)
    }

    /// The same with another MTU everywhere.
    pub(crate) fn bridged_with_mtu(mtu: u32) -> Self {
        let (host, collector) = (Namespace::new(), Namespace::new());
        host.cable("up0", &collector, "eth0");
        collector.ip(&format!("link set eth0 mtu {mtu}"));
        collector.ip("address add 10.0.0.9/24 dev eth0");
        bridge(&host, mtu);
        Self { host, collector, router: None }
    }

    /// Host and collector on two networks, with a router between them.
    pub(crate) fn routed() -> Self {
        let (host, router, collector) = (Namespace::new(), Namespace::new(), Namespace::new());
        host.cable("up0", &router, "lan0");
        router.cable("wan0", &collector, "eth0");
        router.ip("address add 10.0.1.1/24 dev lan0");
        router.ip("address add 10.0.0.1/24 dev wan0");
        router.forward();
        collector.ip("address add 10.0.0.9/24 dev eth0");
        collector.ip("route add default via 10.0.0.1");
        bridge(&host, 1500);
        Self { host, collector, router: Some(router) }
    }

    /// Another tap on the bridge.
    pub(crate) fn add_tap(&self, name: &str) {
        add_tap(&self.host, name, 1500);
    }

    /// Starts the receiver in a folder of its own.
    pub(crate) fn serve(&self) -> Receiver {
        let folder = tempfile::tempdir().unwrap();
        Receiver { running: self.serve_in(folder.path()), folder }
    }

    /// Starts a receiver that stores in `folder`, and waits until it listens.
    pub(crate) fn serve_in(&self, folder: &Path) -> Running {
        self.serve_at(SERVER, folder)
    }

    /// The same at another address or port.
    pub(crate) fn serve_at(&self, address: &str, folder: &Path) -> Running {
        let arguments = ["serve", "--dir", arg(folder), "--listen", address];
        let running = self.collector.start(program("netdump"), &arguments);
        running.wait_for_stderr("listening");
        running
    }

    /// Starts `vmm run` on the host.
    pub(crate) fn start(&self, bench: &Bench, options: &[&str]) -> Running {
        self.host.start(program("vmm"), &bench.arguments(options))
    }

    /// Runs a guest that dumps; the dump must be complete, its core whole and its memory what the guest left.
    pub(crate) fn dump(&self, receiver: &Receiver, bench: &Bench, options: &[&str]) -> Dump {
        let before = receiver.cores().len();
        let vmm = self.start(bench, options).wait();
        assert_code(&vmm, 10);
        let core = receiver.wait_for_cores(before + 1).remove(before);
        check(bench, &core);
        Dump { vmm, core, report: bench.report() }
    }

    /// Sets the MTU between router and collector.
    pub(crate) fn narrow_the_far_network(&self, mtu: u32) {
        let router = self.router.as_ref().expect("there is a router");
        router.ip(&format!("link set wan0 mtu {mtu}"));
        self.collector.ip(&format!("link set eth0 mtu {mtu}"));
    }

    /// Makes the way from the host to the collector slow, so that a test can act in the middle of a dump.
    pub(crate) fn slow_down(&self, megabytes_per_second: u32) {
        let rate = 8 * megabytes_per_second;
        self.host.tool("tc", &format!("qdisc add dev up0 root tbf rate {rate}mbit burst 64kb limit 4mb"));
    }
}

/// `br0` with `tap0` and `up0`, all up.
fn bridge(host: &Namespace, mtu: u32) {
    host.ip(&format!("link add br0 mtu {mtu} type bridge"));
    host.ip(&format!("link set up0 master br0 mtu {mtu}"));
    host.ip("link set br0 up");
    add_tap(host, "tap0", mtu);
}

fn add_tap(host: &Namespace, name: &str, mtu: u32) {
    host.ip(&format!("tuntap add {name} mode tap"));
    host.ip(&format!("link set {name} master br0 mtu {mtu} up"));
}

/// Asserts that a core and what the report says of it are whole, and that the memory in it is what the guest left.
#[track_caller]
pub(crate) fn check(bench: &Bench, core: &Path) {
    verify(core, &bench.report_path());
    assert!(bench.check_memory(core) > 0, "the guest filled memory");
    assert_eq!(bench.report()["dump"]["outcome"], "complete");
}

/// A dump that arrived.
#[derive(Debug)]
pub(crate) struct Dump {
    /// What `vmm` said.
    pub(crate) vmm: Ended,
    /// Where the receiver stored it.
    pub(crate) core: PathBuf,
    /// The report.
    pub(crate) report: Value,
}

/// `netdump serve`, and its folder.
pub(crate) struct Receiver {
    /// The program.
    pub(crate) running: Running,
    /// Where it stores.
    pub(crate) folder: TempDir,
}

impl Receiver {
    /// The cores stored so far, incomplete ones included, in the order in which they ended.
    pub(crate) fn cores(&self) -> Vec<PathBuf> {
        self.running.stdout().lines().map(PathBuf::from).collect()
    }

    /// Waits until there are so many.
    pub(crate) fn wait_for_cores(&self, count: usize) -> Vec<PathBuf> {
        self.running.wait_for_stdout("\n", count);
        self.cores()
    }

    /// Waits until a dump has begun.
    pub(crate) fn wait_for_dump(&self) {
        until("the dump to begin", || self.running.stderr().contains("dump begins"));
    }

    /// Stops it as Ctrl-C does.
    pub(crate) fn stop(self) -> Ended {
        self.running.signal(Signal::SIGINT);
        self.running.wait()
    }
}

/// Why a dump failed, as the report has it.
#[track_caller]
pub(crate) fn reason(bench: &Bench) -> String {
    let report = bench.report();
    report["dump"]["reason"].as_str().unwrap_or_else(|| panic!("no reason in {report:#}")).to_owned()
}
