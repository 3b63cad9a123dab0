//! Cores that `netdump send` packs on their way, opened by other people's programs.

use super::*;

const PUBLIC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ekcd/test_keys/public-2048.pem");
const PRIVATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ekcd/test_keys/private-2048.pem");

/// Sends a file with these options; what the server says of it in the end, and the sender's report and last words.
fn sent(dir: &Path, file: &Path, options: &[&str]) -> (Value, Value, String) {
    let mut server = Server::start(dir, &["--once"]);
    let report = dir.join("report.json");
    let (code, stderr) = outcome(server.send_command(file).args(options).arg("--report").arg(&report));
    assert_eq!(code, Some(0), "{stderr}");
    let ended = server.event("ended");
    assert_eq!(server.exit_code(), Some(0));
    (ended, serde_json::from_str(&text(report)).expect("a report is JSON"), stderr)
}

/// Exit code and words of `netdump verify` with the report in this directory.
fn verify(core: &Path, dir: &Path) -> (Option<i32>, String) {
    let output = netdump().arg("verify").arg(core).arg("--report").arg(dir.join("report.json")).output();
    let output = output.expect("netdump starts");
    (output.status.code(), String::from_utf8(output.stdout).expect("it writes text"))
}

/// What a program unpacks; `None` where it is not installed.
fn unpacked_by(program: &str, core: &Path) -> Option<Vec<u8>> {
    let Ok(output) = Command::new(program).arg("-dc").arg(core).output() else {
        println!("SKIPPED {program}: this machine does not have it");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

/// Half of it compresses.
fn core(dir: &Path, len: usize) -> (PathBuf, Vec<u8>) {
    let (path, mut bytes) = pattern(dir, "core", len);
    bytes[len / 4..3 * len / 4].fill(0x5a);
    fs::write(&path, &bytes).expect("a file can be written");
    (path, bytes)
}

#[test]
fn compressed_core_is_opened_by_gzip_and_zstd() {
    let files = directory();
    let (file, bytes) = core(files.path(), 3_000_001);
    for (option, program, suffix) in
        [("gzip", "gzip", "gz"), ("gzip:1", "gzip", "gz"), ("zstd:3", "zstd", "zst")]
    {
        let dir = directory();
        let (ended, report, told) = sent(dir.path(), &file, &["--compress", option]);
        let core = path_of(&ended, "core");
        assert_eq!(core.extension().unwrap(), suffix);
        let stored = fs::metadata(&core).unwrap().len();
        assert!(unpacked_by(program, &core).is_none_or(|unpacked| unpacked == bytes));

        let dump = &report["dump"];
        assert_eq!((&dump["length"], &dump["packing"]["unpacked"]), (&stored.into(), &3_000_001.into()));
        assert!(dump["packing"]["compression"].as_str().unwrap().starts_with(option), "{dump}");
        assert!(dump["packing"]["ratio"].as_f64().unwrap() > 1.2, "{dump}");
        assert!(told.contains("2.9 MiB packed into "), "{told}");
        let (_, verified) = verify(&core, dir.path());
        let hash = dump["digest"]["root"].as_str().unwrap();
        assert!(verified.contains(&format!("digest {hash} is that of the bytes sent")), "{verified}");
        let info = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let info = info.into_iter().find(|path| path.extension().is_some_and(|number| number == "0"));
        assert!(!text(info.unwrap()).contains("Surplus"), "padding is none");
    }
}

#[test]
fn encrypted_core_is_decrypted_with_the_private_key_only() {
    let files = directory();
    let (file, mut bytes) = core(files.path(), 1_000_001);
    // A key that fits is known by what comes out.
    let magic = b"minidump FreeBSD/amd64";
    bytes[..magic.len()].copy_from_slice(magic);
    fs::write(&file, &bytes).unwrap();
    let cases: [&[&str]; 3] = [&["--compress=gzip"], &[], &["--cipher=aes-cbc"]];
    for options in cases {
        let dir = directory();
        let (ended, report, _) = sent(dir.path(), &file, &[options, &["--pubkey", PUBLIC]].concat());
        let stored = path_of(&ended, "core");
        assert!(stored.file_name().unwrap().to_str().unwrap().starts_with("vmcore_encrypted."));
        let cipher = if options == ["--cipher=aes-cbc"] { "aes-cbc" } else { "chacha20" };
        assert_eq!(report["dump"]["packing"]["cipher"], cipher);
        let decrypted = netdump().args(["decrypt", "--key", PRIVATE]).arg(&stored).output().unwrap();
        assert_eq!(decrypted.status.code(), Some(0), "{}", String::from_utf8_lossy(&decrypted.stderr));
        let plain = PathBuf::from(String::from_utf8(decrypted.stdout).unwrap().trim_end());
        if options == ["--compress=gzip"] {
            assert!(unpacked_by("gzip", &plain).is_none_or(|unpacked| unpacked == bytes));
        } else {
            assert!(fs::read(&plain).unwrap().starts_with(&bytes));
        }
    }
}

#[test]
fn core_that_was_decrypted_or_unpacked_is_not_held_against_the_hash_of_the_stored_one() {
    let files = directory();
    let (file, bytes) = (files.path().join("core"), small_core());
    fs::write(&file, &bytes).unwrap();
    for options in [&["--compress=zstd"][..], &["--pubkey", PUBLIC], &["--compress=gzip", "--pubkey", PUBLIC]]
    {
        let dir = directory();
        let (ended, _, _) = sent(dir.path(), &file, options);
        let mut core = path_of(&ended, "core");
        let (code, verdict) = verify(&core, dir.path());
        assert!(code == Some(0) && verdict.ends_with("its content is what the sender sent.\n"), "{verdict}");
        if options.contains(&"--pubkey") {
            let output = netdump().args(["decrypt", "--key", PRIVATE]).arg(&core).output().unwrap();
            core = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end());
            let (code, verdict) = verify(&core, dir.path());
            assert!(code == Some(0) && verdict.contains("as it was stored"), "{verdict}");
        }
        if core.extension().is_some_and(|ending| ending == "gz" || ending == "zst") {
            core.set_extension("");
            fs::write(&core, &bytes).unwrap();
            let (code, verdict) = verify(&core, dir.path());
            assert!(code == Some(0) && verdict.contains("as it was stored"), "{verdict}");
            fs::write(&core, [&bytes[..], b"x"].concat()).unwrap();
            let (code, verdict) = verify(&core, dir.path());
            let wants = ["the header announced", "the sender had"];
            assert!(code == Some(1) && wants.iter().all(|want| verdict.contains(want)), "{verdict}");
        }
    }
}

#[test]
fn options_that_cannot_be_followed_are_refused_before_anything_is_sent() {
    let files = directory();
    let (file, _) = core(files.path(), 1000);
    let send = |options: &[&str]| {
        let mut command = netdump();
        command.arg("send").arg(&file).args(["--server", "127.0.0.1:9", "--client-port", "0"]).args(options);
        command
    };
    refuses(&mut send(&["--compress", "xz"]), 2, &["'xz'", "gzip and zstd"]);
    refuses(&mut send(&["--compress", "gzip:10"]), 2, &["'10' is no level of gzip: they are 1 to 9"]);
    refuses(&mut send(&["--cipher", "chacha20"]), 2, &["--pubkey"]);
    refuses(&mut send(&["--cipher", "rot13", "--pubkey", PUBLIC]), 2, &["rot13", "chacha20", "aes-cbc"]);
    let aes = ["--cipher=aes-cbc", "--compress=zstd", "--pubkey", PUBLIC];
    refuses(&mut send(&aes), 1, &["a compressed core cannot be encrypted with aes-cbc"]);
    refuses(&mut send(&["--pubkey", "/nonexistent"]), 1, &["/nonexistent", "No such file"]);
    refuses(&mut send(&["--pubkey", PRIVATE]), 1, &["private-2048.pem", "public key"]);
}

/// The most memory that a process has used so far, in KiB.
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn memory_does_not_grow_with_the_core() {
    let files = directory();
    let (file, _) = pattern(files.path(), "core", 60_000_000);
    // What was never written costs nothing either.
    fs::File::options().write(true).open(&file).unwrap().set_len(1 << 30).unwrap();
    for option in ["gzip:1", "zstd:1"] {
        let dir = directory();
        let mut server = Server::start(dir.path(), &["--once"]);
        let mut sender = server.send_command(&file).args(["--compress", option]).spawn().unwrap();
        let mut most = 0;
        while sender.try_wait().unwrap().is_none() {
            most = peak(sender.id()).unwrap_or(0).max(most);
            thread::sleep(Duration::from_millis(5));
        }
        assert!((1000..80_000).contains(&most), "{option}: {most} KiB");
        assert_eq!(server.event("ended")["complete"], true);
    }
}
