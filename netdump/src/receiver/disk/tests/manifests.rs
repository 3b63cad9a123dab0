//! What a manifest says of complete and incomplete dumps.

use std::ops::Range;

use super::*;
use crate::digest::Digest;
use crate::manifest::{GapList, HeaderFacts};

#[test]
fn manifest_says_what_is_stored_and_from_whom() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("vms")).unwrap();
    let mut dump = store(dir.path()).create(&request(b"vms\0")).unwrap();
    let header = KernelDumpHeader {
        dump_length: 5 << 20,
        panic_string: "boom".into(),
        host_name: "vm1".into(),
        ..Default::default()
    };
    let header = HeaderSeen::judge(&header.to_bytes());
    let bytes = [vec![1; 2_000_000], vec![0; (5 << 20) - 2_000_001], vec![3]].concat();
    // Out of order, a part of it twice, and with a hole.
    for part in [(5 << 20) - 1..5 << 20, 1_000_000..2_000_000, 0..1_000_000, 999_000..1_000_100] {
        dump.write_at(part.start as u64, &[IoSlice::new(&bytes[part])]).unwrap();
    }
    dump.header(&header).unwrap();
    let mut summary = summary(header.clone(), 5 << 20);
    summary.gaps =
        Gaps { count: 1, bytes: 3_242_879, listed: vec![Range { start: 2_000_000, end: (5 << 20) - 1 }] };
    let stored = commit(&mut dump, &summary).unwrap();
    let manifest = manifest(&stored);
    assert_eq!(manifest.digest, Some(Digest::of(&bytes)));
    assert_eq!(manifest.digest.as_ref().unwrap().root_hex(), proven(&stored).digest.clone().unwrap());
    assert_eq!((manifest.complete, manifest.ending.as_str()), (true, "Dump complete"));
    assert_eq!((manifest.core, manifest.info), (format!("vmcore.{H}.0"), format!("info.{H}.0")));
    assert_eq!(manifest.gaps, GapList::from(&summary.gaps));
    assert_eq!(manifest.header, HeaderFacts::of(&header));
    assert_eq!((manifest.client.name.as_str(), manifest.client.path.as_deref()), (H, Some("vms")));
    assert_eq!((manifest.client.address, manifest.bytes_per_second), (PEER, Some(5_242_880.0)));
    assert_eq!((manifest.began.len(), &manifest.began[..2]), ("2026-11-23T14:45:06Z".len(), "20"));
    let link = fs::read_link(dir.path().join("vms").join(format!("manifest.{H}.last.json"))).unwrap();
    assert_eq!(link.to_str(), Some(&*format!("manifest.{H}.0.json")));
}

fn proven(stored: &StoredDump) -> &Proven {
    stored.proof.outcome().unwrap().as_ref().unwrap()
}

#[test]
fn incomplete_dump_has_a_manifest_of_what_came() {
    let dir = tempfile::tempdir().unwrap();
    let mut dump = store(dir.path()).create(&request(b"")).unwrap();
    dump.write_at(100, &[IoSlice::new(b"half")]).unwrap();
    dump.key_at(0, b"key").unwrap();
    let mut summary = summary(HeaderSeen::Missing, 104);
    summary.gaps = Gaps { count: 1, bytes: 100, listed: vec![Range { start: 0, end: 100 }] };
    let stored = dump.abandon(&summary, &Ending::Incomplete(Cause::TimedOut)).unwrap();
    let manifest = manifest(&stored);
    assert!(!manifest.complete && manifest.ending == "Dump incomplete: client timed out");
    assert_eq!(manifest.digest, Some(Digest::of(&[&[0; 100][..], b"half"].concat())));
    assert_eq!(manifest.core, format!("vmcore_encrypted.{H}.0.incomplete"));
    let key = manifest.key.unwrap();
    assert_eq!(
        (key.file, key.blake3),
        (format!("key.{H}.0.incomplete"), blake3::hash(b"key").to_hex().to_string())
    );
    assert_eq!((manifest.gaps.listed, manifest.header), (vec![(0, 100)], None));
    assert!(!dir.path().join(format!("manifest.{H}.last.json")).exists());
}

#[test]
fn a_store_is_not_left_before_its_proofs_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    let stored: Vec<_> = (0..5).map(|_| dump(&mut store, b"", &[7; 3_000_000])).collect();
    drop(store);
    for stored in stored {
        assert!(proven(&stored).manifest.is_file());
    }
    assert!(!names(dir.path()).iter().any(|name| name.starts_with("journal.")));
}

#[test]
fn a_core_too_long_for_a_digest_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut dump = store(dir.path()).create(&request(b"")).unwrap();
    let far = (1 << 42) + 1;
    // Not every file system has files of this length.
    let Ok(()) = dump.write_at(far, &[IoSlice::new(b"x")]) else { return };
    let stored = commit(&mut dump, &summary(HeaderSeen::Missing, far + 1)).unwrap();
    let manifest = manifest(&stored);
    assert_eq!((manifest.digest, manifest.length), (None, far + 1));
    assert_eq!(manifest.no_digest.as_deref(), Some("the core is longer than 4 TiB"));
}
