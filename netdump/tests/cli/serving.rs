//! Who is served, how many, and at what cost.

use super::*;

/// How many descriptors the server has open.
fn descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.child.id()))
        .expect("a running process has descriptors")
        .count()
}

impl Peer {
    /// A client that has no session yet.
    fn new(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time");
        Self { socket, server }
    }

    /// Sends a HERALD of a dump with this name to the well-known port.
    fn announce(&self, server: SocketAddr, sequence: u32, aux: u32) {
        let mut bytes = Vec::new();
        Message { kind: MessageKind::Herald, sequence, offset: 0, payload: b"", aux }.emit(&mut bytes);
        self.socket.send_to(&bytes, server).expect("loopback takes datagrams");
    }
}

#[test]
fn repeated_heralds_leak_no_descriptor() {
    let dir = directory();
    let server = Server::start(dir.path(), &[]);
    let peer = Peer::herald(server.address, b"");
    let before = descriptors(&server);
    for sequence in 2..300 {
        peer.announce(server.address, sequence, 0);
        assert_eq!(peer.ack().0, sequence);
    }
    peer.deliver(MessageKind::Vmcore, 300, 0, b"core");
    for sequence in 301..600 {
        peer.announce(server.address, sequence, 0);
    }
    // Behind them all, so that they have been seen.
    peer.deliver(MessageKind::Vmcore, 600, 4, b"core");
    assert_eq!(descriptors(&server), before);

    // Each of these begins a dump of its own in the place of the last.
    let peer = Peer::new(server.address);
    for name in 1..100 {
        peer.announce(server.address, 1, name);
        assert_eq!([peer.ack().0, peer.ack().0], [1, 0x8000_0001]);
        let more = descriptors(&server) - before;
        assert!(more <= before, "{more} descriptors for dump {name}");
    }
}

#[test]
fn clients_that_are_not_allowed_get_no_answer() {
    let dir = directory();
    let mut server = Server::start(dir.path(), &["--allow", "10.0.0.0/8", "--allow", "127.0.0.9"]);
    let stranger = Peer::new(server.address);
    stranger.announce(server.address, 1, 0);
    let allowed = Peer { socket: UdpSocket::bind("127.0.0.9:0").unwrap(), server: server.address };
    allowed.announce(server.address, 1, 0);
    assert_eq!(allowed.ack().0, 1);
    assert!(stranger.is_silent());
    server.signal(Signal::SIGTERM);
    server.exit_code();
    refuses(
        netdump().args(["serve", "--dir", ".", "--allow", "10.0.0.0/33"]),
        2,
        &["--allow", "10.0.0.0/24"],
    );
}

#[test]
fn client_that_finds_no_place_gets_one_when_another_is_through() {
    let dir = directory();
    let server = Server::start(dir.path(), &["--max-sessions", "1"]);
    let first = Peer::herald(server.address, b"");
    first.deliver(MessageKind::Vmcore, 2, 0, b"core");
    let second = Peer::new(server.address);
    second.announce(server.address, 1, 0);
    assert!(second.is_silent());
    first.deliver(MessageKind::Finished, 3, 0, b"");
    second.announce(server.address, 1, 0);
    assert_eq!(second.ack().0, 1);
}

#[test]
fn buffer_that_the_kernel_gave_is_told() {
    let dir = directory();
    let mut child = netdump()
        .args(["serve", "--json", "--listen", "127.0.0.1:0", "--dir"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let listening: Value = serde_json::from_str(&line).unwrap();
    assert!(listening["receive_buffer"].as_u64().unwrap() >= 64 << 10, "{line}");
}
