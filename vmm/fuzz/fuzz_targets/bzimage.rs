//! A file that claims to be a Linux bzImage: it is refused, or loaded by every protocol that recognises it.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vmm::boot::{self, Handover, KernelImage};
use vmm::memory::{self, MemorySize};
use vmm::x86_64::firmware::Hardware;

/// Where its magic number is: without that nothing of it would be looked at.
const MAGIC: std::ops::Range<usize> = 0x202..0x206;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    let Some(magic) = bytes.get_mut(MAGIC) else { return };
    magic.copy_from_slice(b"HdrS");
    let Ok(image) = KernelImage::from_bytes(Path::new("bzImage"), bytes) else { return };
    let memory = memory::create(MemorySize::new(64 << 20).expect("whole MiB")).expect("64 MiB of memory");
    for protocol in boot::ALL.iter().filter(|protocol| protocol.recognises(&image)) {
        let _ = protocol.load(&image, &Handover::default(), &Hardware::default(), &memory);
    }
});
