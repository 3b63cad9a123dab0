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
