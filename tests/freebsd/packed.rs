//! Compressed and encrypted dumps, opened by gzip, zstd and openssl, and by the product's own tools.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use harness::guests::{Bench, assert_code, verify};
use harness::programs::{arg, program, run};
use harness::readers::minidump::MiniCore;
use harness::readers::unpack::{decrypt, unpack};

use crate::formats::assert_read_as_it_is;
use crate::lab::{Lab, TO_COLLECTOR};
use crate::needs;
use crate::specimen::{Specimen, info, settled};

/// A key of the product's own tests.
pub(crate) fn test_key(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../netdump/src/ekcd/test_keys").join(name)
}

/// A minidump packed as the options say, which must be stored under names with these parts.
fn packed(options: &[&str], prefix: &str, ending: &str) -> Specimen {
    let specimen = Specimen::dumped("freebsd-abi", &[], options);
    let core = specimen.core_path();
    assert_eq!(core.file_name().unwrap().to_str().unwrap(), format!("{prefix}192.0.2.2.0{ending}"));
    let info = specimen.info();
    let compression = match ending {
        ".gz" => "gzip",
        ".zst" => "zstd",
        _ => "none",
    };
    // What lies behind the stream's end to fill a block has been cut off.
    let length = fs::metadata(&core).unwrap().len();
    let lines = [
        format!("Dump Length: {length}B"),
        format!("Compression: {compression}"),
        "Header Parity Check: Pass".into(),
        "Dump complete".into(),
    ];
    for line in lines {
        assert!(info.contains(&line), "no {line:?} in\n{info}");
    }
    assert_eq!(specimen.report["dump"]["length"], length);
    specimen
}

/// Asserts that a core that nothing packs any more is the minidump that was dumped.
#[track_caller]
fn check(specimen: &Specimen, plain: &Path) {
    assert_eq!(specimen.report["dump"]["packing"]["unpacked"], fs::metadata(plain).unwrap().len());
    specimen.check_minidump(&MiniCore::open(plain).unwrap());
}

#[test]
fn a_compressed_minidump_is_opened_by_the_usual_programs() {
    needs!(Kvm, Gzip, Zstd);
    for (method, ending) in [("gzip", ".gz"), ("zstd", ".zst")] {
        let specimen = packed(&["--dump-compress", method], "vmcore.", ending);
        let core = specimen.core_path();
        let unpacked = specimen.report["dump"]["packing"]["unpacked"].as_u64().unwrap();
        assert!(fs::metadata(&core).unwrap().len() < unpacked / 2);
        let info = specimen.info();
        assert!(info.contains(&format!("Dump Extent: {unpacked}B")), "{info}");
        check(&specimen, &unpack(&core).unwrap());
        assert_read_as_it_is(&specimen, &core);
    }
}

#[test]
fn an_encrypted_minidump_is_opened_by_openssl_and_by_the_products_own_tool() {
    needs!(Kvm, Gzip, Zstd, Openssl);
    let (public, private) = (test_key("public-2048.pem"), test_key("private-2048.pem"));
    for (options, ending) in [
        (&["--dump-cipher", "chacha20"][..], ""),
        (&["--dump-cipher", "aes-cbc"], ""),
        (&["--dump-compress", "gzip"], ".gz"),
        (&["--dump-compress", "zstd", "--dump-cipher", "chacha20"], ".zst"),
    ] {
        let options = [&["--dump-pubkey", arg(&public)], options].concat();
        let specimen = packed(&options, "vmcore_encrypted.", ending);
        let (core, key) = (specimen.core_path(), specimen.core_path().with_file_name("key.192.0.2.2.0"));
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o400);
        let plain_by = |decrypted: &Path| match ending {
            "" => decrypted.to_owned(),
            _ => unpack(decrypted).unwrap(),
        };
        let by_openssl = decrypt(&core, &key, &private).unwrap();
        check(&specimen, &plain_by(&by_openssl));

        specimen.verify();
        let without_key = run(program("netdump"), &["inspect", arg(&core)]);
        assert!(without_key.stderr.contains("netdump decrypt"), "{without_key:?}");
        let ended = run(program("netdump"), &["decrypt", "--key", arg(&private), arg(&core)]);
        assert_code(&ended, 0);
        let own = PathBuf::from(ended.stdout.trim_end());
        assert_eq!(own, core.with_file_name(format!("vmcore.192.0.2.2.0{ending}")));
        assert!(fs::read(&own).unwrap() == fs::read(&by_openssl).unwrap(), "{options:?}");
        // The report's hash is of what was sent, and does not speak against the core that came out of it.
        let verdict = assert_read_as_it_is(&specimen, &own);
        assert!(verdict.contains("hash is of the core as it was stored"), "{verdict}");
    }
}

#[test]
fn a_packed_dump_over_a_wire_is_named_and_cut_by_the_receiver() {
    needs!(Kvm, Network, Gzip, Openssl);
    let lab = Lab::bridged();
    let receiver = lab.serve();
    let bench = Bench::new("freebsd-abi-12");
    let public = test_key("public-2048.pem");
    let options = ["--dump-compress", "gzip", "--dump-pubkey", arg(&public)];
    let vmm = lab.start(&bench, &settled(&[], &[&TO_COLLECTOR[..], &options].concat())).wait();
    assert_code(&vmm, 10);
    let core = receiver.wait_for_cores(1).remove(0);
    assert_eq!(core, receiver.folder.path().join("vmcore_encrypted.10.0.0.5.0.gz"));
    let specimen = Specimen::of("freebsd-abi-12", bench, vmm);
    let length = fs::metadata(&core).unwrap().len();
    assert_eq!(specimen.report["dump"]["length"], length);
    assert!(info(&core).contains(&format!("Dump Length: {length}B")), "{}", info(&core));
    verify(&core, &specimen.bench.report_path());
    let key = core.with_file_name("key.10.0.0.5.0");
    let decrypted = decrypt(&core, &key, &test_key("private-2048.pem")).unwrap();
    check(&specimen, &unpack(&decrypted).unwrap());
}

#[test]
fn a_packed_full_dump_unpacks_to_all_memory() {
    needs!(Kvm, Zstd);
    let options = ["--dump-format", "full", "--dump-compress", "zstd:1"];
    let specimen = packed(&options, "vmcore.", ".zst");
    let plain = unpack(&specimen.core_path()).unwrap();
    let core = harness::readers::full::FullCore::open(&plain, &specimen.symbols).unwrap();
    specimen.check_threads(&core);
    assert_read_as_it_is(&specimen, &specimen.core_path());
}

#[test]
fn aes_cbc_with_compression_is_refused_before_the_guest_starts() {
    needs!(Kvm);
    let bench = Bench::new("freebsd-abi");
    let public = test_key("public-2048.pem");
    let options = ["--dump-pubkey", arg(&public), "--dump-cipher", "aes-cbc", "--dump-compress", "zstd"];
    let ended = bench.run(&settled(&[], &options));
    assert_code(&ended, 2);
    assert!(ended.stderr.contains("a compressed core cannot be encrypted with aes-cbc"), "{}", ended.stderr);
    assert!(ended.stdout.is_empty() && !bench.crash_dir().exists() && !bench.report_path().exists());
}
