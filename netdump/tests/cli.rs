//! The `netdump` command as its users run it: programs, sockets on loopback, files, signals and exit codes.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use netdump::ReadAt;
use netdump::vmcore::{self, CoreNotes, CpuState, KernelDumpHeader};
use netdump::vmcore::{MemoryError, MemoryRange, PhysicalMemory, StoppedGuest};
use netdump::wire::{Message, MessageKind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

#[path = "cli/encrypted.rs"]
mod encrypted;
#[path = "cli/hook.rs"]
mod hook;
#[path = "cli/limits.rs"]
mod limits;
#[path = "cli/metrics.rs"]
mod metrics;
#[path = "cli/packed.rs"]
mod packed;
#[path = "cli/recovery.rs"]
mod recovery;
#[path = "cli/serving.rs"]
mod serving;
#[path = "cli/torture.rs"]
mod torture;

const PATIENCE: Duration = Duration::from_secs(20);

fn netdump() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netdump"));
    command.env_remove("RUST_LOG").env("RUST_BACKTRACE", "0");
    command
}

/// `netdump serve --json` on a free port of loopback.
struct Server {
    child: Child,
    events: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Server {
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", dir, arguments)
    }

    fn start_at(listen: &str, dir: &Path, arguments: &[&str]) -> Self {
        let mut command = netdump();
        command.args(["serve", "--json", "--listen", listen, "--dir"]).arg(dir).args(arguments);
        Self::spawn(&mut command).0
    }

    /// Starts a command that is or becomes a server; also what it says of itself.
    fn spawn(command: &mut Command) -> (Self, Value) {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program can be started");
        let events = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut server = Self { child, events, address: ([0, 0, 0, 0], 0).into() };
        let listening = server.event("listening");
        server.address = address_of(&listening, "address");
        (server, listening)
    }

    /// The next event of this kind.
    fn event(&mut self, kind: &str) -> Value {
        loop {
            let mut line = String::new();
            self.events.read_line(&mut line).expect("standard output can be read");
            assert!(!line.is_empty(), "the server ended without the event {kind}");
            let event: Value = serde_json::from_str(&line).expect("an event is JSON");
            if event["event"] == kind {
                return event;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id fits");
        kill(Pid::from_raw(pid), signal).expect("our child can be signalled");
    }

    /// The exit code, once it ends by itself.
    fn exit_code(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().expect("our child can be waited for") {
                return status.code();
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the server did not end");
    }

    fn send_command(&self, file: &Path) -> Command {
        let mut command = netdump();
        command.arg("send").arg(file).args(["--client-port", "0", "--server", &self.address.to_string()]);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client whose every message is the test's choice.
struct Peer {
    socket: UdpSocket,
    server: SocketAddr,
}

impl Peer {
    /// Sends a HERALD and learns the port from its ack.
    fn herald(server: SocketAddr, path: &[u8]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time");
        let mut peer = Self { socket, server };
        peer.send(MessageKind::Herald, 1, 0, path);
        let (ack, from) = peer.ack();
        assert_eq!(ack, 1);
        peer.server = from;
        peer
    }

    fn send(&self, kind: MessageKind, sequence: u32, offset: u64, payload: &[u8]) {
        let mut bytes = Vec::new();
        Message { kind, sequence, offset, payload, aux: 0 }.emit(&mut bytes);
        self.socket.send_to(&bytes, self.server).expect("loopback takes datagrams");
    }

    fn ack(&self) -> (u32, SocketAddr) {
        let mut ack = [0; 4];
        let (len, from) = self.socket.recv_from(&mut ack).expect("an ack comes");
        assert_eq!(len, 4);
        (u32::from_be_bytes(ack), from)
    }

    fn deliver(&self, kind: MessageKind, sequence: u32, offset: u64, payload: &[u8]) {
        self.send(kind, sequence, offset, payload);
        assert_eq!(self.ack().0, sequence);
    }

    fn is_silent(&self) -> bool {
        self.socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time");
        let silent = self.socket.recv(&mut [0; 4]).is_err();
        self.socket.set_read_timeout(Some(PATIENCE)).expect("a time");
        silent
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory can be made")
}

/// A file of bytes that do not repeat at any message's or page's length.
fn pattern(dir: &Path, name: &str, len: usize) -> (PathBuf, Vec<u8>) {
    let bytes: Vec<u8> =
        (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let path = dir.join(name);
    fs::write(&path, &bytes).expect("a file can be written");
    (path, bytes)
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

fn path_of(event: &Value, key: &str) -> PathBuf {
    event[key].as_str().unwrap_or_else(|| panic!("no {key} in {event}")).into()
}

fn address_of(event: &Value, key: &str) -> SocketAddr {
    let address = event[key].as_str().unwrap_or_else(|| panic!("no {key} in {event}"));
    address.parse().expect("an address")
}

/// Exit code and standard error of a command that should end soon.
fn outcome(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().expect("the program can be started");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

/// Asserts that a command fails with this code and one sentence that holds all of these words.
fn refuses(command: &mut Command, code: i32, words: &[&str]) {
    let (exit, stderr) = outcome(command);
    assert_eq!(exit, Some(code), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "'{word}' is not in: {stderr}");
    }
    if code == 1 {
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    }
}

/// A tmpfs for as long as this lives; `None` where that is not allowed.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path, options: &str) -> Option<Self> {
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Self(at.to_owned()));
        }
        println!("SKIPPED mount: this test needs the right to mount a tmpfs");
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

#[test]
fn sent_file_is_stored_and_its_path_printed() {
    let (dir, files) = (directory(), directory());
    let (file, bytes) = pattern(files.path(), "core", 3_000_001);
    let mut server = netdump()
        .args(["serve", "--once", "--listen", "127.0.0.1:0", "--dir"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(server.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let address = line.split("address=").nth(1).unwrap().split(' ').next().unwrap();
    let report = files.path().join("report.json");
    let sent = netdump()
        .arg("send")
        .arg(&file)
        .args(["--client-port", "0", "--name", "vm7", "--server", address, "--report"])
        .arg(&report)
        .output()
        .unwrap();
    assert_eq!(sent.status.code(), Some(0), "{}", String::from_utf8_lossy(&sent.stderr));
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    let output = server.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{rest}");
    assert!(rest.contains("dump begins") && rest.contains("Dump complete: 3.0 MB in"), "{rest}");

    let printed = String::from_utf8(output.stdout).unwrap();
    let core = Path::new(printed.trim_end());
    assert!(core.parent() == Some(dir.path()) && printed.lines().count() == 1, "{printed}");
    assert!(fs::read(core).unwrap() == bytes);
    let report: Value = serde_json::from_str(&text(report)).unwrap();
    assert_eq!(
        (&report["dump"]["outcome"], &report["dump"]["length"]),
        (&"complete".into(), &3_000_001.into())
    );
    let info = core.with_file_name(core.file_name().unwrap().to_str().unwrap().replace("vmcore", "info"));
    assert!(text(info).contains("  Hostname: vm7\n"));
}

#[test]
fn clients_are_served_at_once() {
    let (dir, files) = (directory(), directory());
    let mut server = Server::start(dir.path(), &[]);
    let mut cores: Vec<_> = (0..4).map(|i| pattern(files.path(), &i.to_string(), 2_000_000 + i)).collect();
    let senders: Vec<Child> = cores
        .iter()
        .map(|(file, _)| {
            server.send_command(file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut sender in senders {
        assert_eq!(sender.wait().unwrap().code(), Some(0));
    }
    for _ in 0..4 {
        let ended = server.event("ended");
        assert_eq!((&ended["complete"], &ended["gaps"]["count"]), (&true.into(), &0.into()), "{ended}");
        let stored = fs::read(path_of(&ended, "core")).unwrap();
        let at = cores.iter().position(|(_, bytes)| *bytes == stored).expect("it is one of those sent");
        cores.swap_remove(at);
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn a_stranger_with_a_herald_does_not_take_the_place_of_the_only_dump() {
    let (dir, files) = (directory(), directory());
    let (file, bytes) = pattern(files.path(), "core", 100_000);
    let mut server = Server::start(dir.path(), &["--once"]);
    let _stranger = Peer::herald(server.address, b"");
    let sent = server.send_command(&file).stderr(Stdio::null()).status().unwrap();
    assert_eq!(sent.code(), Some(0));
    server.event("discarded");
    assert!(fs::read(path_of(&server.event("ended"), "core")).unwrap() == bytes);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn acknowledged_bytes_survive_the_receivers_death() {
    let dir = directory();
    let mut server = Server::start(dir.path(), &[]);
    let peer = Peer::herald(server.address, b"");
    for i in 0..100_u8 {
        peer.deliver(MessageKind::Vmcore, 2 + u32::from(i), u64::from(i) * 1000, &[i; 1000]);
    }
    let header = KernelDumpHeader { panic_string: "boom".into(), ..Default::default() };
    peer.deliver(MessageKind::Kdh, 102, 0, &header.to_bytes());
    server.signal(Signal::SIGKILL);
    assert_eq!(server.exit_code(), None);
    let partial = fs::read(dir.path().join("vmcore.localhost.0.partial"));
    let partial = partial.or_else(|_| fs::read(dir.path().join("vmcore.127.0.0.1.0.partial"))).unwrap();
    assert!(
        partial.len() == 100_000
            && partial.chunks(1000).enumerate().all(|(i, c)| c.iter().all(|b| usize::from(*b) == i))
    );
    let info = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).find(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("info.") && name.ends_with(".0")
    });
    let info = text(info.unwrap());
    assert!(info.contains("Panic String: boom") && info.contains("Dump incomplete"), "{info}");

    // The next receiver gives it another name, and takes another number.
    let mut next = Server::start(dir.path(), &["--once"]);
    assert!(fs::read(path_of(&next.event("ended"), "core")).unwrap() == partial);
    let peer = Peer::herald(next.address, b"");
    peer.deliver(MessageKind::Vmcore, 2, 0, b"x");
    peer.deliver(MessageKind::Finished, 3, 0, b"");
    let core = path_of(&next.event("ended"), "core");
    assert!(core.to_str().unwrap().ends_with(".1"), "{}", core.display());
}

#[test]
fn sender_whose_receiver_dies_fails_with_a_reason() {
    let (dir, files) = (directory(), directory());
    // Large enough that it is not sent before the receiver dies.
    let file = files.path().join("core");
    fs::write(&file, vec![7; 400 << 20]).unwrap();
    let mut server = Server::start(dir.path(), &[]);
    let mut command = server.send_command(&file);
    let sender = command.args(["--polls", "100", "--retries", "2"]).stderr(Stdio::piped()).spawn().unwrap();
    server.event("opened");
    thread::sleep(Duration::from_millis(50));
    server.signal(Signal::SIGKILL);
    let output = sender.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("failed"), "{stderr}");
}

#[test]
fn interrupted_receiver_keeps_what_came_and_lists_what_is_missing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let dir = directory();
        let mut server = Server::start(dir.path(), &[]);
        let peer = Peer::herald(server.address, b"");
        peer.deliver(MessageKind::Vmcore, 2, 0, b"abcd");
        peer.deliver(MessageKind::Vmcore, 3, 0x1000, b"efgh");
        server.signal(signal);
        let ended = server.event("ended");
        assert_eq!(server.exit_code(), Some(1));
        assert_eq!(ended["ending"], "Dump incomplete: receiver was stopped");
        let core = path_of(&ended, "core");
        assert!(core.to_str().unwrap().ends_with(".0.incomplete"));
        assert_eq!(fs::read(core).unwrap().len(), 0x1004);
        let info = text(path_of(&ended, "info"));
        assert!(info.contains("  Missing: 1 ranges, 4092B\n    0x4-0x1000\n"), "{info}");
        assert!(info.ends_with("\nDump incomplete: receiver was stopped\n"), "{info}");
    }
}

#[test]
fn idle_receiver_ends_well_when_told_and_fails_when_a_dump_was_wanted() {
    for (arguments, code) in [(&[][..], 0), (&["--once"], 1)] {
        let dir = directory();
        let mut server = Server::start(dir.path(), arguments);
        server.signal(Signal::SIGINT);
        assert_eq!(server.exit_code(), Some(code));
    }
}

#[test]
fn silent_client_is_given_up() {
    let dir = directory();
    let mut server = Server::start(dir.path(), &["--once", "--timeout", "1"]);
    let peer = Peer::herald(server.address, b"");
    peer.deliver(MessageKind::Vmcore, 2, 0, b"abcd");
    let ended = server.event("ended");
    assert_eq!(ended["ending"], "Dump incomplete: client timed out");
    assert!(path_of(&ended, "core").exists());
    assert_eq!(server.exit_code(), Some(1));
}

#[test]
fn finished_is_acknowledged_again_after_the_end() {
    let dir = directory();
    let mut server = Server::start(dir.path(), &["--once"]);
    let peer = Peer::herald(server.address, b"");
    peer.deliver(MessageKind::Vmcore, 2, 0, b"abcd");
    for _ in 0..3 {
        peer.deliver(MessageKind::Finished, 3, 0, b"");
    }
    assert_eq!(server.event("ended")["complete"], true);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn dump_goes_to_the_directory_asked_for_or_says_why_not() {
    let (dir, outside, files) = (directory(), directory(), directory());
    fs::create_dir(dir.path().join("vms")).unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
    let (file, _) = pattern(files.path(), "core", 10_000);
    let mut server = Server::start(dir.path(), &[]);
    assert_eq!(outcome(server.send_command(&file).args(["--path", "vms"])).0, Some(0));
    let ended = server.event("ended");
    assert_eq!(path_of(&ended, "core").parent(), Some(&*dir.path().join("vms")));
    for path in [&b"../x\0"[..], b"/etc\0", b"link\0", b"vms/../..\0", b"missing\0", &[b'a'; 2048]] {
        let peer = Peer::herald(server.address, path);
        peer.deliver(MessageKind::Finished, 2, 0, b"");
        let ended = server.event("ended");
        assert_eq!(path_of(&ended, "core").parent(), Some(dir.path()), "{ended}");
        assert!(text(path_of(&ended, "info")).contains("was not used: "));
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn acks_come_from_the_address_that_was_spoken_to() {
    let dir = directory();
    let server = Server::start_at("0.0.0.0:0", dir.path(), &[]);
    for last in [1, 2, 77] {
        let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), server.address.port());
        let peer = Peer::herald(address.into(), b"");
        assert_eq!(peer.server.ip(), *address.ip());
        assert_ne!(peer.server.port(), server.address.port());
        peer.deliver(MessageKind::Vmcore, 2, 0, b"abcd");
    }
}

#[test]
fn malformed_and_foreign_datagrams_are_not_answered() {
    let dir = directory();
    let server = Server::start(dir.path(), &[]);
    let peer = Peer::herald(server.address, b"");
    for junk in [&b"short"[..], &[0; 24], &[9; 9000]] {
        peer.socket.send_to(junk, peer.server).unwrap();
        peer.socket.send_to(junk, server.address).unwrap();
    }
    peer.send(MessageKind::Vmcore, 2, u64::MAX, b"wild");
    peer.send(MessageKind::Kdh, 3, 0, &[0; 511]);
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let forged = netdump::wire::message::header(MessageKind::Finished, 4, 0, 0, 0);
    stranger.send_to(&forged, peer.server).unwrap();
    assert!(peer.is_silent());
    peer.deliver(MessageKind::Vmcore, 2, 0, b"abcd");
}

#[test]
fn full_disk_ends_one_dump_and_no_other() {
    let (dir, files) = (directory(), directory());
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let Some(_mount) = Mount::tmpfs(&small, "size=1m") else { return };
    let (file, bytes) = pattern(files.path(), "core", 4 << 20);
    let mut server = Server::start(dir.path(), &[]);
    let patience = ["--polls", "20", "--retries", "1"];
    let (code, stderr) = outcome(server.send_command(&file).args(["--path", "small"]).args(patience));
    assert_eq!(code, Some(1), "{stderr}");
    let ended = server.event("ended");
    assert!(ended["ending"].as_str().unwrap().contains("No space left on device"), "{ended}");
    assert_eq!(path_of(&ended, "core").parent(), Some(&*small));
    let info = text(path_of(&ended, "info"));
    assert!(info.contains("\nDump unsuccessful: writing") && info.contains("    and all from 0x"), "{info}");
    // What was acknowledged is there.
    let core = fs::read(path_of(&ended, "core")).unwrap();
    let stored = usize::try_from(ended["bytes"].as_u64().unwrap()).unwrap();
    assert!(stored > 500_000 && core.len() >= stored && core[..] == bytes[..core.len()]);

    assert_eq!(outcome(&mut server.send_command(&file)).0, Some(0));
    assert_eq!(server.event("ended")["complete"], true);
    // There is no room for another dump's files: refused, and said so.
    fs::write(small.join("rest"), vec![0; 1 << 20]).unwrap_err();
    let (code, stderr) = outcome(server.send_command(&file).args(["--path", "small"]).args(patience));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(server.event("refused")["error"].as_str().unwrap().contains("No space left on device"));
}

#[test]
fn directories_that_cannot_be_used_are_named() {
    let dir = directory();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let serve = |path: &Path| {
        let mut command = netdump();
        command.args(["serve", "--listen", "127.0.0.1:0", "--dir"]).arg(path);
        command
    };
    refuses(&mut serve(&dir.path().join("missing")), 1, &["missing cannot be used", "No such file"]);
    refuses(&mut serve(&file), 1, &["file cannot be used", "Not a directory"]);
    let locked = dir.path().join("locked");
    fs::create_dir(&locked).unwrap();
    if nix::unistd::geteuid().is_root() {
        let Some(_mount) = Mount::tmpfs(&locked, "ro") else { return };
        refuses(&mut serve(&locked), 1, &["locked is not writable", "Read-only file system"]);
    } else {
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
        refuses(&mut serve(&locked), 1, &["locked is not writable", "Permission denied"]);
    }
}

#[test]
fn addresses_that_cannot_be_used_are_named() {
    let dir = directory();
    let serve = |listen: &str| {
        let mut command = netdump();
        command.args(["serve", "--listen", listen, "--dir"]).arg(dir.path());
        command
    };
    refuses(&mut serve("192.0.2.1:20023"), 1, &["listening on 192.0.2.1:20023", "assign requested address"]);
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refuses(&mut serve(&address), 1, &["listening on", &address, "in use"]);
    refuses(&mut serve("nowhere"), 2, &["--listen", "an IPv4 address is wanted"]);
    refuses(serve("127.0.0.1:0").args(["--timeout", "0"]), 2, &["--timeout"]);
    refuses(&mut netdump(), 2, &["Usage"]);
}

#[test]
fn files_that_cannot_be_sent_are_named() {
    let dir = directory();
    let empty = dir.path().join("empty");
    fs::write(&empty, "").unwrap();
    let send = |path: &Path, server: &str| {
        let mut command = netdump();
        command.arg("send").arg(path).args(["--client-port", "0", "--server", server]);
        command
    };
    refuses(&mut send(&dir.path().join("missing"), "127.0.0.1"), 1, &["missing", "No such file"]);
    refuses(&mut send(dir.path(), "127.0.0.1"), 1, &["directory"]);
    refuses(&mut send(&empty, "127.0.0.1"), 1, &["empty is empty"]);
    let (file, _) = pattern(dir.path(), "core", 10);
    refuses(&mut send(&file, "server.example"), 2, &["--server", "an IPv4 address is wanted"]);
    refuses(send(&file, "127.0.0.1").args(["--path", "../x"]), 1, &["'../x'", "'..'"]);
    refuses(send(&file, "127.0.0.1").args(["--path", &"a".repeat(2048)]), 1, &["2048 bytes"]);
    refuses(send(&file, "127.0.0.1").args(["--client", "192.0.2.1"]), 1, &["192.0.2.1", "assign"]);
}

#[test]
fn silent_server_is_named() {
    let dir = directory();
    let (file, _) = pattern(dir.path(), "core", 10);
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let mut command = netdump();
    command.arg("send").arg(&file).args(["--client-port", "0", "--polls", "20", "--retries", "1"]);
    let (code, stderr) = outcome(command.args(["--server", &address]));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&address), "{stderr}");
}

#[test]
fn interrupted_sender_says_so() {
    let dir = directory();
    let (file, _) = pattern(dir.path(), "core", 10_000);
    // Takes the HERALD and then nothing more.
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    let mut command = netdump();
    command.arg("send").arg(&file).args(["--client-port", "0", "--server", &address]);
    let sender = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut message = [0; 2000];
    let (_, from) = server.recv_from(&mut message).unwrap();
    server.send_to(&1_u32.to_be_bytes(), from).unwrap();
    while message[3] == MessageKind::Herald as u8 {
        server.recv_from(&mut message).unwrap();
    }
    kill(Pid::from_raw(i32::try_from(sender.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = sender.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("SIGINT"), "{stderr}");
}

/// Two pages of memory.
struct TwoPages([MemoryRange; 1]);

impl PhysicalMemory for TwoPages {
    fn ranges(&self) -> &[MemoryRange] {
        &self.0
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        buf.fill(if address < 0x2000 { 1 } else { 2 });
        Ok(())
    }

    fn cpus(&self) -> &[CpuState] {
        &[]
    }
}

/// An ELF core of two pages.
fn small_core() -> Vec<u8> {
    let memory = TwoPages([MemoryRange { start: 0x1000, len: 0x2000 }]);
    let notes = CoreNotes::default();
    let guest = StoppedGuest { memory: &memory, symbols: None, notes: &notes };
    let elf = vmcore::format("elf").expect("the format exists");
    let image = elf.plan(&guest).expect("a plan").image;
    let mut core = vec![0; usize::try_from(image.length()).expect("a small core")];
    image.read_at(0, &mut core).expect("inside the core");
    core
}

#[test]
fn delivered_core_is_verified_and_inspected() {
    let (dir, files) = (directory(), directory());
    let (core, file) = (small_core(), files.path().join("core"));
    fs::write(&file, &core).unwrap();

    let mut server = Server::start(dir.path(), &["--once"]);
    let report = files.path().join("report.json");
    assert_eq!(outcome(server.send_command(&file).arg("--report").arg(&report)).0, Some(0));
    let stored = path_of(&server.event("ended"), "core");
    let verify = || {
        let output = netdump().arg("verify").arg(&stored).arg("--report").arg(&report).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, verdict) = verify();
    assert_eq!(code, Some(0), "{verdict}");
    assert!(verdict.ends_with("The core is whole: its content is what the sender sent.\n"), "{verdict}");
    let inspect = netdump().arg("inspect").arg(&stored).arg("--json").output().unwrap();
    assert_eq!(inspect.status.code(), Some(0));
    let inspection: Value = serde_json::from_slice(&inspect.stdout).unwrap();
    assert_eq!(inspection["memory"][0]["start"], 0x1000);

    let mut damaged = core.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&stored, damaged).unwrap();
    let (code, verdict) = verify();
    assert_eq!(code, Some(1), "{verdict}");
    refuses(netdump().arg("inspect").arg(files.path()), 1, &["inspecting"]);
    for arguments in [&["inspect"][..], &["inspect", "--json"]] {
        let (reader, output) = std::io::pipe().unwrap();
        drop(reader);
        let unread =
            netdump().args(arguments).arg(&stored).stdout(output).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((unread.status.code(), unread.stderr.as_slice()), (Some(1), &b""[..]), "{unread:?}");
    }
    refuses(netdump().arg("verify").arg(&stored).args(["--report", "/missing"]), 1, &["report /missing"]);
}

/// A file that the fuzz targets of this crate begin with.
fn seed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

#[test]
fn threads_of_a_freebsd_core_are_told_by_its_kernel() {
    let (core, kernel) = (seed("corpus/core_open/minidump"), seed("kernel.elf"));
    let inspect = |arguments: &[&str]| {
        let mut command = netdump();
        command.arg("inspect").arg(&core).args(arguments);
        command
    };
    let kernel = kernel.to_str().unwrap();
    let output = inspect(&["--kernel", kernel, "--thread", "100001"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let told = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "FreeBSD/amd64 minidump, version 3",
        "Panic     here",
        "Thread    100007 of pid 7 sh, on CPU 0, CRASHED; registers of dumppcb",
        "Thread    100001 of pid 1 init; registers of td_pcb",
        "panic+0x8",
        &format!("kgdb {kernel} {}", core.display()),
    ] {
        assert!(told.contains(expected), "'{expected}' is not in:\n{told}");
    }
    let output = inspect(&["--symbols", kernel, "--all-threads", "--json"]).output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["kernel"]["crashed_thread"], 100_007);
    assert_eq!(json["kernel"]["threads"][0]["backtrace"][0]["function"], "panic");

    refuses(&mut inspect(&["--kernel", kernel, "--thread", "5"]), 1, &["no thread 5", "among the 2"]);
    refuses(&mut inspect(&["--thread", "5"]), 2, &["--kernel"]);
    let stripped = seed("corpus/core_open/elf");
    refuses(&mut inspect(&["--kernel", stripped.to_str().unwrap()]), 1, &["no symbol table"]);
    refuses(&mut inspect(&["--kernel", core.to_str().unwrap()]), 1, &["not a little-endian ELF64"]);
}
