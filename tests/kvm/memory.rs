//! RAM of all sizes.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use harness::guests::{Bench, assert_code, verify};
use harness::programs::Running;
use harness::readers::elf::ElfCore;
use nix::sys::signal::Signal;

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

#[test]
fn the_core_is_guest_memory_byte_for_byte() {
    needs_kvm!();
    // A held guest stays paused: its memory file can be read beside the core that was made of it.
    let bench = Bench::new("panic");
    let vmm = bench.start(&["--memory=3200M", "--on-panic", "hold", "--kenv", "fill=64M"]);
    vmm.wait_for_stderr("stays paused");
    let files =
        std::fs::read_dir(format!("/proc/{}/fd", vmm.pid())).unwrap().map(|file| file.unwrap().path());
    let is_memory =
        |file: &PathBuf| std::fs::read_link(file).is_ok_and(|l| l.to_string_lossy().contains("guest-memory"));
    let memory =
        File::open(files.into_iter().find(is_memory).expect("guest memory is a memory file")).unwrap();
    let core = ElfCore::open(&bench.core_path()).unwrap();
    let mut offset = 0;
    for load in &core.loads {
        for at in (0..load.filesz).step_by(4 << 20) {
            let len = usize::try_from((load.filesz - at).min(4 << 20)).unwrap();
            let mut expected = vec![0; len];
            memory.read_exact_at(&mut expected, offset + at).unwrap();
            assert!(core.memory(load.paddr + at, len).unwrap() == expected, "{:#x} differs", load.paddr + at);
        }
        offset += load.filesz;
    }
    assert_eq!(offset, 3200 << 20);
    vmm.signal(Signal::SIGTERM);
    assert_code(&vmm.wait(), 10);
}
