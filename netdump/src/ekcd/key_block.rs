//! The key block: `struct kerneldumpkey` of `sys/kerneldump.h`, packed; integers big-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | cipher |
//! | 1 | 32 | IV |
//! | 33 | 4 | length of the encrypted key |
//! | 37 | | the encrypted key, then zeros up to a multiple of the dump's block size |

use super::{Cipher, IV_LEN};

/// Bytes before the encrypted key.
pub const KEY_BLOCK_HEADER: usize = 37;
/// Longest encrypted key, that of a 16384-bit RSA key (`KERNELDUMP_ENCKEY_MAX_SIZE`).
pub const MAX_ENCRYPTED_KEY: usize = 2048;
/// Most bytes of a key file that anyone should keep: the largest block, padded to a generous block size.
pub const MAX_KEY_FILE: u64 = 64 << 10;
/// What netdump pads the block to: its block size (`NETDUMP_DATASIZE`).
const BLOCK_SIZE: usize = 4096;

/// What the holder of the private key needs to read the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyBlock {
    /// What encrypts the core.
    pub cipher: Cipher,
    /// AES uses the first 16 bytes, ChaCha20 the first 8.
    pub iv: [u8; IV_LEN],
    /// 64 bytes, encrypted with RSA; as long as the key's modulus, at most [`MAX_ENCRYPTED_KEY`].
    pub encrypted_key: Vec<u8>,
}

/// Why bytes are not a key block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyBlockError {
    /// Too few bytes.
    #[error("a key block has at least {wanted} bytes, and these are {found}: it is truncated")]
    Short {
        /// How many there must be.
        wanted: usize,
        /// How many there are.
        found: usize,
    },
    /// Too many bytes.
    #[error("{0} bytes are too many for a key block (at most {MAX_KEY_FILE})")]
    Long(usize),
    /// Another cipher.
    #[error("cipher {0} in the key block is unknown (1 is aes-cbc, 2 is chacha20)")]
    Cipher(u8),
    /// A length that no encrypted key has.
    #[error(
        "the key block says that its encrypted key has {0} bytes (1 to {MAX_ENCRYPTED_KEY} are possible)"
    )]
    KeyLength(u32),
}

impl KeyBlock {
    /// The block as it is sent, padded with zeros to a multiple of 4096 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let len = KEY_BLOCK_HEADER + self.encrypted_key.len();
        let key_length = u32::try_from(self.encrypted_key.len()).expect("a key has at most 2048 bytes");
        let mut out = Vec::with_capacity(len.next_multiple_of(BLOCK_SIZE));
        out.push(self.cipher as u8);
        out.extend_from_slice(&self.iv);
        out.extend_from_slice(&key_length.to_be_bytes());
        out.extend_from_slice(&self.encrypted_key);
        out.resize(len.next_multiple_of(BLOCK_SIZE), 0);
        out
    }

    /// Takes a block apart. Its padding may be of any length and is not looked at: block sizes differ.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyBlockError> {
        if bytes.len() as u64 > MAX_KEY_FILE {
            return Err(KeyBlockError::Long(bytes.len()));
        }
        let short = |wanted| KeyBlockError::Short { wanted, found: bytes.len() };
        let (header, rest) =
            bytes.split_first_chunk::<KEY_BLOCK_HEADER>().ok_or_else(|| short(KEY_BLOCK_HEADER))?;
        let [cipher, body @ ..] = header;
        let (iv, key_length) = body.split_at(IV_LEN);
        let cipher = Cipher::by_number(*cipher).ok_or(KeyBlockError::Cipher(*cipher))?;
        let key_length = u32::from_be_bytes(key_length.try_into().expect("37 = 1 + 32 + 4"));
        let refused = KeyBlockError::KeyLength(key_length);
        let len = usize::try_from(key_length).map_err(|_| refused.clone())?;
        if len == 0 || len > MAX_ENCRYPTED_KEY {
            return Err(refused);
        }
        let encrypted_key = rest.get(..len).ok_or_else(|| short(KEY_BLOCK_HEADER + len))?.to_vec();
        Ok(Self { cipher, iv: iv.try_into().expect("split there"), encrypted_key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(cipher: Cipher, len: usize) -> KeyBlock {
        let iv = std::array::from_fn(|i| u8::try_from(i + 1).unwrap());
        KeyBlock { cipher, iv, encrypted_key: vec![0xa5; len] }
    }

    #[test]
    fn fields_lie_where_freebsd_puts_them() {
        let bytes = block(Cipher::ChaCha20, 256).to_bytes();
        assert_eq!((bytes.len(), bytes[0], bytes[1], bytes[32]), (4096, 2, 1, 32));
        assert_eq!(bytes[33..37], [0, 0, 1, 0]);
        assert_eq!((bytes[36], bytes[37], bytes[37 + 255], bytes[37 + 256]), (0, 0xa5, 0xa5, 0));
        assert_eq!(block(Cipher::Aes256Cbc, 2048).to_bytes()[0], 1);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (cipher, len) in [(Cipher::Aes256Cbc, 1), (Cipher::ChaCha20, 512), (Cipher::ChaCha20, 2048)] {
            let written = block(cipher, len);
            assert_eq!(KeyBlock::parse(&written.to_bytes()).as_ref(), Ok(&written));
            assert_eq!(KeyBlock::parse(&written.to_bytes()[..37 + len]), Ok(written), "without padding");
        }
    }

    #[test]
    fn each_truncation_is_refused() {
        let bytes = block(Cipher::ChaCha20, 256).to_bytes();
        for len in 0..37 + 256 {
            let wanted = if len < 37 { 37 } else { 37 + 256 };
            assert_eq!(KeyBlock::parse(&bytes[..len]), Err(KeyBlockError::Short { wanted, found: len }));
        }
    }

    #[test]
    fn hostile_fields_are_refused() {
        let mut bytes = block(Cipher::ChaCha20, 256).to_bytes();
        for length in [0, 2049, u32::MAX] {
            bytes[33..37].copy_from_slice(&length.to_be_bytes());
            assert_eq!(KeyBlock::parse(&bytes), Err(KeyBlockError::KeyLength(length)));
        }
        for cipher in [0, 3, 255] {
            bytes[0] = cipher;
            assert_eq!(KeyBlock::parse(&bytes), Err(KeyBlockError::Cipher(cipher)));
        }
        assert_eq!(KeyBlock::parse(&vec![1; 65537]), Err(KeyBlockError::Long(65537)));
    }
}
