//! Reads a core in order. What was never touched is zeros without being read: reading it could make the host find
//! memory for it.

use std::ops::Range;

use crate::{ReadAt, ReadError};

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Untouched zeros.
    Hole,
    /// Anything.
    Data,
}

/// Reads one core. Going forward is cheap: each run of data is asked for once, as finding its end can mean to look at
/// every page of it.
pub(crate) struct Reader<'a> {
    image: &'a (dyn ReadAt + Sync),
    /// The first run of data at or behind `asked`; empty, at the core's end, when there is none.
    run: Range<u64>,
    asked: u64,
}

impl<'a> Reader<'a> {
    /// Of this core.
    pub(crate) fn new(image: &'a (dyn ReadAt + Sync)) -> Self {
        Self { image, run: 0..0, asked: 0 }
    }

    /// Bytes of the core.
    pub(crate) fn length(&self) -> u64 {
        self.image.length()
    }

    /// The first run of data at or behind `offset`, as far as it lies there; empty, at the core's end, when there is
    /// none. An image that tells nonsense costs time, not correctness: whatever it says, runs lie in the core and going
    /// on behind one goes forward.
    pub(crate) fn next_data(&mut self, offset: u64) -> Range<u64> {
        let length = self.image.length();
        if offset >= length {
            return length..length;
        }
        let is_known = self.asked <= offset && (offset < self.run.end || self.run.start == length);
        if !is_known {
            let run = self.image.next_data(offset).unwrap_or(length..length);
            let start = run.start.clamp(offset, length);
            self.run = start..run.end.clamp((start + 1).min(length), length);
            self.asked = offset;
        }
        self.run.start.max(offset)..self.run.end
    }

    /// Fills `buf` from `offset`.
    pub(crate) fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<Content, ReadError> {
        let end = offset + buf.len() as u64;
        let mut content = Content::Hole;
        let mut at = offset;
        while at < end {
            let run = self.next_data(at);
            let (start, stop) = (run.start.min(end), run.end.min(end));
            let (hole, rest) = buf[index(at - offset)..].split_at_mut(index(start - at));
            hole.fill(0);
            if start < stop {
                self.image.read_at(start, &mut rest[..index(stop - start)])?;
                content = Content::Data;
            }
            at = if start < stop { stop } else { end };
        }
        Ok(content)
    }
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
    fn holes_are_zeros_and_are_not_read() {
        let image = Sparse { length: 100, runs: vec![10..20, 25..30, 90..100] };
        let mut reader = Reader::new(&image);
        let mut whole = vec![7; 100];
        assert_eq!(reader.read(0, &mut whole).unwrap(), Content::Data);
        let want: Vec<u8> =
            (0..100).map(|at| u8::from(image.runs.iter().any(|run| run.contains(&at)))).collect();
        assert_eq!(whole, want);
        let mut hole = [7; 60];
        assert_eq!(reader.read(30, &mut hole).unwrap(), Content::Hole);
        assert_eq!(hole, [0; 60]);
        let mut edge = [7; 3];
        assert_eq!(reader.read(19, &mut edge).unwrap(), Content::Data);
        assert_eq!(edge, [1, 0, 0]);
    }

    #[test]
    fn each_run_is_asked_for_once_on_the_way_forward() {
        use std::sync::atomic::{AtomicU32, Ordering};
        struct Counted(Sparse, AtomicU32);
        impl ReadAt for Counted {
            fn length(&self) -> u64 {
                self.0.length
            }
            fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
                self.0.read_at(offset, buf)
            }
            fn next_data(&self, offset: u64) -> Option<Range<u64>> {
                self.1.fetch_add(1, Ordering::Relaxed);
                self.0.next_data(offset)
            }
        }
        let image =
            Counted(Sparse { length: 10_000, runs: vec![100..3000, 5000..9000] }, AtomicU32::default());
        let mut reader = Reader::new(&image);
        for offset in (0..10_000).step_by(10) {
            let at = usize::try_from(offset).unwrap();
            let mut buf = [7; 10];
            reader.read(offset, &mut buf).unwrap();
            assert_eq!(buf == [1; 10], (100..3000).contains(&at) || (5000..9000).contains(&at));
        }
        assert_eq!(image.1.into_inner(), 3);
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
            Reader::new(&Liar(run)).read(50, &mut bytes).unwrap();
            assert!(!bytes.contains(&9));
        }
    }
}
