//! Guests that spoil the queues of their devices: the device bears it, serves again after a reset, and the dump is whole.

use harness::guests::{Bench, assert_code};

use crate::needs_kvm;

/// Every state that `queue-wedge` tries.
const WEDGES: [&str; 14] = [
    "none",
    "loop",
    "wild",
    "ahead",
    "indirect",
    "length",
    "index",
    "direction",
    "overlap",
    "rings",
    "nowhere",
    "reset",
    "messages",
    "bar",
];

/// Has a guest try every state on a device, and leave it in one of them.
fn spoil(device: &str, transport: &str, last: &str) {
    let bench = Bench::new("queue-wedge");
    let disk = bench.folder().join("disk");
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let environment = [format!("--kenv=device={device}"), format!("--kenv=last={last}")];
    let disk_path = disk.display().to_string();
    let options = ["--virtio", transport, "--disk", &disk_path, "--kenv=fill=4M"];
    let ended = bench.run(&[&options[..], &[&environment[0], &environment[1]]].concat());
    assert_code(&ended, 10);
    let told = |line: &str| ended.stdout.lines().any(|told| told.trim_end() == line);
    for wedge in WEDGES {
        assert!(told(&format!("survived {wedge}")), "{wedge}: {}", ended.stdout);
    }
    assert_eq!(told("messages arrive"), transport == "pci", "{}", ended.stdout);
    assert!(ended.stdout.contains("the queues are left as they are"), "{}", ended.stdout);
    assert!(bench.check_memory(&bench.core_path()) > 0);
    let disk = std::fs::read(&disk).unwrap();
    assert!(disk[512..].iter().all(|&byte| byte == 7), "the guest wrote the first sector only");
    assert_eq!(disk[..512].iter().all(|&byte| byte == 7), device != "blk");
}

#[test]
fn a_disk_bears_any_queue_over_pci() {
    needs_kvm!();
    for last in ["none", "wild", "overlap", "bar", "messages"] {
        spoil("blk", "pci", last);
    }
}

#[test]
fn a_disk_bears_any_queue_over_mmio() {
    needs_kvm!();
    for last in ["none", "loop", "rings"] {
        spoil("blk", "mmio", last);
    }
}

#[test]
fn a_source_of_randomness_bears_any_queue_over_pci() {
    needs_kvm!();
    for last in ["none", "length", "bar", "messages"] {
        spoil("rng", "pci", last);
    }
}

#[test]
fn a_source_of_randomness_bears_any_queue_over_mmio() {
    needs_kvm!();
    for last in ["none", "ahead", "reset"] {
        spoil("rng", "mmio", last);
    }
}
