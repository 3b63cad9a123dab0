//! The digest of a file, its pieces hashed by several threads; holes are not read.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::digest::{Digest, Digester, Hash, MAX_LENGTH, PIECE_LEN};
use crate::vmcore::CoreFile;

/// More threads than this are of no use: memory is no faster for them.
const MAX_THREADS: usize = 8;

/// The digest of a whole file; `None` when it is longer than [`MAX_LENGTH`].
///
/// `progress` is called now and then with the bytes that are done and the bytes in all. Each thread takes a MiB of memory,
/// and the hashes 32 bytes for each MiB of the file.
pub(crate) fn digest_of(file: &CoreFile, progress: &mut dyn FnMut(u64, u64)) -> io::Result<Option<Digest>> {
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get().min(MAX_THREADS));
    digest_by(file, threads, progress)
}

fn digest_by(
    file: &CoreFile,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<Option<Digest>> {
    let length = file.length();
    if length > MAX_LENGTH {
        return Ok(None);
    }
    let work = Work {
        file,
        queue: Mutex::new(Queue { at: 0, data: file.next_data(0) }),
        done: AtomicU64::new(0),
        failed: AtomicBool::new(false),
    };
    let hashed: Vec<io::Result<Vec<Hashed>>> = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| work.hash(&mut |_| {}))).collect();
        let own = work.hash(&mut |done| progress(done, length));
        let joined = others.into_iter().map(|other| other.join().unwrap_or_else(|_| Err(panicked())));
        std::iter::once(own).chain(joined).collect()
    });
    let mut pieces = digest_of_zeros(length).pieces;
    for hashed in hashed {
        for Hashed { piece, hash } in hashed? {
            *pieces.get_mut(piece).ok_or_else(panicked)? = hash;
        }
    }
    progress(length, length);
    Ok(Some(Digest { length, pieces }))
}

fn panicked() -> io::Error {
    io::Error::other("a thread that hashes has failed")
}

fn digest_of_zeros(length: u64) -> Digest {
    let mut digester = Digester::new();
    digester.zeros(length);
    digester.finish().expect("it is not too long")
}

/// The hash of a piece that is not all hole.
struct Hashed {
    piece: usize,
    hash: Hash,
}

/// What the threads share.
struct Work<'a> {
    file: &'a CoreFile,
    queue: Mutex<Queue>,
    done: AtomicU64,
    failed: AtomicBool,
}

impl Work<'_> {
    /// Hashes pieces until none is left, or one of the threads has failed.
    fn hash(&self, progress: &mut dyn FnMut(u64)) -> io::Result<Vec<Hashed>> {
        let mut hashed = Vec::new();
        let mut buffer = vec![0; usize::try_from(PIECE_LEN).expect("a MiB")];
        while !self.failed.load(Ordering::Relaxed) {
            let next = self.queue.lock().map_err(|_| panicked())?.next(self.file);
            let Some(range) = next else { break };
            let len = usize::try_from(range.end - range.start).expect("a MiB at most");
            let bytes = buffer.get_mut(..len).ok_or_else(panicked)?;
            self.file.read(range.start, bytes).inspect_err(|_| self.failed.store(true, Ordering::Relaxed))?;
            let piece = usize::try_from(range.start / PIECE_LEN).expect("far below 2^32");
            hashed.push(Hashed { piece, hash: *blake3::hash(bytes).as_bytes() });
            progress(self.done.fetch_max(range.end, Ordering::Relaxed).max(range.end));
        }
        Ok(hashed)
    }
}

/// The pieces that hold data, in ascending order.
struct Queue {
    /// Where the next piece may begin.
    at: u64,
    /// Data that reaches beyond `at`, as far as it is known.
    data: Option<Range<u64>>,
}

impl Queue {
    fn next(&mut self, file: &CoreFile) -> Option<Range<u64>> {
        if self.data.as_ref().is_none_or(|data| data.end <= self.at) {
            self.data = file.next_data(self.at);
        }
        let data = self.data.as_ref()?;
        let start = self.at.max(data.start / PIECE_LEN * PIECE_LEN);
        self.at = start + PIECE_LEN;
        Some(start..self.at.min(file.length()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;
    use crate::digest::ZERO_PIECE;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_file_has_the_digest_of_its_bytes(
            runs in prop::collection::vec((0_u64..6_000_000, 1_usize..2_000_000), 0..5),
            length in 0_u64..6_000_000,
            threads in 1_usize..4,
        ) {
            let file = tempfile::NamedTempFile::new().unwrap();
            for (at, len) in runs {
                file.as_file().write_all_at(&vec![7; len], at).unwrap();
            }
            file.as_file().set_len(length).unwrap();
            let core = CoreFile::open(file.path()).unwrap();
            let mut last = (0, 0);
            let found = digest_by(&core, threads, &mut |done, all| last = (done, all)).unwrap();
            prop_assert_eq!(found, Some(Digest::of(&std::fs::read(file.path()).unwrap())));
            prop_assert_eq!(last, (length, length));
        }
    }

    #[test]
    fn a_file_of_holes_costs_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(b"core", 3 << 40).unwrap();
        let core = CoreFile::open(file.path()).unwrap();
        let digest = digest_of(&core, &mut |_, _| {}).unwrap().unwrap();
        assert_eq!(digest.pieces.len(), (3 << 20) + 1);
        assert!(digest.pieces[..3 << 20].iter().all(|piece| *piece == *ZERO_PIECE));
        file.as_file().set_len(MAX_LENGTH + 1).unwrap();
        let core = CoreFile::open(file.path()).unwrap();
        assert_eq!(digest_of(&core, &mut |_, _| {}).unwrap(), None);
    }

    #[test]
    fn a_file_cut_while_it_is_read_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&[1; 3 << 20], 0).unwrap();
        let core = CoreFile::open(file.path()).unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let cut = digest_of(&core, &mut |_, _| {});
        // What was cut off has become a hole or an end, depending on when it is looked at.
        assert!(cut.is_err() || cut.unwrap() != Some(Digest::of(&[1; 3 << 20])));
    }
}
