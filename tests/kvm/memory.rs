//! RAM of all sizes.

use std::time::Duration;

use harness::guests::{Bench, assert_code, verify};
use harness::programs::Running;

use crate::needs_kvm;

/// Peak of the memory of a process that is its own, not shared with files: guest RAM is a shared memory file.
fn peak_anonymous(vmm: &mut Running) -> u64 {
    let path = format!("/proc/{}/status", vmm.pid());
    let mut peak = 0;
    while vmm.is_running() {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let field = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = field.and_then(|value| value.trim().split(' ').next()).and_then(|n| n.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    peak
}

#[test]
fn memory_above_4_gib_arrives_and_untouched_pages_are_neither_sent_nor_stored() {
    needs_kvm!();
    let bench = Bench::new("big");
    assert_code(&bench.run(&["--memory=6G"]), 10);
    let report = bench.report();
    assert_eq!(report["memory"].to_string(), "[[0,3221225472],[4294967296,7516192768]]");
    let sent = report["dump"]["bytes_sent"].as_u64().unwrap();
    assert!(sent < 64 << 20, "{sent} bytes sent of a sparse guest");
    let core = bench.core_path();
    verify(&core, &bench.report_path());
    assert!(bench.check_memory(&core) > 0);
    let metadata = std::fs::metadata(&core).unwrap();
    assert!(metadata.len() > 6 << 30);
    use std::os::unix::fs::MetadataExt;
    assert!(metadata.blocks() * 512 < 256 << 20, "the stored core is sparse");
}

#[test]
fn the_dumpers_own_memory_does_not_grow_with_the_guests() {
    needs_kvm!();
    let peak = |memory: &str| {
        let bench = Bench::new("panic");
        let mut vmm = bench.start(&[memory, "--kenv", "fill=all"]);
        let peak = peak_anonymous(&mut vmm);
        assert_code(&vmm.wait(), 10);
        peak
    };
    let (small, large) = (peak("--memory=64M"), peak("--memory=512M"));
    assert!(small > 0, "the process was seen at all");
    assert!(large < small + 2048, "{small} KiB for 64 MiB, {large} KiB for 512 MiB");
}

#[test]
fn all_of_a_filled_memory_arrives() {
    needs_kvm!();
    let bench = Bench::new("panic");
    assert_code(&bench.run(&["--memory=256M", "--kenv", "fill=all", "--kenv", "seed=42"]), 10);
    assert_eq!(bench.check_memory(&bench.core_path()), 240 << 20);
}
