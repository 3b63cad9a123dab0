//! A reader of a file system on a thread of its own, with a deadline.
//!
//! The crates that read ext4 and FAT keep their state in cells of one thread, and a damaged or hostile tree can make them
//! panic or walk in circles over blocks that they have cached. Here that ends as an error: the thread is given up.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::FsError;
use crate::image::blocks::{Blocks, ReadBlocksError};

/// Longest time that opening, or a look at one file, takes: what a slow disk needs for a large initrd.
const DEADLINE: Duration = Duration::from_secs(60);

type Job<T> = Box<dyn FnOnce(&T) + Send>;

/// A thread that owns a `T`.
pub(super) struct Worker<T> {
    kind: &'static str,
    jobs: Mutex<Sender<Job<T>>>,
    given_up: Arc<AtomicBool>,
}

/// Blocks that can be read until the worker is given up.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) blocks: Blocks,
    given_up: Arc<AtomicBool>,
}

impl Source {
    /// Fills `buf`.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadBlocksError> {
        if self.given_up.load(Ordering::Relaxed) {
            let source = std::io::ErrorKind::TimedOut.into();
            return Err(ReadBlocksError::Io { offset, len: buf.len() as u64, source });
        }
        self.blocks.read(offset, buf)
    }
}

impl<T: 'static> Worker<T> {
    /// Opens a file system of that kind.
    pub(super) fn start(
        kind: &'static str,
        blocks: Blocks,
        open: impl FnOnce(Source) -> Result<T, FsError> + Send + 'static,
    ) -> Result<Self, FsError> {
        let given_up = Arc::new(AtomicBool::new(false));
        let source = Source { blocks, given_up: given_up.clone() };
        let (jobs, waiting) = channel::<Job<T>>();
        let (tell, told) = channel();
        thread::spawn(move || {
            let opened = catch_unwind(AssertUnwindSafe(|| open(source)));
            let Ok(opened) = opened else { return };
            match opened {
                Err(error) => drop(tell.send(Err(error))),
                Ok(fs) => {
                    let _ = tell.send(Ok(()));
                    for job in waiting {
                        job(&fs);
                    }
                }
            }
        });
        let worker = Self { kind, jobs: Mutex::new(jobs), given_up };
        worker.wait("its head", &told)?;
        Ok(worker)
    }

    /// What `job` finds; `place` is where it looks.
    pub(super) fn ask<R: Send + 'static>(
        &self,
        place: &str,
        job: impl FnOnce(&T) -> Result<R, FsError> + Send + 'static,
    ) -> Result<R, FsError> {
        let (tell, told) = channel();
        let job: Job<T> = Box::new(move |fs| {
            if let Ok(found) = catch_unwind(AssertUnwindSafe(|| job(fs))) {
                let _ = tell.send(found);
            }
        });
        if !self.given_up.load(Ordering::Relaxed) {
            let _ = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).send(job);
        } else {
            drop(job);
        }
        self.wait(place, &told)
    }

    fn wait<R>(&self, place: &str, told: &Receiver<Result<R, FsError>>) -> Result<R, FsError> {
        told.recv_timeout(DEADLINE).unwrap_or_else(|_| {
            self.given_up.store(true, Ordering::Relaxed);
            let problem =
                "its reader was given up: it found what it does not expect, or came to no end".to_owned();
            Err(FsError::Damaged { kind: self.kind, place: place.to_owned(), problem })
        })
    }
}

impl<T> fmt::Debug for Worker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)
    }
}
