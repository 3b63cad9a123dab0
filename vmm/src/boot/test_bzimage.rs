//! A bzImage for tests, assembled field by field: a setup header, code that is no code, and a kernel packed by gzip.

use std::io::Write;
use std::path::Path;

use super::KernelImage;
use super::test_kernel::Kernel;

/// Sectors of the real-mode part behind the first.
const SETUP_SECTS: u8 = 2;
/// Where the protected-mode part is in the file.
pub(super) const PROTECTED: usize = (SETUP_SECTS as usize + 1) * 512;
/// Where the payload is in that.
const PAYLOAD: usize = 0x300;
/// Where the kernel wants to run, and how much it needs there.
pub(super) const RUN: u64 = 0x100_0000;
pub(super) const INIT_SIZE: u32 = 0x20_0000;
/// Longest command line without the NUL.
pub(super) const CMDLINE_SIZE: u32 = 0x7ff;

/// The file.
pub(super) fn bzimage() -> Vec<u8> {
    let kernel = Kernel { os_abi: 0, ..Kernel::default() };
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(&kernel.elf()).unwrap();
    with_payload(&packer.finish().unwrap())
}

/// The file with something else packed in it.
pub(super) fn with_payload(payload: &[u8]) -> Vec<u8> {
    let len = (PROTECTED + PAYLOAD + payload.len()).next_multiple_of(16);
    let mut file = vec![0; len];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let u32_of = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
    put(0x1f1, &[SETUP_SECTS]);
    put(0x1f4, &u32_of((len - PROTECTED) / 16));
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    // LOADED_HIGH, and a KASLR_FLAG that is not the file's to set.
    put(0x211, &[3]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x234, &[1, 21, 3, 0]);
    put(0x238, &CMDLINE_SIZE.to_le_bytes());
    put(0x248, &u32_of(PAYLOAD));
    put(0x24c, &u32_of(payload.len()));
    put(0x258, &RUN.to_le_bytes());
    put(0x260, &INIT_SIZE.to_le_bytes());
    for (at, byte) in (PROTECTED..PROTECTED + PAYLOAD).zip((0..=250).cycle()) {
        put(at, &[byte]);
    }
    put(PROTECTED + PAYLOAD, payload);
    file
}

pub(super) fn image() -> KernelImage {
    KernelImage::from_bytes(Path::new("vmlinuz"), bzimage()).unwrap()
}

#[test]
fn the_seed_of_the_fuzz_target_is_this_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/bzimage/gzip");
    // What packs it may change; what is in it may not.
    let seed = std::fs::read(path).unwrap();
    let image = KernelImage::from_bytes(Path::new("seed"), seed).unwrap();
    assert!(image.has_pvh_entry() && image.bzimage().is_some());
}
