//! A disk that claims to be UFS: it is refused, or read within bounds.
//!
//! An input is a byte (1 for UFS1, else UFS2) and the disk from its superblock on, whose magic number and own place are
//! set right: without those nothing would be looked at.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmm::image::blocks::Blocks;
use vmm::image::fs;

/// Largest file that is read.
const MOST: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Some((&version, rest)) = bytes.split_first() else { return };
    let (start, magic) = if version == 1 { (8192, 0x0001_1954_u32) } else { (65_536, 0x1954_0119) };
    let mut disk = vec![0; start];
    disk.extend_from_slice(rest);
    disk.resize(disk.len().max(start + 1376), 0);
    disk[start + 1000..start + 1008].copy_from_slice(&(start as u64).to_le_bytes());
    disk[start + 1372..start + 1376].copy_from_slice(&magic.to_le_bytes());
    let blocks = Blocks::new(Arc::new(disk));
    let kind = fs::recognise(&blocks).expect("it says that it is one");
    assert_eq!(kind.name(), "ufs");
    let Ok(fs) = kind.open(blocks) else { return };
    let _ = (fs.uuid(), fs.label());
    for path in ["/boot/kernel", "/boot/up", "/link", "/.."] {
        if let Ok(content) = fs.read(path, MOST) {
            assert!(content.len() as u64 <= MOST);
            assert_eq!(fs.metadata(path).expect("it was read").len, content.len() as u64);
        }
    }
    for path in ["/", "/boot", "/link"] {
        assert!(fs.list(path).map_or(0, |entries| entries.len()) <= fs::MOST_ENTRIES);
    }
});
