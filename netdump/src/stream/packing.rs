//! What becomes of a core on its way, from options: everything that can be refused is refused here, before a guest
//! starts.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::compressor::{CompressOption, Compressor, DEFAULT_LEVEL};
use crate::ekcd::{Cipher, PublicKey, RsaKeyError};

/// Most bytes of a public key's file that are read: far more than one of 16384 bits has.
const MAX_KEY_FILE: u64 = 64 << 10;

/// What becomes of a core on its way; nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packing {
    compress: Option<CompressOption>,
    encryption: Option<Encryption>,
}

/// Who can read an encrypted core, and what encrypts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// Of the key pair whose private key reads the core.
    pub public_key: PublicKey,
    /// Encrypts the core.
    pub cipher: Cipher,
}

/// Why a core cannot be packed as options say.
#[derive(Debug, thiserror::Error)]
pub enum PackingError {
    /// The public key's file cannot be read.
    #[error("reading the public key {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The file holds no public key that can be used.
    #[error("using the public key {}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: RsaKeyError,
    },
    /// FreeBSD refuses it too, and no reader knows such cores.
    #[error("a compressed core cannot be encrypted with {0}, as for FreeBSD's own dumps: use chacha20")]
    CipherOfCompressed(Cipher),
}

impl Packing {
    /// Compresses and encrypts, either or both.
    pub fn new(
        compress: Option<CompressOption>,
        encryption: Option<Encryption>,
    ) -> Result<Self, PackingError> {
        match &encryption {
            Some(Encryption { cipher, .. }) if compress.is_some() && !cipher.allows_compression() => {
                Err(PackingError::CipherOfCompressed(*cipher))
            }
            _ => Ok(Self { compress, encryption }),
        }
    }

    /// The same with the public key from a file in PEM; without a cipher it is ChaCha20, as dumpon(8) has it.
    pub fn from_options(
        compress: Option<CompressOption>,
        public_key: Option<&Path>,
        cipher: Option<Cipher>,
    ) -> Result<Self, PackingError> {
        let public_key = public_key.map(read_public_key).transpose()?;
        let cipher = cipher.unwrap_or(Cipher::ChaCha20);
        Self::new(compress, public_key.map(|public_key| Encryption { public_key, cipher }))
    }

    /// The same with this level where the options leave it open.
    pub fn with_level(mut self, level: u8) -> Self {
        self.compress = self.compress.map(|option| option.with_level(level));
        self
    }

    /// Whether the core is sent as it is.
    pub fn is_plain(&self) -> bool {
        self.compress.is_none() && self.encryption.is_none()
    }

    /// What was asked for to compress the core.
    pub fn compress(&self) -> Option<CompressOption> {
        self.compress
    }

    /// How the core is compressed.
    pub fn compressor(&self) -> Option<Compressor> {
        self.compress.map(|option| option.or_level(DEFAULT_LEVEL))
    }

    /// How the core is encrypted.
    pub fn encryption(&self) -> Option<&Encryption> {
        self.encryption.as_ref()
    }
}

fn read_public_key(path: &Path) -> Result<PublicKey, PackingError> {
    let mut pem = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_KEY_FILE).read_to_end(&mut pem));
    read.map_err(|source| PackingError::Read { path: path.to_owned(), source })?;
    PublicKey::from_pem(&pem).map_err(|source| PackingError::Key { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(compress: Option<&str>, key: &[u8], cipher: Option<Cipher>) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), key).unwrap();
        let compress = compress.map(|text| text.parse().unwrap());
        let packing = Packing::from_options(compress, Some(file.path()), cipher);
        packing
            .map_or_else(|error| error.to_string(), |packing| packing.encryption.unwrap().cipher.to_string())
    }

    #[test]
    fn a_key_brings_chacha20_and_aes_brings_no_compression() {
        const PUBLIC: &[u8] = include_bytes!("../ekcd/test_keys/public-2048.pem");
        assert_eq!(said(Some("zstd"), PUBLIC, None), "chacha20");
        assert_eq!(said(None, PUBLIC, Some(Cipher::Aes256Cbc)), "aes-cbc");
        let want =
            "a compressed core cannot be encrypted with aes-cbc, as for FreeBSD's own dumps: use chacha20";
        assert_eq!(said(Some("gzip"), PUBLIC, Some(Cipher::Aes256Cbc)), want);
    }

    #[test]
    fn a_bad_key_is_refused_with_its_file() {
        let text = said(None, b"no key", None);
        assert!(text.starts_with("using the public key /"), "{text}");
        let missing = Packing::from_options(None, Some(Path::new("/nonexistent.pem")), None).unwrap_err();
        assert_eq!(missing.to_string(), "reading the public key /nonexistent.pem");
    }

    #[test]
    fn a_level_fills_only_what_is_open() {
        let level = |option: &str| {
            let packing = Packing::new(Some(option.parse().unwrap()), None).unwrap();
            [packing.compressor(), packing.with_level(2).compressor()].map(|used| used.unwrap().level)
        };
        assert_eq!((level("gzip"), level("zstd:9")), ([6, 2], [9, 9]));
    }
}
