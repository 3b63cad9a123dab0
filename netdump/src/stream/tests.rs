//! Whole streams, unpacked by the libraries' own one-shot decoders.

use std::io::Read;
use std::ops::Range;
use std::time::Duration;

use proptest::prelude::*;

use super::backlog::StreamEnd;
use super::*;
use crate::digest::Digest;
use crate::ekcd::{Cipher, Direction, IV_LEN, KEY_MATERIAL, KeyMaterial};

/// A core with holes, which read as zeros.
#[derive(Debug)]
struct Core {
    bytes: Vec<u8>,
    runs: Vec<Range<usize>>,
}

impl Core {
    /// Pieces of noise of so many bits a byte, each behind a hole.
    fn new(pieces: &[(usize, usize, u32)], tail: usize) -> Self {
        let mut core = Self { bytes: Vec::new(), runs: Vec::new() };
        let mut noise = 1_u64;
        for &(hole, len, bits) in pieces {
            let start = core.bytes.len() + hole;
            core.bytes.resize(start, 0);
            core.bytes.extend((0..len).map(|_| {
                noise = noise.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                u8::try_from((noise >> 40) & ((1 << bits) - 1)).unwrap()
            }));
            core.runs.push(start..core.bytes.len());
        }
        core.bytes.resize(core.bytes.len() + tail, 0);
        core
    }
}

impl ReadAt for Core {
    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.bytes.as_slice().read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let run = self.runs.iter().find(|run| run.end as u64 > offset)?;
        Some((run.start as u64).max(offset)..run.end as u64)
    }
}

/// The whole stream, padding included, taken in pieces of at most `take` bytes.
fn stream(core: &Core, packing: &Packing, cipher: Option<StreamCipher>, take: usize) -> (Vec<u8>, StreamEnd) {
    let backlog = Backlog::default();
    std::thread::scope(|scope| {
        scope.spawn(|| pack(core, packing.compressor(), cipher, &backlog));
        let mut stream = Vec::new();
        loop {
            backlog.wait_for_news(stream.len() as u64, Duration::from_secs(10));
            let end = backlog.take_end();
            while (stream.len() as u64) < backlog.length() {
                let available = usize::try_from(backlog.length()).unwrap() - stream.len();
                let mut piece = vec![0; available.min(take)];
                backlog.read_at(stream.len() as u64, &mut piece).unwrap();
                stream.extend(piece);
                backlog.release(stream.len() as u64);
            }
            if let Some(end) = end {
                return (stream, end.unwrap());
            }
        }
    })
}

fn compressed(method: Method, level: u8) -> Packing {
    Packing::new(Some(format!("{method}:{level}").parse().unwrap()), None).unwrap()
}

/// The stream without its padding, which must be what it should.
fn stored(core: &Core, packing: &Packing, take: usize) -> Vec<u8> {
    let (mut stream, end) = stream(core, packing, None, take);
    assert_eq!((end.sent, end.sent % u64::from(BLOCK_SIZE)), (stream.len() as u64, 0));
    let padding = stream.split_off(usize::try_from(end.stored).unwrap());
    assert!(padding.len() < BLOCK_SIZE as usize && padding.iter().all(|&byte| byte == 0));
    assert_eq!(end.digest, Some(Digest::of(&stream)));
    stream
}

/// What is left behind one gzip member is an error here.
fn gunzip(mut file: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::bufread::GzDecoder::new(&mut file).read_to_end(&mut bytes).unwrap();
    assert!(file.is_empty());
    bytes
}

fn unzstd(file: &[u8]) -> Vec<u8> {
    assert_eq!(::zstd::zstd_safe::find_frame_compressed_size(file), Ok(file.len()), "one frame");
    let content = ::zstd::zstd_safe::get_frame_content_size(file).unwrap();
    assert!(content.unwrap_or(0) == 0, "content size unknown, unless there is none");
    assert_ne!(file[4] & 4, 0, "content checksum on");
    ::zstd::decode_all(file).unwrap()
}

#[test]
fn every_level_gives_the_core_back() {
    let core = Core::new(&[(0, 300_000, 8), (600_000, 400_000, 3)], 300_001);
    for method in Method::ALL {
        for level in method.levels() {
            let file = stored(&core, &compressed(method, level), 1 << 20);
            let back = if method == Method::Gzip { gunzip(&file) } else { unzstd(&file) };
            assert!(back == core.bytes, "{method}:{level}");
            assert!(file.len() < 620_000, "{method}:{level} gives {} bytes", file.len());
        }
    }
}

#[test]
fn header_and_trailer_of_gzip_are_freebsds() {
    let core = Core::new(&[(0, 300_000, 4)], 0);
    let file = stored(&core, &compressed(Method::Gzip, 6), 4096);
    assert_eq!(file[..9], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0]);
    let trailer = [crc32fast::hash(&core.bytes).to_le_bytes(), 300_000_u32.to_le_bytes()].concat();
    assert_eq!(file[file.len() - 8..], trailer);
}

fn cipher(cipher: Cipher, direction: Direction) -> StreamCipher {
    StreamCipher::new(cipher, &KeyMaterial::new([5; KEY_MATERIAL]), &[6; IV_LEN], direction)
}

#[test]
fn what_is_encrypted_is_the_packed_core_with_its_padding() {
    let core = Core::new(&[(5000, 300_001, 4)], 10);
    let cases = [
        (Packing::default(), Cipher::Aes256Cbc),
        (Packing::default(), Cipher::ChaCha20),
        (compressed(Method::Gzip, 6), Cipher::ChaCha20),
        (compressed(Method::Zstd, 6), Cipher::ChaCha20),
    ];
    for (packing, with) in cases {
        let (plain, plain_end) = stream(&core, &packing, None, 100_000);
        let (mut encrypted, end) = stream(&core, &packing, Some(cipher(with, Direction::Encrypt)), 100_000);
        assert_eq!((end.stored, end.sent), (plain_end.stored, plain_end.sent));
        let stored = &encrypted[..usize::try_from(end.stored).unwrap()];
        assert_eq!(end.digest, Some(Digest::of(stored)));
        assert_ne!(encrypted[encrypted.len() - 16..], [0; 16], "the padding is encrypted too");
        cipher(with, Direction::Decrypt).apply(&mut encrypted).unwrap();
        assert!(encrypted == plain);
        if packing.compressor().is_none() {
            assert_eq!((end.stored, end.sent), (307_200, 307_200), "whole blocks");
            assert!(encrypted[..305_011] == core.bytes && encrypted[305_011..] == [0; 2189]);
        }
    }
}

#[test]
fn an_empty_core_gives_an_empty_file() {
    let core = Core::new(&[], 0);
    assert!(gunzip(&stored(&core, &compressed(Method::Gzip, 6), 1)).is_empty());
    assert!(unzstd(&stored(&core, &compressed(Method::Zstd, 6), 1)).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_core_taken_in_any_pieces_is_given_back(
        pieces in prop::collection::vec((0..600_000_usize, 0..500_000_usize, 0..9_u32), 0..4),
        tail in 0..300_000_usize,
        level in 1..4_u8,
        take in 1..100_000_usize,
    ) {
        let core = Core::new(&pieces, tail);
        let take = take.max(core.bytes.len() / 2000);
        prop_assert!(gunzip(&stored(&core, &compressed(Method::Gzip, level), take)) == core.bytes);
        prop_assert!(unzstd(&stored(&core, &compressed(Method::Zstd, level), take)) == core.bytes);
    }
}
