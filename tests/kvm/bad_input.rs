//! Everything that can be given wrongly: one clear sentence, the right exit code, and no guest started.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use harness::guests::{Bench, assert_code};
use harness::needs::Need;
use harness::programs::{Ended, arg, program, run};

use crate::needs_kvm;

/// One sentence on stderr, beginning with the program's name, that holds every word.
#[track_caller]
fn assert_says(ended: &Ended, code: i32, words: &[&str]) {
    assert_code(ended, code);
    for word in words {
        assert!(ended.stderr.contains(word), "no {word:?} in:\n{}", ended.stderr);
    }
    assert!(!ended.stderr.contains("panicked at"), "{}", ended.stderr);
}

fn boot(image: &Path, options: &[&str]) -> Ended {
    run(program("vmm"), &[&["run"], options, &[arg(image)]].concat())
}

/// A file with that content, and what `vmm run` says to it.
fn boot_content(content: &[u8]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    std::fs::write(&image, content).unwrap();
    boot(&image, &["--memory=64M"])
}

#[test]
fn images_that_are_none_are_named_by_what_they_are() {
    assert_says(&boot(Path::new("/nowhere/kernel"), &[]), 1, &["reading /nowhere/kernel", "No such file"]);
    let folder = tempfile::tempdir().unwrap();
    assert_says(&boot(folder.path(), &[]), 1, &["is not a regular file"]);
    assert_says(&boot_content(b""), 1, &["is empty"]);
    assert_says(&boot_content(b"#!/bin/sh\necho hello\n"), 1, &["is a text file"]);
    assert_says(&boot_content(&[0; 4096]), 1, &["of no kind known here"]);
    let whole = guest_images::find("panic").unwrap().elf;
    assert_says(&boot_content(&whole[..2000]), 1, &["damaged ELF file"]);
}

#[test]
fn an_elf_file_without_a_pvh_entry_is_refused() {
    needs_kvm!();
    // A program of this machine: a 64-bit x86 ELF file, and no kernel.
    assert_says(&boot(&program("netdump"), &["--memory=64M"]), 1, &["without a PVH entry"]);
}

#[test]
fn a_kernel_that_does_not_fit_is_refused_with_both_sizes() {
    needs_kvm!();
    let bench = Bench::new("panic");
    assert_says(&boot(&bench.image(), &["--memory=2M"]), 1, &["needs guest memory up to", "--memory"]);
}

#[test]
fn memory_sizes_are_checked() {
    for (size, words) in [
        ("0", "at least 2M"),
        ("1M", "at least 2M"),
        ("65M1", "not a memory size"),
        ("2049K", "whole number of MiB"),
    ] {
        let size = format!("--memory={size}");
        assert_says(&run(program("vmm"), &["run", &size, "image"]), 2, &[words]);
    }
}

#[test]
fn options_are_checked_before_anything_runs() {
    let cases: [(&[&str], &str); 14] = [
        (&["--cpus", "0"], "0 is not in 1..="),
        (&["--cpus", "255"], "255 is not in 1..="),
        (&["--netdump-server", "example.org"], "not an IPv4 address"),
        (&["--netdump-server", "0.0.0.0"], "not an IPv4 address"),
        (&["--netdump-client", "x"], "--netdump-client"),
        (&["--netdump-path", "../up"], "'..'"),
        (&["--netdump-path", "/etc"], "absolute"),
        (&["--kenv", "novalue"], "NAME=VALUE"),
        (&["--panic-source", "psychic"], "there are pvpanic"),
        (&["--dump-format", "cpio"], "there are auto"),
        (&["--dump-after", "never"], "not a number of seconds"),
        (&["--allow-server", "10.0.0.0/40"], "not an IPv4 address or block"),
        (&["--mac", "01:00:5e:00:00:01"], "no single host's address"),
        (&["--netdump-link", "pigeon"], "pigeon"),
    ];
    for (options, words) in cases {
        assert_says(&run(program("vmm"), &[&["run"], options, &["image"]].concat()), 2, &[words]);
    }
    let long = "x/".repeat(1024);
    assert_says(&run(program("vmm"), &["run", "--netdump-path", &long, "image"]), 2, &["2048 bytes"]);
}

#[test]
fn options_that_could_have_no_effect_are_refused() {
    let cases: [(&[&str], &str); 7] = [
        (&["--dump-after", "1", "--panic-source", "pvpanic"], "'request'"),
        (&["--ignore-crashloaded", "--panic-source", "console"], "'pvpanic'"),
        (&["--netdump-link", "udp"], "--allow-server"),
        (&["--netdump-link", "virtio", "--guest-env", "ignore"], "--netdump-server"),
        (
            &["--netdump-link", "udp", "--netdump-server", "10.0.0.9", "--netdump-client", "10.0.0.5"],
            "no client",
        ),
        (
            &["--netdump-link", "udp", "--netdump-server", "10.0.0.9", "--netdump-gateway", "10.0.0.1"],
            "no gateway",
        ),
        (&["--netdump-link", "embedded", "--netdump-server", "10.0.0.9"], "no server"),
    ];
    for (options, words) in cases {
        assert_says(&run(program("vmm"), &[&["run"], options, &["image"]].concat()), 2, &[words]);
    }
}

#[test]
fn a_crash_folder_that_is_a_file_is_named_before_the_guest_starts() {
    needs_kvm!();
    let bench = Bench::new("panic");
    let ended = boot(&bench.image(), &["--memory=64M", "--crash-dir", arg(&bench.image())]);
    assert_says(&ended, 1, &["--crash-dir", "is not a folder"]);
    assert!(ended.stdout.is_empty(), "the guest did not start");
}

#[test]
fn environment_variables_that_cannot_be_passed_are_refused() {
    needs_kvm!();
    let bench = Bench::new("panic");
    assert_says(&boot(&bench.image(), &["--memory=64M", "--kenv", "a=b c"]), 1, &["'a'", "blank"]);
    let long = format!("a={}", "x".repeat(200));
    assert_says(&boot(&bench.image(), &["--memory=64M", "--kenv", &long]), 1, &["'a'", "126 bytes"]);
}

#[test]
fn output_files_are_tried_before_the_guest_starts() {
    let bench = Bench::new("panic");
    for option in ["--report", "--pcap"] {
        let ended = boot(&bench.image(), &["--memory=64M", option, "/nowhere/file"]);
        assert_says(&ended, 1, &[option, "/nowhere/file", "cannot be written"]);
    }
}

#[test]
fn a_missing_network_interface_is_named_before_the_guest_starts() {
    needs_kvm!();
    let bench = Bench::new("panic");
    let ended =
        boot(&bench.image(), &["--memory=64M", "--netdump-server", "10.0.0.9", "--netdump-link", "virtio"]);
    assert_says(&ended, 1, &["--tap"]);
    assert!(ended.stdout.is_empty(), "the guest did not start");
}

/// What `vmm demo` says where `shell` was run before it.
fn demo_after(shell: &str) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    // A place that any user can read.
    let vmm = folder.path().join("vmm");
    std::fs::copy(program("vmm"), &vmm).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = format!("cd {}; {shell} ./vmm demo", arg(folder.path()));
    run("unshare", &["--mount", "sh", "-c", &script])
}

#[test]
fn a_machine_without_kvm_is_told_what_is_missing_and_how_to_get_it() {
    if !Need::Mount.or_skip() {
        return;
    }
    assert_says(
        &demo_after("mount -t tmpfs tmpfs /dev;"),
        1,
        &["/dev/kvm does not exist", "nested virtualisation"],
    );
}

#[test]
fn a_user_without_permission_is_told_how_to_get_it() {
    if !(Need::Mount.or_skip() && Need::Kvm.or_skip()) {
        return;
    }
    // A device node of our own: the machine's is not ours to change.
    let closed =
        "mount -t tmpfs tmpfs /dev; mknod -m 600 /dev/kvm c 10 232; setpriv --reuid 65534 --clear-groups";
    let closed = demo_after(closed);
    assert_says(&closed, 1, &["/dev/kvm may not be opened", "usermod -aG kvm"]);
}
