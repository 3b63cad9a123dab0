//! Whether decrypted bytes are the beginning of a core: nothing else tells a wrong key, as nothing is authenticated.

use std::path::Path;

use super::decrypt::DecryptError;
use crate::vmcore;

/// How the stream of a compressed core begins, by the ending of its name.
const COMPRESSED: [(&str, &[u8], &str); 2] =
    [("gz", b"\x1f\x8b\x08", "a gzip stream"), ("zst", b"\x28\xb5\x2f\xfd", "a zstd frame")];
/// Bytes that are looked at.
const SAMPLE: usize = 4096;

/// Bytes of zeros that a wrong key does not make.
const LOST: usize = 16;

/// Judges the first bytes of a decrypted core. A beginning that never came cannot be judged and passes.
pub(super) fn judge(core: &Path, head: &[u8]) -> Result<(), DecryptError> {
    let sample = &head[..head.len().min(SAMPLE)];
    let noise = |expected| Err(DecryptError::Noise { core: core.to_owned(), expected });
    let ending = core.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if !sample.is_empty() && sample.iter().take(LOST).all(|&byte| byte == 0) {
        return Ok(());
    }
    if let Some((_, magic, what)) = COMPRESSED.iter().find(|(known, ..)| *known == ending) {
        return if sample.starts_with(magic) { Ok(()) } else { noise(what) };
    }
    let known = COMPRESSED.iter().any(|(_, magic, _)| sample.starts_with(magic))
        || vmcore::ALL.iter().any(|format| format.recognise(sample))
        || sample.starts_with(b"minidump FreeBSD/");
    if known || is_uneven(sample) { Ok(()) } else { noise("a core") }
}

/// Whether one byte value is far more frequent than in noise. Cores without a magic of their own, such as raw memory,
/// begin with much the same bytes; in 4096 bytes of noise each value comes 16 times, with a deviation of 4.
fn is_uneven(sample: &[u8]) -> bool {
    let mut counts = [0_usize; 256];
    sample.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    let most = counts.into_iter().max().unwrap_or(0);
    sample.len() == SAMPLE && most > 64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of a linear congruential generator (Knuth's MMIX): noise enough.
    fn noise(seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        (0..SAMPLE).map(|_| next()).collect()
    }

    fn passes(name: &str, head: &[u8]) -> bool {
        judge(Path::new(name), head).is_ok()
    }

    #[test]
    fn noise_is_no_core_whatever_its_name() {
        for seed in 0..200 {
            for name in ["vmcore_encrypted.vm1.0", "vmcore_encrypted.vm1.0.gz", "core.zst"] {
                assert!(!passes(name, &noise(seed)), "{name} {seed}");
            }
            assert!(!passes("core", &noise(seed)[..100]));
        }
    }

    #[test]
    fn beginnings_of_cores_pass() {
        let with = |magic: &[u8]| [magic, &noise(1)].concat();
        assert!(passes("vmcore_encrypted.vm1.0", &with(b"minidump FreeBSD/amd64\0")));
        assert!(passes("vmcore_encrypted.vm1.0.gz", &with(b"\x1f\x8b\x08\0")));
        assert!(passes("vmcore_encrypted.vm1.0.zst", &with(b"\x28\xb5\x2f\xfd")));
        assert!(passes("vmcore_encrypted.vm1.0.incomplete", &with(b"\x28\xb5\x2f\xfd")));
        assert!(!passes("vmcore_encrypted.vm1.0.gz", &with(b"\x28\xb5\x2f\xfd")));
    }

    #[test]
    fn raw_memory_passes_by_its_uneven_bytes() {
        let mut page = noise(3);
        page[1000..1200].fill(0x53);
        assert!(passes("vmcore_encrypted.vm1.0", &page));
        assert!(passes("vmcore_encrypted.vm1.0", &[0; SAMPLE]));
    }

    #[test]
    fn a_beginning_that_never_came_passes() {
        let mut lost = noise(4);
        lost[..1448].fill(0);
        assert!(passes("vmcore_encrypted.vm1.0.gz", &lost));
        assert!(!passes("vmcore_encrypted.vm1.0.gz", &lost[1440..]), "that few zeros are noise");
    }
}
