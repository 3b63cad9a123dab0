//! Which bytes of an encrypted core never came: runs of zeros, as no cipher makes long ones.
//!
//! Messages begin and end anywhere, and so do these runs. Decrypted they would be noise, and so would the block behind
//! one: CBC needs the encrypted block before it.

use std::ops::Range;

use super::Cipher;
use super::stream::CIPHER_BLOCK;

/// Shortest run of zeros that counts as lost: a cipher makes one in 2^256 bytes.
const SHORTEST: usize = 32;
/// Bytes to be seen on both sides of a piece of a core, so that runs across its edges are known. Whole cipher blocks.
pub(super) const MARGIN: usize = 64;

/// The parts of `seen` that cannot be decrypted, ascending and inside `piece`. `seen` begins at a cipher block.
pub(super) fn parts(cipher: Cipher, seen: &[u8], piece: &Range<usize>) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    for run in zeros(seen) {
        let part = match cipher {
            Cipher::ChaCha20 => run,
            Cipher::Aes256Cbc => {
                let start = run.start / CIPHER_BLOCK * CIPHER_BLOCK;
                start..run.end.next_multiple_of(CIPHER_BLOCK) + CIPHER_BLOCK
            }
        };
        let after = parts.last().map_or(piece.start, |part| part.end);
        let part = part.start.max(after)..part.end.min(piece.end);
        if !part.is_empty() {
            parts.push(part);
        }
    }
    parts
}

/// Runs of at least [`SHORTEST`] zeros. Each of them holds a byte whose index is a multiple of that.
fn zeros(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for at in (0..bytes.len()).step_by(SHORTEST) {
        if bytes[at] != 0 || runs.last().is_some_and(|run| at < run.end) {
            continue;
        }
        let is_data = |byte: &u8| *byte != 0;
        let start = bytes[..at].iter().rposition(is_data).map_or(0, |data| data + 1);
        let end = bytes[at..].iter().position(is_data).map_or(bytes.len(), |len| at + len);
        if end - start >= SHORTEST {
            runs.push(start..end);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is lost of `piece` when these bytes of 400 are zeros.
    fn lost_of(cipher: Cipher, piece: Range<usize>, zeros: &[(usize, usize)]) -> Vec<(usize, usize)> {
        let mut bytes = vec![0x5c; 400];
        zeros.iter().for_each(|&(start, end)| bytes[start..end].fill(0));
        parts(cipher, &bytes, &piece).into_iter().map(|part| (part.start, part.end)).collect()
    }

    #[test]
    fn runs_are_lost_to_the_byte_and_short_ones_are_not() {
        let parts = |zeros: &[_]| lost_of(Cipher::ChaCha20, 64..300, zeros);
        assert_eq!(parts(&[]), []);
        assert_eq!(parts(&[(70, 101), (200, 232)]), [(200, 232)]);
        assert_eq!(parts(&[(0, 96)]), [(64, 96)]);
        assert_eq!(parts(&[(40, 72), (280, 400)]), [(64, 72), (280, 300)]);
        assert_eq!(parts(&[(0, 64), (300, 400)]), []);
    }

    #[test]
    fn cbc_loses_each_block_that_it_cannot_decrypt_or_not_without_the_one_before() {
        let parts = |zeros: &[_]| lost_of(Cipher::Aes256Cbc, 64..304, zeros);
        assert_eq!(parts(&[(96, 128)]), [(96, 144)]);
        assert_eq!(parts(&[(97, 129)]), [(96, 160)]);
        assert_eq!(parts(&[(96, 130), (140, 180)]), [(96, 160), (160, 208)]);
        assert_eq!(parts(&[(20, 64)]), [(64, 80)], "the block behind a run that ends before the piece");
        assert_eq!(parts(&[(16, 50)]), [(64, 80)], "lost in part");
        assert_eq!(parts(&[(280, 400)]), [(272, 304)]);
    }

    proptest! {
        #[test]
        fn runs_are_found_wherever_they_lie(
            pieces in prop::collection::vec((1..100_usize, 0..100_usize), 0..10),
        ) {
            let (mut bytes, mut want) = (Vec::new(), Vec::new());
            for (data, lost) in pieces {
                bytes.resize(bytes.len() + data, 1);
                if lost >= SHORTEST {
                    want.push(bytes.len()..bytes.len() + lost);
                }
                bytes.resize(bytes.len() + lost, 0);
            }
            prop_assert_eq!(zeros(&bytes), want);
        }
    }
}
