//! What `verify` finds in whole and in damaged cores.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use netdump::digest::Digest;
use netdump::report::{DumpReport, Outcome};
use netdump::vmcore::verify::Finding;
use netdump::vmcore::{Verdict, verify};

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
