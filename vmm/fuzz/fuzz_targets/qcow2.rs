//! A file that claims to be a qcow2 image: it is refused, or every read of it ends, in bounded memory.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmm::image::Qcow2;
use vmm::image::blocks::Storage;

fuzz_target!(|bytes: &[u8]| {
    let mut file = bytes.to_vec();
    let Some(magic) = file.get_mut(..4) else { return };
    magic.copy_from_slice(b"QFI\xfb");
    let Ok(image) = Qcow2::open(Arc::new(file)) else { return };
    let len = image.length();
    let mut buf = vec![0; 5000];
    for at in [0, 4000, 1 << 20, len / 2, len.saturating_sub(5000)] {
        if at.checked_add(5000).is_some_and(|end| end <= len) {
            let _ = image.read_at(at, &mut buf);
        }
    }
});
