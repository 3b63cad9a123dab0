//! The digest of a core that is sent as it is, made by threads of their own from the core itself: the sender never waits
//! for them, and what was sent is held against what was there.

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Duration;

use crate::digest::{Digest, Hash, MAX_LENGTH, PIECE_LEN, PieceHasher, ZERO_PIECE, piece_count};
use crate::reader::Reader;
use crate::zeros::are_zeros;
use crate::{ReadAt, ReadError};

/// Threads at most. So many hash 15 GB in a second.
const MAX_THREADS: usize = 4;
/// Read and hashed at a time: it stays in the second cache between the two, and BLAKE3 is slow on less than 64 KiB.
const BLOCK: usize = 128 << 10;

/// What the threads share.
pub(super) struct Work<'a> {
    image: &'a (dyn ReadAt + Sync),
    queue: Mutex<Queue<'a>>,
    results: Mutex<Results>,
    /// Nobody wants the digest any more.
    is_dropped: AtomicBool,
}

/// What is to be hashed.
struct Queue<'a> {
    reader: Reader<'a>,
    /// Pieces before this offset are hashed, or a thread is at it.
    next: u64,
}

/// What is hashed.
struct Results {
    length: u64,
    pieces: Vec<Hash>,
    /// Pieces that a thread took, and those of them that are hashed.
    taken: usize,
    done: usize,
    /// Whether there are no more to take.
    is_all_taken: bool,
}

/// A digest that is being made. The threads end when it is dropped.
pub(super) struct Hashing<'a> {
    results: &'a Mutex<Results>,
    is_dropped: &'a AtomicBool,
    /// Its other ends are the threads'.
    ended: Receiver<()>,
}

/// The threads, which are to be joined: they may have panicked.
pub(super) type Threads<'scope> = Vec<ScopedJoinHandle<'scope, ()>>;

impl<'a> Work<'a> {
    pub(super) fn new(image: &'a (dyn ReadAt + Sync)) -> Self {
        let length = image.length();
        let pieces = if length <= MAX_LENGTH { vec![*ZERO_PIECE; piece_count(length)] } else { Vec::new() };
        Self {
            image,
            queue: Mutex::new(Queue { reader: Reader::new(image), next: 0 }),
            results: Mutex::new(Results { length, pieces, taken: 0, done: 0, is_all_taken: length == 0 }),
            is_dropped: AtomicBool::new(false),
        }
    }

    /// Starts the threads; none for a core that is too long for a digest.
    pub(super) fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
    ) -> (Hashing<'scope>, Threads<'scope>) {
        let (sender, ended) = sync_channel(0);
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let count = cores.min(MAX_THREADS).min(lock(&self.results).pieces.len());
        let threads = (0..count).filter_map(|_| {
            let sender: SyncSender<()> = sender.clone();
            let started = Builder::new().name("hash".into()).spawn_scoped(scope, move || {
                let ended = self.hash();
                drop(sender);
                if let Err(error) = ended {
                    tracing::debug!(%error, "no digest");
                }
            });
            started.inspect_err(|error| tracing::warn!(%error, "starting a thread that hashes the core")).ok()
        });
        let threads = threads.collect();
        (Hashing { results: &self.results, is_dropped: &self.is_dropped, ended }, threads)
    }

    /// What each thread does.
    fn hash(&self) -> Result<(), ReadError> {
        let mut hasher = PieceHasher::default();
        let mut block = vec![0; BLOCK];
        let mut runs = Vec::new();
        while let Some(piece) = self.take(&mut runs) {
            let start = piece.start;
            for part in piece.clone().step_by(BLOCK) {
                if self.is_dropped.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let part = part..piece.end.min(part + BLOCK as u64);
                let bytes = &mut block[..index(part.end - part.start)];
                if self.read(&part, &runs, bytes)? && !are_zeros(bytes) {
                    hasher.update(bytes);
                } else {
                    hasher.zeros(bytes.len() as u64);
                }
            }
            let hash = hasher.finish();
            let mut results = lock(&self.results);
            results.pieces[index(start / PIECE_LEN)] = hash;
            results.done += 1;
        }
        Ok(())
    }

    /// The next piece that has data, or is the last and shorter, with the runs of data in it.
    fn take(&self, runs: &mut Vec<Range<u64>>) -> Option<Range<u64>> {
        let Queue { reader, next } = &mut *lock(&self.queue);
        let length = reader.length();
        let data = reader.next_data(*next);
        let start = data.start.min(length.saturating_sub(1)) / PIECE_LEN * PIECE_LEN;
        let piece = start.max(*next)..length.min(start + PIECE_LEN);
        if piece.is_empty() || (data.is_empty() && piece.end - piece.start == PIECE_LEN) {
            lock(&self.results).is_all_taken = true;
            return None;
        }
        runs.clear();
        let mut run = data;
        while run.start < run.end.min(piece.end) {
            runs.push(run.start..run.end.min(piece.end));
            run = reader.next_data(run.end.min(piece.end));
        }
        *next = piece.end;
        lock(&self.results).taken += 1;
        Some(piece)
    }

    /// Fills `bytes` with a part of the core that has data in these runs only; whether it has any.
    fn read(&self, part: &Range<u64>, runs: &[Range<u64>], bytes: &mut [u8]) -> Result<bool, ReadError> {
        let inside = runs.iter().map(|run| run.start.max(part.start)..run.end.min(part.end));
        let (mut at, mut has_data) = (part.start, false);
        for run in inside.filter(|run| !run.is_empty()) {
            let (hole, rest) = bytes[index(at - part.start)..].split_at_mut(index(run.start - at));
            hole.fill(0);
            self.image.read_at(run.start, &mut rest[..index(run.end - run.start)])?;
            (at, has_data) = (run.end, true);
        }
        bytes[index(at - part.start)..].fill(0);
        Ok(has_data)
    }
}

impl Hashing<'_> {
    /// Waits at most so long; whether all threads have ended.
    pub(super) fn wait(&self, wait: Duration) -> bool {
        self.ended.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected)
    }

    /// The digest, if all is hashed.
    pub(super) fn digest(&self) -> Option<Digest> {
        let mut results = lock(self.results);
        let is_whole = results.is_all_taken && results.done == results.taken;
        is_whole.then(|| Digest { length: results.length, pieces: std::mem::take(&mut results.pieces) })
    }
}

impl Drop for Hashing<'_> {
    fn drop(&mut self) {
        self.is_dropped.store(true, Ordering::Relaxed);
    }
}

/// What is locked is whole between any two statements that change it, so a panic of another thread does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn index(len: u64) -> usize {
    usize::try_from(len).expect("pieces are few and small")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Bytes with holes between runs of data, of which it counts what is read.
    #[derive(Debug, Default)]
    struct Sparse {
        bytes: Vec<u8>,
        runs: Vec<Range<u64>>,
        read: AtomicU64,
    }

    impl Sparse {
        /// Pieces of a byte, each behind a hole.
        fn new(pieces: &[(usize, usize, u8)], tail: usize) -> Self {
            let mut core = Self::default();
            for &(hole, len, byte) in pieces {
                let start = core.bytes.len() + hole;
                core.bytes.resize(start, 0);
                core.bytes.resize(start + len, byte);
                core.runs.push(start as u64..(start + len) as u64);
            }
            core.bytes.resize(core.bytes.len() + tail, 0);
            core
        }
    }

    impl ReadAt for Sparse {
        fn length(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
            self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
            self.bytes.as_slice().read_at(offset, buf)
        }

        fn next_data(&self, offset: u64) -> Option<Range<u64>> {
            let run = self.runs.iter().find(|run| run.end > offset)?;
            Some(run.start.max(offset)..run.end)
        }
    }

    fn digest(image: &(dyn ReadAt + Sync)) -> Option<Digest> {
        let work = Work::new(image);
        std::thread::scope(|scope| {
            let (hashing, threads) = work.start(scope);
            assert!(hashing.wait(PATIENCE));
            threads.into_iter().for_each(|thread| drop(thread.join()));
            hashing.digest()
        })
    }

    #[test]
    fn holes_are_not_read() {
        let core = Sparse::new(&[(3 << 20, 5, 1), ((5 << 20) - 100, 300, 2)], 7 << 20);
        assert_eq!(digest(&core), Some(Digest::of(&core.bytes)));
        assert_eq!(core.read.into_inner(), 305);
    }

    #[test]
    fn many_tebibytes_of_nothing_take_no_time_and_more_has_no_digest() {
        /// Holds nothing, and cannot be read.
        struct Nothing(u64);
        impl ReadAt for Nothing {
            fn length(&self) -> u64 {
                self.0
            }
            fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), ReadError> {
                panic!("a hole is read")
            }
            fn next_data(&self, _offset: u64) -> Option<Range<u64>> {
                None
            }
        }
        let mut zeros = crate::digest::Digester::new();
        zeros.zeros((1 << 40) + 5);
        assert_eq!(digest(&Nothing((1 << 40) + 5)), zeros.finish());
        assert!(digest(&Nothing(MAX_LENGTH)).is_some());
        assert_eq!([MAX_LENGTH + 1, u64::MAX].map(|length| digest(&Nothing(length))), [None, None]);
    }

    #[test]
    fn what_cannot_be_read_has_no_digest() {
        /// Its fourth MiB fails, one way or another.
        struct Bad(fn() -> ReadError);
        impl ReadAt for Bad {
            fn length(&self) -> u64 {
                10 << 20
            }
            fn read_at(&self, offset: u64, _buf: &mut [u8]) -> Result<(), ReadError> {
                if offset < 3 << 20 { Ok(()) } else { Err((self.0)()) }
            }
        }
        assert_eq!(digest(&Bad(|| ReadError::OutOfRange { offset: 1, len: 2, total: 3 })), None);
        assert_eq!(digest(&Bad(|| panic!("a bug in a reader (this test wants it)"))), None);
    }

    #[test]
    fn nobody_hashes_on_for_a_dump_that_has_ended() {
        /// So much that it takes minutes.
        struct Endless;
        impl ReadAt for Endless {
            fn length(&self) -> u64 {
                MAX_LENGTH
            }
            fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
                buf.fill(1);
                Ok(())
            }
        }
        let started = Instant::now();
        let work = Work::new(&Endless);
        std::thread::scope(|scope| {
            let (hashing, _threads) = work.start(scope);
            assert!(!hashing.wait(Duration::from_millis(20)));
            assert_eq!(hashing.digest(), None);
        });
        assert!(started.elapsed() < PATIENCE);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_digest_is_that_of_the_bytes(
            pieces in prop::collection::vec((0..3_000_000_usize, 1..1_500_000_usize, 0..3_u8), 0..4),
            tail in 0..3_000_000_usize,
        ) {
            let core = Sparse::new(&pieces, tail);
            prop_assert_eq!(digest(&core), Some(Digest::of(&core.bytes)));
        }
    }
}
