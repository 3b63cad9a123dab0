//! The networks of the lab, each run's in namespaces of its own.
//!
//! ```text
//! host: tap0 -- br0 -- up0 ======== eth0 :collector 10.0.0.9
//! host: tap0 -- br0 -- up0 ======== lan0 :router: wan0 ======== eth0 :collector 10.0.0.9
//!                          10.0.1.1              10.0.0.1
//! ```

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::thread;

use crate::netns::Namespace;

use super::scenario::{Network, Scenario};

/// Where the receiver is.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
/// Gives the file away to whoever connects.
const GIVE: u16 = 9000;
/// Takes it back.
const TAKE: u16 = 9001;
/// Length of the file that a guest moves, in bytes.
const FILE: u32 = 3 << 20;

/// What a run's programs are on.
#[derive(Debug)]
pub struct Networks {
    /// Where `vmm` runs.
    pub host: Namespace,
    /// Where `netdump serve` runs.
    pub collector: Namespace,
    router: Option<Namespace>,
}

impl Networks {
    /// Those of a scenario; none for a scenario without.
    pub fn of(scenario: &Scenario) -> Option<Self> {
        let networks = match scenario.network {
            Network::Bridge => Self::bridged(),
            Network::Gateway => Self::routed(),
            Network::None => return None,
        };
        if scenario.loss > 0 {
            let words = |interface| format!("qdisc add dev {interface} root netem loss {}%", scenario.loss);
            networks.host.tool("tc", &words("up0"));
            networks.collector.tool("tc", &words("eth0"));
        }
        Some(networks)
    }

    fn bridged() -> Self {
        let (host, collector) = (Namespace::new(), Namespace::new());
        host.cable("up0", &collector, "eth0");
        collector.ip("address add 10.0.0.9/24 dev eth0");
        bridge(&host);
        Self { host, collector, router: None }
    }

    fn routed() -> Self {
        let (host, router, collector) = (Namespace::new(), Namespace::new(), Namespace::new());
        host.cable("up0", &router, "lan0");
        router.cable("wan0", &collector, "eth0");
        router.ip("address add 10.0.1.1/24 dev lan0");
        router.ip("address add 10.0.0.1/24 dev wan0");
        router.forward();
        collector.ip("address add 10.0.0.9/24 dev eth0");
        collector.ip("route add default via 10.0.0.1");
        bridge(&host);
        Self { host, collector, router: Some(router) }
    }

    /// The guest's address.
    pub fn client(&self) -> Ipv4Addr {
        if self.router.is_some() { Ipv4Addr::new(10, 0, 1, 5) } else { Ipv4Addr::new(10, 0, 0, 5) }
    }

    /// The router's address on the guest's network.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.router.as_ref().map(|_| Ipv4Addr::new(10, 0, 1, 1))
    }

    /// Gives the file away on the collector, and keeps what comes back.
    pub fn move_files(&self, keep: PathBuf) -> anyhow::Result<()> {
        let listen = |port| self.collector.inside(move || TcpListener::bind((SERVER, port)));
        let (give, take) = (listen(GIVE)?, listen(TAKE)?);
        thread::spawn(move || {
            for stream in give.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(&file()));
            }
        });
        thread::spawn(move || {
            for stream in take.incoming() {
                let mut taken = Vec::new();
                let read =
                    |stream: std::net::TcpStream| stream.take(2 * u64::from(FILE)).read_to_end(&mut taken);
                let _ = stream.and_then(read).and_then(|_| std::fs::write(&keep, &taken));
            }
        });
        Ok(())
    }
}

/// The file that guests move: no two parts of it are alike.
pub fn file() -> Vec<u8> {
    (0..FILE / 4).flat_map(|number| number.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
}

/// `br0` with `tap0` and `up0`, all up.
fn bridge(host: &Namespace) {
    host.ip("link add br0 type bridge");
    host.ip("link set up0 master br0");
    host.ip("link set br0 up");
    host.ip("tuntap add tap0 mode tap");
    host.ip("link set tap0 master br0 up");
}
