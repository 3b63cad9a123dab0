//! The digest of a core that is sent as it is, made by threads of their own from the core itself: the sender never waits
//! for them, and what was sent is held against what was there.
//!
//! As long as the core is being sent the threads take what the host has left, no more: sending is what the guest, the
//! network and the receiver wait for, and where the receiver shares the cores, it gets them. When all is sent, others with
//! the priority of the sender do what is left.

use std::num::NonZero;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};
use std::time::Duration;

use crate::digest::{BLOCK_LEN, Digest, Hash, MAX_LENGTH, PIECE_LEN, PieceHasher, ZERO_PIECE, piece_count};
use crate::reader::Reader;
use crate::zeros::are_zeros;
use crate::{ReadAt, ReadError};

/// Threads at most. So many hash 15 GB in a second.
const MAX_THREADS: usize = 4;
/// How much lower than the sender's the priority of these threads is while it sends, as in nice(1).
const NICE: i32 = 19;

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
    /// Starts threads for what is left.
    start_others: Option<Box<dyn FnOnce() + 'a>>,
    /// Its other ends are the threads' and theirs who are to start some.
    ended: Receiver<()>,
}

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

    /// Starts to hash beside a sender.
    pub(super) fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> Hashing<'scope> {
        let (alive, ended) = sync_channel(0);
        // Without the right to that, which a system may well withhold, it is done as fast.
        self.start_threads(scope, &alive, || {
            let _ = rustix::process::nice(NICE);
        });
        let start_others = move || {
            if !lock(&self.results).is_all_taken {
                self.start_threads(scope, &alive, || {});
            }
        };
        let Self { results, is_dropped, .. } = self;
        Hashing { results, is_dropped, start_others: Some(Box::new(start_others)), ended }
    }

    /// Starts as many threads as there are cores; none for a core that is too long for a digest.
    fn start_threads<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        alive: &SyncSender<()>,
        first: fn(),
    ) {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let count = cores.min(MAX_THREADS).min(lock(&self.results).pieces.len());
        for _ in 0..count {
            let alive = alive.clone();
            let started = Builder::new().name("hash".into()).spawn_scoped(scope, move || {
                first();
                // Of a core whose reader panics there is no digest.
                let ended = catch_unwind(AssertUnwindSafe(|| self.hash()));
                drop(alive);
                if let Ok(Err(error)) = ended {
                    tracing::debug!(%error, "no digest");
                }
            });
            if let Err(error) = started {
                tracing::warn!(%error, "starting a thread that hashes the core");
            }
        }
    }

    /// What each thread does.
    fn hash(&self) -> Result<(), ReadError> {
        let mut hasher = PieceHasher::default();
        let mut block = vec![0; index(BLOCK_LEN)];
        let mut runs = Vec::new();
        while let Some(piece) = self.take(&mut runs) {
            let mut at = piece.start;
            for run in &runs {
                hasher.zeros(run.start - at);
                at = run.start;
                while at < run.end {
                    if self.is_dropped.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    // To the block's end, to see whether it is zeros. It stays in the second cache meanwhile.
                    let end = run.end.min((at / BLOCK_LEN + 1) * BLOCK_LEN);
                    let bytes = &mut block[..index(end - at)];
                    self.image.read_at(at, bytes)?;
                    if are_zeros(bytes) {
                        hasher.zeros(end - at)
                    } else {
                        hasher.update(bytes)
                    }
                    at = end;
                }
            }
            hasher.zeros(piece.end - at);
            let hash = hasher.finish();
            let mut results = lock(&self.results);
            results.pieces[index(piece.start / PIECE_LEN)] = hash;
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
}

impl Hashing<'_> {
    /// All is sent: what is not hashed yet is the most urgent now. Until then it is not waited for.
    pub(super) fn hurry(&mut self) {
        if let Some(start) = self.start_others.take() {
            start();
        }
    }

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
            let mut hashing = work.start(scope);
            hashing.hurry();
            assert!(hashing.wait(PATIENCE));
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
            let mut hashing = work.start(scope);
            hashing.hurry();
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
