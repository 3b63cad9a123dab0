//! Unpacking the kernel inside a bzImage. Which of Linux's compressors made it its first bytes tell (Linux
//! `lib/decompress.c`); the formats are made by Linux `scripts/Makefile.lib`.
//!
//! The packed kernel is hostile: how large it may become, and how much memory a decoder may take, is bounded. Every
//! decoder is a crate; only Linux's use of LZ4, the "legacy" frame that crates have no more, is taken apart here.

use std::io::{self, Read};

use thiserror::Error;

/// Largest unpacked kernel. Debian's have 50 to 70 MiB, one with every driver built in about three times that.
const MAX_LEN: usize = 512 << 20;
/// Most memory of an LZMA decoder, in KiB: Linux packs with a dictionary of 32 MiB, since 6.12 of 128 MiB.
const MAX_LZMA_KIB: u32 = 160 << 10;
/// Largest zstd window, as a power of two: Linux packs with `-22 --ultra`, which takes 128 MiB.
const MAX_ZSTD_WINDOW_LOG: u32 = 27;
/// Each block of an LZ4 legacy frame unpacks to at most this (`lz4_Frame_format.md`, "Legacy frame").
const LZ4_BLOCK: usize = 8 << 20;

/// Why a kernel cannot be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// No known magic number.
    #[error("it is packed in no format known here (it begins with {0:02x?})")]
    Format(Vec<u8>),
    /// It is more than the limit.
    #[error("unpacked it has more than {} MiB", MAX_LEN >> 20)]
    Large,
    /// It is another length than what was appended to it.
    #[error("unpacked it has {len} bytes where {expected} are announced")]
    Length {
        /// What came out.
        len: usize,
        /// What the file says.
        expected: usize,
    },
    /// The decoder gave up.
    #[error("it is damaged ({format})")]
    Damaged {
        /// What it is packed with.
        format: &'static str,
        /// What the decoder says.
        #[source]
        source: io::Error,
    },
}

/// A format: its name, how it begins, and what unpacks it to the announced length, where one is.
struct Format {
    name: &'static str,
    magic: &'static [u8],
    decoder: fn(&[u8]) -> io::Result<Box<dyn Read + '_>>,
    /// Whether Linux appends the unpacked length; gzip has that in its own trailer.
    has_length: bool,
}

/// Every format of Linux but lzop, which hardly anybody uses.
const FORMATS: [Format; 6] = [
    Format {
        name: "gzip",
        magic: b"\x1f\x8b",
        decoder: |bytes| Ok(Box::new(flate2::bufread::GzDecoder::new(bytes))),
        has_length: false,
    },
    Format {
        name: "LZ4",
        magic: b"\x02\x21\x4c\x18",
        decoder: |bytes| Ok(Box::new(Lz4Legacy::new(bytes))),
        has_length: true,
    },
    Format {
        name: "zstd",
        magic: b"\x28\xb5\x2f\xfd",
        decoder: |bytes| {
            let mut decoder = zstd::Decoder::with_buffer(bytes)?.single_frame();
            decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
            Ok(Box::new(decoder))
        },
        has_length: true,
    },
    Format {
        name: "xz",
        magic: b"\xfd7zXZ\0",
        decoder: |bytes| Ok(Box::new(lzma_rust2::XzReader::new_mem_limit(bytes, false, MAX_LZMA_KIB))),
        has_length: true,
    },
    Format {
        name: "LZMA",
        magic: b"\x5d\0\0",
        decoder: |bytes| Ok(Box::new(lzma_rust2::LzmaReader::new_mem_limit(bytes, MAX_LZMA_KIB, None)?)),
        has_length: true,
    },
    Format {
        name: "bzip2",
        magic: b"BZh",
        decoder: |bytes| Ok(Box::new(bzip2::bufread::BzDecoder::new(bytes))),
        has_length: true,
    },
];

/// Unpacks a bzImage's payload.
pub(super) fn unpack(payload: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let format = FORMATS.iter().find(|format| payload.starts_with(format.magic)).ok_or_else(|| {
        let head = payload.get(..6).unwrap_or(payload);
        UnpackError::Format(head.to_vec())
    })?;
    let (packed, expected) = match payload.split_last_chunk::<4>() {
        Some((packed, length)) if format.has_length => {
            (packed, Some(usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX)))
        }
        _ => (payload, None),
    };
    if expected.is_some_and(|expected| expected > MAX_LEN) {
        return Err(UnpackError::Large);
    }
    let damaged = |source| UnpackError::Damaged { format: format.name, source };
    // The announced length may be a lie: what is asked for at once is no more than a good packer makes of this much.
    let likely = expected.unwrap_or(0).min(packed.len().saturating_mul(16));
    let mut unpacked = Vec::with_capacity(likely);
    let limit = expected.unwrap_or(MAX_LEN);
    let decoder = (format.decoder)(packed).map_err(damaged)?;
    decoder.take(limit as u64 + 1).read_to_end(&mut unpacked).map_err(damaged)?;
    match expected {
        Some(expected) if unpacked.len() != expected => {
            Err(UnpackError::Length { len: unpacked.len(), expected })
        }
        None if unpacked.len() > MAX_LEN => Err(UnpackError::Large),
        _ => Ok(unpacked),
    }
}

/// The frame that `lz4 -l` writes: a magic number, then blocks, each behind its packed length as u32.
struct Lz4Legacy<'a> {
    rest: &'a [u8],
    block: Box<[u8]>,
    /// What of the block is still to be given.
    ready: std::ops::Range<usize>,
}

impl<'a> Lz4Legacy<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let rest = bytes.get(4..).unwrap_or_default();
        Self { rest, block: vec![0; LZ4_BLOCK].into(), ready: 0..0 }
    }

    /// Unpacks the next block; whether there was one.
    fn next_block(&mut self) -> io::Result<bool> {
        let Some((len, rest)) = self.rest.split_first_chunk::<4>() else { return Ok(false) };
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        let (packed, rest) = rest.split_at_checked(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        let unpacked = lz4_flex::block::decompress_into(packed, &mut self.block);
        let len = unpacked.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        (self.rest, self.ready) = (rest, 0..len);
        Ok(true)
    }
}

impl Read for Lz4Legacy<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.ready.is_empty() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let len = self.ready.len().min(buf.len());
        let part = self.ready.start..self.ready.start + len;
        buf[..len].copy_from_slice(&self.block[part]);
        self.ready.start += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the fixtures hold, packed by the tools that Linux's build uses, with its options: 400 calls of one address,
    /// as x86's branch filter (BCJ) likes it. Without the filter the xz file would be five times as long.
    fn calls() -> Vec<u8> {
        let call = |index: u32| {
            let offset = 0x20_0000_u32.wrapping_sub(index * 5 + 5);
            [&[0xe8], &offset.to_le_bytes()[..]].concat()
        };
        (0..400).flat_map(call).collect()
    }

    const PACKED: [(&str, &[u8], bool); 6] = [
        ("gzip", include_bytes!("fixtures/calls.gz"), false),
        ("LZ4", include_bytes!("fixtures/calls.lz4"), true),
        ("zstd", include_bytes!("fixtures/calls.zst"), true),
        ("xz", include_bytes!("fixtures/calls.xz"), true),
        ("LZMA", include_bytes!("fixtures/calls.lzma"), true),
        ("bzip2", include_bytes!("fixtures/calls.bz2"), true),
    ];

    /// A payload as Linux's build makes it, with this announced length.
    fn payload(packed: &[u8], has_length: bool, len: u32) -> Vec<u8> {
        let length = len.to_le_bytes();
        [packed, if has_length { &length } else { &[] }].concat()
    }

    #[test]
    fn what_linuxs_packers_made_is_unpacked() {
        for (name, packed, has_length) in PACKED {
            assert_eq!(unpack(&payload(packed, has_length, 2000)).unwrap(), calls(), "{name}");
        }
    }

    #[test]
    fn every_format_of_the_table_has_a_fixture() {
        assert!(FORMATS.iter().map(|f| f.name).eq(PACKED.iter().map(|p| p.0)));
    }

    #[test]
    fn a_length_that_does_not_hold_is_told() {
        for (name, packed, _) in PACKED.iter().filter(|packed| packed.2) {
            for announced in [0, 1999, 2001, 1 << 29] {
                let refused = unpack(&payload(packed, true, announced)).unwrap_err();
                let len = 2000.min(announced + 1) as usize;
                let told = match refused {
                    UnpackError::Length { len, expected } => (len, expected),
                    other => panic!("{name}: {other}"),
                };
                assert_eq!(told, (len, announced as usize), "{name}");
            }
            let refused = unpack(&payload(packed, true, (1 << 29) + 1)).unwrap_err();
            assert!(matches!(refused, UnpackError::Large), "{name}: {refused}");
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        for (name, packed, has_length) in PACKED {
            for len in 0..packed.len() - 1 {
                let refused = unpack(&payload(&packed[..len], has_length, 2000));
                // What follows the last byte of the content matters to some formats only.
                let whole = refused.as_ref().is_ok_and(|unpacked| *unpacked == calls());
                assert!(refused.is_err() || whole && len + 12 > packed.len(), "{name} at {len}");
            }
        }
    }

    #[test]
    fn formats_that_are_not_known_are_told_by_their_first_bytes() {
        let refused = unpack(b"\x89LZO\0\r\n and so on").unwrap_err().to_string();
        assert_eq!(refused, "it is packed in no format known here (it begins with [89, 4c, 5a, 4f, 00, 0d])");
        assert!(matches!(unpack(b""), Err(UnpackError::Format(head)) if head.is_empty()));
    }

    #[test]
    fn a_decoder_gets_no_more_memory_than_linux_needs() {
        // LZMA: properties, a dictionary of 4 GiB less one byte, unknown length.
        let refused = unpack(b"\x5d\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\x10\0\0\0");
        assert!(matches!(refused, Err(UnpackError::Format(_) | UnpackError::Damaged { .. })), "{refused:?}");
        let refused = unpack(b"\x5d\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\x10\0\0\0");
        assert!(matches!(refused, Err(UnpackError::Damaged { format: "LZMA", .. })), "{refused:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn damaged_payloads_are_refused_or_unpacked(
            which in 0..PACKED.len(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let (_, packed, has_length) = PACKED[which];
            let mut payload = payload(packed, has_length, 2000);
            for (at, byte) in damage {
                let at = at.index(payload.len());
                payload[at] = byte;
            }
            if let Ok(unpacked) = unpack(&payload) {
                prop_assert!(unpacked.len() <= MAX_LEN);
            }
        }
    }
}
