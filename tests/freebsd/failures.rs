//! Packed dumps that do not arrive: what is said, what is kept, under which name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::guests::{Bench, assert_code};
use harness::netns::until;
use harness::programs::{Running, arg, program, run};
use nix::sys::signal::Signal;

use crate::lab::{Lab, Receiver, SERVER, TO_COLLECTOR, reason};
use crate::needs;
use crate::packed::test_key;

/// A guest with 16 MiB that nothing can compress, and a way of 8 MB/s: two seconds to act in.
const LONG: [&str; 3] = ["--memory=32M", "--kenv", "fill=16M"];
const COMPRESSED: [&str; 2] = ["--dump-compress", "zstd:1"];
const SLOW: u32 = 8;
const IMPATIENT: [&str; 4] = ["--netdump-polls", "100", "--netdump-retries", "10"];

/// A dump in whose middle something is to happen.
fn in_the_middle(packing: &[&str]) -> (Lab, Receiver, Bench, Running) {
    let lab = Lab::bridged();
    lab.slow_down(SLOW);
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    let vmm = lab.start(&bench, &[&LONG[..], packing, &TO_COLLECTOR, &IMPATIENT].concat());
    let partial = receiver.folder.path().join("vmcore.10.0.0.5.0.partial");
    until("part of the core to be stored", || {
        std::fs::metadata(&partial).is_ok_and(|core| core.len() > 1 << 20)
    });
    (lab, receiver, bench, vmm)
}

/// Asserts that the receiver kept a part of the core under a name that says so, with the reason beside it; the core.
#[track_caller]
fn assert_kept_as_incomplete(folder: &Path, name: &str, words: &str) -> PathBuf {
    let core = folder.join(format!("{name}.10.0.0.5.0.incomplete"));
    assert!(core.exists(), "{:?}", std::fs::read_dir(folder).unwrap().collect::<Vec<_>>());
    let info = std::fs::read_to_string(folder.join("info.10.0.0.5.0")).unwrap();
    assert!(info.contains(words) && !info.contains("Dump complete"), "{info}");
    assert_code(&run(program("netdump"), &["verify", arg(&core)]), 1);
    core
}

#[test]
fn a_receiver_killed_in_a_compressed_dump_fails_it() {
    needs!(Kvm, Network);
    let (_lab, receiver, bench, vmm) = in_the_middle(&COMPRESSED);
    receiver.running.signal(Signal::SIGKILL);
    let ended = vmm.wait();
    assert_code(&ended, 11);
    assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
    assert!(reason(&bench).contains("stopped acknowledging"), "{}", reason(&bench));
    assert!(ended.stderr.contains(&reason(&bench)), "{}", ended.stderr);
    assert_eq!(bench.report()["dump"].get("digest"), Some(&serde_json::Value::Null));
    let info = std::fs::read_to_string(receiver.folder.path().join("info.10.0.0.5.0")).unwrap();
    assert!(info.contains("Dump incomplete"), "{info}");
}

#[test]
fn a_receiver_told_to_stop_in_a_compressed_dump_keeps_what_came() {
    needs!(Kvm, Network);
    let (_lab, receiver, _bench, vmm) = in_the_middle(&COMPRESSED);
    receiver.running.signal(Signal::SIGTERM);
    let Receiver { running, folder } = receiver;
    assert_code(&running.wait(), 1);
    assert_code(&vmm.wait(), 11);
    assert_kept_as_incomplete(folder.path(), "vmcore", "Dump incomplete");
}

#[test]
fn an_encrypted_dump_that_was_cut_short_is_decrypted_as_far_as_it_goes() {
    needs!(Kvm, Network);
    let (public, private) = (test_key("public-2048.pem"), test_key("private-2048.pem"));
    let (_lab, receiver, _bench, vmm) = in_the_middle(&["--dump-pubkey", arg(&public)]);
    receiver.running.signal(Signal::SIGTERM);
    let Receiver { running, folder } = receiver;
    assert_code(&running.wait(), 1);
    assert_code(&vmm.wait(), 11);
    let core = assert_kept_as_incomplete(folder.path(), "vmcore_encrypted", "Dump incomplete");
    let out = folder.path().join("plain");
    let arguments = ["decrypt", "--key", arg(&private), "-o", arg(&out), arg(&core)];
    let decrypted = run(program("netdump"), &arguments);
    assert!(decrypted.code.is_some_and(|code| code <= 1), "{decrypted:?}");
    let plain = std::fs::read(&out).unwrap();
    assert!(plain.starts_with(b"\x7fELF") && plain.len() > 1 << 20, "{decrypted:?}");
}

#[test]
fn ctrl_c_in_a_compressed_dump_ends_it_at_once() {
    needs!(Kvm, Network);
    let (_lab, receiver, bench, vmm) = in_the_middle(&COMPRESSED);
    vmm.signal(Signal::SIGINT);
    let told = std::time::Instant::now();
    let ended = vmm.wait();
    assert_code(&ended, 11);
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
    assert!(reason(&bench).contains("SIGINT"), "{}", reason(&bench));
    let Receiver { running, folder } = receiver;
    running.signal(Signal::SIGTERM);
    assert_code(&running.wait(), 1);
    assert_kept_as_incomplete(folder.path(), "vmcore", "Dump incomplete");
}

#[test]
fn a_disk_that_fills_up_in_a_compressed_dump_is_named() {
    needs!(Kvm, Network, Mount);
    let lab = Lab::bridged();
    let netdump = program("netdump");
    let script = format!(
        "mount -t tmpfs -o size=2m none /mnt && exec {} serve --dir /mnt --listen {SERVER}",
        arg(&netdump)
    );
    let receiver = lab.collector.start("unshare", &["--mount", "sh", "-c", &script]);
    receiver.wait_for_stderr("listening");
    let bench = Bench::new("panic");
    let ended = lab.start(&bench, &[&LONG[..], &COMPRESSED, &TO_COLLECTOR, &IMPATIENT].concat()).wait();
    assert_code(&ended, 11);
    receiver.wait_for_stderr("No space left on device");
    let folder = format!("/proc/{}/root/mnt", receiver.pid());
    assert_kept_as_incomplete(Path::new(&folder), "vmcore", "No space left on device");
    receiver.signal(Signal::SIGTERM);
    assert_code(&receiver.wait(), 0);
}
