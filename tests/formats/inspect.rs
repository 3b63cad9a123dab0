//! What `inspect` says of a core.

use harness::fake_guest::FakeGuest;
use harness::fake_kernel::FakeKernel;
use netdump::vmcore::{CoreNotes, KernelSymbols, Registers, inspect};

use super::{plan, store, stored};

const INFO: &str = "Dump from vm1 [10.0.0.2]\n  Architecture: amd64\n  Architecture Version: 2\n  Dump Length: 930304B \
                    (0 MB)\n  Blocksize: 4096\n  Compression: none\n  Dumptime: Thu Jan  1 00:00:00 2026\n  \
                    Hostname: vm1\n  Version String: FreeBSD 14.1\n  Panic String: bad trap\n  \
                    Header Parity Check: Pass\nDump complete\n";

#[test]
fn text_tells_everything_at_a_glance() {
    let (path, directory) = stored();
    std::fs::write(directory.path().join("info.vm1.0"), INFO).unwrap();
    let text = inspect(&path, None).unwrap().to_string();
    let registers = super::guest();
    let rip = netdump::vmcore::PhysicalMemory::cpus(&registers)[1].registers.as_ref().unwrap().rip;
    for expected in [
        "ELF64 core, x86-64",
        "bad trap",
        "on CPU 1, noticed by pvpanic, at 2026-01-01 00:00:00 UTC",
        "FreeBSD 14.1-RELEASE, \"vm1\"",
        "root@builder:/usr/obj",
        "from vm1 [10.0.0.2]: Dump complete",
        "header parity Pass",
        "908.0 KiB in 3 ranges",
        "0x000100000000 to 0x000100003fff",
        "CPU 1: halted, PANICKED",
        &format!("rip {rip:016x}"),
        "CPU 2: did not stop",
        "net.dump.server=\"10.0.0.9\"",
        "odd=name=\"größe=\"1\"\"",
    ] {
        assert!(text.contains(expected), "'{expected}' is not in:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[test]
fn json_has_what_the_text_has() {
    let (path, directory) = stored();
    std::fs::write(directory.path().join("info.vm1.0"), INFO).unwrap();
    let json = serde_json::to_value(inspect(&path, None).unwrap()).unwrap();
    assert_eq!(json["format"], "elf");
    assert_eq!(json["panic"]["cpu"], 1);
    assert_eq!(json["panic"]["text"], "bad trap");
    assert_eq!(json["guest"]["environment"][0][1], "10.0.0.9");
    assert_eq!(json["info"]["parity"], "Pass");
    assert_eq!(json["memory"][2]["start"], 1_u64 << 32);
    assert_eq!(json["cpus"][1]["activity"], "halted");
    assert_eq!(json["cpus"][2]["registers"], serde_json::Value::Null);
}

#[test]
fn guests_own_memory_is_asked_when_its_symbols_are_given() {
    let mut guest = FakeGuest::new(1).ram(0, 0x10_0000).cpu_with(Registers::default());
    guest.write_words(0x1000, &[0x2000]);
    guest.write(0x2000, b"a=in memory\0\0");
    let mut notes = CoreNotes::default();
    notes.facts.environment = Some(vec![("a".into(), "noted".into())]);
    notes.facts.os = Some("FreeBSD".into());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    store(&plan(&guest, &notes), &path);
    let image = FakeKernel::default().segment(0x1000, 0x1000, 0x1000).symbol("md_envp", 0x1000, 8).image();
    let symbols = KernelSymbols::parse(&image).unwrap();
    let with = inspect(&path, Some(&symbols)).unwrap();
    assert_eq!(with.guest.variable("a"), Some("in memory"));
    assert_eq!(with.guest.os.as_deref(), Some("FreeBSD"), "what memory does not tell comes from the notes");
    assert_eq!(inspect(&path, None).unwrap().guest.variable("a"), Some("noted"));
}

#[test]
fn cut_core_is_said_to_be_cut() {
    let (path, _directory) = stored();
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 5000).unwrap();
    let text = inspect(&path, None).unwrap().to_string();
    assert!(text.contains("CUT: 4.9 KiB (5000 bytes) are missing"), "{text}");
    assert!(text.contains("16.0 KiB     11.1 KiB stored"), "{text}");
}
