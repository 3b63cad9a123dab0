//! The internet checksum (RFC 1071): the ones' complement of the ones' complement sum of 16-bit words.
//!
//! Words are summed as they lie in memory and only the result is brought into wire order; the sum does not depend on
//! the byte order that it is made in. Independent 64-bit lanes let the compiler use vector registers, as every byte of
//! the core passes through here on links without checksum offload.

/// A running sum.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checksum(u64);

impl Checksum {
    /// The sum of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut sum = Self::default();
        sum.add(bytes);
        sum
    }

    /// Adds `bytes`, which must begin at an even offset of the data summed. An odd last byte is padded with zero.
    pub fn add(&mut self, bytes: &[u8]) {
        let (blocks, rest) = bytes.as_chunks::<64>();
        let mut lanes = [0_u64; 8];
        for block in blocks {
            for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
                *lane += halves(u64::from_ne_bytes(*word));
            }
        }
        let (words, tail) = rest.as_chunks::<8>();
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(tail) {
            *to = *from;
        }
        let rest = words.iter().map(|word| halves(u64::from_ne_bytes(*word))).sum::<u64>();
        // Each word adds less than 2^33 to its lane: a lane overflows at 128 GiB, and no packet is that long.
        let total =
            lanes.iter().fold(rest, |sum, lane| sum + halves(*lane)) + halves(u64::from_ne_bytes(last));
        self.0 = halves(self.0) + halves(total);
    }

    /// Adds what another sum has summed, data of an even offset likewise.
    pub fn join(&mut self, other: Self) {
        self.0 = halves(self.0) + halves(other.0);
    }

    /// The sum itself, folded to 16 bits, in wire order: what a checksum field holds for a device to complete.
    pub fn partial(self) -> [u8; 2] {
        self.folded().to_ne_bytes()
    }

    /// The checksum, in wire order. Over data that holds its own checksum it is 0.
    pub fn complete(self) -> [u8; 2] {
        (!self.folded()).to_ne_bytes()
    }

    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits before")]
    fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}

/// Half-folds a word, so that adding many does not overflow: 2^32 is 1 in this arithmetic.
fn halves(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn example_of_rfc_1071_sums_up() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Checksum::of(&bytes).partial(), [0xdd, 0xf2]);
        assert_eq!(Checksum::of(&bytes).complete(), [0x22, 0x0d]);
    }

    #[test]
    fn carries_are_not_lost() {
        for len in [1, 2, 63, 64, 65, 4096, 65535] {
            let bytes = vec![0xff; len];
            assert_eq!(Checksum::of(&bytes).partial(), plain(&bytes).to_be_bytes(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn fast_sum_equals_the_plain_one(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0..150_usize) {
            prop_assert_eq!(Checksum::of(&bytes).partial(), plain(&bytes).to_be_bytes());
            let (head, tail) = bytes.split_at((cut * 2).min(bytes.len()));
            let mut parts = Checksum::of(head);
            parts.add(tail);
            prop_assert_eq!(parts.partial(), plain(&bytes).to_be_bytes());
        }
    }
}
