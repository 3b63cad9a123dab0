//! What the user asked for, parsed; and the one place that says which of several answers wins: an option over the
//! guest's environment, the guest's environment over what was seen on its network, and that over defaults.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use netdump::client::{WindowChoice, check_path};
use netdump::drive::Zeros;
use netdump::linux::filter::DumpFilter;
use netdump::stream::Packing;
use netdump::vmcore::FormatChoice;
use netdump::wire::message::MAX_PATH;
use netdump::wire::{MacAddr, SERVER_PORT};
use thiserror::Error;

use crate::boot::{BootProtocol, Handover, KernelImage};
use crate::devices::virtio::blk::DiskSpec;
use crate::link::LinkSpec;
use crate::memory::MemorySize;
use crate::panic::{PanicSource, SourceOptions};
use crate::sys::interface::InterfaceName;
use crate::x86_64::cpu_mask::CpuMask;

/// The machine.
#[derive(Debug)]
pub struct VmConfig {
    /// RAM.
    pub memory: MemorySize,
    /// vCPUs, 1 to [`crate::vm::MAX_CPUS`].
    pub cpus: u8,
    /// CPU features that the guest does not see.
    pub cpu_mask: CpuMask,
    /// The boot protocol; without one the image decides.
    pub boot: Option<&'static dyn BootProtocol>,
    /// Command line, kernel environment and modules.
    pub handover: Handover,
    /// The host's end of the guest's network interface; without one the guest has none.
    pub tap: Option<InterfaceName>,
    /// The guest's Ethernet address.
    pub mac: MacAddr,
    /// How the guest finds its virtio devices; without it the image decides.
    pub virtio: Option<Virtio>,
    /// The guest's disks.
    pub disks: Vec<DiskSpec>,
    /// The panic sources to arm.
    pub sources: Vec<&'static dyn PanicSource>,
    /// Their options.
    pub source_options: SourceOptions,
    /// What follows a dump.
    pub on_panic: OnPanic,
    /// Whether a guest that resets itself boots again.
    pub on_reset: OnReset,
}

/// The transport of all virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Virtio {
    /// PCI: every distribution's kernel finds them.
    Pci,
    /// Memory-mapped registers, told by ACPI.
    Mmio,
}

impl Virtio {
    /// What a kernel has a driver for.
    ///
    /// Linux: PCI, since every distribution's kernel and initrd knows it, and some leave virtio-mmio out. FreeBSD: its
    /// GENERIC kernel has no virtio-mmio, its FIRECRACKER kernel has. Others get the simpler one.
    pub fn for_image(image: &KernelImage) -> Self {
        let has = |symbol| image.symbols().address(symbol).is_some();
        let is_generic_freebsd = has("vtpci_modern_driver") && !has("vtmmio_probe");
        if image.is_linux_kernel() || is_generic_freebsd { Self::Pci } else { Self::Mmio }
    }
}

/// What follows a panic, whether the dump succeeded or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPanic {
    /// The VMM exits.
    Exit,
    /// The guest boots again.
    Reset,
    /// The guest stays paused until SIGTERM.
    Hold,
}

/// What follows a reset that is no panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReset {
    /// The guest boots again.
    Boot,
    /// The VMM exits as if the guest had switched itself off.
    Exit,
}

/// Whether the guest's own wishes about its dump count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEnvironment {
    /// They do, where no option says otherwise.
    Read,
    /// They do not.
    Ignore,
}

/// The dump.
#[derive(Debug)]
pub struct DumpConfig {
    /// Whether to dump at all.
    pub enabled: bool,
    /// `--netdump-server`.
    pub server: Option<SocketAddrV4>,
    /// `--netdump-client`.
    pub client: Option<Ipv4Addr>,
    /// `--netdump-gateway`.
    pub gateway: Option<Ipv4Addr>,
    /// `--netdump-path`.
    pub path: Option<String>,
    /// `--netdump-link`.
    pub link: Option<LinkSpec>,
    /// Whether the guest's environment counts.
    pub guest_environment: GuestEnvironment,
    /// Servers that a guest may ask for; any when empty.
    pub allowed_servers: Vec<Cidr>,
    /// Core format.
    pub format: FormatChoice,
    /// What is left out of a Linux guest's dump.
    pub filter: DumpFilter,
    /// `--dump-compress`, `--dump-pubkey` and `--dump-cipher`.
    pub packing: Packing,
    /// Half-milliseconds that one try waits for its ack.
    pub polls: u32,
    /// Tries after the first.
    pub retries: u32,
    /// ARP requests for each target.
    pub arp_retries: u32,
    /// Longest time for the whole dump.
    pub deadline: Option<Duration>,
    /// How much may be on its way.
    pub window: WindowChoice,
    /// Most bytes of frames in a second.
    pub rate: Option<NonZeroU64>,
    /// Whether zeros are left out.
    pub zeros: Zeros,
    /// Where the embedded receiver stores.
    pub crash_dir: PathBuf,
    /// Where to record the dump's frames.
    pub pcap: Option<PathBuf>,
    /// The guest's name, for the dump header, where the guest has none.
    pub name: String,
}

/// A block of IPv4 addresses, such as 10.0.0.0/24.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

/// The text is no block of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not an IPv4 address or block such as 10.0.0.9 or 10.0.0.0/24")]
pub struct ParseCidrError(String);

impl Cidr {
    /// Whether the block holds `address`.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.network.to_bits()) & self.mask() == 0
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(u32::BITS - u32::from(self.prefix)).unwrap_or(0)
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || ParseCidrError(text.to_owned());
        let (network, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let network = network.parse().map_err(|_| fail())?;
        let prefix = prefix.parse().ok().filter(|&bits| bits <= 32).ok_or_else(fail)?;
        Ok(Self { network, prefix })
    }
}

/// The text is no server.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not an IPv4 address such as 10.0.0.9 or 10.0.0.9:20023")]
pub struct ParseServerError(String);

/// Reads `IP` or `IP:PORT`.
pub fn parse_server(text: &str) -> Result<SocketAddrV4, ParseServerError> {
    let with_port = text.parse().ok();
    let server = with_port.or_else(|| text.parse().ok().map(|ip| SocketAddrV4::new(ip, SERVER_PORT)));
    server
        .filter(|server| is_host(*server.ip()) && server.port() != 0)
        .ok_or_else(|| ParseServerError(text.to_owned()))
}

/// Whether an address can be a host's.
fn is_host(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast())
}

/// Why a guest's wish was not followed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Refused {
    /// The variable.
    pub variable: &'static str,
    /// What the guest had put into it; at most 200 characters of it.
    pub value: String,
    /// The reason.
    pub reason: String,
}

/// Where a dump goes, decided when the panic comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// How frames travel.
    pub link: LinkSpec,
    /// The receiver; `None` for the embedded one.
    pub server: Option<SocketAddrV4>,
    /// The guest's address, where one is known.
    pub client: Option<Ipv4Addr>,
    /// The way out of the guest's network.
    pub gateway: Option<Ipv4Addr>,
    /// Directory below the receiver's.
    pub path: Option<String>,
    /// What becomes of the core on its way.
    pub packing: Packing,
    /// What the guest asked for and did not get.
    pub refused: Vec<Refused>,
}

/// What the decision about a dump's target rests on, beside the options.
#[derive(Debug)]
pub struct Wishes<'a> {
    /// The guest's kernel environment.
    pub environment: &'a [(String, String)],
    /// The address that the guest last used on its NIC.
    pub seen: Option<Ipv4Addr>,
    /// Whether the guest has a network interface.
    pub has_tap: bool,
}

impl DumpConfig {
    /// Dumps to the embedded receiver, unless the guest asks for another, with the protocol's own patience.
    pub fn new(crash_dir: PathBuf, name: String) -> Self {
        Self {
            enabled: true,
            server: None,
            client: None,
            gateway: None,
            path: None,
            link: None,
            guest_environment: GuestEnvironment::Read,
            allowed_servers: Vec::new(),
            format: FormatChoice::Auto,
            filter: DumpFilter::default(),
            packing: Packing::default(),
            polls: 2000,
            retries: 10,
            arp_retries: 3,
            deadline: None,
            window: WindowChoice::default(),
            rate: None,
            zeros: Zeros::Skip,
            crash_dir,
            pcap: None,
            name,
        }
    }

    /// The link that is used once it is known whether there is a server: also known before the guest starts, when the
    /// server is an option.
    pub fn link_for(&self, server: Option<SocketAddrV4>, has_tap: bool) -> LinkSpec {
        match (&self.link, server) {
            (Some(link), _) => link.clone(),
            (None, None) => LinkSpec::Embedded,
            (None, Some(_)) if has_tap => LinkSpec::GuestTap,
            (None, Some(_)) => LinkSpec::Udp,
        }
    }

    /// Decides where the dump goes.
    pub fn target(&self, wishes: &Wishes<'_>) -> Target {
        let mut guest = GuestWishes { environment: wishes.environment, refused: Vec::new() };
        if self.guest_environment == GuestEnvironment::Ignore {
            guest.environment = &[];
        }
        let server = self.server.or_else(|| guest.server(self, wishes.has_tap));
        guest.check_interface();
        let client = self.client.or_else(|| guest.address("net.dump.client")).or(wishes.seen);
        let gateway = self.gateway.or_else(|| guest.address("net.dump.gateway"));
        let path = self.path.clone().or_else(|| guest.path());
        let link = self.link_for(server, wishes.has_tap);
        // Host sockets have the host's address and routes, and the embedded receiver is nobody's neighbour.
        let client = client.filter(|_| link != LinkSpec::Udp);
        let gateway = gateway.filter(|_| !matches!(link, LinkSpec::Udp | LinkSpec::Embedded));
        let packing = guest.packing(self);
        Target { link, server, client, gateway, path, packing, refused: guest.refused }
    }
}

/// The guest's side of the decision: every value is checked, and what is refused is remembered.
struct GuestWishes<'a> {
    environment: &'a [(String, String)],
    refused: Vec<Refused>,
}

impl<'a> GuestWishes<'a> {
    fn variable(&self, name: &str) -> Option<&'a str> {
        let found = self.environment.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn refuse(&mut self, variable: &'static str, value: &str, reason: impl Into<String>) {
        let value = value.chars().take(200).collect();
        self.refused.push(Refused { variable, value, reason: reason.into() });
    }

    fn server(&mut self, config: &DumpConfig, has_tap: bool) -> Option<SocketAddrV4> {
        const NAME: &str = "net.dump.server";
        let value = self.variable(NAME)?;
        let server = match parse_server(value) {
            Ok(server) => server,
            Err(error) => {
                self.refuse(NAME, value, error.to_string());
                return None;
            }
        };
        let allowed = config.allowed_servers.iter().any(|block| block.contains(*server.ip()));
        let uses_host_routing = config.link_for(Some(server), has_tap) == LinkSpec::Udp;
        if config.allowed_servers.is_empty() && uses_host_routing {
            // A tenant must not choose where the host itself sends to.
            self.refuse(
                NAME,
                value,
                "the udp link sends from the host: only --allow-server opens it to the guest",
            );
        } else if !config.allowed_servers.is_empty() && !allowed {
            self.refuse(NAME, value, "not among the servers of --allow-server");
        } else {
            return Some(server);
        }
        None
    }

    fn address(&mut self, name: &'static str) -> Option<Ipv4Addr> {
        let value = self.variable(name)?;
        let address = value.parse().ok().filter(|&ip| is_host(ip));
        if address.is_none() {
            self.refuse(name, value, "not the IPv4 address of a host");
        }
        address
    }

    /// The guest's name for its interface ends in its number; this machine has one, number 0.
    fn check_interface(&mut self) {
        const NAME: &str = "net.dump.iface";
        let Some(value) = self.variable(NAME) else { return };
        let number = value.trim_start_matches(|c: char| !c.is_ascii_digit());
        if number.parse() != Ok(0_u32) {
            self.refuse(NAME, value, "the machine has one network interface, number 0");
        }
    }

    /// FreeBSD has one variable for the level of either compressor, and it counts only where the host compresses and
    /// says nothing of the level.
    fn packing(&mut self, config: &DumpConfig) -> Packing {
        const NAME: &str = "kern.kerneldump_gzlevel";
        let packing = config.packing.clone();
        let option = packing.compress().filter(|option| option.is_level_open());
        let Some((option, value)) = option.zip(self.variable(NAME)) else { return packing };
        match option.parse_level(value) {
            Ok(level) => packing.with_level(level),
            Err(error) => {
                self.refuse(NAME, value, error.to_string());
                packing
            }
        }
    }

    fn path(&mut self) -> Option<String> {
        for name in ["net.dump.path", "net.netdump.path"] {
            let Some(value) = self.variable(name) else { continue };
            match check_path(value, MAX_PATH) {
                Ok(()) => return Some(value.to_owned()),
                Err(error) => self.refuse(name, value, error.to_string()),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> DumpConfig {
        DumpConfig::new("crash".into(), "vm".into())
    }

    fn target(config: &DumpConfig, environment: &[(&str, &str)], has_tap: bool) -> Target {
        let environment: Vec<_> =
            environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let seen = Some(Ipv4Addr::new(10, 0, 0, 77));
        config.target(&Wishes { environment: &environment, seen, has_tap })
    }

    const GUEST: [(&str, &str); 4] = [
        ("net.dump.server", "10.0.0.9"),
        ("net.dump.client", "10.0.0.5"),
        ("net.dump.gateway", "10.0.0.1"),
        ("net.dump.path", "tenants/a"),
    ];

    #[test]
    fn the_guest_decides_what_no_option_does() {
        let target = target(&config(), &GUEST, true);
        assert_eq!(target.server, Some("10.0.0.9:20023".parse().unwrap()));
        assert_eq!(target.client, Some(Ipv4Addr::new(10, 0, 0, 5)));
        assert_eq!(target.gateway, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(target.path.as_deref(), Some("tenants/a"));
        assert_eq!((target.link, target.refused), (LinkSpec::GuestTap, vec![]));
    }

    #[test]
    fn options_win_over_the_guest() {
        let config = DumpConfig {
            server: Some("10.0.0.8:99".parse().unwrap()),
            client: Some(Ipv4Addr::new(10, 0, 0, 6)),
            gateway: Some(Ipv4Addr::new(10, 0, 0, 2)),
            path: Some("b".into()),
            ..config()
        };
        let target = target(&config, &GUEST, true);
        assert_eq!(target.server, config.server);
        assert_eq!((target.client, target.gateway), (config.client, config.gateway));
        assert_eq!(target.path, config.path);
    }

    #[test]
    fn a_guest_that_is_ignored_decides_nothing() {
        let config = DumpConfig { guest_environment: GuestEnvironment::Ignore, ..config() };
        let target = target(&config, &GUEST, true);
        assert_eq!((target.server, target.gateway, target.path), (None, None, None));
        assert_eq!(target.client, Some(Ipv4Addr::new(10, 0, 0, 77)), "the address seen on its NIC");
        assert_eq!(target.link, LinkSpec::Embedded);
    }

    #[test]
    fn bad_wishes_are_refused_one_by_one() {
        let bad = [
            ("net.dump.server", "example.org"),
            ("net.dump.client", "255.255.255.255"),
            ("net.dump.gateway", "224.0.0.1"),
            ("net.dump.path", "../up"),
            ("net.netdump.path", "/etc"),
            ("net.dump.iface", "vtnet1"),
        ];
        let target = target(&config(), &bad, true);
        let mut refused: Vec<_> = target.refused.iter().map(|r| r.variable).collect();
        refused.sort_unstable();
        let mut all: Vec<_> = bad.iter().map(|(name, _)| *name).collect();
        all.sort_unstable();
        assert_eq!(refused, all);
        assert_eq!((target.server, target.path, target.link), (None, None, LinkSpec::Embedded));
    }

    #[test]
    fn an_allow_list_bounds_the_guest_and_not_the_option() {
        let config = DumpConfig { allowed_servers: vec!["10.1.0.0/16".parse().unwrap()], ..config() };
        let refused = target(&config, &GUEST, true);
        assert_eq!(refused.server, None);
        assert!(refused.refused[0].reason.contains("--allow-server"));
        let allowed = target(&config, &[("net.dump.server", "10.1.2.3")], true);
        assert_eq!(allowed.server, Some("10.1.2.3:20023".parse().unwrap()));
        let option = DumpConfig { server: Some("10.0.0.9:20023".parse().unwrap()), ..config };
        assert_eq!(target(&option, &[], true).server, option.server);
    }

    #[test]
    fn a_guest_does_not_choose_where_the_host_itself_sends_to() {
        let refused = target(&config(), &GUEST, false);
        assert_eq!((refused.server, refused.link), (None, LinkSpec::Embedded));
        assert_eq!(refused.refused[0].variable, "net.dump.server");
        let open = DumpConfig { allowed_servers: vec!["0.0.0.0/0".parse().unwrap()], ..config() };
        assert_eq!(target(&open, &GUEST, false).link, LinkSpec::Udp);
    }

    #[test]
    fn the_guest_chooses_a_level_where_the_host_compresses_and_leaves_it_open() {
        let level = |option: Option<&str>, wish: &str| {
            let packing = Packing::new(option.map(|text| text.parse().unwrap()), None).unwrap();
            let config = DumpConfig { packing, ..config() };
            let target = target(&config, &[("kern.kerneldump_gzlevel", wish)], false);
            (target.packing.compressor().map(|used| used.to_string()), target.refused.len())
        };
        assert_eq!(level(Some("gzip"), "9"), (Some("gzip:9".into()), 0));
        assert_eq!(level(Some("zstd"), "3"), (Some("zstd:3".into()), 0));
        assert_eq!(level(Some("gzip:1"), "9"), (Some("gzip:1".into()), 0));
        assert_eq!(level(None, "9"), (None, 0));
        for bad in ["0", "12", "-6", "fast"] {
            assert_eq!(level(Some("gzip"), bad), (Some("gzip:6".into()), 1));
        }
        assert_eq!(level(Some("gzip"), ""), (Some("gzip:6".into()), 0));
    }

    #[test]
    fn blocks_hold_what_they_say() {
        let holds = |block: &str, ip: &str| block.parse::<Cidr>().unwrap().contains(ip.parse().unwrap());
        assert!(holds("10.0.0.0/24", "10.0.0.255") && !holds("10.0.0.0/24", "10.0.1.0"));
        assert!(holds("0.0.0.0/0", "203.0.113.7") && holds("10.0.0.9", "10.0.0.9"));
        assert!(!holds("10.0.0.9", "10.0.0.8") && holds("10.0.0.8/31", "10.0.0.9"));
        for text in ["", "10.0.0", "10.0.0.0/33", "10.0.0.0/", "x/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn servers_are_hosts_with_or_without_a_port() {
        assert_eq!(parse_server("10.0.0.9").unwrap().port(), 20023);
        assert_eq!(parse_server("10.0.0.9:7").unwrap().port(), 7);
        for text in ["", "0.0.0.0", "255.255.255.255", "224.0.0.1", "10.0.0.9:0", "host", "::1"] {
            assert!(parse_server(text).is_err(), "{text}");
        }
    }
}
