//! One zstd frame (RFC 8878) with a checksum and without the length of its content, compressed by the library's own
//! threads.

use std::io::{self, Write};

use ::zstd::stream::write::Encoder;
use ::zstd::zstd_safe::CParameter;

use super::seal::Sealer;
use super::{Method, StreamError, source};
use crate::ReadAt;
use crate::reader::Reader;

/// What one of the library's threads compresses at a time. The default is several times that, and it keeps a few.
const JOB_SIZE: u32 = 2 << 20;

/// How much of the window a job is given from before it: an eighth, as 9 is all of it and each less halves it. That is
/// the library's own choice for lower levels. Its choices for higher ones make each job as long as several MiB before it,
/// whatever [`JOB_SIZE`] says, and a dump that is stopped waits for the jobs that were begun.
const OVERLAP_LOG: u32 = 6;

/// Compresses `image` in `threads` threads of the library.
pub(super) fn compress(
    image: &(dyn ReadAt + Sync),
    level: u8,
    threads: usize,
    sealer: &mut Sealer<'_>,
) -> Result<(), StreamError> {
    let failed = |source| StreamError::Compress { method: Method::Zstd, source };
    let threads = u32::try_from(threads).unwrap_or(1);
    let mut encoder = encoder(level, threads, Output { sealer, packed: 0 }).map_err(failed)?;
    let mut reader = Reader::new(image);
    for block in source::blocks(image.length()) {
        let mut bytes = source::buffer(&block);
        reader.read(block.start, &mut bytes)?;
        encoder.get_mut().packed = block.end;
        encoder.write_all(&bytes).map_err(failed)?;
    }
    encoder.finish().map_err(failed)?;
    Ok(())
}

fn encoder<W: Write>(level: u8, threads: u32, output: W) -> io::Result<Encoder<'static, W>> {
    let mut encoder = Encoder::new(output, i32::from(level))?;
    encoder.include_checksum(true)?;
    encoder.multithread(threads)?;
    encoder.set_parameter(CParameter::JobSize(JOB_SIZE))?;
    encoder.set_parameter(CParameter::OverlapSizeLog(OVERLAP_LOG))?;
    Ok(encoder)
}

/// Where the frame goes.
struct Output<'s, 'b> {
    sealer: &'s mut Sealer<'b>,
    /// Bytes of the core that the library has taken: some MiB more than it has given back.
    packed: u64,
}

impl Write for Output<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sealer.put(bytes, self.packed).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
