//! One gzip member (RFC 1952), compressed in several threads.
//!
//! Each thread reads and deflates every n-th block of the core. A block ends with a sync flush, so that blocks can be
//! joined at bytes, and refers to nothing before it; an empty last block and the trailer follow. The checksums of the
//! blocks are combined into that of the core.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crc32fast::Hasher;
use flate2::{Compress, Compression, FlushCompress};

use super::seal::Sealer;
use super::source;
use super::{Method, READ_SIZE, StreamError};
use crate::ReadAt;
use crate::reader::{Content, Reader};

/// Deflate, no name, no time, written on Unix.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
/// An empty block that says it is the last: fixed codes, end of block.
const LAST_BLOCK: [u8; 2] = [0x03, 0x00];

/// Room for a deflated block beside 9 bits for each byte of it, which the fixed codes need at worst. It is never used
/// up, so that one call flushes everything; zlib-rs 0.6.8 panics where level 1 runs out of room.
const MARGIN: usize = 1024;

/// A block as it is stored.
#[derive(Clone)]
struct Packed {
    bytes: Vec<u8>,
    crc: Hasher,
}

type Packings = Receiver<Result<Packed, StreamError>>;

/// Compresses `image` in `threads` threads of its own.
pub(super) fn compress(
    image: &(dyn ReadAt + Sync),
    level: u8,
    threads: usize,
    sealer: &mut Sealer<'_>,
) -> Result<(), StreamError> {
    std::thread::scope(|scope| {
        let mut handles = Vec::with_capacity(threads);
        let mut packings = Vec::with_capacity(threads);
        let mut started = Ok(());
        for first in 0..threads {
            let (sender, receiver) = sync_channel(1);
            match start(scope, Worker::new(image, level), (first, threads), sender) {
                Ok(handle) => handles.push(handle),
                Err(error) => started = Err(StreamError::Thread(error)),
            }
            packings.push(receiver);
        }
        let collected = started.and_then(|()| collect(image.length(), &packings, sealer));
        // Without their receivers the threads end.
        drop(packings);
        let ends: Vec<_> = handles.into_iter().map(ScopedJoinHandle::join).collect();
        if ends.iter().any(Result::is_err) { Err(StreamError::Panicked) } else { collected }
    })
}

/// Starts the thread that packs the blocks `first`, `first + step` and so on.
fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    mut worker: Worker<'scope>,
    (first, step): (usize, usize),
    sender: SyncSender<Result<Packed, StreamError>>,
) -> io::Result<ScopedJoinHandle<'scope, ()>> {
    Builder::new().name("gzip".into()).spawn_scoped(scope, move || {
        for block in source::blocks(worker.reader.length()).skip(first).step_by(step) {
            let packed = worker.pack(block.start, source::buffer(&block));
            if sender.send(packed).is_err() {
                return;
            }
        }
    })
}

/// Joins the blocks, of which the threads have every n-th.
fn collect(length: u64, packings: &[Packings], sealer: &mut Sealer<'_>) -> Result<(), StreamError> {
    let mut crc = Hasher::new();
    sealer.put(&HEADER, 0)?;
    for (block, packing) in source::blocks(length).zip(packings.iter().cycle()) {
        let packed = packing.recv().map_err(|_| StreamError::Panicked)??;
        crc.combine(&packed.crc);
        sealer.put(&packed.bytes, block.end)?;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the trailer has the length modulo 2^32")]
    let length = length as u32;
    let trailer = [&LAST_BLOCK[..], &crc.finalize().to_le_bytes(), &length.to_le_bytes()].concat();
    Ok(sealer.put(&trailer, u64::MAX)?)
}

/// One thread's compressor.
struct Worker<'a> {
    reader: Reader<'a>,
    deflate: Compress,
    /// A whole block of untouched zeros: a guest may have many GiB of them.
    hole: Option<Packed>,
}

impl<'a> Worker<'a> {
    fn new(image: &'a (dyn ReadAt + Sync), level: u8) -> Self {
        Self {
            reader: Reader::new(image),
            deflate: Compress::new(Compression::new(u32::from(level)), false),
            hole: None,
        }
    }

    /// Reads and packs the block at `offset`, for which there is room in `block`.
    fn pack(&mut self, offset: u64, mut block: Vec<u8>) -> Result<Packed, StreamError> {
        let content = self.reader.read(offset, &mut block)?;
        if content == Content::Data || block.len() < READ_SIZE {
            return self.deflate(&block);
        }
        let hole = match self.hole.take() {
            Some(hole) => hole,
            None => self.deflate(&block)?,
        };
        Ok(self.hole.insert(hole).clone())
    }

    fn deflate(&mut self, block: &[u8]) -> Result<Packed, StreamError> {
        let mut crc = Hasher::new();
        crc.update(block);
        let mut bytes = Vec::with_capacity(block.len() + block.len() / 8 + MARGIN);
        self.deflate.reset();
        let done = self.deflate.compress_vec(block, &mut bytes, FlushCompress::Sync);
        let failed = |source| StreamError::Compress { method: Method::Gzip, source };
        done.map_err(|error| failed(error.into()))?;
        if self.deflate.total_in() != block.len() as u64 || bytes.len() == bytes.capacity() {
            return Err(failed(io::Error::other("deflate made more of a block than it can")));
        }
        Ok(Packed { bytes, crc })
    }
}
