//! What `--metrics` answers, and to whom.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;

use super::*;

fn start(dir: &Path, arguments: &[&str]) -> (Server, SocketAddr) {
    let mut command = netdump();
    command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--dir"]);
    let (server, listening) = Server::spawn(command.arg(dir).args(arguments));
    (server, address_of(&listening, "metrics"))
}

/// Head and body of the answer to these bytes.
fn ask(metrics: SocketAddr, request: &[u8]) -> (String, String) {
    let mut client = TcpStream::connect(metrics).expect("somebody listens");
    client.set_read_timeout(Some(PATIENCE)).expect("a time");
    client.write_all(request).expect("a request is taken");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    (head.to_owned(), body.to_owned())
}

/// The samples by name and labels; each must have a type and a help, as the format wants it.
fn samples(metrics: SocketAddr) -> BTreeMap<String, u64> {
    let (head, body) = ask(metrics, b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    let (mut types, mut samples) = (BTreeMap::new(), BTreeMap::new());
    let mut helped = String::new();
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split(' ').next().unwrap_or_default().to_owned();
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').expect("a name and a type");
            assert_eq!(name, helped);
            assert!(kind == "counter" || kind == "gauge", "{line}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(types.insert(name.to_owned(), kind).is_none(), "{line}");
        } else {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            let bare = name.split('{').next().unwrap_or_default();
            assert!(types.contains_key(bare), "{line}");
            assert!(
                bare.starts_with("netdump_") && bare.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            );
            assert!(samples.insert(name.to_owned(), value.parse().expect("a number")).is_none(), "{line}");
        }
    }
    assert!(body.ends_with('\n'));
    samples
}

#[test]
fn metrics_count_what_happens() {
    let (dir, files) = (directory(), directory());
    let (mut server, metrics) = start(dir.path(), &["--timeout", "1"]);
    let before = samples(metrics);
    assert_eq!((before["netdump_sessions_open"], before["netdump_bytes_received_total"]), (0, 0));
    assert!(before["netdump_free_bytes"] > 0);
    let (file, _) = pattern(files.path(), "core", 100_000);
    assert_eq!(outcome(&mut server.send_command(&file)).0, Some(0));
    server.event("ended");
    let peer = Peer::herald(server.address, b"");
    peer.deliver(MessageKind::Vmcore, 2, 0, b"core");
    peer.deliver(MessageKind::Vmcore, 2, 0, b"core");
    peer.send(MessageKind::Kdh, 3, 0, b"short");
    peer.deliver(MessageKind::Vmcore, 4, 4, b"core");
    // The receiver sends its acks before it counts.
    let end = Instant::now() + PATIENCE;
    while samples(metrics)["netdump_bytes_received_total"] != 100_008 {
        assert!(Instant::now() < end, "{:?}", samples(metrics));
    }
    let during = samples(metrics);
    assert_eq!((during["netdump_sessions_open"], during["netdump_sessions_opened_total"]), (1, 2));
    server.event("ended");
    let after = samples(metrics);
    assert_eq!(after["netdump_dumps_complete_total"], 1);
    assert_eq!(after["netdump_dumps_incomplete_total{reason=\"timed_out\"}"], 1);
    assert_eq!((after["netdump_sessions_open"], after["netdump_bytes_received_total"]), (0, 100_008));
    assert_eq!(after["netdump_datagrams_ignored_total{reason=\"header_in_parts\"}"], 1);
    assert!(after["netdump_resends_seen_total"] >= 1 && after["netdump_messages_total"] > 25, "{after:?}");
}

#[test]
fn other_requests_are_refused() {
    let dir = directory();
    let (_server, metrics) = start(dir.path(), &[]);
    for (request, status) in [
        (&b"GET /secret HTTP/1.1\r\n\r\n"[..], "404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "405"),
        (b"\r\n\r\n", "405"),
        (b"HEAD /metrics HTTP/1.0\r\n\r\n", "200"),
        (b"GET / HTTP/1.0\r\n\r\n", "200"),
        (b"GET /metrics?a=b HTTP/1.1\r\n\r\n", "200"),
        (&[&[0xff; 500], &b"\r\n\r\n"[..]].concat(), "405"),
    ] {
        let (head, body) = ask(metrics, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(body.is_empty(), request.starts_with(b"HEAD"));
    }
}

#[test]
fn who_asks_slowly_or_without_end_harms_nobody() {
    let (dir, files) = (directory(), directory());
    let (mut server, metrics) = start(dir.path(), &[]);
    let silent: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(metrics).unwrap()).collect();
    let (file, _) = pattern(files.path(), "core", 1_000_000);
    assert_eq!(outcome(&mut server.send_command(&file)).0, Some(0));
    assert_eq!(server.event("ended")["complete"], true);
    // They are all given up, those turned away at once.
    for mut client in silent {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let end = client.read(&mut [0]);
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    // A request without end is cut off.
    let mut endless = TcpStream::connect(metrics).unwrap();
    endless.set_write_timeout(Some(PATIENCE)).unwrap();
    let cut = (0..100_000).find_map(|_| endless.write_all(&[b'x'; 1000]).err());
    assert!(cut.is_some(), "100 MB were taken");
    assert!(samples(metrics).contains_key("netdump_free_bytes"));
}
