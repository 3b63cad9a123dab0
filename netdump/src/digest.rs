//! What proves that two cores are the same: BLAKE3 of every [`PIECE_LEN`] bytes, and BLAKE3 of all those hashes.
//!
//! ```text
//! piece i = BLAKE3(core[i MiB .. (i + 1) MiB])        the last piece may be shorter; an empty core has none
//! root    = BLAKE3(piece 0, piece 1, ...)             32 bytes each, in order
//! ```
//!
//! Not BLAKE3 of the whole, as b3sum makes it: here a piece of zeros has a known hash, so that the untouched memory of
//! a large guest costs nothing; pieces can be hashed in any order and by several threads; and where two cores differ
//! is known to the MiB.

mod piece;
mod text;

use std::ops::Range;

pub use piece::{BLOCK_LEN, PieceHasher, ZERO_PIECE};

/// Bytes in a piece.
pub const PIECE_LEN: u64 = 1 << 20;
/// Longest core that has a digest, 4 TiB: more than any guest's, and its hashes take 128 MiB. A sparse file can be far
/// longer.
pub const MAX_LENGTH: u64 = 1 << 42;
/// Bytes in a hash.
pub const HASH_LEN: usize = blake3::OUT_LEN;

/// A hash.
pub type Hash = [u8; HASH_LEN];

/// The hashes of a core.
///
/// In JSON runs of whole pieces of zeros are numbers, so that the untouched memory of a large guest takes no room:
///
/// ```json
/// {"root": "9f86d0…", "length": 7340033, "pieces": ["2c26b4…", 5, "fcde2b…", "b4f7f3…"]}
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// Bytes of the core.
    pub length: u64,
    /// One for each piece.
    pub pieces: Vec<Hash>,
}

impl Digest {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let pieces = bytes.chunks(1 << 20).map(|piece| *blake3::hash(piece).as_bytes()).collect();
        Self { length: bytes.len() as u64, pieces }
    }

    /// The hash of the whole.
    pub fn root(&self) -> Hash {
        let mut hasher = blake3::Hasher::new();
        for piece in &self.pieces {
            hasher.update(piece);
        }
        *hasher.finalize().as_bytes()
    }

    /// The hash of the whole in hexadecimal.
    pub fn root_hex(&self) -> String {
        hex(&self.root())
    }

    /// Where two cores differ: ranges of whole pieces, as far as the cores reach, in ascending order. What only one of
    /// them has differs.
    pub fn differences(&self, other: &Self) -> Vec<Range<u64>> {
        let end = self.length.max(other.length);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (piece, start) in (0..end).step_by(1 << 20).enumerate() {
            if self.pieces.get(piece) == other.pieces.get(piece) {
                continue;
            }
            let stop = (start + PIECE_LEN).min(end);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = stop,
                _ => ranges.push(start..stop),
            }
        }
        ranges
    }
}

/// A hash in hexadecimal.
pub fn hex(hash: &Hash) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

/// Hashes a core from its start to its end.
#[derive(Debug, Default)]
pub struct Digester {
    piece: PieceHasher,
    length: u64,
    pieces: Vec<Hash>,
}

impl Digester {
    /// At the start.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = usize::try_from(self.room()).expect("at most a MiB");
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.piece.update(now);
            self.advance(now.len() as u64);
            bytes = later;
        }
    }

    /// So many zeros.
    pub fn zeros(&mut self, count: u64) {
        let now = count.min(self.room());
        self.piece.zeros(now);
        self.advance(now);
        let (whole, rest) = ((count - now) / PIECE_LEN, (count - now) % PIECE_LEN);
        if whole > 0 {
            self.length = self.length.saturating_add(whole * PIECE_LEN);
            if self.length <= MAX_LENGTH {
                self.pieces.resize(piece_count(self.length), *ZERO_PIECE);
            }
        }
        self.piece.zeros(rest);
        self.advance(rest);
    }

    /// The core ends here; `None` when it is longer than [`MAX_LENGTH`].
    pub fn finish(mut self) -> Option<Digest> {
        if !self.length.is_multiple_of(PIECE_LEN) {
            self.end_piece();
        }
        (self.length <= MAX_LENGTH).then_some(Digest { length: self.length, pieces: self.pieces })
    }

    /// Bytes that the piece lacks.
    fn room(&self) -> u64 {
        PIECE_LEN - self.length % PIECE_LEN
    }

    /// There are so many bytes more, at most as many as the piece lacked.
    fn advance(&mut self, by: u64) {
        self.length = self.length.saturating_add(by);
        if by > 0 && self.length.is_multiple_of(PIECE_LEN) {
            self.end_piece();
        }
    }

    /// Memory is bounded: what is too long is gone through, but has no digest.
    fn end_piece(&mut self) {
        let hash = self.piece.finish();
        if self.length <= MAX_LENGTH {
            self.pieces.push(hash);
        }
    }
}

/// Pieces of a core of at most [`MAX_LENGTH`] bytes.
pub(crate) fn piece_count(length: u64) -> usize {
    usize::try_from(length.div_ceil(PIECE_LEN)).expect("4 TiB have 2^22 pieces")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_root_are_what_the_definition_says() {
        let bytes: Vec<u8> = (0..2_500_000_u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
        let mut digester = Digester::new();
        bytes.chunks(70_001).for_each(|part| digester.update(part));
        let digest = digester.finish().unwrap();
        let pieces: Vec<Hash> = bytes.chunks(1 << 20).map(|piece| *blake3::hash(piece).as_bytes()).collect();
        assert_eq!((digest.length, &digest.pieces), (2_500_000, &pieces));
        assert_eq!(digest.root(), *blake3::hash(&pieces.concat()).as_bytes());
    }

    #[test]
    fn zeros_are_as_good_as_zero_bytes() {
        for (before, zeros, after) in
            [(0, 1 << 20, 0), (5, 5 << 20, 7), (1 << 20, 100, 3), (0, 0, 0), (1, 3 << 20, 0)]
        {
            let bytes = [vec![1; before], vec![0; zeros], vec![2; after]].concat();
            let (mut plain, mut quick) = (Digester::new(), Digester::new());
            plain.update(&bytes);
            quick.update(&bytes[..before]);
            quick.zeros(zeros as u64);
            quick.update(&bytes[before + zeros..]);
            assert_eq!(plain.finish(), quick.finish());
        }
    }

    #[test]
    fn pieces_of_zeros_have_a_known_hash() {
        let mut digester = Digester::new();
        digester.zeros(1 << 30);
        let digest = digester.finish().unwrap();
        assert_eq!(digest.pieces, vec![*ZERO_PIECE; 1024]);
    }

    #[test]
    fn what_is_too_long_costs_nothing_and_has_no_digest() {
        for zeros in [MAX_LENGTH, MAX_LENGTH + 1, u64::MAX] {
            let mut digester = Digester::new();
            digester.zeros(zeros);
            assert_eq!(digester.length(), zeros);
            assert!(digester.pieces.len() <= 1 << 22);
            assert_eq!(digester.finish().is_some(), zeros == MAX_LENGTH);
        }
    }

    #[test]
    fn differences_are_located_to_the_piece() {
        let mut bytes = vec![7; 5 << 20];
        let digest = Digest::of(&bytes);
        assert_eq!(digest.differences(&digest), []);
        for at in [0, (1 << 20) - 1, 3 << 20, (4 << 20) + 5] {
            bytes[at] = 8;
        }
        let mib = |range: Range<u64>| range.start << 20..range.end << 20;
        assert_eq!(digest.differences(&Digest::of(&bytes)), [mib(0..1), mib(3..5)]);
        let shorter = Digest::of(&bytes[..(2 << 20) + 1]);
        assert_eq!(digest.differences(&shorter), [mib(0..1), mib(2..5)]);
        assert_eq!(shorter.differences(&digest), [mib(0..1), mib(2..5)]);
        assert_eq!(Digest::of(&[]).differences(&Digest::of(&[1])).pop(), Some(0..1));
    }
}
