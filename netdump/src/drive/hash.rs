//! The hash of a core that is sent as it is.

/// BLAKE3 of the core in order, what is left out taken as zeros. Small pieces are collected, as the hash is fast only
/// over many KiB at once.
///
/// Many GiB of zeros take seconds, in which the network must not wait: they are owed, and paid slice by slice.
#[derive(Debug)]
pub(super) struct CoreHash {
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    /// Zeros to hash behind `buffer`.
    owed: u64,
    /// What comes behind them.
    behind_owed: Vec<u8>,
    /// Offset behind all of these.
    position: u64,
}

const HASH_BLOCK: usize = 128 * 1024;
static ZEROS: [u8; HASH_BLOCK] = [0; HASH_BLOCK];
/// Zeros hashed in one go: some milliseconds.
const HASH_SLICE: u64 = 16 << 20;

impl CoreHash {
    /// Of nothing yet.
    pub(super) fn new() -> Self {
        let buffer = Vec::with_capacity(HASH_BLOCK);
        Self { hasher: blake3::Hasher::new(), buffer, owed: 0, behind_owed: Vec::new(), position: 0 }
    }

    /// Room for the `len` bytes at `offset`, which is not before what was hashed already. There must be no debt.
    pub(super) fn room(&mut self, offset: u64, len: usize) -> &mut [u8] {
        let gap = offset - self.position;
        self.position = offset + len as u64;
        if gap > 0 {
            self.owed = gap;
            self.behind_owed.resize(len, 0);
            return &mut self.behind_owed;
        }
        if self.buffer.len() + len > HASH_BLOCK {
            self.flush();
        }
        let start = self.buffer.len();
        self.buffer.resize(start + len, 0);
        &mut self.buffer[start..]
    }

    /// Whether zeros are owed.
    pub(super) fn is_in_debt(&self) -> bool {
        self.owed > 0
    }

    /// Hashes a slice of the zeros that are owed, and what comes behind the last of them.
    pub(super) fn pay(&mut self) {
        self.flush();
        let mut slice = self.owed.min(HASH_SLICE);
        self.owed -= slice;
        while slice > 0 {
            let zeros = usize::try_from(slice).map_or(HASH_BLOCK, |left| left.min(HASH_BLOCK));
            self.hasher.update(&ZEROS[..zeros]);
            slice -= zeros as u64;
        }
        if self.owed == 0 {
            std::mem::swap(&mut self.buffer, &mut self.behind_owed);
            self.behind_owed.clear();
        }
    }

    fn flush(&mut self) {
        self.hasher.update(&self.buffer);
        self.buffer.clear();
    }

    /// The hash in hexadecimal, if everything up to `total` was put in. Debts are not paid any more: a dump with debts
    /// was ended by its deadline or by hand, which must not take minutes.
    pub(super) fn finish(mut self, total: u64) -> Option<String> {
        if self.position != total || self.is_in_debt() {
            return None;
        }
        self.flush();
        Some(self.hasher.finalize().to_hex().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_hashed_as_if_sent() {
        let mut hash = CoreHash::new();
        let gap = HASH_SLICE + 300_000;
        hash.room(0, 3).copy_from_slice(b"abc");
        hash.room(3 + gap, 3).copy_from_slice(b"def");
        hash.pay();
        assert!(hash.is_in_debt());
        hash.pay();
        assert!(!hash.is_in_debt());
        hash.room(6 + gap, 1).copy_from_slice(b"g");
        hash.room(17 + gap, 1).copy_from_slice(b"h");
        hash.pay();
        let zeros = |len| vec![0; usize::try_from(len).unwrap()];
        let bytes = [b"abc".to_vec(), zeros(gap), b"defg".to_vec(), zeros(10), b"h".to_vec()].concat();
        assert_eq!(hash.finish(bytes.len() as u64), Some(blake3::hash(&bytes).to_hex().to_string()));
        assert_eq!(CoreHash::new().finish(1), None);
        let mut in_debt = CoreHash::new();
        in_debt.room(u64::MAX - 1, 1).copy_from_slice(b"z");
        assert_eq!(in_debt.finish(u64::MAX), None, "nobody waits for the hash of 16 EiB");
        assert_eq!(CoreHash::new().finish(0), Some(blake3::hash(b"").to_hex().to_string()));
    }
}
