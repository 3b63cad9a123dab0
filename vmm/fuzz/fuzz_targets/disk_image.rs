//! A file that claims to be a disk: its partitions lie on it, its file systems are read or refused, and whatever would be
//! booted is found or not. The checksums of a GPT are made right: without them nothing of it would be looked at.

#![no_main]

use std::path::Path;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmm::image::DiskImage;
use vmm::image::blocks::Blocks;
use vmm::image::boot::{self, Wishes};

/// Where the first header of a GPT is, and its entries, by its own word.
const HEADER: usize = 512;
/// Shorter inputs are disks of this length, so that the fuzzer need not find long ones.
const LEN: usize = 256 << 10;

fuzz_target!(|bytes: &[u8]| {
    let mut disk = bytes.to_vec();
    disk.resize(disk.len().max(LEN), 0);
    seal(&mut disk);
    let len = disk.len() as u64;
    let image = DiskImage::new(Path::new("disk"), "raw", Blocks::new(Arc::new(disk)));
    for partition in image.volumes.iter().filter_map(|volume| volume.partition.as_ref()) {
        assert!(partition.start.checked_add(partition.len).is_some_and(|end| end <= len), "{partition:?}");
    }
    assert!(image.volumes.len() <= 256 && !image.summary().is_empty());
    let _ = boot::plan(&image, &Wishes::default());
});

fn seal(disk: &mut [u8]) {
    if !disk[HEADER..].starts_with(b"EFI PART") {
        return;
    }
    let word =
        |disk: &[u8], at: usize| u32::from_le_bytes(*disk[HEADER + at..].first_chunk().expect("a header"));
    let (start, count, len) = (word(disk, 72), word(disk, 80), word(disk, 84));
    let entries = (start as usize).checked_mul(512).zip((count as usize).checked_mul(len as usize));
    let entries = entries.and_then(|(start, len)| disk.get(start..start.checked_add(len)?));
    if let Some(sum) = entries.map(crc32fast::hash) {
        disk[HEADER + 88..][..4].copy_from_slice(&sum.to_le_bytes());
    }
    disk[HEADER + 16..][..4].fill(0);
    let header_len = word(disk, 12) as usize;
    if let Some(sum) = disk[HEADER..].get(..header_len).map(crc32fast::hash) {
        disk[HEADER + 16..][..4].copy_from_slice(&sum.to_le_bytes());
    }
}
