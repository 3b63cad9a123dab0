//! The blocks in which a core is read.

use std::ops::Range;

use super::READ_SIZE;

/// The blocks of a core of `length` bytes; all but the last have [`READ_SIZE`] bytes.
pub(super) fn blocks(length: u64) -> impl Iterator<Item = Range<u64>> {
    let blocks = length.div_ceil(READ_SIZE as u64);
    (0..blocks).map(move |block| {
        let start = block * READ_SIZE as u64;
        start..(start + READ_SIZE as u64).min(length)
    })
}

/// Room for a block.
pub(super) fn buffer(block: &Range<u64>) -> Vec<u8> {
    vec![0; usize::try_from(block.end - block.start).expect("a block has at most 256 KiB")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_core() {
        let size = READ_SIZE as u64;
        assert_eq!(blocks(0).count(), 0);
        assert_eq!((blocks(1).last(), blocks(size).last()), (Some(0..1), Some(0..size)));
        assert_eq!(blocks(size + 1).collect::<Vec<_>>(), [0..size, size..size + 1]);
    }
}
