//! A disk that claims to be ext4 or FAT, which crates read: it is refused, or read within bounds. What the crates do not
//! survive is a refusal, too.
//!
//! An input is a byte (1 for FAT, else ext4) and the disk, whose magic numbers are set right: without those nothing would be
//! looked at.

#![no_main]

use std::sync::{Arc, Once};
use std::thread;

use libfuzzer_sys::fuzz_target;
use vmm::image::blocks::Blocks;
use vmm::image::fs;

/// Largest file that is read, in bytes.
const MOST: u64 = 1 << 20;
/// Shorter inputs are disks of this length, in bytes: seeds need not have the zeros at the end.
const LEN: usize = 96 << 10;

fuzz_target!(|bytes: &[u8]| {
    forgive_workers();
    let Some((&kind, rest)) = bytes.split_first() else { return };
    let mut disk = rest.to_vec();
    disk.resize(disk.len().max(LEN), 0);
    let name = if kind == 1 { "vfat" } else { "ext4" };
    if kind == 1 {
        disk[0] = 0xeb;
        disk[54..58].copy_from_slice(b"FAT1");
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    } else {
        disk[1080..1082].copy_from_slice(&[0x53, 0xef]);
    }
    let blocks = Blocks::new(Arc::new(disk));
    let kind = fs::recognise(&blocks).expect("it says that it is one");
    if kind.name() != name {
        return;
    }
    let Ok(fs) = kind.open(blocks) else { return };
    let _ = (fs.uuid(), fs.label());
    for path in ["/boot/vmlinuz", "/link", "/dir/rel", "/dir/big", "/loader/entries/a-long-name.conf", "/.."]
    {
        if let Ok(content) = fs.read(path, MOST) {
            assert!(content.len() as u64 <= MOST);
            assert!(fs.metadata(path).is_ok_and(|found| found.len == content.len() as u64));
        }
    }
    for path in ["/", "/dir", "/link", "/loader/entries"] {
        assert!(fs.list(path).map_or(0, |entries| entries.len()) <= fs::MOST_ENTRIES);
    }
});

/// The fuzzer ends at any panic, but one in a file system's worker is caught there.
fn forgive_workers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let here = thread::current().id();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if thread::current().id() == here {
                hook(info);
            }
        }));
    });
}
