//! The link over the host's own sockets, on networks that trains have trouble with.

use netdump::link::UdpLink;
use netdump::wire::datagram::HEADERS_LEN;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use super::trains::receive_gro;
use super::*;

/// A train of `count` datagrams of `segment` bytes, whose first byte counts up from `first`.
fn train(link: &UdpLink, count: usize, segment: usize, first: usize) -> Vec<u8> {
    let route = Route {
        source_mac: link.mac(),
        destination_mac: MacAddr([2; 6]),
        source: SocketAddrV4::new(link.local_ip(), link.local_port()),
        destination: SocketAddrV4::new(SERVER, PORT),
    };
    let mut bytes = route.headers(count * segment, UdpChecksum::Partial).to_vec();
    for number in first..first + count {
        bytes.resize(bytes.len() + segment, number.to_le_bytes()[0]);
    }
    assert_eq!(bytes.len(), HEADERS_LEN + count * segment);
    bytes
}

/// Another host behind a veth, and the socket of a server there.
fn elsewhere() -> (Namespace, UdpSocket) {
    let elsewhere = Namespace::new();
    ip("link add veth0 type veth peer name veth1");
    elsewhere.take("veth1");
    ip("address add 10.0.0.5/24 dev veth0");
    ip("link set veth0 mtu 9000 up");
    let socket = elsewhere.run(|| {
        ip("address add 10.0.0.9/24 dev veth1");
        ip("link set veth1 mtu 9000 up");
        server()
    });
    (elsewhere, socket)
}

#[test]
fn trains_of_datagrams_that_have_become_too_long_for_the_path_go_one_by_one() {
    in_namespace(|| {
        let (_elsewhere, socket) = elsewhere();
        let mut link = UdpLink::open(SocketAddrV4::new(SERVER, PORT), None).unwrap();
        assert_eq!((link.mtu().unwrap(), link.offloads().segments), (9000, 64));
        ip("link set veth0 mtu 1500");
        for turn in 0..3 {
            let bytes = train(&link, 15, 4120, turn);
            let frame = Frame { segment: Some(4120), ..Frame::plain(&bytes) };
            assert_eq!(link.send(&frame).unwrap(), Sent::Yes);
            for number in turn..turn + 15 {
                let (datagram, _) = receive_gro(&socket);
                assert!(datagram == [number.to_le_bytes()[0]; 4120], "in fragments, but whole");
            }
            assert_eq!(link.offloads().segments, 0);
        }
    });
}

#[test]
fn a_socket_that_is_full_is_waited_for_and_loses_nothing() {
    in_namespace(|| {
        let (_elsewhere, socket) = elsewhere();
        // More than the socket holds, less than the shaper does. It lets whole trains pass (its burst is longer than one):
        // cut up they could overflow the queue of the CPU that takes packets from a veth (net.core.netdev_max_backlog,
        // 1000 by default) on a busy machine, and what is lost there the link is not to blame for.
        const TRAINS: usize = 250;
        let shaper = "qdisc add dev veth0 root tbf rate 100mbit burst 128kb limit 100mb";
        let made = Command::new("tc").args(shaper.split_whitespace()).status();
        if !made.is_ok_and(|status| status.success()) {
            println!("SKIPPED: no `tc`, or no tbf");
            return;
        }
        setsockopt(&socket, RcvBufForce, &(64 << 20)).unwrap();
        let mut link = UdpLink::open(SocketAddrV4::new(SERVER, PORT), None).unwrap();
        let reader = std::thread::spawn(move || {
            (0..TRAINS * 44).map(|_| receive_gro(&socket).0[0]).collect::<Vec<_>>()
        });
        let mut waited = 0;
        for turn in 0..TRAINS {
            let bytes = train(&link, 44, 1472, turn * 44);
            let frame = Frame { segment: Some(1472), ..Frame::plain(&bytes) };
            while link.send(&frame).unwrap() == Sent::Busy {
                waited += 1;
                assert!(!link.receive(&mut Received::default(), Duration::from_secs(20)).unwrap());
            }
        }
        assert!((1..TRAINS * 44).contains(&waited), "it slept until there was room: {waited}");
        let want = (0..TRAINS * 44).map(|number| number.to_le_bytes()[0]);
        assert!(reader.join().unwrap().into_iter().eq(want));
    });
}
