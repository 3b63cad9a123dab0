//! What is packed and not acknowledged yet: a bounded buffer between the packing thread, which waits when it is full, and
//! the driver, which sends from it, again where needed, and lets go of its front.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::StreamError;
use crate::digest::Digest;
use crate::{ReadAt, ReadError};

/// Bytes kept at most. The client has at most 64 messages of 4096 bytes on their way, a sixteenth of it.
const CAPACITY: usize = 4 << 20;

/// Both ends share it.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    state: Mutex<State>,
    /// The front was let go of, or the driver has left.
    room: Condvar,
    /// There is more, or the end is known.
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Offset of the first of `bytes` in the stream.
    start: u64,
    /// Up to an offset of the stream: so many bytes of the core are packed in it.
    marks: VecDeque<(u64, u64)>,
    /// Bytes of the core that are packed in what was let go of.
    settled: u64,
    end: Option<Result<StreamEnd, StreamError>>,
    /// Nobody sends any more.
    is_abandoned: bool,
}

/// Where a stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StreamEnd {
    /// Bytes to store: `dumplength`.
    pub(crate) stored: u64,
    /// Bytes to send: the same with the padding of the last block.
    pub(crate) sent: u64,
    /// Of the bytes to store.
    pub(crate) digest: Option<Digest>,
}

/// The driver has left: packing is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody takes the packed core any more")]
pub(crate) struct Abandoned;

impl Backlog {
    /// Appends bytes, by which `packed` bytes of the core are packed; waits for room.
    pub(crate) fn push(&self, mut bytes: &[u8], packed: u64) -> Result<(), Abandoned> {
        let mut state = self.lock();
        loop {
            if state.is_abandoned {
                return Err(Abandoned);
            }
            let (now, later) = bytes.split_at(bytes.len().min(CAPACITY - state.bytes.len()));
            state.bytes.extend(now);
            self.news.notify_one();
            if later.is_empty() {
                let end = state.position();
                state.marks.push_back((end, packed));
                return Ok(());
            }
            bytes = later;
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing follows: the stream's end, or why it has none. The first word counts.
    pub(crate) fn end(&self, end: Result<StreamEnd, StreamError>) {
        self.lock().end.get_or_insert(end);
        self.news.notify_one();
    }

    /// Takes the end, if it has come.
    pub(crate) fn take_end(&self) -> Option<Result<StreamEnd, StreamError>> {
        self.lock().end.take()
    }

    /// Lets go of everything before `offset`.
    pub(crate) fn release(&self, offset: u64) {
        let mut state = self.lock();
        let len = usize::try_from(offset.saturating_sub(state.start)).unwrap_or(usize::MAX);
        let len = len.min(state.bytes.len());
        if len == 0 {
            return;
        }
        state.bytes.drain(..len);
        state.start += len as u64;
        while let Some(&(end, packed)) = state.marks.front().filter(|mark| mark.0 <= state.start) {
            debug_assert!(end <= state.start);
            state.settled = packed;
            state.marks.pop_front();
        }
        self.room.notify_one();
    }

    /// Bytes of the core that are packed in what was let go of.
    pub(crate) fn settled(&self) -> u64 {
        self.lock().settled
    }

    /// Waits at most `wait` until there is more than `seen` bytes, or the end is known.
    pub(crate) fn wait_for_news(&self, seen: u64, wait: Duration) {
        let is_old = |state: &mut State| state.position() <= seen && state.end.is_none();
        let waited = self.news.wait_timeout_while(self.lock(), wait, is_old);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// The driver leaves.
    pub(crate) fn abandon(&self) {
        self.lock().is_abandoned = true;
        self.room.notify_one();
    }

    /// The state is whole between any two statements that change it, so a panic of the other thread does not matter.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Offset behind the last byte.
    fn position(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// Only what was not let go of can be read.
impl ReadAt for Backlog {
    fn length(&self) -> u64 {
        self.lock().position()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let state = self.lock();
        let total = state.position();
        ReadError::check_range(offset, buf.len(), total)?;
        let kept = offset.checked_sub(state.start).and_then(|skip| usize::try_from(skip).ok());
        let from = kept.ok_or(ReadError::OutOfRange { offset, len: buf.len(), total })?;
        let (front, back) = state.bytes.as_slices();
        let in_front = front.get(from..).unwrap_or_default();
        let (first, second) = buf.split_at_mut(in_front.len().min(buf.len()));
        first.copy_from_slice(&in_front[..first.len()]);
        let from = from.saturating_sub(front.len());
        second.copy_from_slice(&back[from..from + second.len()]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_backlog_makes_the_packer_wait_until_its_front_is_let_go_of() {
        let backlog = Backlog::default();
        let bytes: Vec<u8> = (0..3 * CAPACITY).map(|i| u8::try_from(i % 251).unwrap()).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| backlog.push(&bytes, 77).unwrap());
            let mut seen = 0;
            let mut block = [0; 4096];
            while seen < bytes.len() {
                backlog.wait_for_news(seen as u64, Duration::from_secs(10));
                assert!(backlog.length() - seen as u64 <= CAPACITY as u64);
                let len = usize::try_from(backlog.length() - seen as u64).unwrap().min(block.len());
                backlog.read_at(seen as u64, &mut block[..len]).unwrap();
                assert!(block[..len] == bytes[seen..seen + len]);
                seen += len;
                backlog.release(seen as u64);
            }
        });
        assert_eq!(backlog.settled(), 77);
        assert!(backlog.lock().bytes.capacity() <= 2 * CAPACITY);
    }

    #[test]
    fn a_packer_that_waits_is_told_when_the_driver_leaves() {
        let backlog = Backlog::default();
        std::thread::scope(|scope| {
            let packer = scope.spawn(|| backlog.push(&vec![0; 2 * CAPACITY], 0));
            backlog.wait_for_news(0, Duration::from_secs(10));
            backlog.abandon();
            assert_eq!(packer.join().unwrap(), Err(Abandoned));
        });
        assert_eq!(backlog.push(&[1], 0), Err(Abandoned));
    }

    #[test]
    fn waiting_ends_in_time_and_with_the_end() {
        let backlog = Backlog::default();
        let started = Instant::now();
        backlog.wait_for_news(0, Duration::from_millis(5));
        assert!(started.elapsed() >= Duration::from_millis(5));
        backlog.push(b"abc", 3).unwrap();
        backlog.end(Err(StreamError::Panicked));
        backlog.end(Ok(StreamEnd { stored: 3, sent: 3, digest: None }));
        backlog.wait_for_news(3, Duration::from_secs(100));
        assert!(matches!(backlog.take_end(), Some(Err(StreamError::Panicked))), "the first word counts");
    }

    #[test]
    fn progress_is_what_was_packed_in_what_is_gone() {
        let backlog = Backlog::default();
        backlog.push(&[1; 10], 1000).unwrap();
        backlog.push(&[2; 10], 5000).unwrap();
        let settled = [0, 9, 10, 19, 20].map(|offset| {
            backlog.release(offset);
            backlog.settled()
        });
        assert_eq!(settled, [0, 0, 1000, 1000, 5000]);
    }

    proptest! {
        #[test]
        fn what_is_kept_reads_as_it_was_pushed(
            steps in prop::collection::vec((0..9000_usize, 0..9000_u64), 1..60),
            at in any::<prop::sample::Index>(),
            len in 0..5000_usize,
        ) {
            let backlog = Backlog::default();
            let (mut all, mut gone) = (Vec::new(), 0);
            for (push, release) in steps {
                let bytes: Vec<u8> = (0..push).map(|i| u8::try_from((all.len() + i) % 253).unwrap()).collect();
                backlog.push(&bytes, 0).unwrap();
                all.extend(bytes);
                gone = (gone + release).min(all.len() as u64);
                backlog.release(gone);
                prop_assert_eq!(backlog.length(), all.len() as u64);
                let at = at.index(all.len() + 2);
                let mut buf = vec![0; len];
                let read = backlog.read_at(at as u64, &mut buf).is_ok();
                prop_assert_eq!(read, at as u64 >= gone && at + len <= all.len());
                if read {
                    prop_assert_eq!(buf.as_slice(), &all[at..at + len]);
                }
            }
        }
    }
}
