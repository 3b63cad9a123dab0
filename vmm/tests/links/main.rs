//! Dump links over real taps, bridges and the kernel's own network stack, in namespaces of the tests' own.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod namespace;
mod speed;
mod trains;
mod udp;

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netdump::link::{Frame, GuestPiece, Link, Received, Sent};
use netdump::wire::MacAddr;
use netdump::wire::arp::{ArpOperation, ArpPacket};
use netdump::wire::checksum::Checksum;
use netdump::wire::datagram::Route;
use netdump::wire::ethernet::{EtherType, EthernetHeader};
use netdump::wire::udp::UdpChecksum;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll as poll_fds};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm::devices::virtio::driver::{Buffer, DriverRing};
use vmm::devices::virtio::net::{Net, QUEUE_SIZE, RX, TX};
use vmm::devices::virtio::{Activation, Interrupt, Notifier, VirtioDevice};
use vmm::link::LinkSpec;
use vmm::memory::GuestMemory;
use vmm::sys::interface::Interfaces;
use vmm::sys::iovec::Target;
use vmm::sys::tap::{Tap, TapError, VNET_HEADER_LEN};

use self::namespace::{Namespace, in_namespace, ip};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 5]);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const PORT: u16 = 20023;
/// Where the tests keep payload in guest memory, across the border of two regions.
const PAYLOAD: u64 = 0x10_0000 - 500;
const PATIENCE: Duration = Duration::from_secs(20);

/// A tap of that name, a card on it, and guest memory.
struct Guest {
    tap: Arc<Tap>,
    net: Mutex<Net>,
    memory: GuestMemory,
}

impl Guest {
    fn new(tap: &str) -> Self {
        let tap = Arc::new(Tap::open(tap.parse().unwrap()).unwrap());
        let net = Mutex::new(Net::new(Arc::clone(&tap), MAC));
        let ranges = [(GuestAddress(0), 0x10_0000), (GuestAddress(0x10_0000), 0x10_0000)];
        Self { tap, net, memory: GuestMemory::from_ranges(&ranges).unwrap() }
    }

    fn link(&self, spec: &LinkSpec) -> Box<dyn Link> {
        let route = spec.check(Some(&self.tap)).unwrap().unwrap();
        route.open(Some(&self.net), &self.memory, MAC).unwrap()
    }
}

/// Sends a message whose payload is `payload`, from guest memory where the link can.
fn send(link: &mut dyn Link, guest: &Guest, route: &Route, payload: &[u8]) {
    let mut bytes = Vec::new();
    let piece = GuestPiece { at: 42, address: PAYLOAD, len: payload.len() };
    let mut frame = if link.offloads().gather {
        guest.memory.write_slice(payload, GuestAddress(PAYLOAD)).unwrap();
        bytes.extend_from_slice(&route.headers(payload.len(), UdpChecksum::Partial));
        Frame { guest: &[piece], ..Frame::plain(&bytes) }
    } else {
        route.emit(payload, &mut bytes);
        Frame::plain(&bytes)
    };
    assert_eq!(link.send(&frame).unwrap(), Sent::Yes);
    // Some messages have no payload in guest memory, on any link.
    if link.offloads().gather {
        bytes = [&route.headers(4, UdpChecksum::Partial)[..], b"last"].concat();
    } else {
        bytes.clear();
        route.emit(b"last", &mut bytes);
    }
    frame = Frame::plain(&bytes);
    assert_eq!(link.send(&frame).unwrap(), Sent::Yes);
}

/// Waits for a frame that `wanted` makes something of, at most `wait`.
fn poll<T>(link: &mut dyn Link, wait: Duration, wanted: impl Fn(&Received) -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + wait;
    let mut received = Received::default();
    while Instant::now() < deadline {
        if link.receive(&mut received, Duration::from_millis(100)).unwrap()
            && let Some(value) = wanted(&received)
        {
            return Some(value);
        }
    }
    None
}

/// From where to where a datagram goes, and what it carries.
fn datagram(received: &Received) -> Option<(Route, Vec<u8>)> {
    let parse = if received.checked { Route::parse_checked } else { Route::parse };
    parse(&received.bytes).ok().map(|(route, payload)| (route, payload.to_vec()))
}

/// Waits for a frame that `wanted` makes something of.
fn receive<T>(link: &mut dyn Link, wanted: impl Fn(&Received) -> Option<T>) -> T {
    poll(link, PATIENCE, wanted).expect("such a frame comes")
}

/// The frames that come out of a tap until none has come for `wait`.
fn frames_of(tap: &Tap, wait: Duration) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    loop {
        let (mut header, mut bytes) = ([0; VNET_HEADER_LEN], vec![0; 70_000]);
        let came = tap.receive(&mut [Target::from(&mut header[..]), Target::from(&mut bytes[..])]).unwrap();
        if let Some(len) = came {
            assert_eq!(header, [0; VNET_HEADER_LEN], "nothing is left to do");
            bytes.truncate(len - VNET_HEADER_LEN);
            frames.push(bytes);
            continue;
        }
        let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        if poll_fds(&mut fds, PollTimeout::try_from(wait).unwrap()).unwrap() == 0 {
            return frames;
        }
    }
}

/// Tries again and again: what is sent is lost until a new port of a bridge has noticed that it is up.
fn until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "every attempt was in vain");
    }
}

/// Asks by ARP who has an address.
fn resolve(link: &mut dyn Link, address: Ipv4Addr) -> MacAddr {
    let ethernet =
        EthernetHeader { destination: MacAddr::BROADCAST, source: link.mac(), ethertype: EtherType::ARP };
    let request = ArpPacket {
        operation: ArpOperation::Request,
        sender_mac: link.mac(),
        sender_ip: GUEST,
        target_mac: MacAddr::ZERO,
        target_ip: address,
    };
    let mut bytes = ethernet.to_bytes().to_vec();
    request.emit(&mut bytes);
    let reply = |received: &Received| {
        let (ethernet, packet) = EthernetHeader::parse(&received.bytes).ok()?;
        let reply = (ethernet.ethertype == EtherType::ARP).then(|| ArpPacket::parse(packet).ok())??;
        let answers = reply.operation == ArpOperation::Reply && reply.sender_ip == address;
        answers.then_some(reply.sender_mac)
    };
    until(|| {
        assert_eq!(link.send(&Frame::plain(&bytes)).unwrap(), Sent::Yes);
        poll(link, Duration::from_millis(100), reply)
    })
}

fn route_to(destination_mac: MacAddr) -> Route {
    Route {
        source_mac: MAC,
        destination_mac,
        source: SocketAddrV4::new(GUEST, 20024),
        destination: SocketAddrV4::new(SERVER, PORT),
    }
}

fn payload() -> Vec<u8> {
    (0..=250).cycle().take(1448).collect()
}

fn server() -> UdpSocket {
    let socket = UdpSocket::bind((SERVER, PORT)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// ARP, datagrams there and a datagram back, between `link` and the host that `socket` is on.
fn converse(link: &mut dyn Link, guest: &Guest, socket: &UdpSocket) {
    let mac = resolve(link, SERVER);
    send(link, guest, &route_to(mac), &payload());
    let mut got = vec![0; 2000];
    let (len, from) = socket.recv_from(&mut got).unwrap();
    assert_eq!((&got[..len], from), (&payload()[..], SocketAddrV4::new(GUEST, 20024).into()));
    let (len, _) = socket.recv_from(&mut got).unwrap();
    assert_eq!(&got[..len], b"last");

    socket.send_to(b"\0\0\0\x01", from).unwrap();
    let back = receive(link, datagram);
    assert_eq!(
        back,
        (route_to(mac).reversed(), b"\0\0\0\x01".to_vec()),
        "addresses, ports and checksums are right"
    );
}

const OF_GUEST: [LinkSpec; 2] = [LinkSpec::GuestTap, LinkSpec::Virtio];

#[test]
fn a_dump_link_talks_to_a_host_on_its_tap() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        ip("address add 10.0.0.9/24 dev guest0");
        let socket = server();
        for spec in OF_GUEST {
            converse(&mut *guest.link(&spec), &guest, &socket);
        }
    });
}

#[test]
fn a_dump_link_talks_through_a_bridge_to_another_host() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        let elsewhere = Namespace::new();
        ip("link add br0 type bridge");
        ip("link add veth0 type veth peer name veth1");
        ip("link set guest0 master br0");
        ip("link set veth0 master br0");
        elsewhere.take("veth1");
        ip("link set br0 up");
        ip("link set veth0 up");
        let socket = elsewhere.run(|| {
            ip("address add 10.0.0.9/24 dev veth1");
            ip("link set veth1 up");
            server()
        });
        for spec in OF_GUEST {
            converse(&mut *guest.link(&spec), &guest, &socket);
        }
    });
}

#[test]
fn checksums_are_whole_on_the_wire() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        // What the bridge gives to a tap without offloads is what it would put on a cable.
        let cable = Arc::new(Tap::open("cable0".parse().unwrap()).unwrap());
        ip("link add br0 type bridge");
        ip("link set guest0 master br0");
        ip("link set cable0 master br0");
        ip("link set br0 up");
        let route = route_to(MacAddr([0x52, 0x54, 0, 0, 0, 9]));
        let checksum = UdpChecksum::Complete(Checksum::of(&payload()));
        let whole = [&route.headers(payload().len(), checksum)[..], &payload()].concat();
        for spec in OF_GUEST {
            let mut link = guest.link(&spec);
            until(|| {
                send(&mut *link, &guest, &route, &payload());
                frames_of(&cable, Duration::from_millis(100)).into_iter().find(|frame| *frame == whole)
            });
        }
    });
}

/// Counts interrupts.
#[derive(Debug, Default)]
struct Bell(AtomicU64);

impl Interrupt for Bell {
    fn used(&self, _queue: u16) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn config_changed(&self) {}
}

#[test]
fn the_dumper_takes_over_from_a_guest_that_left_wild_rings() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        ip("address add 10.0.0.9/24 dev guest0");
        let rings = [0x1_0000, 0x2_0000];
        let [mut rx, mut tx] =
            rings.map(|base| DriverRing::new(guest.memory.clone(), GuestAddress(base), QUEUE_SIZE));
        let bell = Arc::<Bell>::default();
        let activation = Activation {
            memory: guest.memory.clone(),
            queues: vec![rx.queue(), tx.queue()],
            features: 1 << 32,
            notifier: Arc::new(Notifier::new(bell.clone())),
        };
        guest.net.lock().unwrap().activate(activation).unwrap();

        // The guest speaks: an ARP request, so that the card learns its address, and the host's answer arrives.
        let ethernet =
            EthernetHeader { destination: MacAddr::BROADCAST, source: MAC, ethertype: EtherType::ARP };
        let request = ArpPacket {
            operation: ArpOperation::Request,
            sender_mac: MAC,
            sender_ip: GUEST,
            target_mac: MacAddr::ZERO,
            target_ip: SERVER,
        };
        let mut frame = [&[0; 12][..], &ethernet.to_bytes()].concat();
        request.emit(&mut frame);
        guest.memory.write_slice(&frame, GuestAddress(0x3_0000)).unwrap();
        for head in 0..32 {
            rx.describe(head, &[Buffer::Write(0x4_0000 + 2048 * u64::from(head), 2048)]);
            rx.publish(head);
        }
        guest.net.lock().unwrap().notify(RX);
        tx.describe(0, &[Buffer::Read(0x3_0000, frame.len().try_into().unwrap())]);
        tx.publish(0);
        guest.net.lock().unwrap().notify(TX);
        let answered = |at: u64| {
            let kind: [u8; 2] = guest.memory.read_obj(GuestAddress(at + 12 + 12)).unwrap();
            let operation: [u8; 2] = guest.memory.read_obj(GuestAddress(at + 12 + 20)).unwrap();
            kind == [8, 6] && operation == [0, 2]
        };
        until(|| (0..32).any(|buffer| answered(0x4_0000 + 2048 * buffer)).then_some(()));
        assert_eq!(guest.net.lock().unwrap().last_ipv4(), Some(GUEST));
        assert!(bell.0.load(Ordering::Relaxed) > 0);

        // Then it goes mad: loops, wild addresses, indices ahead, in every descriptor and entry.
        for base in rings {
            for index in 0..u64::from(QUEUE_SIZE) {
                let wild = Descriptor::new(u64::MAX - 20, u32::MAX, 3, u16::try_from(index).unwrap());
                guest.memory.write_obj(wild, GuestAddress(base + 16 * index)).unwrap();
            }
            guest.memory.write_slice(&[0xff; 520], GuestAddress(base + 4096)).unwrap();
        }
        guest.net.lock().unwrap().notify(TX);

        guest.net.lock().unwrap().stop();
        let rings_now = || {
            let mut bytes = vec![0; 0x2_0000];
            guest.memory.read_slice(&mut bytes, GuestAddress(0x1_0000)).unwrap();
            bytes
        };
        let left = rings_now();
        let socket = server();
        for spec in OF_GUEST {
            converse(&mut *guest.link(&spec), &guest, &socket);
            assert!(rings_now() == left, "{spec}: the guest's rings and buffers were touched");
        }
    });
}

#[test]
fn frames_of_before_the_dump_are_not_the_dumpers() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        ip("address add 10.0.0.9/24 dev guest0");
        let socket = UdpSocket::bind((SERVER, 0)).unwrap();
        socket.set_broadcast(true).unwrap();
        let everyone = (Ipv4Addr::new(10, 0, 0, 255), 9);
        for spec in OF_GUEST {
            for _ in 0..100 {
                socket.send_to(b"stale", everyone).unwrap();
            }
            let mut link = guest.link(&spec);
            socket.send_to(b"fresh", everyone).unwrap();
            assert_eq!(receive(&mut *link, datagram).1, b"fresh", "{spec}");
        }
    });
}

#[test]
fn more_frames_than_buffers_arrive_in_order() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        ip("address add 10.0.0.9/24 dev guest0");
        let socket = UdpSocket::bind((SERVER, 0)).unwrap();
        socket.set_broadcast(true).unwrap();
        for spec in OF_GUEST {
            let mut link = guest.link(&spec);
            for number in 0_u32..300 {
                socket.send_to(&number.to_be_bytes(), (Ipv4Addr::new(10, 0, 0, 255), 9)).unwrap();
            }
            for number in 0_u32..300 {
                let (_, got) = receive(&mut *link, datagram);
                assert_eq!(got, number.to_be_bytes(), "{spec}");
            }
        }
    });
}

#[test]
fn sending_never_runs_out_of_room() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        ip("address add 10.0.0.9/24 dev guest0");
        for spec in OF_GUEST {
            let mut link = guest.link(&spec);
            for _ in 0..1000 {
                send(&mut *link, &guest, &route_to(MacAddr([2; 6])), &payload());
            }
        }
    });
}

#[test]
fn interfaces_that_will_not_do_are_refused_before_the_guest_starts() {
    in_namespace(|| {
        let refusal = |name: &str| {
            let error = LinkSpec::Tap(name.parse().unwrap()).check(None).unwrap_err();
            error.to_string()
        };
        ip("link add br0 type bridge");
        ip("tuntap add down0 mode tap");
        ip("tuntap add tun0 mode tun");
        ip("tuntap add small0 mode tap");
        ip("link set small0 up mtu 563");
        let _busy = Tap::open("busy0".parse().unwrap()).unwrap();
        for (name, problem) in [
            ("none0", "there is no such interface"),
            ("br0", "it is no tap with a single queue, but another kind of interface"),
            ("lo", "it is no tap with a single queue, but another kind of interface"),
            ("tun0", "it is no tap with a single queue, but another kind of interface"),
            ("small0", "its MTU is below 564 bytes, too small for a dump header"),
            ("busy0", "it is in use by another process"),
        ] {
            assert_eq!(refusal(name), format!("interface {name}: {problem}"));
        }
        assert_eq!(refusal("down0"), "interface down0 is down; as root: ip link set down0 up");
        let guest = Guest::new("guest0");
        ip("link set guest0 mtu 500");
        for spec in OF_GUEST {
            let error = spec.check(Some(&guest.tap)).unwrap_err().to_string();
            assert_eq!(error, "interface guest0: its MTU is below 564 bytes, too small for a dump header");
        }
    });
}

#[test]
fn the_mtu_is_read_anew_and_a_removed_tap_is_an_error() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        let by_name = LinkSpec::Tap("guest0".parse().unwrap());
        for spec in [LinkSpec::GuestTap, LinkSpec::Virtio, by_name] {
            ip("link set guest0 mtu 1500");
            let link = guest.link(&spec);
            assert_eq!(link.mtu().unwrap(), 1500);
            ip("link set guest0 mtu 1400");
            assert_eq!(link.mtu().unwrap(), 1400, "{spec}");
        }
        ip("link set guest0 mtu 9000");
        let mut links = OF_GUEST.map(|spec| guest.link(&spec));
        assert_eq!(links.each_ref().map(|link| link.mtu().unwrap()), [9000; 2]);
        ip("link delete guest0");
        for link in &mut links {
            assert_eq!(link.mtu().unwrap_err().to_string(), "interface guest0: it has been removed");
            assert!(link.receive(&mut Received::default(), Duration::ZERO).is_err());
        }
    });
}

#[test]
fn a_tap_made_here_is_up_and_gone_with_us_and_a_lasting_one_stays() {
    in_namespace(|| {
        let made = Tap::open("made0".parse().unwrap()).unwrap();
        assert!(made.interface().unwrap().unwrap().up);
        drop(made);
        ip("tuntap add lasting0 mode tap");
        ip("link set lasting0 up");
        drop(Tap::open("lasting0".parse().unwrap()).unwrap());
        // A child of another test holds copies of our descriptors between its fork and its exec.
        let lasting = until(|| match Tap::open("lasting0".parse().unwrap()) {
            Err(TapError::Busy { .. }) => None,
            opened => Some(opened.unwrap()),
        });
        assert!(lasting.interface().unwrap().is_some());
        let interfaces = Interfaces::here().unwrap();
        let made = "made0".parse().unwrap();
        until(|| interfaces.find(&made).unwrap().is_none().then_some(()));
    });
}

/// Run by [`a_tap_that_we_may_not_make_is_told_how_to_make`] without capabilities.
#[test]
#[ignore = "a part of another test"]
fn without_rights() {
    let error = Tap::open("wanted0".parse().unwrap()).unwrap_err().to_string();
    println!("refusal: {error}");
}

#[test]
fn a_tap_that_we_may_not_make_is_told_how_to_make() {
    in_namespace(|| {
        let ourselves = std::env::current_exe().unwrap();
        let child = Command::new("unshare")
            .args([
                "--user",
                ourselves.to_str().unwrap(),
                "--exact",
                "without_rights",
                "--ignored",
                "--nocapture",
            ])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        let refusal = said.lines().find_map(|line| line.split_once("refusal: ")).map(|(_, error)| error);
        assert_eq!(
            refusal,
            Some(
                "tap wanted0 does not exist and creating it needs CAP_NET_ADMIN; as root: \
                 ip tuntap add wanted0 mode tap user USER && ip link set wanted0 up"
            ),
            "{said}"
        );
    });
}
