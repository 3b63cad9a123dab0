//! What becomes of dumps whose receiver died. It dies by being dropped: its lock goes, its files stay.

use std::num::NonZeroU32;
use std::ops::Range;

use super::*;
use crate::receiver::store::Restored;

fn named(path: &[u8]) -> NewDump {
    NewDump { dump_id: NonZeroU32::new(7), ..request(path) }
}

fn header() -> HeaderSeen {
    let fields = KernelDumpHeader { dump_length: 50, panic_string: "boom".into(), ..Default::default() };
    HeaderSeen::judge(&fields.to_bytes())
}

/// A dump of which parts came before its receiver died.
fn begun(directory: &Path, request: &NewDump) -> DiskDump {
    let mut dump = store(directory).create(request).unwrap();
    for (at, bytes) in [(0, &b"0123456789"[..]), (10, b"abcdefghij"), (30, b"ABCDEFGHIJ")] {
        dump.write_at(at, &[IoSlice::new(bytes)]).unwrap();
    }
    dump.key_at(4, b"key").unwrap();
    dump.header(&header()).unwrap();
    dump
}

fn restored(directory: &Path) -> (DiskStore, Restored<DiskDump>) {
    let mut store = store(directory);
    assert!(store.take_over(true).is_empty());
    let mut unfinished = store.unfinished();
    assert_eq!(unfinished.len(), 1);
    (store, unfinished.remove(0))
}

/// `0..20` and `30..40` in, the rest of `0..50` missing, and that the text says so.
fn is_told(leftover: &Leftover) -> StoredDump {
    assert_eq!(leftover.ending.to_string(), "Dump incomplete: the receiver died");
    assert_eq!((leftover.summary.bytes, leftover.summary.end, leftover.summary.length), (30, 40, 50));
    let stored = leftover.stored.as_ref().unwrap().clone();
    let info = text(&stored.info);
    assert!(info.ends_with("    0x14-0x1e\n    0x28-0x32\nDump incomplete: the receiver died\n"), "{info}");
    assert!(info.contains("Panic String: boom") && info.contains("Received: 30B, "), "{info}");
    stored
}

#[test]
fn dump_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("vms")).unwrap();
    drop(begun(dir.path(), &named(b"vms\0")));
    let (_store, Restored { request, mut dump, received, key, header, .. }) = restored(dir.path());
    assert_eq!(request, named(b"vms\0"));
    assert_eq!((received, key), (vec![0..20, 30..40], vec![Range { start: 4, end: 7 }]));
    assert_eq!(header, self::header());
    dump.write_at(20, &[IoSlice::new(b"..........")]).unwrap();
    dump.write_at(40, &[IoSlice::new(b"..........")]).unwrap();
    dump.key_at(0, b"the ").unwrap();
    // It dies again, and again.
    drop((_store, dump));
    let (_store, Restored { received, key, .. }) = restored(dir.path());
    assert_eq!((received, key), (vec![Range { start: 0, end: 50 }], vec![Range { start: 0, end: 7 }]));
    drop(_store);
    let (_store, Restored { mut dump, .. }) = restored(dir.path());
    let stored = commit(&mut dump, &summary(header, 50)).unwrap();
    assert_eq!(text(&stored.core), "0123456789abcdefghij..........ABCDEFGHIJ..........");
    assert_eq!(text(stored.key.as_ref().unwrap()), "the key");
    assert_eq!(fs::metadata(stored.key.as_ref().unwrap()).unwrap().permissions().mode() & 0o777, 0o400);
    assert!(manifest(&stored).complete);
    assert!(
        !names(&dir.path().join("vms"))
            .iter()
            .any(|name| name.contains("partial") || name.contains("journal"))
    );
}

#[test]
fn without_resume_what_is_left_is_kept_as_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    drop(begun(dir.path(), &named(b"")));
    let mut store = store(dir.path());
    let leftovers = store.take_over(false);
    let stored = is_told(&leftovers[0]);
    assert!(
        stored.core.ends_with(format!("vmcore.{H}.0.incomplete")),
        "its header says so in spite of the key"
    );
    assert_eq!(manifest(&stored).gaps.listed, [(20, 30), (40, 50)]);
    assert!(store.take_over(false).is_empty() && store.unfinished().is_empty());
    assert!(!names(dir.path()).iter().any(|name| name.contains("partial") || name.contains("journal")));
}

#[test]
fn a_stock_clients_dump_does_not_go_on() {
    let dir = tempfile::tempdir().unwrap();
    drop(begun(dir.path(), &request(b"")));
    let mut store = store(dir.path());
    is_told(&store.take_over(true)[0]);
    assert!(store.unfinished().is_empty());
}

#[test]
fn after_a_start_of_the_machine_no_dump_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    drop(begun(dir.path(), &named(b"")));
    let journal = dir.path().join(format!("journal.{H}.0"));
    let mut bytes = fs::read(&journal).unwrap();
    let boot = journal::boot_id().unwrap();
    let at = bytes.windows(boot.len()).position(|window| window == boot.as_bytes()).unwrap();
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    let length = usize::try_from(u32::from_le_bytes(bytes[16..20].try_into().unwrap())).unwrap();
    let sum = crc32fast::hash(&bytes[24..24 + length]).to_le_bytes();
    bytes[20..24].copy_from_slice(&sum);
    fs::write(&journal, bytes).unwrap();
    let mut store = store(dir.path());
    let stored = is_told(&store.take_over(true)[0]);
    assert!(text(stored.info).contains("  Note: the machine was started anew since"));
    assert!(store.unfinished().is_empty());
}

#[test]
fn a_receiver_that_lives_is_not_robbed() {
    let dir = tempfile::tempdir().unwrap();
    let mut dump = begun(dir.path(), &named(b""));
    let mut other = store(dir.path());
    for resume in [true, false] {
        assert!(other.take_over(resume).is_empty() && other.unfinished().is_empty());
    }
    dump.write_at(0, &[IoSlice::new(&[b'.'; 50])]).unwrap();
    assert_eq!(text(commit(&mut dump, &summary(header(), 50)).unwrap().core), ".".repeat(50));
}

#[test]
fn whoever_comes_second_takes_nothing_over() {
    let dir = tempfile::tempdir().unwrap();
    drop(begun(dir.path(), &named(b"")));
    let (_store, _restored) = restored(dir.path());
    let mut second = store(dir.path());
    assert!(second.take_over(true).is_empty() && second.unfinished().is_empty());
}

/// A directory in which a receiver died after so many of a commit's, or of an abandonment's, steps.
fn died_in(steps: &[(&str, &str)], last_line: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    drop(begun(dir.path(), &named(b"")));
    let name = |name: &str| dir.path().join(name.replace('H', H));
    let aside =
        text(name("info.H.0")).replace("Dump incomplete: the receiver was still receiving it\n", last_line);
    fs::write(name("info.H.0.partial"), aside).unwrap();
    for (from, to) in steps {
        fs::rename(name(from), name(to)).unwrap();
    }
    dir
}

const COMMIT: [(&str, &str); 3] =
    [("vmcore.H.0.partial", "vmcore.H.0"), ("key.H.0.partial", "key.H.0"), ("info.H.0.partial", "info.H.0")];

#[test]
fn a_commit_that_did_not_come_to_its_end_is_taken_back() {
    for steps in 0..3 {
        let dir = died_in(&COMMIT[..steps], "Dump complete\n");
        let (_store, Restored { mut dump, .. }) = restored(dir.path());
        dump.write_at(20, &[IoSlice::new(b"..........")]).unwrap();
        let stored = commit(&mut dump, &summary(header(), 50)).unwrap();
        assert!(text(&stored.core).starts_with("0123456789abcdefghij..........ABCDEFGHIJ"), "{steps}");
        assert!(manifest(&stored).complete);
        let dir = died_in(&COMMIT[..steps], "Dump complete\n");
        let stored = is_told(&store(dir.path()).take_over(false)[0]);
        assert_eq!(names(dir.path()).iter().filter(|name| name.contains("incomplete")).count(), 2, "{steps}");
        assert!(!manifest(&stored).complete);
    }
}

#[test]
fn what_a_committed_dump_still_lacks_is_made() {
    for resume in [true, false] {
        let dir = died_in(&COMMIT, "Dump complete\n");
        let mut store = store(dir.path());
        let leftovers = store.take_over(resume);
        let [Leftover { ending: Ending::Complete, stored: Ok(stored), .. }] = &leftovers[..] else {
            panic!("{leftovers:?}")
        };
        assert!(stored.complete && manifest(stored).complete);
        assert!(store.unfinished().is_empty() && store.take_over(resume).is_empty());
    }
}

#[test]
fn an_abandoned_dump_is_brought_to_its_end() {
    for steps in 1..4 {
        let abandon = [
            ("info.H.0.partial", "info.H.0"),
            ("vmcore.H.0.partial", "vmcore.H.0.incomplete"),
            ("key.H.0.partial", "key.H.0.incomplete"),
        ];
        let dir = died_in(&abandon[..steps], "Dump incomplete: client timed out\n");
        let mut store = store(dir.path());
        let leftovers = store.take_over(true);
        assert!(store.unfinished().is_empty());
        let stored = leftovers[0].stored.as_ref().unwrap();
        assert!(!stored.complete && stored.core.ends_with(format!("vmcore.{H}.0.incomplete")));
        assert!(text(&stored.info).ends_with("Dump incomplete: client timed out\n"));
        assert!(!manifest(stored).complete);
    }
}

#[test]
fn journals_that_make_no_sense_harm_nobody() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    for (name, bytes) in
        [("journal.x.0", &b""[..]), ("a/journal.x", b"netdump journal\0"), ("a/b/journal.", &[0xff; 9000])]
    {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    symlink("/etc/passwd", dir.path().join("journal.x.1")).unwrap();
    // A journal of another dump.
    drop(begun(dir.path(), &named(b"")));
    fs::copy(dir.path().join(format!("journal.{H}.0")), dir.path().join("journal.y.5")).unwrap();
    // And one whose core somebody has removed.
    drop(begun(dir.path(), &named(b"")));
    fs::remove_file(dir.path().join(format!("vmcore.{H}.1.partial"))).unwrap();
    let mut store = store(dir.path());
    assert!(store.take_over(true).is_empty());
    assert_eq!(store.unfinished().len(), 1);
}
