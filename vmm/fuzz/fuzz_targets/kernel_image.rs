//! A file that claims to be a kernel: it is refused, or loaded by every protocol that recognises it.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vmm::boot::{self, Handover, KernelImage};
use vmm::memory::{self, MemorySize};
use vmm::x86_64::firmware::Hardware;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = KernelImage::from_bytes(Path::new("kernel"), bytes.to_vec()) else { return };
    let memory = memory::create(MemorySize::new(64 << 20).expect("whole MiB")).expect("64 MiB of memory");
    for protocol in boot::ALL.iter().filter(|protocol| protocol.recognises(&image)) {
        let _ = protocol.load(&image, &Handover::default(), &Hardware::default(), &memory);
    }
});
