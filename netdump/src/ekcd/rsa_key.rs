//! The RSA keys that wrap a dump's key: from PEM files, of 2048 to 16384 bits as dumpon(8) takes them.
//!
//! RUSTSEC-2023-0071 (the time that a private-key operation takes tells of the key) does not matter here: a key is
//! unwrapped by the person who holds the private key, from files, once per dump; there is nobody to measure. The
//! library blinds the operation all the same.

use std::ops::RangeInclusive;

use rsa::pkcs1::{RsaPrivateKeyRef, RsaPublicKeyRef, UintRef};
use rsa::pkcs8::der::pem::Decoder;
use rsa::pkcs8::der::{self, Decode};
use rsa::pkcs8::{ObjectIdentifier, PrivateKeyInfoRef, SubjectPublicKeyInfoRef};
use rsa::rand_core::TryCryptoRng;
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, pkcs1};
use sha1::Sha1;
use zeroize::Zeroizing;

use super::KeyMaterial;

/// Fewest and most bits of a modulus (OpenSSL's security level of 112 bits; `KERNELDUMP_ENCKEY_MAX_SIZE`).
const MODULUS_BITS: RangeInclusive<usize> = 2048..=16384;

/// How 64 bytes are made as long as the modulus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// OAEP with SHA-1 and MGF1-SHA1, of dumpon(8) today.
    Oaep,
    /// PKCS#1 v1.5, of older ones.
    Pkcs1v15,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RsaKeyError {
    /// A file without content.
    #[error("the file is empty")]
    Empty,
    /// A key as OpenSSH keeps it.
    #[error(
        "this is a key of OpenSSH, and PEM is needed; `ssh-keygen -e -m PKCS8 -f KEY.pub` makes that of a public key"
    )]
    OpenSsh,
    /// Not a PEM file at all.
    #[error(
        "this is not a key in PEM, as no line begins with -----BEGIN; \
         `openssl pkey -inform DER` makes PEM of a key in DER, with -pubin of a public one"
    )]
    NoPem,
    /// A damaged PEM.
    #[error("this PEM is damaged: {0}")]
    Pem(der::pem::Error),
    /// A PEM without its last line.
    #[error("this PEM is cut: its line -----END {0}----- is missing")]
    Cut(String),
    /// A PEM of something else.
    #[error("this PEM holds a {found:?}, and {wanted} is needed")]
    Kind {
        /// Its label.
        found: String,
        /// What is needed.
        wanted: &'static str,
    },
    /// A private key behind a pass phrase.
    #[error(
        "this private key is encrypted with a pass phrase, which is not supported; \
         `openssl pkey -in KEY -out PLAIN` makes a plain one"
    )]
    Encrypted,
    /// The bytes in the PEM are no key.
    #[error("the key in this PEM is damaged: {0}")]
    Damaged(der::Error),
    /// A key of another algorithm, such as an elliptic curve.
    #[error("this is not an RSA key: its algorithm is {0}")]
    NotRsa(ObjectIdentifier),
    /// Too small or too large.
    #[error("an RSA key of {0} bits cannot be used: 2048 to 16384 are needed")]
    Size(usize),
    /// Its numbers make no RSA key.
    #[error("the numbers of this RSA key do not fit together: {0}")]
    Numbers(rsa::Error),
    /// The encryption failed.
    #[error("RSA encryption failed: {0}")]
    Encrypt(rsa::Error),
    /// The encrypted key was made with a key of another size.
    #[error(
        "this private key has {own} bits, and the dump's key was encrypted with one of {theirs}: \
         another private key is needed"
    )]
    OtherSize {
        /// Bits of this key.
        own: usize,
        /// Bits of the key that was used.
        theirs: usize,
    },
    /// Neither padding came out.
    #[error("this private key does not fit the dump's key: neither OAEP nor PKCS#1 v1.5 decrypts it")]
    DoesNotFit,
}

/// Encrypts the keys of dumps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(rsa::PublicKey);

/// Decrypts the keys of dumps. Wiped when dropped; `Debug` shows none of its secrets.
#[derive(Debug)]
pub struct PrivateKey(rsa::PrivateKey);

impl PublicKey {
    /// A public key as `openssl rsa -pubout` writes it (SubjectPublicKeyInfo), or with `-RSAPublicKey_out` (PKCS#1).
    pub fn from_pem(pem: &[u8]) -> Result<Self, RsaKeyError> {
        let (label, der) = decode(pem)?;
        match label.as_str() {
            "PUBLIC KEY" => {
                let info = SubjectPublicKeyInfoRef::from_der(&der).map_err(damaged)?;
                expect_rsa(info.algorithm.oid)?;
                let key = info.subject_public_key.as_bytes().unwrap_or_default();
                Self::from_pkcs1(RsaPublicKeyRef::from_der(key).map_err(damaged)?)
            }
            "RSA PUBLIC KEY" => Self::from_pkcs1(RsaPublicKeyRef::from_der(&der).map_err(damaged)?),
            _ => Err(RsaKeyError::Kind { found: label, wanted: "an RSA public key (PUBLIC KEY)" }),
        }
    }

    /// Bits of the modulus.
    pub fn bits(&self) -> usize {
        bits(&self.0)
    }

    /// `secret` under OAEP; as long as the modulus.
    pub(super) fn encrypt(
        &self,
        secret: &[u8],
        random: &mut impl TryCryptoRng,
    ) -> Result<Vec<u8>, RsaKeyError> {
        self.0.oaep_encrypt_with_rng::<Sha1, _>(random, secret).map_err(RsaKeyError::Encrypt)
    }

    fn from_pkcs1(key: RsaPublicKeyRef<'_>) -> Result<Self, RsaKeyError> {
        check_size(&key.modulus)?;
        let (n, e) =
            (number(&key.modulus, &key.modulus)?, number(&key.public_exponent, &key.public_exponent)?);
        rsa::PublicKey::new_with_size_limits(n, e, MODULUS_BITS).map(Self).map_err(RsaKeyError::Numbers)
    }
}

impl PrivateKey {
    /// A private key in PKCS#8 (`PRIVATE KEY`) or PKCS#1 (`RSA PRIVATE KEY`).
    pub fn from_pem(pem: &[u8]) -> Result<Self, RsaKeyError> {
        let (label, der) = decode(pem)?;
        match label.as_str() {
            "PRIVATE KEY" => {
                let info = PrivateKeyInfoRef::from_der(&der).map_err(damaged)?;
                expect_rsa(info.algorithm.oid)?;
                Self::from_pkcs1(RsaPrivateKeyRef::from_der(info.private_key.as_bytes()).map_err(damaged)?)
            }
            "RSA PRIVATE KEY" => Self::from_pkcs1(RsaPrivateKeyRef::from_der(&der).map_err(damaged)?),
            _ => Err(RsaKeyError::Kind { found: label, wanted: "an RSA private key (PRIVATE KEY)" }),
        }
    }

    /// Bits of the modulus.
    pub fn bits(&self) -> usize {
        bits(&self.0)
    }

    /// The dump's key, and how it was padded: OAEP, else PKCS#1 v1.5.
    ///
    /// A wrong private key is told apart with OAEP only. Of v1.5 the library gives random bytes when the padding is
    /// wrong, in one case of hundreds as many as wanted; so whether a key fits is known when the core's head is seen.
    pub fn unwrap(&self, encrypted_key: &[u8]) -> Result<(KeyMaterial, Padding), RsaKeyError> {
        if encrypted_key.len() != self.0.size() {
            return Err(RsaKeyError::OtherSize { own: self.bits(), theirs: encrypted_key.len() * 8 });
        }
        let material =
            |bytes: Vec<u8>| Zeroizing::new(bytes).as_slice().try_into().ok().map(KeyMaterial::new);
        let by_oaep = self.0.oaep_decrypt::<Sha1>(encrypted_key).ok().and_then(material);
        if let Some(key) = by_oaep {
            return Ok((key, Padding::Oaep));
        }
        let by_v15 = self.0.pkcs1v15_decrypt(encrypted_key).ok().and_then(material);
        by_v15.map(|key| (key, Padding::Pkcs1v15)).ok_or(RsaKeyError::DoesNotFit)
    }

    fn from_pkcs1(key: RsaPrivateKeyRef<'_>) -> Result<Self, RsaKeyError> {
        check_size(&key.modulus)?;
        let like_modulus = |value| number(value, &key.modulus);
        let primes = vec![like_modulus(&key.prime1)?, like_modulus(&key.prime2)?];
        let e = number(&key.public_exponent, &key.public_exponent)?;
        let (n, d) = (like_modulus(&key.modulus)?, like_modulus(&key.private_exponent)?);
        rsa::PrivateKey::from_components(n, e, d, primes).map(Self).map_err(RsaKeyError::Numbers)
    }
}

/// Label and content of the first PEM of a file; text before it and behind is allowed, as openssl has it.
fn decode(file: &[u8]) -> Result<(String, Zeroizing<Vec<u8>>), RsaKeyError> {
    if is_encrypted(file) {
        return Err(RsaKeyError::Encrypted);
    }
    let mut decoder = Decoder::new_detect_wrap(first_pem(file)?).map_err(RsaKeyError::Pem)?;
    let label = decoder.type_label().to_owned();
    let mut der = Zeroizing::new(vec![0; decoder.remaining_len()]);
    decoder.decode(&mut der).map_err(RsaKeyError::Pem)?;
    Ok((label, der))
}

/// From its first line to its last.
fn first_pem(file: &[u8]) -> Result<&[u8], RsaKeyError> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    let find = |needle: &[u8], from: usize| {
        file.get(from..)?.windows(needle.len()).position(|window| window == needle).map(|at| from + at)
    };
    let Some(start) = find(BEGIN, 0) else {
        return Err(match file {
            [] => RsaKeyError::Empty,
            [b's', b's', b'h', b'-', ..] => RsaKeyError::OpenSsh,
            _ => RsaKeyError::NoPem,
        });
    };
    let label = file[start + BEGIN.len()..].iter().copied().take_while(|&byte| byte != b'-' && byte >= b' ');
    let label: String = label.take(64).map(char::from).collect();
    if label == "OPENSSH PRIVATE KEY" {
        return Err(RsaKeyError::OpenSsh);
    }
    let end_line = format!("-----END {label}-----");
    let end = find(end_line.as_bytes(), start).ok_or(RsaKeyError::Cut(label))?;
    Ok(&file[start..end + end_line.len()])
}

/// PKCS#8 says it in the label, OpenSSL's older format in a header line.
fn is_encrypted(pem: &[u8]) -> bool {
    let has = |needle: &[u8]| pem.windows(needle.len()).any(|window| window == needle);
    has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED")
}

fn damaged(error: der::Error) -> RsaKeyError {
    RsaKeyError::Damaged(error)
}

fn expect_rsa(algorithm: ObjectIdentifier) -> Result<(), RsaKeyError> {
    if algorithm == pkcs1::ALGORITHM_OID { Ok(()) } else { Err(RsaKeyError::NotRsa(algorithm)) }
}

/// Refuses a modulus before any arithmetic with it: that of a huge one takes long.
fn check_size(modulus: &UintRef<'_>) -> Result<(), RsaKeyError> {
    let bytes = modulus.as_bytes();
    let spare = bytes.first().map_or(0, |byte| byte.leading_zeros() as usize);
    let bits = bytes.len() * 8 - spare;
    if MODULUS_BITS.contains(&bits) { Ok(()) } else { Err(RsaKeyError::Size(bits)) }
}

/// `value` with the precision of `like`, as the library wants it.
fn number(value: &UintRef<'_>, like: &UintRef<'_>) -> Result<BoxedUint, RsaKeyError> {
    let precision = u32::try_from(like.as_bytes().len() * 8).expect("a DER length fits");
    BoxedUint::from_be_slice(value.as_bytes(), precision).map_err(|error| RsaKeyError::Numbers(error.into()))
}

fn bits(key: &impl PublicKeyParts) -> usize {
    key.n().bit_width_vartime() as usize
}
