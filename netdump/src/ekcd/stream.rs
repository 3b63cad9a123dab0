//! The stream cipher of one core: no padding, and one state from the first byte to the last.
//!
//! | | AES-256-CBC | ChaCha20 |
//! |---|---|---|
//! | key | bytes 0..32 of the key material | the same |
//! | IV | bytes 0..16 of the block's IV | nonce: bytes 0..8 of it; counter: 0 |
//!
//! ChaCha20 is the original of D. J. Bernstein with 64-bit nonce and counter, so its stream goes on past 256 GiB, where
//! the 32-bit counter of RFC 8439 would start again.

use aes::Aes256;
use cbc::cipher::{Array, BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use chacha20::ChaCha20Legacy;
use chacha20::cipher::StreamCipher as _;

use super::{Cipher, IV_LEN, KeyMaterial};

/// Bytes of an AES block; what is given to a cipher is a multiple of it.
pub const CIPHER_BLOCK: usize = 16;

/// Which way a cipher works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Plain bytes in, encrypted bytes out.
    Encrypt,
    /// Encrypted bytes in, plain bytes out.
    Decrypt,
}

/// Encrypts or decrypts one core in the order of its bytes. Its secrets are wiped when it is dropped.
pub struct StreamCipher(State);

enum State {
    AesEncrypt(Box<cbc::Encryptor<Aes256>>),
    AesDecrypt(Box<cbc::Decryptor<Aes256>>),
    ChaCha20(Box<ChaCha20Legacy>),
}

/// A length that is no whole number of cipher blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes are no multiple of the cipher's block of {CIPHER_BLOCK} bytes")]
pub struct PartialBlock(pub usize);

impl StreamCipher {
    /// A cipher at the beginning of its stream.
    pub fn new(cipher: Cipher, material: &KeyMaterial, iv: &[u8; IV_LEN], direction: Direction) -> Self {
        let key = material.first_chunk::<32>().expect("the material has 64 bytes");
        let long_iv = iv.first_chunk::<16>().expect("the IV has 32 bytes");
        let nonce = iv.first_chunk::<8>().expect("the IV has 32 bytes");
        let (key, long_iv, nonce) = (key.into(), long_iv.into(), nonce.into());
        Self(match (cipher, direction) {
            (Cipher::Aes256Cbc, Direction::Encrypt) => {
                State::AesEncrypt(Box::new(cbc::Encryptor::new(key, long_iv)))
            }
            (Cipher::Aes256Cbc, Direction::Decrypt) => {
                State::AesDecrypt(Box::new(cbc::Decryptor::new(key, long_iv)))
            }
            (Cipher::ChaCha20, _) => State::ChaCha20(Box::new(ChaCha20Legacy::new(key, nonce))),
        })
    }

    /// Encrypts or decrypts the stream's next bytes in place: a whole number of blocks, except that ChaCha20 takes any
    /// number.
    ///
    /// # Panics
    ///
    /// After 2^70 bytes, where ChaCha20 would repeat itself.
    pub fn apply(&mut self, bytes: &mut [u8]) -> Result<(), PartialBlock> {
        let len = bytes.len();
        let (blocks, rest) = Array::slice_as_chunks_mut(bytes);
        match &mut self.0 {
            State::ChaCha20(cipher) => cipher.apply_keystream(bytes),
            _ if !rest.is_empty() => return Err(PartialBlock(len)),
            State::AesEncrypt(cipher) => cipher.encrypt_blocks(blocks),
            State::AesDecrypt(cipher) => cipher.decrypt_blocks(blocks),
        }
        Ok(())
    }

    /// The cipher at block `block` of 64 bytes of ChaCha20's stream.
    #[cfg(test)]
    pub(super) fn chacha20_at_block(material: &KeyMaterial, iv: &[u8; IV_LEN], block: u64) -> Self {
        use chacha20::cipher::StreamCipherSeek;
        let mut cipher = Self::new(Cipher::ChaCha20, material, iv, Direction::Encrypt);
        let State::ChaCha20(inner) = &mut cipher.0 else { unreachable!() };
        inner.seek(u128::from(block) * 64);
        cipher
    }
}

impl std::fmt::Debug for StreamCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            State::AesEncrypt(_) => "StreamCipher(encrypting, aes-cbc)",
            State::AesDecrypt(_) => "StreamCipher(decrypting, aes-cbc)",
            State::ChaCha20(_) => "StreamCipher(chacha20)",
        })
    }
}
