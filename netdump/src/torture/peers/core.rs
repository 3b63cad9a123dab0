//! What clients of a simulation dump.

use std::ops::Range;

use crate::torture::sim::Rng;
use crate::vmcore::KernelDumpHeader;
use crate::vmcore::kdh::KDH_LEN;
use crate::{ReadAt, ReadError};

/// Bytes to dump, some of which are untouched zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// All of them.
    pub bytes: Vec<u8>,
    /// Where something may be.
    runs: Vec<Range<u64>>,
}

impl Core {
    /// These bytes.
    pub fn of(bytes: Vec<u8>) -> Self {
        let whole = 0..bytes.len() as u64;
        Self { bytes, runs: Vec::from([whole]) }
    }

    /// Random bytes without holes.
    pub fn solid(rng: &mut Rng, len: usize) -> Self {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&rng.number().to_le_bytes());
        }
        bytes.truncate(len);
        Self::of(bytes)
    }

    /// Zeros behind it up to whole blocks of this size, as part of what is sent.
    pub fn padded(self, block: usize) -> Self {
        let mut bytes = self.bytes;
        bytes.resize(bytes.len().next_multiple_of(block), 0);
        Self::of(bytes)
    }

    /// Random bytes with holes in between, some of which a client leaves out.
    pub fn sparse(rng: &mut Rng, pieces: u64) -> Self {
        let mut core = Self { bytes: Vec::new(), runs: Vec::new() };
        for _ in 0..pieces {
            let hole = *rng.pick(&[0, 1, 4096, 262_143, 262_144, 300_000]);
            let len = usize::try_from(rng.below(60_000)).expect("small");
            let start = core.bytes.len() + hole;
            core.bytes.resize(start, 0);
            core.bytes.extend(Self::solid(rng, len).bytes);
            core.runs.push(start as u64..core.bytes.len() as u64);
        }
        let tail = *rng.pick(&[0, 1, 500_000]);
        core.bytes.resize(core.bytes.len() + tail, 0);
        core
    }

    /// Whether `stored`, with zeros behind its end, agrees with the core everywhere but in `missing`, which ascends.
    pub fn agrees_but_for(&self, stored: &[u8], missing: &[(u64, u64)]) -> bool {
        let length = self.bytes.len();
        let index = |offset: u64| usize::try_from(offset).unwrap_or(length).min(length);
        let starts = [0].into_iter().chain(missing.iter().map(|(_, end)| index(*end)));
        let ends = missing.iter().map(|(start, _)| index(*start)).chain([length]);
        let agrees = |(start, end): (usize, usize)| {
            let stored_end = stored.len().clamp(start.min(end), end);
            let stored = stored.get(start..stored_end).unwrap_or_default();
            start >= end
                || (self.bytes[start..stored_end] == *stored && is_zero(&self.bytes[stored_end..end]))
        };
        stored.len() <= length && starts.zip(ends).all(agrees)
    }
}

/// Compared in blocks, which is much faster than byte by byte.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|block| *block == [0; 4096][..block.len()])
}

impl ReadAt for Core {
    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.bytes.as_slice().read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let run = self.runs.iter().find(|run| run.end > offset)?;
        Some(run.start.max(offset)..run.end)
    }
}

/// A dump header as the product writes it, for a core of that length.
pub fn header(length: u64) -> [u8; KDH_LEN] {
    let header = KernelDumpHeader {
        architecture: "amd64".into(),
        architecture_version: 2,
        dump_length: length,
        dump_extent: length,
        block_size: 4096,
        host_name: "vm1".into(),
        panic_string: "simulated".into(),
        ..Default::default()
    };
    header.to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_agrees_but_for_what_is_missing() {
        let core = Core::of(vec![1, 2, 3, 4, 0, 0]);
        assert!(core.agrees_but_for(&[1, 2, 3, 4, 0, 0], &[]));
        assert!(core.agrees_but_for(&[1, 2, 3, 4], &[]), "zeros may be a hole at the end");
        assert!(!core.agrees_but_for(&[1, 2, 3], &[]));
        assert!(core.agrees_but_for(&[1, 2, 3], &[(3, 4)]));
        assert!(core.agrees_but_for(&[], &[(0, 6)]));
        assert!(core.agrees_but_for(&[9, 2, 9, 4], &[(0, 1), (2, 3)]));
        assert!(!core.agrees_but_for(&[9, 9, 9, 4], &[(0, 1), (2, 3)]));
        assert!(!core.agrees_but_for(&[1, 2, 3, 4, 0, 0, 0], &[]), "longer than the core");
    }
}
