//! How a page is compressed.

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::super::paging::PAGE_SIZE;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);
/// As fast as can be: the network waits, and so does the guest.
const LEVEL: u32 = 1;

/// A compression that is written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// A zlib stream for each page.
    Zlib,
    /// A zstd frame for each page.
    Zstd,
}

impl Method {
    /// Its flag in the header and in a page's descriptor.
    pub(super) fn flag(self) -> u32 {
        match self {
            Self::Zlib => 1,
            Self::Zstd => 0x20,
        }
    }
}

/// Compresses page after page.
pub(super) enum Packer {
    Zlib(Box<Compress>),
    Zstd(zstd::bulk::Compressor<'static>),
    /// No compressor could be made: pages are stored as they are.
    None,
}

impl Packer {
    pub(super) fn new(method: Method) -> Self {
        match method {
            Method::Zlib => Self::Zlib(Box::new(Compress::new(Compression::new(LEVEL), true))),
            Method::Zstd => zstd::bulk::Compressor::new(1).map_or(Self::None, Self::Zstd),
        }
    }

    /// How many bytes of `out` are the page compressed; `None` when it would not become shorter.
    pub(super) fn pack(&mut self, page: &[u8; PAGE], out: &mut [u8; PAGE]) -> Option<usize> {
        let room = &mut out[..PAGE - 1];
        match self {
            Self::Zlib(compress) => {
                compress.reset();
                let status = compress.compress(page, room, FlushCompress::Finish).ok()?;
                (status == Status::StreamEnd).then(|| usize::try_from(compress.total_out()).ok())?
            }
            Self::Zstd(compressor) => compressor.compress_to_buffer(page, room).ok(),
            Self::None => None,
        }
    }
}

/// The page that `packed` holds by the flags of its descriptor.
pub(super) fn unpack(flags: u32, packed: &[u8], page: &mut [u8; PAGE]) -> io::Result<()> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "the page does not unpack to 4096 bytes");
    let len = match flags {
        0 => {
            *page = *packed.first_chunk().filter(|_| packed.len() == PAGE).ok_or_else(cut)?;
            PAGE
        }
        1 => {
            let mut decompress = Decompress::new(true);
            decompress.decompress(packed, page, FlushDecompress::Finish).map_err(io::Error::other)?;
            usize::try_from(decompress.total_out()).unwrap_or(0)
        }
        0x20 => zstd::bulk::decompress_to_buffer(packed, page)?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "pages in lzo or snappy are not read here",
            ));
        }
    };
    if len == PAGE { Ok(()) } else { Err(cut()) }
}
