//! What the receiver allows itself to store, and what its system allows it.

use super::*;

const IMPATIENT: [&str; 4] = ["--polls", "20", "--retries", "1"];

#[test]
fn a_dump_that_is_too_large_ends_and_others_go_on() {
    let (dir, files) = (directory(), directory());
    let (large, bytes) = pattern(files.path(), "large", 3 << 20);
    let (small, _) = pattern(files.path(), "small", 1 << 20);
    let mut server = Server::start(dir.path(), &["--max-bytes-per-dump", "2M"]);
    let (code, stderr) = outcome(server.send_command(&large).args(IMPATIENT));
    assert_eq!(code, Some(1), "{stderr}");
    let ended = server.event("ended");
    let reason = "Dump unsuccessful: the dump is larger than the 2097152 bytes that one may have";
    assert_eq!(ended["ending"], reason);
    let info = text(path_of(&ended, "info"));
    assert!(info.contains("    and all from 0x") && info.trim_end().ends_with(reason), "{info}");
    // What was acknowledged is there, and not more than may be.
    let core = fs::read(path_of(&ended, "core")).unwrap();
    let stored = ended["bytes"].as_u64().unwrap();
    assert!(stored <= 2 << 20 && core.len() as u64 >= stored && bytes.starts_with(&core), "{stored}");
    assert_eq!(outcome(&mut server.send_command(&small)).0, Some(0));
    assert_eq!(server.event("ended")["complete"], true);
}

#[test]
fn dumps_are_refused_where_no_room_is_left_for_them() {
    let (dir, files) = (directory(), directory());
    let (file, _) = pattern(files.path(), "core", 1 << 20);
    let mut server = Server::start(dir.path(), &["--max-bytes-total", "1536K"]);
    assert_eq!(outcome(&mut server.send_command(&file)).0, Some(0));
    let first = path_of(&server.event("ended"), "core");
    assert_eq!(outcome(server.send_command(&file).args(IMPATIENT)).0, Some(1));
    let ending = server.event("ended")["ending"].as_str().unwrap().to_owned();
    assert!(ending.contains("of the 1572864 that all together may have"), "{ending}");
    fs::remove_file(first).unwrap();
    let mut server = Server::start(dir.path(), &["--min-free", "1000000T"]);
    assert_eq!(outcome(server.send_command(&file).args(IMPATIENT)).0, Some(1));
    let error = server.event("refused")["error"].as_str().unwrap().to_owned();
    assert!(error.contains("must stay so"), "{error}");
    let command = |size: &str| {
        let mut command = netdump();
        command.args(["serve", "--dir"]).arg(dir.path()).args(["--min-free", size]);
        command
    };
    refuses(&mut command("much"), 2, &["--min-free", "a number of bytes"]);
}

/// `ulimit -f`: a full disk for those who may not mount one.
#[test]
fn a_limit_of_the_system_to_files_is_as_a_full_disk() {
    let (dir, files) = (directory(), directory());
    let (file, bytes) = pattern(files.path(), "core", 3 << 20);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f 2000; exec \"$0\" serve --json --listen 127.0.0.1:0 --dir \"$1\""]);
    shell.arg(env!("CARGO_BIN_EXE_netdump")).arg(dir.path()).env_remove("RUST_LOG");
    let (mut server, _) = Server::spawn(&mut shell);
    assert_eq!(outcome(server.send_command(&file).args(IMPATIENT)).0, Some(1));
    let ended = server.event("ended");
    assert!(ended["ending"].as_str().unwrap().contains("File too large"), "{ended}");
    let core = fs::read(path_of(&ended, "core")).unwrap();
    assert!(core.len() as u64 >= ended["bytes"].as_u64().unwrap() && bytes.starts_with(&core));
    assert!(text(path_of(&ended, "info")).contains("    and all from 0x"));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit_code(), Some(0));
}
