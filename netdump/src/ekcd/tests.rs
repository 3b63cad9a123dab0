//! Ciphers against published vectors, keys against what openssl's command made.

use proptest::prelude::*;
use rsa::rand_core::{TryCryptoRng, TryRng};

use super::*;

const PUBLIC: &[u8] = include_bytes!("test_keys/public-2048.pem");
const PUBLIC_PKCS1: &[u8] = include_bytes!("test_keys/public-2048-pkcs1.pem");
const PRIVATE: &[u8] = include_bytes!("test_keys/private-2048.pem");
const PRIVATE_PKCS1: &[u8] = include_bytes!("test_keys/private-2048-pkcs1.pem");

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn material(key: &str) -> KeyMaterial {
    let mut material = KeyMaterial::new([0xee; KEY_MATERIAL]);
    material[..32].copy_from_slice(&hex(key));
    material
}

fn iv(start: &str) -> [u8; IV_LEN] {
    let mut iv = [0xdd; IV_LEN];
    let start = hex(start);
    iv[..start.len()].copy_from_slice(&start);
    iv
}

/// draft-strombergson-chacha-test-vectors-01, TC8, 256-bit key, 20 rounds.
const TC8_KEY: &str = "c46ec1b18ce8a878725a37e780dfb7351f68ed2e194c79fbc6aebee1a667975d";
const TC8_NONCE: &str = "1ada31d5cf688221";

#[test]
fn chacha20_is_the_variant_with_a_64_bit_nonce() {
    let keystream = hex("f63a89b75c2271f9368816542ba52f06ed49241792302b00b5e8f80ae9a473af
                         c25b218f519af0fdd406362e8d69de7f54c604a6e00f353f110f771bdca8ab92
                         e5fbc34e60a1d9a9db17345b0a402736853bf910b060bdf1f897b6290f01d138
                         ae2c4c90225ba9ea14d518f55929dea098ca7a6ccfe61227053c84e49a4a3332");
    let mut bytes = [0; 128];
    let mut cipher =
        StreamCipher::new(Cipher::ChaCha20, &material(TC8_KEY), &iv(TC8_NONCE), Direction::Encrypt);
    cipher.apply(&mut bytes).unwrap();
    assert_eq!(bytes[..], keystream);
}

/// The keystream from block 2^32 - 1 on, of `openssl enc -chacha20 -iv ffffffff00000000<nonce>` over zeros: FreeBSD's
/// kernel and OpenSSL carry into the counter's upper half, where RFC 8439 would begin again.
#[test]
fn chacha20_goes_on_past_256_gib() {
    let keystream = hex("197ada9697cf303a6d03d5847eaae93678f34fc7fe49824d4f6ba0b9fb71227f
                         10c96de25861577bc5555205573d32160b528980211926c41b57879e599bcff3
                         94fbbd512f9fb96721957f4a3723cfa2cf6175c85fcb17e0a831a62a7d54a9aa
                         50e4910c2db8af82a5628d87ea25363b270f6528db236ea80841bb806ca96014
                         2b1b494d14f722943df482ca3aaf613762aba8fc11cbe33625ace30f3e64695c
                         29845f6e53eb15dea168fdac5cd7512217eaa0b09637838185f7940a9da888f7");
    let last_of_32_bits = u64::from(u32::MAX);
    let mut cipher = StreamCipher::chacha20_at_block(&material(TC8_KEY), &iv(TC8_NONCE), last_of_32_bits);
    let mut bytes = [0; 192];
    cipher.apply(&mut bytes).unwrap();
    assert_eq!(bytes[..], keystream);
    // The same when the step over the edge is one of many blocks at a time.
    let mut cipher = StreamCipher::chacha20_at_block(&material(TC8_KEY), &iv(TC8_NONCE), last_of_32_bits - 5);
    let mut bytes = [0; 4096];
    cipher.apply(&mut bytes).unwrap();
    assert_eq!(bytes[5 * 64..][..192], keystream);
}

/// NIST SP 800-38A, F.2.5.
#[test]
fn aes_is_cbc_with_a_256_bit_key() {
    let plain = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51
                     30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710");
    let encrypted = hex("f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d
                         39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b");
    let key = material("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
    let iv = iv("000102030405060708090a0b0c0d0e0f");
    let mut bytes = plain.clone();
    StreamCipher::new(Cipher::Aes256Cbc, &key, &iv, Direction::Encrypt).apply(&mut bytes).unwrap();
    assert_eq!(bytes, encrypted);
    StreamCipher::new(Cipher::Aes256Cbc, &key, &iv, Direction::Decrypt).apply(&mut bytes).unwrap();
    assert_eq!(bytes, plain);
}

#[test]
fn aes_refuses_part_of_a_block() {
    let mut cipher =
        StreamCipher::new(Cipher::Aes256Cbc, &material(TC8_KEY), &iv(TC8_NONCE), Direction::Encrypt);
    assert_eq!(cipher.apply(&mut [0; 33]), Err(PartialBlock(33)));
}

proptest! {
    #[test]
    fn state_is_carried_across_any_cut(cuts in prop::collection::vec(0..200_usize, 1..20), aes: bool) {
        let cipher = if aes { Cipher::Aes256Cbc } else { Cipher::ChaCha20 };
        let unit = if aes { CIPHER_BLOCK } else { 1 };
        let new = |direction| StreamCipher::new(cipher, &material(TC8_KEY), &iv(TC8_NONCE), direction);
        let len = cuts.iter().sum::<usize>() * unit;
        let plain: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let mut at_once = plain.clone();
        new(Direction::Encrypt).apply(&mut at_once).unwrap();
        let mut in_pieces = plain.clone();
        let (mut encrypt, mut rest) = (new(Direction::Encrypt), in_pieces.as_mut_slice());
        for cut in &cuts {
            let (piece, others) = rest.split_at_mut(cut * unit);
            encrypt.apply(piece).unwrap();
            rest = others;
        }
        prop_assert_eq!(&in_pieces, &at_once);
        new(Direction::Decrypt).apply(&mut in_pieces).unwrap();
        prop_assert_eq!(in_pieces, plain);
    }
}

#[test]
fn a_generated_key_is_unwrapped_and_decrypts_what_it_encrypted() {
    let private = PrivateKey::from_pem(PRIVATE).unwrap();
    for cipher in Cipher::ALL {
        let public = PublicKey::from_pem(PUBLIC).unwrap();
        let mut key = DumpKey::generate(&public, cipher, &mut SysRng).unwrap();
        assert_eq!(key.block.len(), 4096);
        let block = KeyBlock::parse(&key.block).unwrap();
        assert_eq!((block.cipher, block.encrypted_key.len()), (cipher, 256));
        let (material, padding) = private.unwrap(&block.encrypted_key).unwrap();
        assert_eq!(padding, Padding::Oaep);
        let mut bytes = [7; 8192];
        key.stream.apply(&mut bytes).unwrap();
        assert_ne!(bytes, [7; 8192]);
        StreamCipher::new(cipher, &material, &block.iv, Direction::Decrypt).apply(&mut bytes).unwrap();
        assert_eq!(bytes, [7; 8192]);
    }
}

#[test]
fn two_dumps_share_neither_key_nor_iv() {
    let public = PublicKey::from_pem(PUBLIC).unwrap();
    let mut blocks = (0..2).map(|_| DumpKey::generate(&public, Cipher::ChaCha20, &mut SysRng).unwrap());
    let [a, b] = [(); 2].map(|()| KeyBlock::parse(&blocks.next().unwrap().block).unwrap());
    assert_ne!(a.iv, b.iv);
    assert_ne!(a.encrypted_key, b.encrypted_key);
}

/// A source of randomness that fails.
struct NoRandomness;

impl TryRng for NoRandomness {
    type Error = std::io::Error;
    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Err(std::io::ErrorKind::Other.into())
    }
    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Err(std::io::ErrorKind::Other.into())
    }
    fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), Self::Error> {
        Err(std::io::ErrorKind::Other.into())
    }
}
impl TryCryptoRng for NoRandomness {}

#[test]
fn without_randomness_there_is_no_key() {
    let public = PublicKey::from_pem(PUBLIC).unwrap();
    let refused = DumpKey::generate(&public, Cipher::ChaCha20, &mut NoRandomness);
    assert!(matches!(refused, Err(DumpKeyError::Random)));
}

#[test]
fn both_forms_of_a_public_key_are_read() {
    let [a, b] = [PUBLIC, PUBLIC_PKCS1].map(|pem| PublicKey::from_pem(pem).unwrap());
    assert_eq!((a.bits(), &a), (2048, &b));
}

#[test]
fn both_paddings_and_both_forms_of_a_private_key_are_read() {
    for pem in [PRIVATE, PRIVATE_PKCS1] {
        let private = PrivateKey::from_pem(pem).unwrap();
        assert_eq!(private.bits(), 2048);
        let (key, padding) = private.unwrap(include_bytes!("test_keys/oaep-64-A.bin")).unwrap();
        assert_eq!((*key, padding), ([b'A'; 64], Padding::Oaep));
        let (key, padding) = private.unwrap(include_bytes!("test_keys/v15-64-B.bin")).unwrap();
        assert_eq!((*key, padding), ([b'B'; 64], Padding::Pkcs1v15));
    }
}

#[test]
fn what_is_not_a_dump_key_is_not_unwrapped() {
    let private = PrivateKey::from_pem(PRIVATE).unwrap();
    let other_size = private.unwrap(&[1; 512]).unwrap_err();
    assert!(matches!(other_size, RsaKeyError::OtherSize { own: 2048, theirs: 4096 }), "{other_size}");
    let short = private.unwrap(include_bytes!("test_keys/oaep-32-C.bin")).unwrap_err();
    assert!(matches!(short, RsaKeyError::DoesNotFit), "{short}");
    let beyond_modulus = private.unwrap(&[0xff; 256]).unwrap_err();
    assert!(matches!(beyond_modulus, RsaKeyError::DoesNotFit), "{beyond_modulus}");
}

#[test]
fn keys_of_the_wrong_kind_get_a_sentence() {
    let public = |pem: &[u8]| PublicKey::from_pem(pem).unwrap_err().to_string();
    let private = |pem: &[u8]| PrivateKey::from_pem(pem).unwrap_err().to_string();
    assert!(public(PRIVATE).contains("holds a \"PRIVATE KEY\""), "{}", public(PRIVATE));
    assert!(private(PUBLIC).contains("an RSA private key (PRIVATE KEY) is needed"), "{}", private(PUBLIC));
    let small = public(include_bytes!("test_keys/public-1024.pem"));
    assert!(small.contains("1024 bits") && small.contains("2048 to 16384"), "{small}");
    let ec = public(include_bytes!("test_keys/public-ec.pem"));
    assert!(ec.contains("not an RSA key") && ec.contains("1.2.840.10045.2.1"), "{ec}");
    assert_eq!(public(b""), "the file is empty");
    for der in [&[0x30, 0x82, 1, 0x22][..], b"text", b"\0\0"] {
        assert!(public(der).contains("no line begins with -----BEGIN"), "{}", public(der));
    }
    assert!(public(b"ssh-rsa AAAAB3NzaC1yc2E= me").contains("ssh-keygen -e -m PKCS8"));
    assert!(private(b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n").contains("OpenSSH"));
    let cut = public(&PUBLIC[..PUBLIC.len() / 2]);
    assert_eq!(cut, "this PEM is cut: its line -----END PUBLIC KEY----- is missing");
    let locked = [
        include_bytes!("test_keys/private-2048-encrypted.pem").as_slice(),
        include_bytes!("test_keys/private-2048-pkcs1-encrypted.pem"),
    ];
    for pem in locked {
        assert!(private(pem).contains("openssl pkey"), "{}", private(pem));
    }
}

#[test]
fn text_around_a_pem_and_other_keys_behind_it_do_not_matter() {
    let key = PublicKey::from_pem(PUBLIC).unwrap();
    let crlf = String::from_utf8(PUBLIC.to_vec()).unwrap().replace('\n', "\r\n");
    let files =
        [[b"Key of vm1:\n", PUBLIC, b"\nend\n"].concat(), [PUBLIC, PRIVATE].concat(), crlf.into_bytes()];
    for file in files {
        assert_eq!(PublicKey::from_pem(&file).unwrap(), key);
    }
}

#[test]
fn each_truncated_or_damaged_pem_is_refused() {
    for len in 0..PUBLIC.len() - 1 {
        assert!(PublicKey::from_pem(&PUBLIC[..len]).is_err(), "{len}");
    }
    for at in (30..PRIVATE.len() - 30).step_by(97) {
        let mut damaged = PRIVATE.to_vec();
        damaged[at] = b'!';
        assert!(PrivateKey::from_pem(&damaged).is_err(), "{at}");
    }
}

#[test]
fn debug_output_shows_no_secret() {
    let cipher = StreamCipher::new(Cipher::ChaCha20, &material(TC8_KEY), &iv(TC8_NONCE), Direction::Encrypt);
    assert_eq!(format!("{cipher:?}"), "StreamCipher(chacha20)");
    let private = format!("{:?}", PrivateKey::from_pem(PRIVATE).unwrap());
    assert!(private.contains("[...]"), "{private}");
}

#[test]
fn names_and_numbers_of_ciphers_are_freebsds() {
    assert_eq!(Cipher::by_name("aes-cbc"), Some(Cipher::Aes256Cbc));
    assert_eq!(Cipher::by_name("chacha20"), Some(Cipher::ChaCha20));
    assert_eq!(Cipher::by_name("none"), None);
    assert_eq!((Cipher::Aes256Cbc as u8, Cipher::ChaCha20 as u8), (1, 2));
    assert!(Cipher::ChaCha20.allows_compression() && !Cipher::Aes256Cbc.allows_compression());
}
