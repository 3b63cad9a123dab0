//! What `--hook` runs, and that nobody waits for it.

use super::*;

/// A program that does this.
fn script(dir: &Path, lines: &str) -> PathBuf {
    let path = dir.join("hook.sh");
    fs::write(&path, format!("#!/bin/sh\n{lines}\n")).expect("a script can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("it is ours");
    path
}

fn start(dir: &Path, hook: &Path, arguments: &[&str]) -> Server {
    let arguments = [&["--hook", hook.to_str().expect("a name of ours")], arguments].concat();
    Server::start(dir, &arguments)
}

/// The content of a file, as soon as it has so many lines.
fn lines(path: &Path, count: usize) -> Vec<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if text.lines().count() >= count {
            return text.lines().map(str::to_owned).collect();
        }
        assert!(Instant::now() < end, "{} has only:\n{text}", path.display());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Writes each argument on a line of its own, where it is, what it is told, and what it ignores or has blocked.
const TELL: &str = r#"{ for a; do echo "$a"; done; pwd; env | grep -v ^PATH= | grep -v ^PWD= | grep -v ^SHLVL= | grep -v ^_= | wc -l
grep -E 'SigBlk|SigIgn' /proc/self/status; cat; echo; } > "$0.new"; mv "$0.new" "$0.out""#;

#[test]
fn hook_is_told_what_netdumpd_would_tell_and_all_else_as_json() {
    let (dir, files) = (directory(), directory());
    fs::create_dir(dir.path().join("vms")).unwrap();
    let hook = script(files.path(), TELL);
    let told = files.path().join("hook.sh.out");
    let mut server = start(dir.path(), &hook, &[]);
    let peer = Peer::herald(server.address, b"vms\0");
    peer.deliver(MessageKind::Vmcore, 2, 0, b"core");
    let header = KernelDumpHeader { dump_length: 4, panic_string: "boom".into(), ..Default::default() };
    peer.deliver(MessageKind::Kdh, 3, 0, &header.to_bytes());
    peer.deliver(MessageKind::Finished, 4, 0, b"");
    let ended = server.event("ended");
    let told = lines(&told, 10);
    let core = path_of(&ended, "core");
    let name = |path: &Path| format!("vms/{}", path.file_name().unwrap().to_str().unwrap());
    let host = name(&core).replace("vms/vmcore.", "").replace(".0", "");
    let host = if host == "127.0" { "127.0.0.1".to_owned() } else { host };
    let info = name(&path_of(&ended, "info"));
    assert_eq!(told[..5], ["success", "127.0.0.1", &*host, &*info, &*name(&core)]);
    assert_eq!(told[5], dir.path().canonicalize().unwrap().to_str().unwrap());
    assert_eq!(told[6].trim(), "0", "nothing of our environment");
    for (line, name) in told[7..9].iter().zip(["SigBlk:", "SigIgn:"]) {
        let mask = u64::from_str_radix(line.strip_prefix(name).unwrap().trim(), 16).unwrap();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGPIPE, Signal::SIGXFSZ] {
            assert_eq!(mask >> (signal as i32 - 1) & 1, 0, "{line} has {signal}");
        }
    }
    let description: Value = serde_json::from_str(&told[9]).unwrap();
    assert_eq!(description, ended);
    assert_eq!((&description["header"]["panic"], &description["length"]), (&"boom".into(), &4.into()));
    assert!(path_of(&description, "manifest").is_file(), "all files are there when the hook runs");
}

#[test]
fn hook_runs_also_for_dumps_that_fail_before_the_receiver_ends() {
    for (arguments, reason) in
        [(&["--once", "--timeout", "1"][..], "timeout"), (&["--once", "--max-bytes-per-dump", "2"], "error")]
    {
        let (dir, files) = (directory(), directory());
        let hook = script(files.path(), &format!("sleep 0.3\n{TELL}"));
        let mut server = start(dir.path(), &hook, arguments);
        let peer = Peer::herald(server.address, b"");
        peer.send(MessageKind::Vmcore, 2, 0, b"core");
        assert_eq!(server.exit_code(), Some(1));
        let told = lines(&files.path().join("hook.sh.out"), 5);
        assert_eq!((told[0].as_str(), told[4].ends_with(".incomplete")), (reason, true), "{told:?}");
    }
}

#[test]
fn a_slow_hook_holds_up_neither_dumps_nor_other_hooks_and_is_killed() {
    let (dir, files) = (directory(), directory());
    let started = files.path().join("started");
    // The first never ends by itself, nor does what it starts.
    let lines_of =
        format!("echo $$ >> {0}; [ $(wc -l < {0}) -gt 1 ] || {{ sleep 1000 & wait; }}", started.display());
    let hook = script(files.path(), &lines_of);
    let mut server = start(dir.path(), &hook, &["--hook-timeout", "2"]);
    for count in 1..=3 {
        let peer = Peer::herald(server.address, b"");
        peer.deliver(MessageKind::Vmcore, 2, 0, b"core");
        peer.deliver(MessageKind::Finished, 3, 0, b"");
        assert_eq!(server.event("ended")["complete"], true);
        lines(&started, count);
    }
    let first: i32 = lines(&started, 1)[0].parse().unwrap();
    let group = Pid::from_raw(first);
    assert_eq!(nix::sys::signal::killpg(group, None), Ok(()), "it runs");
    // The receiver does not end before it does.
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit_code(), Some(0));
    let end = Instant::now() + PATIENCE;
    while nix::sys::signal::killpg(group, None).is_ok() {
        assert!(Instant::now() < end, "something of it is left");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn many_dumps_at_once_have_their_hooks_and_leave_no_zombies() {
    let (dir, files) = (directory(), directory());
    let done = files.path().join("done");
    let hook = script(files.path(), &format!("sleep 0.05; echo $5 >> {}; exit 3", done.display()));
    let mut server = start(dir.path(), &hook, &[]);
    let peers: Vec<Peer> = (0..20).map(|_| Peer::herald(server.address, b"")).collect();
    for peer in &peers {
        peer.deliver(MessageKind::Vmcore, 2, 0, b"core");
        peer.deliver(MessageKind::Finished, 3, 0, b"");
    }
    let mut cores: Vec<String> = (0..20)
        .map(|_| path_of(&server.event("ended"), "core").file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    let mut told = lines(&done, 20);
    cores.sort();
    told.sort();
    assert_eq!(told, cores);
    let children = || -> String {
        let threads = fs::read_dir(format!("/proc/{}/task", server.child.id())).unwrap();
        threads.map(|thread| text(thread.unwrap().path().join("children"))).collect()
    };
    let end = Instant::now() + PATIENCE;
    while !children().is_empty() {
        assert!(Instant::now() < end, "children: {}", children());
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn hook_that_cannot_be_run_is_named() {
    let (dir, files) = (directory(), directory());
    let serve = |hook: &Path| {
        let mut command = netdump();
        command.args(["serve", "--listen", "127.0.0.1:0", "--dir"]).arg(dir.path()).arg("--hook").arg(hook);
        command
    };
    refuses(&mut serve(&files.path().join("missing")), 1, &["the hook", "missing", "No such file"]);
    // Not executable: the dump is none the worse for it.
    let plain = files.path().join("plain");
    fs::write(&plain, "").unwrap();
    let mut server = start(dir.path(), &plain, &["--once"]);
    let peer = Peer::herald(server.address, b"");
    peer.deliver(MessageKind::Finished, 2, 0, b"");
    assert_eq!(server.exit_code(), Some(0));
}
