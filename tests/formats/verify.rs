//! What `verify` finds in whole and in damaged cores.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use netdump::digest::Digest;
use netdump::manifest::{ClientFacts, GapList, Manifest, StoredKey};
use netdump::report::{DumpReport, Outcome};
use netdump::vmcore::verify::Finding;
use netdump::vmcore::{Verdict, verify};

use nix::fcntl::{FallocateFlags, fallocate};

use super::stored;

fn check(path: &Path, report: Option<&DumpReport>) -> Verdict {
    verify(path, report, &mut |_, _| {})
}

/// What the sender of exactly this file reports.
pub(super) fn report_of(path: &Path) -> DumpReport {
    let bytes = fs::read(path).unwrap();
    DumpReport {
        outcome: Outcome::Complete,
        server: "10.0.0.9:4711".into(),
        length: bytes.len() as u64,
        digest: Some(Digest::of(&bytes)),
        bytes_sent: bytes.len() as u64,
        messages: 1,
        seconds: 1.0,
        ..DumpReport::default()
    }
}

/// What a receiver that stored exactly this file says beside it.
fn put_manifest(path: &Path) -> Manifest {
    let bytes = fs::read(path).unwrap();
    let manifest = Manifest {
        manifest: netdump::manifest::VERSION,
        receiver: "netdump 0".into(),
        core: path.file_name().unwrap().to_str().unwrap().into(),
        info: "info.vm1.0".into(),
        key: None,
        complete: true,
        ending: "Dump complete".into(),
        length: bytes.len() as u64,
        digest: Some(Digest::of(&bytes)),
        no_digest: None,
        gaps: GapList::default(),
        bytes: bytes.len() as u64,
        messages: 1,
        repeated: 0,
        ignored: 0,
        resumed: 0,
        began: "2026-11-23T00:00:00Z".into(),
        ended: "2026-11-23T00:00:01Z".into(),
        seconds: 1.0,
        bytes_per_second: Some(1.0),
        client: ClientFacts {
            address: "10.0.0.2:20024".parse().unwrap(),
            name: "vm1".into(),
            local: "10.0.0.9".parse().unwrap(),
            path: None,
        },
        header: None,
    };
    write_manifest(path, &manifest);
    manifest
}

fn manifest_path(core: &Path) -> PathBuf {
    core.with_file_name("manifest.vm1.0.json")
}

fn write_manifest(core: &Path, manifest: &Manifest) {
    fs::write(manifest_path(core), serde_json::to_string(manifest).unwrap()).unwrap();
}

/// A file of 5 MiB and a bit, which is no core that can be read: of 64 KiB at offset 3 MiB nothing was written.
fn opaque() -> (PathBuf, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmcore.vm1.0");
    let mut bytes: Vec<u8> = (0..(5 << 20) + 1000_u32).map(|i| (i % 251).to_le_bytes()[0] | 1).collect();
    bytes[..24].copy_from_slice(b"minidump FreeBSD/arm64\0\x02");
    let file = fs::File::create_new(&path).unwrap();
    file.write_all_at(&bytes[..3 << 20], 0).unwrap();
    file.write_all_at(&bytes[(3 << 20) + 0x1_0000..], (3 << 20) + 0x1_0000).unwrap();
    (path, directory)
}

/// All that a check by this name found wrong.
fn differences(verdict: &Verdict, check: &str) -> Vec<(u64, u64)> {
    let of_check = verdict.differences.iter().filter(|difference| difference.check == check);
    of_check.map(|difference| (difference.start, difference.end)).collect()
}

fn text_of<'a>(verdict: &'a Verdict, name: &str) -> &'a str {
    let check = verdict.checks.iter().find(|check| check.name == name);
    check.map_or_else(|| panic!("no {name} in {verdict}"), |check| &check.text)
}

fn failed(verdict: &Verdict) -> Vec<&'static str> {
    let failed = verdict.checks.iter().filter(|check| check.finding == Finding::Fail);
    failed.map(|check| check.name).collect()
}

fn info(length: u64, parity: &str, ending: &str) -> String {
    format!(
        "Dump from vm1 [10.0.0.2]\n  Dump Length: {length}B (0 MB)\n  Header Parity Check: {parity}\n{ending}\n"
    )
}

/// The sentence of the one check that failed.
#[track_caller]
fn failure(verdict: &Verdict, name: &str) -> String {
    assert!(!verdict.whole(), "{verdict}");
    let failed: Vec<_> = verdict.checks.iter().filter(|check| check.finding == Finding::Fail).collect();
    assert_eq!(failed.iter().map(|check| check.name).collect::<Vec<_>>(), [name], "{verdict}");
    failed[0].text.clone()
}

fn change_byte(path: &Path, offset: u64, value: u8) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[value], offset).unwrap();
}

#[test]
fn whole_core_with_its_report_is_proven() {
    let (path, directory) = stored();
    let report = report_of(&path);
    fs::write(directory.path().join("info.vm1.0"), info(report.length, "Pass", "Dump complete")).unwrap();
    put_manifest(&path);
    let mut last = (0, 0);
    let verdict = verify(&path, Some(&report), &mut |done, total| last = (done, total));
    assert!(verdict.whole() && verdict.is_content_proven(), "{verdict}");
    assert!(verdict.checks.iter().all(|check| check.finding == Finding::Pass), "{verdict}");
    assert_eq!(last, (report.length, report.length));
}

#[test]
fn without_a_report_content_is_said_to_be_unchecked() {
    let (path, _directory) = stored();
    let verdict = check(&path, None);
    assert!(verdict.whole() && !verdict.is_content_proven(), "{verdict}");
    assert!(verdict.to_string().ends_with("its content could not be checked."), "{verdict}");
}

#[test]
fn one_wrong_bit_is_found() {
    let (path, _directory) = stored();
    let report = report_of(&path);
    let mut byte = [0];
    fs::File::open(&path).unwrap().read_exact_at(&mut byte, report.length - 9).unwrap();
    change_byte(&path, report.length - 9, byte[0] ^ 4);
    assert!(failure(&check(&path, Some(&report)), "content").contains("is not that of the bytes sent"));
}

#[test]
fn hole_where_data_was_sent_is_found() {
    let (path, _directory) = stored();
    let report = report_of(&path);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 0x4000 - 0x4_0000;
    bytes[at..at + 0x1000].fill(0);
    // A new file, in which that page is a hole.
    fs::remove_file(&path).unwrap();
    let file = fs::File::create_new(&path).unwrap();
    file.write_all_at(&bytes[..at], 0).unwrap();
    file.write_all_at(&bytes[at + 0x1000..], at as u64 + 0x1000).unwrap();
    let verdict = check(&path, Some(&report));
    failure(&verdict, "content");
    let holes = verdict.checks.iter().find(|check| check.name == "holes").unwrap();
    assert!(holes.text.contains(&format!("{at:#x} to {:#x}", at + 0x1000)), "{}", holes.text);
}

#[test]
fn holes_hash_as_the_zeros_that_they_are() {
    let (path, _directory) = stored();
    let bytes = fs::read(&path).unwrap();
    let report = report_of(&path);
    fs::remove_file(&path).unwrap();
    let file = fs::File::create_new(&path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (offset, page) in (0..).step_by(4096).zip(bytes.chunks(4096)) {
        if page.iter().any(|&byte| byte != 0) {
            file.write_all_at(page, offset).unwrap();
        }
    }
    let verdict = check(&path, Some(&report));
    assert!(verdict.is_content_proven(), "{verdict}");
    let holes = verdict.checks.iter().find(|check| check.name == "holes").unwrap();
    assert!(holes.text.starts_with("128.0 KiB in 1 hole that"), "{}", holes.text);
}

#[test]
fn cut_file_is_found_and_what_it_lacks_is_named() {
    let (path, _directory) = stored();
    let length = fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    let text = failure(&check(&path, None), "length");
    assert!(text.contains(&format!("ends at offset {:#x}, 1 byte before", length - 1)), "{text}");
    assert!(text.contains("memory 0x100000000 to 0x100004000"), "{text}");
}

#[test]
fn trailing_bytes_are_found() {
    let (path, _directory) = stored();
    let length = fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length + 10).unwrap();
    let text = failure(&check(&path, None), "length");
    assert!(text.contains(&format!("10 bytes too many, from offset {length:#x} on")), "{text}");
}

#[test]
fn file_that_ends_in_its_headers_is_no_core() {
    let (path, _directory) = stored();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    assert!(failure(&check(&path, None), "structure").contains("ends inside its headers"));
}

/// The core of a Linux guest shows the kernel's image twice; that, and nothing else, is as it should be.
#[test]
fn a_linux_kernels_image_that_is_shown_twice_is_no_overlap() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmcore.vm1.0");
    let guest = harness::fake_linux::guest();
    super::store(&super::plan(&guest, &super::notes()), &path);
    let verdict = check(&path, None);
    assert_eq!(failed(&verdict), [""; 0]);
    assert_eq!(text_of(&verdict, "structure"), "ELF64 core, x86-64, 32.0 MiB of memory in 1 range");
    // The second program header is the image's. Other bytes of the file, or other memory, and it is no image any more.
    let header = 64 + 56;
    let original = fs::read(&path).unwrap();
    for (field, value) in [(8 + 1, 0x10), (24 + 2, 0x20)] {
        change_byte(&path, header + field, original[usize::try_from(header + field).unwrap()] ^ value);
        assert_eq!(failed(&check(&path, None)), ["structure"], "field at {field}");
        fs::write(&path, &original).unwrap();
    }
}

#[test]
fn overlapping_segments_are_found() {
    let (path, _directory) = stored();
    // p_offset of the second PT_LOAD, one page lower.
    let at = 64 + 2 * 56 + 8;
    let mut bytes = fs::read(&path).unwrap();
    let offset = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) - 0x1000;
    bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    assert!(
        failure(&check(&path, None), "structure").contains("begins before the end of memory 0x0 to 0x9f000")
    );
}

#[test]
fn damaged_notes_are_found() {
    let (path, _directory) = stored();
    // Length of the first note's descriptor.
    change_byte(&path, 64 + 4 * 56 + 4, 0x51);
    assert!(failure(&check(&path, None), "notes").contains("PRSTATUS note has 337 bytes"));
}

#[test]
fn every_verdict_of_the_server_is_heard() {
    let (path, directory) = stored();
    let length = fs::metadata(&path).unwrap().len();
    for (text, expected) in [
        (info(length, "Pass", "Dump incomplete: client timed out"), "client timed out"),
        (info(length, "Pass", "  Missing: 2 ranges, 8192B\nDump incomplete: x"), "missing: 2 ranges, 8192B"),
        (info(length, "Fail", "Dump complete"), "parity: Fail"),
        (info(length + 1, "Pass", "Dump complete"), "announced"),
        (String::new(), "nothing"),
    ] {
        fs::write(directory.path().join("info.vm1.0"), text).unwrap();
        let text = failure(&check(&path, None), "info");
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn name_that_says_incomplete_is_believed() {
    let (path, directory) = stored();
    for name in ["vmcore.vm1.0.incomplete", "vmcore.vm1.0.partial"] {
        let incomplete = directory.path().join(name);
        fs::copy(&path, &incomplete).unwrap();
        failure(&check(&incomplete, None), "name");
    }
    let host = directory.path().join("vmcore.partial-incomplete.0");
    fs::rename(&path, &host).unwrap();
    assert!(check(&host, None).whole());
}

#[test]
fn outcome_in_the_report_counts() {
    let (path, _directory) = stored();
    let unconfirmed = DumpReport { outcome: Outcome::Unconfirmed, ..report_of(&path) };
    assert!(check(&path, Some(&unconfirmed)).is_content_proven());
    let missing = DumpReport { missing: vec![(4096, 8192)], ..report_of(&path) };
    assert!(failure(&check(&path, Some(&missing)), "outcome").contains("0x1000 to 0x2000"));
    let failed = DumpReport {
        outcome: Outcome::Failed,
        reason: Some("no answer".into()),
        digest: None,
        ..report_of(&path)
    };
    assert!(failure(&check(&path, Some(&failed)), "outcome").contains("no answer"));
}

#[test]
fn report_of_another_dump_is_found_out() {
    let (path, _directory) = stored();
    let other = DumpReport { length: 5, ..report_of(&path) };
    assert!(failure(&check(&path, Some(&other)), "content").contains("the sender sent 5 bytes"));
}

#[test]
fn kind_of_core_that_cannot_be_read_is_proven_by_its_report_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmcore.x.0");
    fs::write(&path, b"minidump FreeBSD/arm64\0\x02").unwrap();
    assert!(!check(&path, None).whole());
    assert!(check(&path, Some(&report_of(&path))).whole());
}

#[test]
fn words_of_a_server_cannot_command_the_terminal() {
    let (path, directory) = stored();
    for ending in ["  Missing: \u{1b}[2J\nDump incomplete: x", "Dump incomplete: \u{1b}]0;title\u{7}"] {
        fs::write(directory.path().join("info.vm1.0"), info(1, "Pass", ending)).unwrap();
        let text = check(&path, None).to_string();
        assert!(text.contains("\\u{1b}"), "{text}");
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text}");
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn core_is_proven_unchanged_by_its_manifest_and_whole_by_its_report() {
    let (path, _directory) = opaque();
    let report = report_of(&path);
    assert!(!check(&path, None).whole(), "nothing speaks for it");
    put_manifest(&path);
    let verdict = check(&path, None);
    assert!(verdict.whole() && !verdict.is_content_proven(), "{verdict}");
    assert!(verdict.to_string().contains("it is as the receiver stored it"), "{verdict}");
    let verdict = check(&path, Some(&report));
    assert!(verdict.is_content_proven() && failed(&verdict).is_empty(), "{verdict}");
    assert!(text_of(&verdict, "transfer").contains("the same at sender and receiver"));
}

#[test]
fn a_flipped_bit_is_located_whatever_its_place() {
    let (path, _directory) = opaque();
    let (report, length) = (report_of(&path), 5 * MIB + 1000);
    put_manifest(&path);
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // The first and the last byte of the file and of pieces, and in the middle: each in another bit.
    let offsets = [0, MIB - 1, MIB, MIB + MIB / 2, 3 * MIB - 1, 4 * MIB + 4095, 5 * MIB, length - 1];
    for (bit, offset) in offsets.into_iter().enumerate() {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << bit)], offset).unwrap();
        let piece = (offset / MIB * MIB, (offset / MIB * MIB + MIB).min(length));
        let verdict = check(&path, Some(&report));
        // Of the magic itself, the file becomes another kind of file.
        let found: Vec<_> = failed(&verdict).into_iter().filter(|name| *name != "structure").collect();
        assert_eq!(found, ["content", "unchanged"], "{verdict}");
        for check in ["content", "unchanged"] {
            assert_eq!(differences(&verdict, check), [piece], "{verdict}");
            let range = format!("different: {:#x} to {:#x}", piece.0, piece.1);
            assert!(text_of(&verdict, check).contains(&range), "{verdict}");
        }
        assert_eq!(differences(&check(&path, None), "unchanged"), [piece], "by the manifest alone");
        file.write_all_at(&byte, offset).unwrap();
    }
    assert!(check(&path, Some(&report)).is_content_proven());
}

#[test]
fn bits_flipped_in_several_places_are_all_located() {
    let (path, _directory) = opaque();
    put_manifest(&path);
    for offset in [5, MIB + 5, 4 * MIB] {
        change_byte(&path, offset, 0);
    }
    let verdict = check(&path, None);
    assert_eq!(differences(&verdict, "unchanged"), [(0, 2 * MIB), (4 * MIB, 5 * MIB)], "{verdict}");
}

#[test]
fn a_hole_punched_into_data_is_told_from_one_that_was_received() {
    let (path, _directory) = opaque();
    let report = report_of(&path);
    let gap = (3 * MIB, 3 * MIB + 0x1_0000);
    let manifest = put_manifest(&path);
    write_manifest(
        &path,
        &Manifest { gaps: GapList { count: 1, bytes: 0x1_0000, listed: vec![gap] }, ..manifest },
    );
    assert!(check(&path, Some(&report)).is_content_proven());
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for at in [3 * MIB + 0x2_0000, 4 * MIB + 0x1000] {
        fallocate(&file, punch, i64::try_from(at).unwrap(), 0x1000).unwrap();
    }
    let verdict = check(&path, Some(&report));
    assert_eq!(differences(&verdict, "content"), [(3 * MIB, 5 * MIB)], "{verdict}");
    let text = text_of(&verdict, "unchanged");
    assert!(text.contains("(of which 0x320000 to 0x321000, 0x401000 to 0x402000 is a hole)"), "{text}");
}

#[test]
fn a_cut_or_grown_file_is_found_and_so_is_what_else_is_wrong() {
    let (path, _directory) = opaque();
    let (report, length) = (report_of(&path), 5 * MIB + 1000);
    put_manifest(&path);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let copy = fs::read(&path).unwrap();
    for cut in [length - 1, 5 * MIB, 5 * MIB - 1, 100] {
        file.set_len(cut).unwrap();
        let verdict = check(&path, Some(&report));
        let found: Vec<_> = failed(&verdict).into_iter().filter(|name| *name != "structure").collect();
        assert_eq!(found, ["manifest", "content", "unchanged"], "{verdict}");
        assert_eq!(differences(&verdict, "content"), [(cut, length)], "{verdict}");
        let text = text_of(&verdict, "content");
        let lost = if length - cut == 1 { "1 byte".into() } else { format!("{} bytes", length - cut) };
        assert!(text.contains(&format!("the file has {cut}: {lost} from {cut:#x} on missing")), "{text}");
    }
    file.write_all_at(&copy, 0).unwrap();
    file.set_len(length + 5000).unwrap();
    change_byte(&path, MIB, 0);
    let verdict = check(&path, None);
    assert_eq!(differences(&verdict, "unchanged"), [(MIB, 2 * MIB), (length, length + 5000)], "{verdict}");
    assert!(text_of(&verdict, "unchanged").contains("5000 bytes from 0x5003e8 on too many"), "{verdict}");
}

#[test]
fn what_changed_on_its_way_is_told_from_what_changed_later() {
    let (path, _directory) = opaque();
    let report = report_of(&path);
    change_byte(&path, 2 * MIB, 0);
    put_manifest(&path);
    let verdict = check(&path, Some(&report));
    assert_eq!(failed(&verdict), ["content", "transfer"], "{verdict}");
    assert_eq!(differences(&verdict, "transfer"), [(2 * MIB, 3 * MIB)]);
    change_byte(&path, 0x5000, 0);
    let verdict = check(&path, Some(&report));
    assert_eq!(differences(&verdict, "unchanged"), [(0, MIB)]);
    assert_eq!(differences(&verdict, "content"), [(0, MIB), (2 * MIB, 3 * MIB)]);
}

#[test]
fn a_manifest_that_was_tampered_with_is_found_out() {
    let (path, directory) = opaque();
    let good = put_manifest(&path);
    let text = fs::read_to_string(manifest_path(&path)).unwrap();
    fs::write(directory.path().join("info.vm1.0"), info(good.length, "Pass", "Dump complete")).unwrap();
    let judged = |text: &str| {
        fs::write(manifest_path(&path), text).unwrap();
        check(&path, None)
    };
    // A digit of a piece's hash, of the root, of the length; a piece less.
    let digest = good.digest.clone().unwrap();
    for hash in [netdump::digest::hex(&digest.pieces[1]), digest.root_hex()] {
        let digit = if hash.starts_with('0') { "1" } else { "0" };
        let verdict = judged(&text.replace(&hash, &format!("{digit}{}", &hash[1..])));
        assert_eq!(failed(&verdict)[0], "manifest", "{verdict}");
        assert!(text_of(&verdict, "manifest").contains("does not follow from its pieces"), "{verdict}");
    }
    let verdict = judged(&text.replace("\"length\":5243880", "\"length\":5243881"));
    assert!(text_of(&verdict, "manifest").contains("the receiver stored 5243881 bytes"), "{verdict}");
    // Hashes that fit together, of other bytes.
    let mut other = fs::read(&path).unwrap();
    other[(1 << 20) + 1] ^= 1;
    write_manifest(&path, &Manifest { digest: Some(Digest::of(&other)), ..good.clone() });
    assert_eq!(differences(&check(&path, None), "unchanged"), [(MIB, 2 * MIB)]);
    // What contradicts itself, or the info file.
    let gaps = |listed: &[(u64, u64)], count, bytes| GapList { count, bytes, listed: listed.to_vec() };
    for gaps in
        [gaps(&[(0, u64::MAX)], 1, 1), gaps(&[(5, 1)], 1, 1), gaps(&[(0, 10)], 0, 10), gaps(&[(0, 10)], 1, 9)]
    {
        write_manifest(&path, &Manifest { gaps, ..good.clone() });
        assert_eq!(
            failure_of(&check(&path, None), "manifest"),
            "its gaps do not fit together, or into the core"
        );
    }
    write_manifest(&path, &Manifest { ending: "Dump complete!".into(), ..good.clone() });
    assert!(failure_of(&check(&path, None), "manifest").contains("the info file says 'Dump complete'"));
    let shorter = Digest { length: 5 * MIB, pieces: good.digest.clone().unwrap().pieces[..5].to_vec() };
    write_manifest(&path, &Manifest { digest: Some(shorter), ..good });
    assert!(failure_of(&check(&path, None), "manifest").contains("its digest 5242880"));
    for junk in ["", "null", "[]", "{\"manifest\": 1}", &text[..text.len() / 2], &"[".repeat(100_000)] {
        assert_eq!(failed(&judged(junk)), ["structure", "manifest"][1..], "{junk:.20}");
    }
    fs::remove_file(manifest_path(&path)).unwrap();
    fs::create_dir(manifest_path(&path)).unwrap();
    assert!(!check(&path, None).whole());
}

fn failure_of(verdict: &Verdict, name: &str) -> String {
    assert!(failed(verdict).contains(&name), "{verdict}");
    text_of(verdict, name).to_owned()
}

#[test]
fn incomplete_dump_is_not_whole_but_can_be_unchanged() {
    let (path, _directory) = opaque();
    let manifest = put_manifest(&path);
    let gaps = GapList { count: 2, bytes: 0x2000, listed: vec![(0x1000, 0x2000), (0x5000, 0x6000)] };
    let ending = "Dump incomplete: client timed out".to_owned();
    write_manifest(&path, &Manifest { complete: false, ending, gaps, ..manifest });
    let verdict = check(&path, None);
    assert_eq!(failed(&verdict), ["manifest"], "{verdict}");
    let text = text_of(&verdict, "manifest");
    assert!(text.ends_with("client timed out; missing: 0x1000 to 0x2000, 0x5000 to 0x6000"), "{text}");
    assert!(text_of(&verdict, "unchanged").contains("is that of the core as it was stored"));
}

#[test]
fn key_beside_an_encrypted_core_is_judged_too() {
    let (path, directory) = opaque();
    let key = |file: &str, bytes: &[u8]| StoredKey {
        file: file.into(),
        length: bytes.len() as u64,
        blake3: blake3::hash(bytes).to_hex().to_string(),
    };
    let manifest = put_manifest(&path);
    fs::write(directory.path().join("key.vm1.0"), b"the key").unwrap();
    let judged = |key: StoredKey| {
        write_manifest(&path, &Manifest { key: Some(key), ..manifest.clone() });
        let verdict = check(&path, None);
        (verdict.whole(), text_of(&verdict, "key").to_owned())
    };
    assert_eq!(judged(key("key.vm1.0", b"the key")), (true, "key.vm1.0 is as it was stored".into()));
    assert!(judged(key("key.vm1.0", b"the Key")).1.contains("its hash is another"));
    assert!(judged(key("key.vm1.0", b"the")).1.contains("has 7 bytes, 3 were stored"));
    assert!(judged(key("key.vm1.1", b"the key")).1.contains("cannot be read"));
    for elsewhere in ["../key.vm1.0", "/dev/zero", "", ".", "x/y"] {
        assert!(judged(key(elsewhere, b"the key")).1.contains("is called"), "{elsewhere}");
    }
}

#[test]
fn manifest_of_a_core_that_was_unpacked_since_is_left_alone() {
    let (path, _directory) = stored();
    let manifest = put_manifest(&path);
    let mut json = serde_json::to_value(&manifest).unwrap();
    json["length"] = 7.into();
    json["header"] = serde_json::json!({
        "parity": true, "architecture": "amd64", "length": 7, "extent": manifest.length, "compression": "zstd",
        "key_size": 0, "dump_time": 0, "host_name": "vm1", "version": "", "panic": "boom",
    });
    fs::write(manifest_path(&path), json.to_string()).unwrap();
    let verdict = check(&path, None);
    assert!(verdict.whole(), "{verdict}");
    assert!(text_of(&verdict, "manifest").contains("the core as it was stored, which this file is no more"));
}

#[test]
fn words_of_a_manifest_cannot_command_the_terminal() {
    let (path, _directory) = opaque();
    let manifest = put_manifest(&path);
    let ending = "\u{1b}]0;title\u{7}\nThe core is whole".to_owned();
    write_manifest(&path, &Manifest { complete: false, ending, core: "\u{1b}[2J".into(), ..manifest });
    let text = check(&path, None).to_string();
    assert!(text.contains("\\u{1b}") && !text.contains(|c: char| c.is_control() && c != '\n'), "{text}");
}
