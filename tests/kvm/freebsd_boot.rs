//! FreeBSD kernels: both ways of starting them, and what they are handed.

use harness::guests::{Bench, assert_code};
use harness::programs::{Ended, arg, program, run};

use crate::needs_kvm;

fn refused(options: &[&str], guest: &str, code: i32, words: &[&str]) {
    let bench = Bench::new(guest);
    let image = bench.image();
    let ended: Ended = run(program("vmm"), &[&["run"], options, &[arg(&image)]].concat());
    assert_code(&ended, code);
    for word in words {
        assert!(ended.stderr.contains(word), "no {word:?} in:\n{}", ended.stderr);
    }
}

fn environment(bench: &Bench) -> Vec<(String, String)> {
    let report = bench.report();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let pairs = report["guest"]["environment"].as_array().unwrap();
    pairs.iter().map(|pair| (text(&pair[0]), text(&pair[1]))).collect()
}

#[test]
fn a_freebsd_kernel_starts_natively_and_by_pvh() {
    needs_kvm!();
    for (options, hand_over) in [
        (&["--cmdline", "-v"][..], "native"),
        (&["--boot", "native", "--cmdline", "-v"], "native"),
        (&["--boot", "pvh", "--cmdline", "-v"], "PVH"),
    ] {
        let bench = Bench::new("freebsd-abi");
        let ended = bench.run(&[options, &["--kenv", "colour=blue"]].concat());
        assert_code(&ended, 10);
        assert!(ended.stdout.contains(&format!("\n{hand_over} ")), "{}", ended.stdout);
        let environment = environment(&bench);
        let expected = [
            ("boot_verbose", "YES"),
            ("colour", "blue"),
            ("hint.uart.0.port", "0x3F8"),
            ("console", "comconsole"),
            ("kernelname", "/boot/kernel/freebsd-abi.elf"),
        ];
        for (name, value) in expected {
            let pair = (name.to_owned(), value.to_owned());
            assert!(environment.contains(&pair), "no {pair:?} in {environment:?}");
        }
    }
}

#[test]
fn the_native_hand_over_passes_values_with_blanks_and_commas() {
    needs_kvm!();
    let bench = Bench::new("freebsd-abi");
    assert_code(&bench.run(&["--kenv", "words=one two,three", "--kenv", "words=again"]), 10);
    let environment = environment(&bench);
    let of = |name: &str| environment.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    assert_eq!((of("words"), of("words_1")), (Some("one two,three"), Some("again")));
}

#[test]
fn an_image_that_the_protocol_cannot_boot_is_refused() {
    needs_kvm!();
    refused(&["--boot", "native", "--memory=64M"], "panic", 1, &["--boot native", "FreeBSD/amd64 kernel"]);
    refused(&["--boot", "floppy"], "panic", 2, &["'floppy'", "there are auto, native, pvh"]);
}

#[test]
fn modules_that_cannot_be_handed_over_are_refused() {
    needs_kvm!();
    refused(&["--module", "/nowhere/a.ko"], "freebsd-abi", 1, &["/nowhere/a.ko", "No such file"]);
    refused(&["--module", "/etc/passwd"], "freebsd-abi", 1, &["/etc/passwd:TYPE"]);
    let with_pvh = ["--memory=64M", "--boot", "pvh", "--module", "/etc/passwd:text"];
    refused(&with_pvh, "freebsd-abi", 1, &["--boot pvh cannot hand modules"]);
}
