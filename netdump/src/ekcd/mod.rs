//! Encrypted kernel dumps, as FreeBSD's EKCD makes them (`kern_shutdown.c`, `sys/kerneldump.h`, dumpon(8)).
//!
//! A fresh symmetric key encrypts the core as one stream; an RSA public key encrypts that key. What the holder of the
//! private key needs travels beside the core in a [`KeyBlock`], the payload of EKCD_KEY and the content of `key.*`:
//! the cipher, the IV and the encrypted key. Neither the block nor the dump header is encrypted, and nothing is
//! authenticated: who can write the core can change it unseen.
//!
//! Of the 64 random bytes that are drawn and encrypted both ciphers use the first 32. Compression comes before
//! encryption, and AES-CBC with compression is refused by FreeBSD: see [`Cipher::allows_compression`].

mod decrypt;
pub mod encrypted;
mod head;
mod key_block;
mod lost;
mod names;
mod rsa_key;
mod stream;

use rsa::rand_core::TryCryptoRng;
use zeroize::Zeroizing;

pub use decrypt::{DecryptError, Decrypted, Decryption, Lack};
pub use getrandom::SysRng;
pub use key_block::{KEY_BLOCK_HEADER, KeyBlock, KeyBlockError, MAX_ENCRYPTED_KEY, MAX_KEY_FILE};
pub use rsa_key::{Padding, PrivateKey, PublicKey, RsaKeyError};
pub use stream::{CIPHER_BLOCK, Direction, PartialBlock, StreamCipher};

/// Random bytes that are encrypted with the public key (`KERNELDUMP_KEY_MAX_SIZE`).
pub const KEY_MATERIAL: usize = 64;
/// Bytes of the IV in a key block (`KERNELDUMP_IV_MAX_SIZE`).
pub const IV_LEN: usize = 32;

/// The secret of one dump; wiped when dropped.
pub type KeyMaterial = Zeroizing<[u8; KEY_MATERIAL]>;

/// What encrypts the core. The numbers are those of `kdk_encryption`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES with a 256-bit key in cipher block chaining.
    Aes256Cbc = 1,
    /// ChaCha20 as its author made it: 64-bit nonce, 64-bit counter.
    ChaCha20 = 2,
}

impl Cipher {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::ChaCha20, Self::Aes256Cbc];

    /// Its name, as in `dumpon -C`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256Cbc => "aes-cbc",
            Self::ChaCha20 => "chacha20",
        }
    }

    /// The cipher of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| cipher.name() == name)
    }

    /// Whether a compressed core may be encrypted with it. FreeBSD's kernel refuses AES-CBC for one (EOPNOTSUPP).
    pub fn allows_compression(self) -> bool {
        self == Self::ChaCha20
    }

    fn by_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&cipher| cipher as u8 == number)
    }
}

impl std::fmt::Display for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a key for a dump cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DumpKeyError {
    /// The source of randomness failed.
    #[error("no random bytes can be had for the key of the dump")]
    Random,
    /// RSA refused.
    #[error("encrypting the key of the dump with the public key")]
    Rsa(#[source] RsaKeyError),
}

/// The key of one dump: to be used once.
#[derive(Debug)]
pub struct DumpKey {
    /// The key block as it is sent, padded to the block size; its length is the header's `dumpkeysize`.
    pub block: Vec<u8>,
    /// Encrypts the core from its first byte on.
    pub stream: StreamCipher,
}

impl DumpKey {
    /// Draws a key and an IV for one dump, and encrypts the key with `public`. Outside tests `random` is [`SysRng`].
    pub fn generate(
        public: &PublicKey,
        cipher: Cipher,
        random: &mut impl TryCryptoRng,
    ) -> Result<Self, DumpKeyError> {
        let mut material = KeyMaterial::new([0; KEY_MATERIAL]);
        let mut iv = [0; IV_LEN];
        let drawn =
            random.try_fill_bytes(material.as_mut_slice()).and_then(|()| random.try_fill_bytes(&mut iv));
        drawn.map_err(|_| DumpKeyError::Random)?;
        let encrypted_key = public.encrypt(material.as_slice(), random).map_err(DumpKeyError::Rsa)?;
        let block = KeyBlock { cipher, iv, encrypted_key }.to_bytes();
        Ok(Self { block, stream: StreamCipher::new(cipher, &material, &iv, Direction::Encrypt) })
    }
}

#[cfg(test)]
mod tests;
