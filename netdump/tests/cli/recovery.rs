//! A receiver is killed in the middle of dumps; what the next one makes of them.

use super::*;

/// Says "I know dump ids", and "go on".
const ABLE: u32 = 0x8000_0000;

/// A client that names its dump.
struct Named {
    peer: Peer,
    id: u32,
}

impl Named {
    fn herald(server: SocketAddr, id: u32) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time");
        let mut client = Self { peer: Peer { socket, server }, id };
        client.send_herald(server, 1);
        let mut acks = [client.peer.ack(), client.peer.ack()];
        acks.sort_unstable();
        assert_eq!(acks.map(|(ack, _)| ack), [1, 1 ^ ABLE]);
        client.peer.server = acks[0].1;
        client
    }

    fn send_herald(&self, server: SocketAddr, sequence: u32) {
        let mut bytes = Vec::new();
        let kind = MessageKind::Herald;
        Message { kind, sequence, offset: 0, payload: b"", aux: self.id }.emit(&mut bytes);
        self.peer.socket.send_to(&bytes, server).expect("loopback takes datagrams");
    }

    /// Asks another receiver to go on.
    fn go_on(&mut self, server: SocketAddr, sequence: u32) {
        self.send_herald(server, sequence);
        let (ack, from) = self.peer.ack();
        assert_eq!(ack, !sequence, "go on, and nothing else");
        self.peer.server = from;
    }
}

/// Sends parts of a core: `0..100_000` and `200_000..300_000`.
fn send_parts(peer: &Peer) {
    for i in 0..100_u8 {
        let at = u64::from(i) * 1000;
        peer.deliver(MessageKind::Vmcore, 2 + 2 * u32::from(i), at, &[i; 1000]);
        peer.deliver(MessageKind::Vmcore, 3 + 2 * u32::from(i), 200_000 + at, &[i ^ 0xff; 1000]);
    }
}

fn kill(server: &mut Server) {
    server.signal(Signal::SIGKILL);
    assert_eq!(server.exit_code(), None);
}

fn is_settled(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).expect("it is there").map(|entry| entry.expect("an entry").file_name());
    entries
        .map(|name| name.to_string_lossy().into_owned())
        .all(|name| !name.contains("partial") && !name.starts_with("journal"))
}

#[test]
fn without_resume_the_next_receiver_keeps_what_came_and_says_what_is_missing() {
    let dir = directory();
    let mut server = Server::start(dir.path(), &[]);
    let stock = Peer::herald(server.address, b"");
    send_parts(&stock);
    let header = KernelDumpHeader { panic_string: "boom".into(), dump_length: 400_000, ..Default::default() };
    stock.deliver(MessageKind::Kdh, 1000, 0, &header.to_bytes());
    let named = Named::herald(server.address, 7);
    named.peer.deliver(MessageKind::Vmcore, 2, 0, b"abcd");
    kill(&mut server);

    let mut next = Server::start(dir.path(), &[]);
    let mut ended = [next.event("ended"), next.event("ended")];
    ended.sort_by_key(|ended| ended["bytes"].as_u64());
    assert_eq!((ended[0]["bytes"].as_u64(), ended[1]["bytes"].as_u64()), (Some(4), Some(200_000)));
    for ended in &ended {
        assert_eq!(ended["ending"], "Dump incomplete: the receiver died");
        assert_eq!((&ended["session"], &ended["complete"]), (&Value::Null, &Value::Bool(false)));
        let core = path_of(ended, "core");
        assert!(core.to_str().unwrap().ends_with(".incomplete"), "{ended}");
        // Its manifest agrees, but whole it is not.
        let verify = netdump().arg("verify").arg(&core).output().unwrap();
        let verdict = String::from_utf8_lossy(&verify.stdout);
        assert_eq!(verify.status.code(), Some(1));
        assert!(verdict.contains("is that of the core as it was stored"), "{verdict}");
    }
    assert_eq!(ended[1]["header"]["panic"], "boom");
    let info = text(path_of(&ended[1], "info"));
    assert!(
        info.contains("  Missing: 2 ranges, 200000B\n    0x186a0-0x30d40\n    0x493e0-0x61a80\n"),
        "{info}"
    );
    assert!(is_settled(dir.path()));
    // The client begins anew.
    let mut again = Named::herald(next.address, 7);
    again.peer.deliver(MessageKind::Vmcore, 2, 0, b"abcd");
    again.peer.deliver(MessageKind::Finished, 3, 0, b"");
    assert_eq!(next.event("ended")["complete"], true);
    again.id = 0;
}

#[test]
fn with_resume_a_dump_goes_on_and_nothing_is_sent_twice() {
    let dir = directory();
    let mut server = Server::start(dir.path(), &["--resume"]);
    let mut client = Named::herald(server.address, 7);
    send_parts(&client.peer);
    kill(&mut server);
    // Twice, and in between nothing else comes.
    for sequence in [500, 501] {
        server = Server::start(dir.path(), &["--resume"]);
        client.go_on(server.address, sequence);
        client.peer.deliver(MessageKind::Vmcore, sequence + 100, 100_000, &[1; 1000]);
        kill(&mut server);
    }
    server = Server::start(dir.path(), &["--resume"]);
    client.go_on(server.address, 502);
    for i in 0..100_u8 {
        let at = 100_000 + u64::from(i) * 1000;
        client.peer.deliver(MessageKind::Vmcore, 700 + u32::from(i), at, &[i; 1000]);
    }
    let header = KernelDumpHeader { dump_length: 300_000, ..Default::default() };
    client.peer.deliver(MessageKind::Kdh, 900, 0, &header.to_bytes());
    client.peer.deliver(MessageKind::Finished, 901, 0, b"");
    let ended = server.event("ended");
    assert_eq!((&ended["complete"], &ended["bytes"]), (&true.into(), &300_000.into()), "{ended}");
    assert_eq!((&ended["gaps"]["count"], &ended["resumed"]), (&0.into(), &1.into()), "{ended}");
    let core = fs::read(path_of(&ended, "core")).unwrap();
    let thousands = |flip: u8| (0..100_u8).flat_map(move |i| [i ^ flip; 1000]);
    let expected: Vec<u8> = thousands(0).chain(thousands(0)).chain(thousands(0xff)).collect();
    assert!(core == expected);
    let verify = netdump().arg("verify").arg(path_of(&ended, "core")).output().unwrap();
    let verdict = String::from_utf8_lossy(&verify.stdout);
    assert!(verdict.contains("ok  unchanged"), "{verdict}");
    assert!(is_settled(dir.path()));
}

#[test]
fn a_receiver_beside_another_does_not_take_its_dumps() {
    let dir = directory();
    let mut server = Server::start(dir.path(), &[]);
    let client = Named::herald(server.address, 7);
    client.peer.deliver(MessageKind::Vmcore, 2, 0, b"abcd");
    for arguments in [&[][..], &["--resume"]] {
        let other = Server::start(dir.path(), arguments);
        client.peer.deliver(MessageKind::Vmcore, 3, 4, b"efgh");
        other.signal(Signal::SIGTERM);
    }
    client.peer.deliver(MessageKind::Finished, 4, 0, b"");
    let ended = server.event("ended");
    assert_eq!(text(path_of(&ended, "core")), "abcdefgh");
}
