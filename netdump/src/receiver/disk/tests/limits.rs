//! What a store allows itself.

use super::*;

fn limited(directory: &Path, limits: StoreLimits) -> DiskStore {
    store(directory).with_limits(limits)
}

/// Writes MiBs to a new dump until one is refused: how many were taken, and why the next was not.
fn fill(dump: &mut DiskDump) -> (u64, StoreError) {
    let bytes = [7; 1 << 20];
    for mib in 0..100 {
        if let Err(error) = dump.write_at(mib << 20, &[IoSlice::new(&bytes)]) {
            return (mib, error);
        }
    }
    panic!("nothing was refused");
}

#[test]
fn dump_ends_at_its_limit_and_repeated_bytes_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let limits = StoreLimits { max_bytes_per_dump: Some(3 << 20), ..StoreLimits::default() };
    let mut store = limited(dir.path(), limits);
    for _ in 0..2 {
        let mut dump = store.create(&request(b"")).unwrap();
        for _ in 0..5 {
            dump.write_at(0, &[IoSlice::new(&[7; 1 << 20])]).unwrap();
        }
        let (taken, error) = fill(&mut dump);
        assert_eq!(
            (taken, error.to_string().as_str()),
            (3, "the dump is larger than the 3145728 bytes that one may have")
        );
    }
}

#[test]
fn all_dumps_together_end_at_their_limit_until_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("vms")).unwrap();
    let limits = StoreLimits { max_bytes_total: Some(8 << 20), ..StoreLimits::default() };
    // Of an earlier run, and not a store's file.
    let earlier = dump(&mut store(dir.path()), b"vms\0", &[1; 4 << 20]);
    fs::write(dir.path().join("other"), vec![1; 4 << 20]).unwrap();
    let mut store = limited(dir.path(), limits);
    let (mut one, mut two) = (store.create(&request(b"")).unwrap(), store.create(&request(b"")).unwrap());
    one.write_at(0, &[IoSlice::new(&[1; 1 << 20])]).unwrap();
    let (taken, error) = fill(&mut two);
    // The other files of these dumps take some blocks, too.
    assert_eq!(taken, 2, "{error}");
    assert!(error.to_string().ends_with("bytes of the 8388608 that all together may have"), "{error}");
    two.abandon(&summary(HeaderSeen::Missing, 2 << 20), &Ending::Incomplete(Cause::Store(Arc::new(error))))
        .unwrap();
    fs::write(dir.path().join(format!("vmcore.{H}.99")), vec![1; 1 << 20]).unwrap();
    assert!(matches!(store.create(&request(b"")), Err(StoreError::TooMuchStored { .. })));
    fs::remove_file(earlier.core).unwrap();
    store.create(&request(b"")).unwrap();
}

#[test]
fn room_is_left_on_the_file_system() {
    let Some(disk) = SmallDisk::mount() else { return };
    let limits = StoreLimits { min_free: Some(512 << 10), ..StoreLimits::default() };
    let mut store = limited(disk.0.path(), limits);
    let mut dump = store.create(&request(b"")).unwrap();
    dump.write_at(0, &[IoSlice::new(&[1; 600 << 10])]).unwrap();
    assert!(matches!(store.create(&request(b"")), Err(StoreError::TooLittleFree { .. })));
    dump.discard();
    drop(dump);
    store.create(&request(b"")).unwrap();
}
