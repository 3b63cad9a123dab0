//! The digest of a core that is sent as it is.

use crate::digest::{Digest, Digester};

/// The digest of the core in order, what is left out taken as zeros. Small pieces are collected, as the hash is fast only
/// over many KiB at once.
#[derive(Debug)]
pub(super) struct CoreHash {
    digester: Digester,
    buffer: Vec<u8>,
}

const HASH_BLOCK: usize = 128 * 1024;

impl CoreHash {
    /// Of nothing yet.
    pub(super) fn new() -> Self {
        Self { digester: Digester::new(), buffer: Vec::with_capacity(HASH_BLOCK) }
    }

    /// Room for the `len` bytes at `offset`, which is not before what was hashed already.
    pub(super) fn room(&mut self, offset: u64, len: usize) -> &mut [u8] {
        if offset > self.position() || self.buffer.len() + len > HASH_BLOCK {
            self.flush();
            self.digester.zeros(offset - self.digester.length());
        }
        let start = self.buffer.len();
        self.buffer.resize(start + len, 0);
        &mut self.buffer[start..]
    }

    /// The digest, if everything up to `total` was put in.
    pub(super) fn finish(mut self, total: u64) -> Option<Digest> {
        self.flush();
        (self.position() == total).then(|| self.digester.finish()).flatten()
    }

    fn position(&self) -> u64 {
        self.digester.length() + self.buffer.len() as u64
    }

    fn flush(&mut self) {
        self.digester.update(&self.buffer);
        self.buffer.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_hashed_as_if_sent() {
        let mut hash = CoreHash::new();
        let gap = 16_300_000;
        hash.room(0, 3).copy_from_slice(b"abc");
        hash.room(3 + gap, 3).copy_from_slice(b"def");
        hash.room(6 + gap, 1).copy_from_slice(b"g");
        hash.room(17 + gap, 1).copy_from_slice(b"h");
        let zeros = |len| vec![0; usize::try_from(len).unwrap()];
        let bytes = [b"abc".to_vec(), zeros(gap), b"defg".to_vec(), zeros(10), b"h".to_vec()].concat();
        assert_eq!(hash.finish(bytes.len() as u64), Some(Digest::of(&bytes)));
        assert_eq!(CoreHash::new().finish(1), None);
        assert_eq!(CoreHash::new().finish(0), Some(Digest::of(b"")));
    }
}
