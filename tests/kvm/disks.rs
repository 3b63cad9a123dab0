//! `--disk`: what can be a guest's disk, and what cannot.

use harness::guests::{Bench, assert_code};
use harness::needs::Need;

#[test]
fn a_guest_with_disks_boots_and_its_dump_is_whole() {
    if !Need::Kvm.or_skip() {
        return;
    }
    let bench = Bench::new("panic");
    let disks = ["one", "two"].map(|name| {
        let path = bench.folder().join(name);
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        path.display().to_string()
    });
    let ended = bench.run(&["--disk", &disks[0], "--disk", &format!("{},ro", disks[1])]);
    assert_code(&ended, 10);
    bench.check_memory(&bench.core_path());
    assert!(disks.iter().all(|path| std::fs::read(path).unwrap() == vec![7; 1 << 20]));
}

#[test]
fn what_is_no_disk_is_refused_before_the_guest_starts() {
    if !Need::Kvm.or_skip() {
        return;
    }
    let bench = Bench::new("panic");
    let odd = bench.folder().join("odd").display().to_string();
    std::fs::write(&odd, [7; 100]).unwrap();
    let missing = bench.folder().join("missing").display().to_string();
    let folder = bench.folder().display().to_string();
    for (disk, expected) in [
        (&odd, "no whole number of sectors"),
        (&missing, "No such file"),
        (&folder, "neither a regular file nor a block device"),
    ] {
        let ended = bench.run(&["--disk", disk]);
        assert_code(&ended, 1);
        assert!(ended.stderr.contains(expected) && ended.stderr.contains(disk.as_str()), "{}", ended.stderr);
    }
    // One file cannot be two disks of which one is written.
    let good = bench.folder().join("good").display().to_string();
    std::fs::write(&good, [7; 512]).unwrap();
    let ended = bench.run(&["--disk", &good, "--disk", &good]);
    assert_code(&ended, 1);
    assert!(ended.stderr.contains("is in use"), "{}", ended.stderr);
}

#[test]
fn an_overlay_leaves_its_disk_to_others_and_as_it_is() {
    if !Need::Kvm.or_skip() {
        return;
    }
    let bench = Bench::new("panic");
    let path = bench.folder().join("disk");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let overlay = format!("{},overlay", path.display());
    // Twice the same: neither may write to the file, so both may have it.
    let ended = bench.run(&["--disk", &overlay, "--disk", &overlay]);
    assert_code(&ended, 10);
    assert!(std::fs::read(&path).unwrap() == vec![7; 1 << 20]);
}

#[test]
fn options_of_disk_images_are_refused_with_a_kernel() {
    let bench = Bench::new("panic");
    for options in [&["--overlay"][..], &["--kernel", "/boot/kernel/kernel"]] {
        let ended = bench.run(options);
        assert_code(&ended, 1);
        assert!(ended.stderr.contains("are for a disk image, which "), "{}", ended.stderr);
    }
}
