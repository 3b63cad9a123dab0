//! The end of the pipeline: gathers what the compressor makes into pieces of whole blocks, encrypts them, hashes what
//! will be stored, and hands them over.

use super::BLOCK_SIZE;
use super::backlog::{Abandoned, Backlog, StreamEnd};
use crate::digest::Digester;
use crate::ekcd::StreamCipher;

/// What is handed over at a time: as much as FreeBSD's dumper writes at once (`maxiosize` of netdump). Whole blocks.
const PIECE: usize = 64 << 10;

/// Seals one stream.
#[derive(Debug)]
pub(super) struct Sealer<'b> {
    backlog: &'b Backlog,
    cipher: Option<StreamCipher>,
    piece: Vec<u8>,
    /// Bytes of the stream before `piece`.
    position: u64,
    /// Bytes of the core that are packed in the stream so far.
    packed: u64,
    digester: Digester,
}

impl<'b> Sealer<'b> {
    /// At the beginning of a stream.
    pub(super) fn new(backlog: &'b Backlog, cipher: Option<StreamCipher>) -> Self {
        let piece = Vec::with_capacity(PIECE);
        Self { backlog, cipher, piece, position: 0, packed: 0, digester: Digester::new() }
    }

    /// Appends bytes, by which `packed` bytes of the core are packed. Waits when nobody takes them.
    pub(super) fn put(&mut self, mut bytes: &[u8], packed: u64) -> Result<(), Abandoned> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.piece.len()));
            self.piece.extend_from_slice(now);
            if later.is_empty() {
                self.packed = packed;
            }
            if self.piece.len() == PIECE {
                self.hand_over(PIECE)?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Pads the last block with zeros. They are sent, and stored unless the stream's length `is_exact`.
    pub(super) fn finish(mut self, is_exact: bool) -> Result<StreamEnd, Abandoned> {
        let exact = self.piece.len();
        self.piece.resize(exact.next_multiple_of(BLOCK_SIZE as usize), 0);
        let kept = if is_exact { exact } else { self.piece.len() };
        let stored = self.position + kept as u64;
        self.packed = u64::MAX;
        self.hand_over(kept)?;
        Ok(StreamEnd { stored, sent: self.position, digest: self.digester.finish() })
    }

    /// Encrypts the piece and hands it over; the first `stored` bytes of it will be stored.
    fn hand_over(&mut self, stored: usize) -> Result<(), Abandoned> {
        if let Some(cipher) = &mut self.cipher {
            cipher.apply(&mut self.piece).expect("a piece consists of whole blocks");
        }
        self.digester.update(&self.piece[..stored]);
        self.backlog.push(&self.piece, self.packed)?;
        self.position += self.piece.len() as u64;
        self.piece.clear();
        Ok(())
    }
}
