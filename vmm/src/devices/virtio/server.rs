//! A thread that serves one queue, for devices whose requests may take their time.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tracing::{debug, warn};
use virtio_queue::{DescriptorChain, Queue};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::rings::{RingError, Step, Walk, walk};
use super::{ActivateError, Notifier};
use crate::memory::GuestMemory;

/// How long a request under way may take to end when the device is stopped. What takes longer hangs on the host: a
/// failed disk, which may be why the guest has panicked, must not keep its memory from being dumped.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a device does with the chains of a queue.
pub(super) trait Serve: Send + 'static {
    /// Carries out the request in `chain`; how many bytes were written into it. It should end soon once `stopping`.
    fn serve<'m>(
        &mut self,
        chain: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
        stopping: &AtomicBool,
    ) -> u32;
}

/// The queue that is served.
pub(super) struct Served {
    /// Guest memory as the driver's addresses mean it.
    pub(super) memory: GuestMemory,
    /// The queue.
    pub(super) queue: Queue,
    /// Its number.
    pub(super) index: u16,
    /// How to reach the driver.
    pub(super) notifier: Arc<Notifier>,
}

/// A running thread; dropping it stops it, and waits until it has ended.
pub(super) struct QueueServer {
    name: &'static str,
    shared: Arc<Shared>,
    /// Closed by the thread's end.
    ended: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stopping: AtomicBool,
    /// There are new chains, or the thread is to stop.
    wake: Arc<EventFd>,
}

impl QueueServer {
    /// Starts a thread that has `device` serve the queue, of which `doorbell` tells it, if there is one.
    pub(super) fn start(
        name: &'static str,
        served: Served,
        device: impl Serve,
        doorbell: Option<&Arc<EventFd>>,
    ) -> Result<Self, ActivateError> {
        let wake = match doorbell {
            Some(bell) => Arc::clone(bell),
            None => Arc::new(EventFd::new(EFD_CLOEXEC).map_err(ActivateError::EventFd)?),
        };
        let shared = Arc::new(Shared { stopping: AtomicBool::new(false), wake });
        let (alive, ended) = mpsc::channel();
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                theirs.run(served, device);
                drop(alive);
            })
            .map_err(ActivateError::Thread)?;
        Ok(Self { name, shared, ended, thread: Some(thread) })
    }

    /// There are new chains.
    pub(super) fn wake(&self) {
        // Fails only when 2^64 - 1 have gathered, and then the thread is awake.
        let _ = self.shared.wake.write(1);
    }
}

impl Drop for QueueServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.wake();
        let Some(thread) = self.thread.take() else { return };
        if let Err(mpsc::RecvTimeoutError::Timeout) = self.ended.recv_timeout(PATIENCE) {
            warn!(
                device = self.name,
                "a request hangs on the host and is left behind; should it end, it may yet change guest memory"
            );
            return;
        }
        // A thread that panicked is as quiet as one that ended.
        let _ = thread.join();
    }
}

impl fmt::Debug for QueueServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueServer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Shared {
    /// The thread: serves until told to stop, or the rings are broken.
    fn run(&self, mut served: Served, mut device: impl Serve) {
        // The driver may have filled the ring before the device was started.
        while !self.stopping.load(Ordering::Acquire) {
            match self.turn(&mut served, &mut device) {
                Ok(Walk::Turn) => {}
                Ok(Walk::Empty) if self.wake.read().is_ok() => {}
                Ok(_) => return,
                Err(error) => {
                    debug!(%error, queue = served.index, "a driver broke its rings");
                    return served.notifier.give_up();
                }
            }
        }
    }

    fn turn(&self, served: &mut Served, device: &mut impl Serve) -> Result<Walk<()>, RingError> {
        let Served { memory, queue, index, notifier } = served;
        walk(queue, *index, memory, notifier, |chain| {
            if self.stopping.load(Ordering::Acquire) {
                return Step::Stop(());
            }
            Step::Use(device.serve(chain, memory, &self.stopping))
        })
    }
}
