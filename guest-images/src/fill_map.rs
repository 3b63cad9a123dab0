//! The host's side of the pattern: reading a guest's `fill_map`, and checking memory against the pattern.

use std::ops::Range;

use thiserror::Error;

use crate::contract::{FILL_MAP_MAGIC, FILL_MAP_RANGES, PAGE, pattern};

/// What a guest says that it filled: the contents of its symbol `fill_map`. Little-endian u64s: magic, seed, number of
/// ranges, then start and length of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FillMap {
    /// Seed of the pattern.
    pub seed: u64,
    /// The filled ranges of guest physical addresses, in the order of filling; whole pages.
    pub ranges: Vec<Range<u64>>,
}

/// Why bytes are not a fill map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FillMapError {
    /// Too few bytes.
    #[error("a fill map has {} bytes, not {found}", FillMap::SIZE)]
    Short {
        /// How many there are.
        found: usize,
    },
    /// Another magic; the guest has filled nothing yet.
    #[error("the fill map begins with {0:#x}")]
    Magic(u64),
    /// More ranges than there is room for.
    #[error("the fill map has {0} ranges")]
    Count(u64),
    /// A range that is not of whole pages, or wraps.
    #[error("the fill map has a range at {0:#x} of {1:#x} bytes")]
    Range(u64, u64),
}

impl FillMap {
    /// Bytes of the symbol `fill_map`.
    pub const SIZE: usize = 24 + 16 * FILL_MAP_RANGES;

    /// Reads it from guest memory.
    ///
    /// # Errors
    /// Bytes that no guest leaves there.
    pub fn parse(bytes: &[u8]) -> Result<Self, FillMapError> {
        if bytes.len() < Self::SIZE {
            return Err(FillMapError::Short { found: bytes.len() });
        }
        let mut words = bytes.as_chunks::<8>().0.iter().map(|&word| u64::from_le_bytes(word));
        let mut next = || words.next().expect("the length was checked");
        let (magic, seed, count) = (next(), next(), next());
        if magic != FILL_MAP_MAGIC {
            return Err(FillMapError::Magic(magic));
        }
        if count > FILL_MAP_RANGES as u64 {
            return Err(FillMapError::Count(count));
        }
        let range = |(start, length): (u64, u64)| match start.checked_add(length) {
            Some(end) if start.is_multiple_of(PAGE) && length.is_multiple_of(PAGE) => Ok(start..end),
            _ => Err(FillMapError::Range(start, length)),
        };
        let ranges = (0..count).map(|_| range((next(), next()))).collect::<Result<_, _>>()?;
        Ok(Self { seed, ranges })
    }

    /// Bytes of pattern in all.
    pub fn total(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

/// Address of the first byte of `memory` that is not the pattern's; `memory` begins at `address`, which is a multiple
/// of 8.
pub fn first_mismatch(seed: u64, address: u64, memory: &[u8]) -> Option<u64> {
    memory.chunks(8).zip((address..).step_by(8)).find_map(|(word, at)| {
        let expected = pattern(seed, at).to_le_bytes();
        let wrong = word.iter().zip(expected).position(|(&byte, expected)| byte != expected)?;
        Some(at + wrong as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u64]) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(FillMap::SIZE, 0);
        bytes
    }

    #[test]
    fn fill_map_is_read_as_the_guest_writes_it() {
        let map = FillMap::parse(&bytes(&[FILL_MAP_MAGIC, 7, 2, 0x100_0000, 0x2000, 0x1_0000_0000, 0x1000]))
            .unwrap();
        assert_eq!(map.seed, 7);
        assert_eq!(map.ranges, [0x100_0000..0x100_2000, 0x1_0000_0000..0x1_0000_1000]);
        assert_eq!(map.total(), 0x3000);
    }

    #[test]
    fn fill_map_of_an_unfilled_guest_is_refused() {
        assert_eq!(FillMap::parse(&bytes(&[])), Err(FillMapError::Magic(0)));
        assert_eq!(FillMap::parse(&[0; 23]), Err(FillMapError::Short { found: 23 }));
        let count = FILL_MAP_RANGES as u64 + 1;
        assert_eq!(FillMap::parse(&bytes(&[FILL_MAP_MAGIC, 0, count])), Err(FillMapError::Count(count)));
        assert_eq!(
            FillMap::parse(&bytes(&[FILL_MAP_MAGIC, 0, 1, 8, 4096])),
            Err(FillMapError::Range(8, 4096))
        );
        let top = u64::MAX - 4095;
        assert_eq!(
            FillMap::parse(&bytes(&[FILL_MAP_MAGIC, 0, 1, top, 8192])),
            Err(FillMapError::Range(top, 8192))
        );
    }

    #[test]
    fn one_wrong_byte_is_found_where_it_is() {
        let mut memory: Vec<u8> =
            (0x5000..0x6000_u64).step_by(8).flat_map(|at| pattern(3, at).to_le_bytes()).collect();
        assert_eq!(first_mismatch(3, 0x5000, &memory), None);
        assert_eq!(first_mismatch(4, 0x5000, &memory), Some(0x5000));
        memory[0x123] ^= 0x10;
        assert_eq!(first_mismatch(3, 0x5000, &memory), Some(0x5123));
    }
}
