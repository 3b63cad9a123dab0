//! Cores that are packed on their way: compressed, encrypted, or both, in this order.
//!
//! ```text
//! core -> compressor (its own threads) -> cipher -> padding to whole blocks -> Backlog -> client
//! ```
//!
//! The stream is the one that FreeBSD's kernel makes (`kern_shutdown.c`, `subr_compressor.c`): one gzip member or one
//! zstd frame, then zeros up to a multiple of 4096 bytes, then encrypted, the padding included. Offsets of VMCORE
//! messages are positions in it. Of a compressed stream `dumplength` leaves the padding out, and receivers cut the file
//! there; a stream that is only encrypted consists of whole blocks, as ciphers want it, and `dumplength` counts them.
//!
//! Memory stays flat: a block for each thread and what is not acknowledged yet (`backlog.rs`). Nobody copies the guest,
//! and what it never touched is not read either.

pub(crate) mod backlog;
mod compressor;
mod gzip;
mod packing;
mod seal;
mod source;
mod zstd;

use std::io;
use std::num::NonZero;

use self::backlog::{Abandoned, Backlog};
pub use self::compressor::{CompressOption, Compressor, DEFAULT_LEVEL, Method, ParseCompressError};
pub use self::packing::{Encryption, Packing, PackingError};
use self::seal::Sealer;
use crate::ekcd::StreamCipher;
use crate::reader::Reader;
use crate::{ReadAt, ReadError};

/// Block size of a netdump (FreeBSD `netdump_client.c`): streams are padded to it.
pub const BLOCK_SIZE: u32 = 4096;
/// The core is read in blocks of this size.
const READ_SIZE: usize = 256 << 10;
/// Compressing threads at most: more would cost memory and be faster than the network.
const MAX_THREADS: usize = 4;

/// Why a core could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The core could not be read.
    #[error("reading the core")]
    Read(#[from] ReadError),
    /// The compressor failed.
    #[error("compressing with {method}")]
    Compress {
        /// The compressor.
        method: Method,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// No thread to work in.
    #[error("starting a thread that packs the core")]
    Thread(#[source] io::Error),
    /// A thread that packs has panicked.
    #[error("a thread that packs the core has panicked")]
    Panicked,
    /// Nobody takes the stream any more.
    #[error("packing was stopped")]
    Abandoned,
}

impl From<Abandoned> for StreamError {
    fn from(Abandoned: Abandoned) -> Self {
        Self::Abandoned
    }
}

/// Packs a core into `backlog`, in this thread and others that end before it returns. The backlog is told of the end.
pub(crate) fn pack(
    image: &(dyn ReadAt + Sync),
    compressor: Option<Compressor>,
    cipher: Option<StreamCipher>,
    backlog: &Backlog,
) {
    let _told = TellOfPanic(backlog);
    let mut sealer = Sealer::new(backlog, cipher);
    let packed = match compressor {
        None => copy(image, &mut sealer),
        Some(Compressor { method: Method::Gzip, level }) => {
            gzip::compress(image, level, threads(), &mut sealer)
        }
        Some(Compressor { method: Method::Zstd, level }) => {
            zstd::compress(image, level, threads(), &mut sealer)
        }
    };
    backlog.end(packed.and_then(|()| Ok(sealer.finish(compressor.is_some())?)));
}

/// The core as it is, for the cipher.
fn copy(image: &(dyn ReadAt + Sync), sealer: &mut Sealer<'_>) -> Result<(), StreamError> {
    let mut reader = Reader::new(image);
    for block in source::blocks(image.length()) {
        let mut bytes = source::buffer(&block);
        reader.read(block.start, &mut bytes)?;
        sealer.put(&bytes, block.end)?;
    }
    Ok(())
}

/// Compressing threads on this machine.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS)
}

/// The driver must not wait for a thread that is gone.
struct TellOfPanic<'a>(&'a Backlog);

impl Drop for TellOfPanic<'_> {
    fn drop(&mut self) {
        // The first word counts: this is one only when there was no other.
        if std::thread::panicking() {
            self.0.end(Err(StreamError::Panicked));
        }
    }
}

#[cfg(test)]
mod tests;
