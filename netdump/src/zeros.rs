//! Whether bytes are zeros, as fast as memory is read.

/// Bytes compared at a time. They stay in the first cache.
const BLOCK: usize = 4096;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Whether all of `bytes` are zeros. A comparison is `memcmp`; a loop over the bytes would be ten times slower.
pub(crate) fn are_zeros(bytes: &[u8]) -> bool {
    bytes.chunks(BLOCK).all(|block| ZEROS.starts_with(block))
}
