//! BLAKE3 of a piece, put together from its blocks: a block of zeros costs nothing, so little data in much memory that
//! was never touched is hashed in little time.
//!
//! BLAKE3 is a tree over chunks of 1 KiB, and the hash of a part of it depends on its place in the piece (the BLAKE3
//! paper, section 2). A block is such a part: what zeros are worth there is known for each of the 16 places.

use std::sync::LazyLock;

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::{Hash, PIECE_LEN};

/// Bytes in a block: BLAKE3 is slow on less.
pub const BLOCK_LEN: u64 = 64 << 10;
const BLOCKS: u64 = PIECE_LEN / BLOCK_LEN;

/// What the blocks of a piece of zeros are worth, each in its place.
static ZERO_BLOCKS: LazyLock<Vec<ChainingValue>> = LazyLock::new(|| {
    let mut hasher = Hasher::new();
    let values = (0..BLOCKS).map(|block| {
        at_block(&mut hasher, block);
        add_zeros(&mut hasher, BLOCK_LEN);
        hasher.finalize_non_root()
    });
    values.collect()
});

/// The hash of a whole piece of zeros.
pub static ZERO_PIECE: LazyLock<Hash> = LazyLock::new(|| root(&ZERO_BLOCKS));

/// Hashes one piece after the other.
#[derive(Debug, Default)]
pub struct PieceHasher {
    /// The blocks before the open one.
    blocks: Vec<ChainingValue>,
    /// The open block, but for the last `zeros` bytes of it. It is closed when more comes: a piece that is a single
    /// block is hashed otherwise.
    hasher: Hasher,
    hashed: u64,
    zeros: u64,
    /// Blocks before the open one that are not zeros.
    with_data: u64,
}

impl PieceHasher {
    /// The next bytes of the piece, which has [`PIECE_LEN`] at most.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = usize::try_from(self.room()).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.hash_zeros();
            self.hasher.update(now);
            self.hashed += now.len() as u64;
            bytes = later;
        }
    }

    /// So many zeros; whole blocks of them cost nothing.
    pub fn zeros(&mut self, mut count: u64) {
        while count > 0 {
            let now = self.room().min(count);
            self.zeros += now;
            count -= now;
        }
    }

    /// The hash of the piece. What follows belongs to the next.
    pub fn finish(&mut self) -> Hash {
        let hash = if self.blocks.is_empty() {
            self.hash_zeros();
            *self.hasher.finalize().as_bytes()
        } else {
            self.close();
            let is_zeros = self.with_data == 0 && self.blocks.len() as u64 == BLOCKS;
            if is_zeros && self.blocks.last() == ZERO_BLOCKS.last() {
                *ZERO_PIECE
            } else {
                root(&self.blocks)
            }
        };
        self.blocks.clear();
        (self.hashed, self.zeros, self.with_data) = (0, 0, 0);
        at_block(&mut self.hasher, 0);
        hash
    }

    /// Bytes that the open block lacks; of a full one the next one's.
    fn room(&mut self) -> u64 {
        if self.hashed + self.zeros == BLOCK_LEN {
            self.close();
        }
        BLOCK_LEN - self.hashed - self.zeros
    }

    fn close(&mut self) {
        let number = self.blocks.len();
        let value = match ZERO_BLOCKS.get(number) {
            Some(known) if self.zeros == BLOCK_LEN => *known,
            _ => {
                self.hash_zeros();
                self.with_data += 1;
                self.hasher.finalize_non_root()
            }
        };
        self.blocks.push(value);
        (self.hashed, self.zeros) = (0, 0);
        at_block(&mut self.hasher, number as u64 + 1);
    }

    fn hash_zeros(&mut self) {
        if self.zeros > 0 {
            add_zeros(&mut self.hasher, self.zeros);
            self.hashed += self.zeros;
            self.zeros = 0;
        }
    }
}

/// Begins the block of that number.
fn at_block(hasher: &mut Hasher, number: u64) {
    // `Hasher::reset` (1.8) does not take the last block's offset back.
    *hasher = Hasher::new();
    hasher.set_input_offset(number * BLOCK_LEN);
}

fn add_zeros(hasher: &mut Hasher, mut count: u64) {
    const ZEROS: [u8; 4096] = [0; 4096];
    while count > 0 {
        let now = count.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..usize::try_from(now).expect("at most 4096")]);
        count -= now;
    }
}

/// Of a piece of two blocks at least.
fn root(blocks: &[ChainingValue]) -> Hash {
    let (left, right) = halves(blocks);
    *merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).as_bytes()
}

fn merge(blocks: &[ChainingValue]) -> ChainingValue {
    match blocks {
        [block] => *block,
        _ => {
            let (left, right) = halves(blocks);
            merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
        }
    }
}

/// The left part of a tree is as large a power of two as leaves something for the right one.
fn halves(blocks: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    blocks.split_at(1 << (blocks.len() - 1).ilog2())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_piece_of_zeros_is_worth_what_blake3_says() {
        assert_eq!(*ZERO_PIECE, *blake3::hash(&vec![0; 1 << 20]).as_bytes());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Bytes and zeros in turn, near the blocks' ends too, of several pieces that one hasher takes.
        #[test]
        fn it_is_blake3_whatever_the_parts(
            pieces in prop::collection::vec(
                prop::collection::vec((0..4_u8, 0..18_usize, -2..3_isize, 0..9000_usize), 0..20),
                1..4,
            ),
        ) {
            let mut hasher = PieceHasher::default();
            for parts in pieces {
                let mut bytes = Vec::new();
                for (what, blocks, near, more) in parts {
                    let len = match what {
                        0 | 1 => (blocks << 16).saturating_add_signed(near),
                        _ => more,
                    };
                    let len = len.min((1 << 20) - bytes.len());
                    if what % 2 == 0 {
                        bytes.resize(bytes.len() + len, 0);
                        hasher.zeros(len as u64);
                    } else {
                        let start = bytes.len();
                        bytes.extend((0..len).map(|at| (at % 251).to_le_bytes()[0]));
                        hasher.update(&bytes[start..]);
                    }
                }
                prop_assert_eq!(hasher.finish(), *blake3::hash(&bytes).as_bytes());
            }
        }
    }
}
