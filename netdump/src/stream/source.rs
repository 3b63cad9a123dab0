//! Reads a core in order, block by block. What was never touched is zeros without being read: reading it could make the
//! host find memory for it.

use std::ops::Range;

use super::READ_SIZE;
use crate::{ReadAt, ReadError};

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Untouched zeros.
    Hole,
    /// Anything.
    Data,
}

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

/// Fills `buf` from `offset`.
pub(super) fn read(image: &(dyn ReadAt + Sync), offset: u64, buf: &mut [u8]) -> Result<Content, ReadError> {
    let end = offset + buf.len() as u64;
    let mut content = Content::Hole;
    let mut at = offset;
    while at < end {
        // An image that tells nonsense costs time, not correctness: whatever it says, this goes forward.
        let run = image.next_data(at).unwrap_or(end..end);
        let start = run.start.clamp(at, end);
        let stop = run.end.clamp((start + 1).min(end), end);
        let (_, rest) = buf.split_at_mut(index(at - offset));
        let (hole, rest) = rest.split_at_mut(index(start - at));
        hole.fill(0);
        if stop > start {
            image.read_at(start, &mut rest[..index(stop - start)])?;
            content = Content::Data;
        }
        at = stop;
    }
    Ok(content)
}

fn index(len: u64) -> usize {
    usize::try_from(len).expect("a part of a buffer fits into usize")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A core of ones with holes, which must not be read.
    struct Sparse {
        length: u64,
        runs: Vec<Range<u64>>,
    }

    impl ReadAt for Sparse {
        fn length(&self) -> u64 {
            self.length
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
            let inside = |run: &Range<u64>| run.start <= offset && offset + buf.len() as u64 <= run.end;
            assert!(self.runs.iter().any(inside), "a hole is read at {offset}");
            buf.fill(1);
            Ok(())
        }

        fn next_data(&self, offset: u64) -> Option<Range<u64>> {
            let run = self.runs.iter().find(|run| run.end > offset)?;
            Some(run.start.max(offset)..run.end)
        }
    }

    #[test]
    fn blocks_cover_the_core() {
        let size = READ_SIZE as u64;
        assert_eq!(blocks(0).count(), 0);
        assert_eq!((blocks(1).last(), blocks(size).last()), (Some(0..1), Some(0..size)));
        assert_eq!(blocks(size + 1).collect::<Vec<_>>(), [0..size, size..size + 1]);
    }

    #[test]
    fn holes_are_zeros_and_are_not_read() {
        let image = Sparse { length: 100, runs: vec![10..20, 25..30, 90..100] };
        let mut whole = vec![7; 100];
        assert_eq!(read(&image, 0, &mut whole).unwrap(), Content::Data);
        let want: Vec<u8> =
            (0..100).map(|at| u8::from(image.runs.iter().any(|run| run.contains(&at)))).collect();
        assert_eq!(whole, want);
        let mut hole = [7; 60];
        assert_eq!(read(&image, 30, &mut hole).unwrap(), Content::Hole);
        assert_eq!(hole, [0; 60]);
        let mut edge = [7; 3];
        assert_eq!(read(&image, 19, &mut edge).unwrap(), Content::Data);
        assert_eq!(edge, [1, 0, 0]);
    }

    #[test]
    fn an_image_that_tells_nonsense_ends_the_read_all_the_same() {
        struct Liar(Option<Range<u64>>);
        impl ReadAt for Liar {
            fn length(&self) -> u64 {
                100
            }
            fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
                buf.fill(1);
                Ok(())
            }
            fn next_data(&self, _offset: u64) -> Option<Range<u64>> {
                self.0.clone()
            }
        }
        #[expect(clippy::reversed_empty_ranges, reason = "nonsense is the point")]
        for run in [None, Some(0..0), Some(u64::MAX..0), Some(0..u64::MAX), Some(u64::MAX..u64::MAX)] {
            let mut bytes = [9; 50];
            read(&Liar(run), 50, &mut bytes).unwrap();
            assert!(!bytes.contains(&9));
        }
    }
}
