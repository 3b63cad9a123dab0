//! Trains of datagrams: through the kernel to sockets and cables, and back.

use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use netdump::link::pcap::PcapFile;
use netdump::link::{Offloads, PcapWriter};
use netdump::wire::datagram::{HEADERS_LEN, segment_headers};
use nix::cmsg_space;
use nix::sys::socket::sockopt::{UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt};

use super::*;

/// Bytes of a message before its payload.
const MESSAGE_HEADER: usize = 24;

/// A train whose payloads lie in guest memory, behind one another or wherever they were put.
pub(crate) struct Train {
    bytes: Vec<u8>,
    pieces: Vec<GuestPiece>,
    segment: u16,
    /// What its datagrams carry.
    pub(crate) datagrams: Vec<Vec<u8>>,
}

impl Train {
    /// `count` messages of `payload` bytes each, the last of which has `last`, from guest address `address` on. Message
    /// headers count up from `first`.
    pub(crate) fn new(
        guest: &Guest,
        route: &Route,
        address: u64,
        count: usize,
        payload: usize,
        last: usize,
        first: u8,
    ) -> Self {
        let datagrams: Vec<Vec<u8>> = (0..count)
            .map(|index| {
                let len = if index + 1 == count { last } else { payload };
                let number = u8::try_from(index).unwrap().wrapping_add(first);
                let payload = (0..len).map(|at| (at * 7 + index).to_le_bytes()[0] ^ number);
                [number; MESSAGE_HEADER].into_iter().chain(payload).collect()
            })
            .collect();
        let mut train = Self {
            bytes: vec![0; HEADERS_LEN],
            pieces: Vec::new(),
            segment: u16::try_from(MESSAGE_HEADER + payload).unwrap(),
            datagrams,
        };
        let mut address = address;
        for datagram in &train.datagrams {
            let (header, payload) = datagram.split_at(MESSAGE_HEADER);
            guest.memory.write_slice(payload, GuestAddress(address)).unwrap();
            train.bytes.extend_from_slice(header);
            train.pieces.push(GuestPiece { at: train.bytes.len(), address, len: payload.len() });
            address += payload.len() as u64;
        }
        let len = train.frame().len() - HEADERS_LEN;
        train.bytes[..HEADERS_LEN].copy_from_slice(&route.headers(len, UdpChecksum::Partial));
        train
    }

    pub(crate) fn frame(&self) -> Frame<'_> {
        Frame { bytes: &self.bytes, guest: &self.pieces, segment: Some(self.segment) }
    }

    /// The frames that it has to be on a cable.
    pub(crate) fn on_the_wire(&self) -> Vec<Vec<u8>> {
        let headers = self.bytes.first_chunk().unwrap();
        let frame = |(index, payload): (u16, &Vec<u8>)| {
            let sum = UdpChecksum::Complete(Checksum::of(payload));
            [&segment_headers(headers, index, payload.len(), sum)[..], payload].concat()
        };
        (0..).zip(&self.datagrams).map(frame).collect()
    }
}

/// Where tests put payload: the fourth page of 1448 bytes crosses from one region of guest memory to the next.
const ACROSS: u64 = 0x10_0000 - 3 * 1448 - 100;

/// As many messages as the MTU's trains have: 44 at 1500, 15 at 9000.
fn longest(guest: &Guest, route: &Route, mtu: usize) -> Train {
    let payload = (mtu - 52).min(4096);
    Train::new(guest, route, ACROSS, 65_507 / (payload + MESSAGE_HEADER), payload, payload - 99, 1)
}

fn send_train(link: &mut dyn Link, train: &Train) {
    assert_eq!(link.send(&train.frame()).unwrap(), Sent::Yes);
}

/// A datagram, or a train of them and the size of each.
pub(crate) fn receive_gro(socket: &UdpSocket) -> (Vec<u8>, Option<usize>) {
    let mut bytes = vec![0; 66_000];
    let mut control = cmsg_space!(i32);
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut pieces, Some(&mut control), MsgFlags::empty())
            .unwrap();
    let size = message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
        _ => None,
    });
    let len = message.bytes;
    bytes.truncate(len);
    (bytes, size)
}

/// Sends the longest train of that MTU to `socket` and looks at what arrives.
fn arrives(link: &mut dyn Link, guest: &Guest, socket: &UdpSocket, mtu: usize, gro: bool) {
    assert_eq!(link.offloads(), Offloads { gather: true, checksum: true, segments: 64 });
    let route = route_to(resolve(link, SERVER));
    let train = longest(guest, &route, mtu);
    setsockopt(socket, UdpGroSegment, &gro).unwrap();
    send_train(link, &train);
    if gro {
        let (bytes, size) = receive_gro(socket);
        assert_eq!(size, Some(train.segment.into()));
        assert!(bytes == train.datagrams.concat(), "the train is another one");
    } else {
        for datagram in &train.datagrams {
            let (bytes, size) = receive_gro(socket);
            assert!(bytes == *datagram && size.is_none(), "a datagram is another one");
        }
    }
}

#[test]
fn trains_arrive_at_a_host_on_the_tap() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        ip("address add 10.0.0.9/24 dev guest0");
        let socket = server();
        for spec in OF_GUEST {
            for mtu in [1500, 9000] {
                ip(&format!("link set guest0 mtu {mtu}"));
                let mut link = guest.link(&spec);
                arrives(&mut *link, &guest, &socket, mtu, true);
                arrives(&mut *link, &guest, &socket, mtu, false);
            }
        }
    });
}

#[test]
fn trains_arrive_through_a_bridge() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        let elsewhere = Namespace::new();
        ip("link add br0 type bridge");
        ip("link add veth0 type veth peer name veth1");
        for port in ["guest0", "veth0"] {
            ip(&format!("link set {port} mtu 9000 master br0"));
        }
        elsewhere.take("veth1");
        ip("link set br0 up");
        ip("link set veth0 up");
        let socket = elsewhere.run(|| {
            ip("address add 10.0.0.9/24 dev veth1");
            ip("link set veth1 mtu 9000 up");
            server()
        });
        for spec in OF_GUEST {
            for mtu in [1500, 9000] {
                ip(&format!("link set guest0 mtu {mtu}"));
                let mut link = guest.link(&spec);
                arrives(&mut *link, &guest, &socket, mtu, true);
                arrives(&mut *link, &guest, &socket, mtu, false);
            }
        }
    });
}

#[test]
fn a_cable_carries_the_frames_that_we_would_cut() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        let cable = Tap::open("cable0".parse().unwrap()).unwrap();
        ip("link add br0 type bridge");
        for port in ["guest0", "cable0"] {
            ip(&format!("link set {port} mtu 9000 master br0"));
        }
        ip("link set br0 up");
        let route = route_to(MacAddr([0x52, 0x54, 0, 0, 0, 9]));
        for spec in OF_GUEST {
            for mtu in [600, 1500, 9000] {
                ip(&format!("link set guest0 mtu {mtu}"));
                let mut link = guest.link(&spec);
                let payload = (mtu - 52).min(4096);
                let count = (65_507 / (payload + MESSAGE_HEADER)).min(64);
                let train = Train::new(&guest, &route, ACROSS, count, payload, 1, 0);
                let want = train.on_the_wire();
                until(|| {
                    send_train(&mut *link, &train);
                    let mut got = frames_of(&cable, Duration::from_millis(100));
                    got.retain(|frame| Route::parse(frame).is_ok_and(|(to, _)| to == route));
                    (!got.is_empty()).then(|| assert!(got == want, "{spec}, MTU {mtu}"))
                });
            }
        }
    });
}

/// The frames in a pcap file.
fn frames_in(mut recording: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    recording = &recording[24..];
    while let Some((header, rest)) = recording.split_first_chunk::<16>() {
        let len = u32::from_le_bytes(*header.last_chunk().unwrap());
        let (frame, next) = rest.split_at(len.try_into().unwrap());
        frames.push(frame.to_vec());
        recording = next;
    }
    frames
}

#[test]
fn a_recording_has_the_frames_that_the_cable_carries() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        let cable = Tap::open("cable0".parse().unwrap()).unwrap();
        ip("link add br0 type bridge");
        ip("link set guest0 master br0");
        ip("link set cable0 master br0");
        ip("link set br0 up");
        let route = route_to(MacAddr([0x52, 0x54, 0, 0, 0, 9]));
        let train = Train::new(&guest, &route, ACROSS, 20, 1448, 77, 0);
        let mut bytes = train.bytes[..HEADERS_LEN].to_vec();
        bytes.extend(train.datagrams.concat());
        for spec in OF_GUEST {
            let mut link = guest.link(&spec);
            until(|| {
                let mut written = Vec::new();
                let mut recorded = PcapWriter::new(&mut *link, PcapFile::new(&mut written).unwrap());
                assert_eq!(recorded.offloads(), Offloads { gather: false, checksum: true, segments: 64 });
                recorded.send(&Frame { bytes: &bytes, guest: &[], segment: Some(train.segment) }).unwrap();
                drop(recorded);
                let recorded = frames_in(&written);
                assert_eq!(recorded.len(), 20);
                let mut carried = frames_of(&cable, Duration::from_millis(100));
                carried.retain(|frame| Route::parse(frame).is_ok_and(|(to, _)| to == route));
                (!carried.is_empty()).then(|| assert!(carried == recorded, "{spec}"))
            });
        }
    });
}

#[test]
fn acks_come_back_as_trains_and_plain_ones_once_the_link_is_gone() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        ip("address add 10.0.0.9/24 dev guest0");
        ip("neighbour add 10.0.0.5 lladdr 52:54:00:00:00:05 dev guest0");
        let socket = server();
        let acks: Vec<u8> = (0..64_u32).flat_map(u32::to_be_bytes).collect();
        for spec in OF_GUEST {
            let mut link = guest.link(&spec);
            setsockopt(&socket, UdpGsoSegment, &4).unwrap();
            socket.send_to(&acks, (GUEST, 20024)).unwrap();
            let mut received = Received::default();
            until(|| {
                link.receive(&mut received, Duration::from_millis(100)).unwrap().then_some(())?;
                (received.bytes.get(12..14) == Some(&[8, 0])).then_some(())
            });
            assert_eq!((received.segment, received.checked), (Some(4), true));
            assert_eq!(received.bytes[HEADERS_LEN..], acks);

            setsockopt(&socket, UdpGsoSegment, &0).unwrap();
            socket.send_to(&acks[..4], (GUEST, 20024)).unwrap();
            assert!(link.receive(&mut received, PATIENCE).unwrap());
            assert_eq!((received.segment, &received.bytes[HEADERS_LEN..]), (None, &acks[..4]));

            socket.send_to(&acks[..4], (GUEST, 20024)).unwrap();
            drop(link);
            assert!(
                frames_of(&guest.tap, Duration::from_millis(1)).is_empty(),
                "what waited was the dumper's"
            );
            setsockopt(&socket, UdpGsoSegment, &4).unwrap();
            socket.send_to(&acks, (GUEST, 20024)).unwrap();
            let frames = frames_of(&guest.tap, Duration::from_millis(100));
            let payloads: Vec<_> = frames.iter().filter_map(|frame| Route::parse(frame).ok()).collect();
            assert!(payloads.iter().map(|(_, ack)| *ack).eq(acks.chunks(4)), "{spec}: whole and one by one");
        }
    });
}

#[test]
fn what_is_no_train_is_refused_and_sends_nothing() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        ip("address add 10.0.0.9/24 dev guest0");
        let socket = server();
        for spec in OF_GUEST {
            let mut link = guest.link(&spec);
            let route = route_to(resolve(&mut *link, SERVER));
            let sixty_five = Train::new(&guest, &route, ACROSS, 65, 500, 1, 0);
            let mut outside = longest(&guest, &route, 1500);
            outside.pieces[43].address = 0x20_0000 - 100;
            let mut far_outside = longest(&guest, &route, 1500);
            far_outside.pieces[43].address = u64::MAX - 100;
            let good = longest(&guest, &route, 1500);
            for frame in [
                outside.frame(),
                far_outside.frame(),
                sixty_five.frame(),
                Frame { segment: Some(0), ..good.frame() },
                Frame { guest: &[], bytes: &good.bytes[..HEADERS_LEN], ..good.frame() },
                Frame { bytes: &vec![0; 65_550], guest: &[], segment: None },
            ] {
                let error = link.send(&frame).unwrap_err().to_string();
                assert!(error.contains("guest0"), "{error}");
            }
            setsockopt(&socket, UdpGroSegment, &true).unwrap();
            send_train(&mut *link, &good);
            assert!(receive_gro(&socket).0 == good.datagrams.concat(), "{spec}");
        }
    });
}

#[test]
fn trains_go_on_when_the_interface_comes_back() {
    in_namespace(|| {
        let guest = Guest::new("guest0");
        ip("address add 10.0.0.9/24 dev guest0");
        let socket = server();
        for spec in OF_GUEST {
            let mut link = guest.link(&spec);
            let route = route_to(resolve(&mut *link, SERVER));
            ip("link set guest0 down");
            for _ in 0..10 {
                send_train(&mut *link, &longest(&guest, &route, 1500));
            }
            assert!(link.mtu().unwrap_err().to_string().contains("is down"));
            ip("link set guest0 up");
            arrives(&mut *link, &guest, &socket, 1500, true);
        }
    });
}
