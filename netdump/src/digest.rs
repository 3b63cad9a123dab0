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

use std::sync::LazyLock;

/// Bytes in a piece.
pub const PIECE_LEN: u64 = 1 << 20;
/// Bytes in a hash.
pub const HASH_LEN: usize = blake3::OUT_LEN;

/// A hash.
pub type Hash = [u8; HASH_LEN];

/// The hash of a whole piece of zeros.
pub static ZERO_PIECE: LazyLock<Hash> = LazyLock::new(|| {
    let mut hasher = blake3::Hasher::new();
    let zeros = [0; 4096];
    for _ in 0..PIECE_LEN / 4096 {
        hasher.update(&zeros);
    }
    *hasher.finalize().as_bytes()
});

/// The hashes of a core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// Bytes of the core.
    pub length: u64,
    /// One for each piece.
    pub pieces: Vec<Hash>,
}

impl Digest {
    /// The hash of the whole.
    pub fn root(&self) -> Hash {
        let mut hasher = blake3::Hasher::new();
        for piece in &self.pieces {
            hasher.update(piece);
        }
        *hasher.finalize().as_bytes()
    }
}

/// Hashes a core from its start to its end.
#[derive(Debug, Default)]
pub struct Digester {
    piece: blake3::Hasher,
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
            let (now, later) = bytes.split_at(self.room().min(bytes.len()));
            self.piece.update(now);
            self.advance(now.len() as u64);
            bytes = later;
        }
    }

    /// So many zeros.
    pub fn zeros(&mut self, mut count: u64) {
        const ZEROS: [u8; 4096] = [0; 4096];
        while count > 0 {
            if self.length.is_multiple_of(PIECE_LEN) && count >= PIECE_LEN {
                self.pieces.push(*ZERO_PIECE);
                self.length += PIECE_LEN;
                count -= PIECE_LEN;
                continue;
            }
            let now = self.room().min(ZEROS.len()).min(usize::try_from(count).unwrap_or(usize::MAX));
            self.piece.update(&ZEROS[..now]);
            self.advance(now as u64);
            count -= now as u64;
        }
    }

    /// The core ends here.
    pub fn finish(mut self) -> Digest {
        if !self.length.is_multiple_of(PIECE_LEN) {
            self.pieces.push(*self.piece.finalize().as_bytes());
        }
        Digest { length: self.length, pieces: self.pieces }
    }

    /// Bytes that the piece lacks.
    fn room(&self) -> usize {
        usize::try_from(PIECE_LEN - self.length % PIECE_LEN).expect("at most a MiB")
    }

    fn advance(&mut self, by: u64) {
        self.length += by;
        if self.length.is_multiple_of(PIECE_LEN) {
            self.pieces.push(*self.piece.finalize().as_bytes());
            self.piece.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_root_are_what_the_definition_says() {
        let bytes: Vec<u8> = (0..2_500_000_u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
        let mut digester = Digester::new();
        bytes.chunks(70_001).for_each(|part| digester.update(part));
        let digest = digester.finish();
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
        let digest = digester.finish();
        assert_eq!(digest.pieces, vec![*ZERO_PIECE; 1024]);
    }
}
