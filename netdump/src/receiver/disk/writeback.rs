//! Write-back that begins while a dump still comes, so that the fsync before FINISHED's ack finds little left to do.
//!
//! On its own the kernel begins when a tenth of memory is dirty: on a large machine many gigabytes, which a client would
//! then wait for. A thread does it, as handing pages to a busy disk can block, and no other dump may wait for that.

use std::fs::File;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// New bytes of a core that are handed to the disk at a time.
const STEP: u64 = 32 << 20;
/// Scattered over more than this they are left to the kernel.
const WIDEST: u64 = 2 * STEP;
/// Orders that wait; when the disk is slower, the kernel writes what is left out.
const MAX_WAITING: usize = 64;

/// The thread, for all dumps of a store; it starts with the first order and ends with the store.
#[derive(Debug, Default)]
pub(super) struct WriteBack(OnceLock<Option<SyncSender<Order>>>);

type Order = (File, Range<u64>);

impl WriteBack {
    /// Begins to write a range. When too many wait, or without a thread, it is left to the kernel.
    fn order(&self, file: &File, range: Range<u64>) {
        if let Some(orders) = self.0.get_or_init(start)
            && let Ok(file) = file.try_clone()
        {
            let _ = orders.try_send((file, range));
        }
    }
}

fn start() -> Option<SyncSender<Order>> {
    let (orders, waiting) = sync_channel::<Order>(MAX_WAITING);
    let thread = std::thread::Builder::new().name("netdump-writeback".into());
    let started = thread.spawn(move || waiting.iter().for_each(|(file, range)| begin(&file, &range)));
    started.ok().map(|_| orders)
}

/// What one dump has written since its last order.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    /// Where it lies.
    range: Option<Range<u64>>,
    bytes: u64,
}

impl Unflushed {
    /// Notes bytes that were written, and orders their write-back when they are many.
    pub(super) fn add(&mut self, written: &Range<u64>, file: &File, write_back: &WriteBack) {
        self.bytes += written.end - written.start;
        let range = self.range.get_or_insert_with(|| written.clone());
        *range = range.start.min(written.start)..range.end.max(written.end);
        if self.bytes < STEP {
            return;
        }
        let Self { range, .. } = std::mem::take(self);
        if let Some(narrow) = range.filter(|range| range.end - range.start <= WIDEST) {
            write_back.order(file, narrow);
        }
    }
}

/// `POSIX_FADV_DONTNEED` begins to write what is dirty and does not wait for it (Linux, `mm/fadvise.c`). It drops pages
/// that are clean; these here were dirty just now.
fn begin(file: &File, range: &Range<u64>) {
    let (Ok(at), Ok(len)) = (i64::try_from(range.start), i64::try_from(range.end - range.start)) else {
        return;
    };
    let _ = posix_fadvise(file, at, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}
