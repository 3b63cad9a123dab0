//! Guests whose cores are packed on their way.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use harness::guests::{Bench, assert_code, verify};
use harness::programs::{arg, program, run};

use crate::needs_kvm;

/// A key of the product's own tests.
fn test_key(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../netdump/src/ekcd/test_keys").join(name)
}

/// Unpacks a core beside itself.
fn unpack(core: &Path) -> PathBuf {
    let packed = fs::read(core).unwrap();
    let mut bytes = Vec::new();
    match core.extension().and_then(|name| name.to_str()) {
        Some("gz") => drop(flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).unwrap()),
        Some("zst") => bytes = zstd::decode_all(packed.as_slice()).unwrap(),
        other => panic!("{other:?} is the ending of no packed core"),
    }
    let plain = core.with_extension("plain");
    fs::write(&plain, bytes).unwrap();
    plain
}

#[test]
fn a_compressed_core_unpacks_to_the_guests_memory() {
    needs_kvm!();
    for (options, compression) in [
        (&["--dump-compress=gzip"][..], "gzip:6"),
        (&["--dump-compress=zstd", "--kenv=kern.kerneldump_gzlevel=3"], "zstd:3"),
        (&["--dump-compress=zstd:1", "--kenv=kern.kerneldump_gzlevel=3"], "zstd:1"),
    ] {
        let bench = Bench::new("panic");
        let ended = bench.run(options);
        assert_code(&ended, 10);
        assert!(ended.stderr.contains(&format!("MiB ({compression}); ")), "{}", ended.stderr);
        let (core, report) = (bench.core_path(), bench.report());
        let dump = &report["dump"];
        assert_eq!(dump["packing"]["compression"], compression);
        assert_eq!(dump["length"], fs::metadata(&core).unwrap().len());
        let plain = unpack(&core);
        assert_eq!(dump["packing"]["unpacked"], fs::metadata(&plain).unwrap().len());
        assert!(bench.check_memory(&plain) > 0);
        verify(&core, &bench.report_path());
    }
}

#[test]
fn an_encrypted_core_is_the_guests_memory_to_the_holder_of_the_private_key() {
    needs_kvm!();
    let (public, private) = (test_key("public-2048.pem"), test_key("private-2048.pem"));
    for options in [&["--dump-compress=zstd"][..], &["--dump-cipher=aes-cbc"]] {
        let bench = Bench::new("panic");
        assert_code(&bench.run(&[&["--memory=32M", "--dump-pubkey", arg(&public)], options].concat()), 10);
        let core = bench.core_path();
        assert!(core.file_name().unwrap().to_str().unwrap().starts_with("vmcore_encrypted."));
        let decrypted = run(program("netdump"), &["decrypt", "--key", arg(&private), arg(&core)]);
        assert_code(&decrypted, 0);
        let plain = PathBuf::from(decrypted.stdout.trim_end());
        let plain = if options == ["--dump-cipher=aes-cbc"] { plain } else { unpack(&plain) };
        assert!(bench.check_memory(&plain) > 0);
    }
}

#[test]
fn what_cannot_pack_a_core_is_refused_before_the_guest_starts() {
    let bench = Bench::new("panic");
    let (public, private) = (test_key("public-2048.pem"), test_key("private-2048.pem"));
    for (options, code, words) in [
        (&["--dump-compress=lzma"][..], 2, "there is no compression 'lzma'"),
        (&["--dump-compress=zstd:20"], 2, "'20' is no level of zstd: they are 1 to 19"),
        (&["--dump-cipher=chacha20"], 2, "--dump-pubkey"),
        (&["--dump-pubkey=/nonexistent"], 1, "reading the public key /nonexistent: No such file"),
        (&["--dump-pubkey", arg(&private)], 1, "and an RSA public key (PUBLIC KEY) is needed"),
        (
            &["--dump-pubkey", arg(&public), "--dump-cipher=aes-cbc", "--dump-compress=gzip"],
            2,
            "a compressed core cannot be encrypted with aes-cbc",
        ),
    ] {
        let ended = bench.run(options);
        assert_code(&ended, code);
        assert!(ended.stderr.contains(words), "no {words:?} in {}", ended.stderr);
        assert!(!bench.crash_dir().exists() && !bench.report_path().exists());
    }
}
