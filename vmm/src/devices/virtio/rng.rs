//! A source of randomness (virtio 1.2, section 5.4): one queue, whose buffers it fills from the host's generator.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::DescriptorChain;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Direction, Slices, collect};
use super::server::{QueueServer, Serve, Served};
use super::{ActivateError, Activation, VirtioDevice};
use crate::memory::GuestMemory;

/// Entries of its queue. Linux and FreeBSD have one request under way.
const QUEUE_SIZE: u16 = 16;
/// Most bytes for one request. The driver learns how many it got; Linux asks for 64 or fewer, FreeBSD for 2048.
const MOST: usize = 64 << 10;
/// Longest chain that is looked at.
const LIMIT: usize = 1 << 30;

/// The device.
#[derive(Debug, Default)]
pub struct Rng {
    server: Option<QueueServer>,
    doorbell: Option<Arc<EventFd>>,
}

impl Rng {
    /// A source that nobody uses yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, notifier, .. } = activation;
        let queue = queues.into_iter().next().unwrap_or_default();
        let served = Served { memory, queue, index: 0, notifier };
        self.server = Some(QueueServer::start("virtio-rng", served, Filler, self.doorbell.as_ref())?);
        Ok(())
    }

    fn notify(&mut self, _queue: u16) {
        if let Some(server) = &self.server {
            server.wake();
        }
    }

    fn take_doorbell(&mut self, _queue: u16, bell: &Arc<EventFd>) -> bool {
        self.doorbell = Some(Arc::clone(bell));
        true
    }

    fn reset(&mut self) {
        self.server = None;
    }
}

struct Filler;

impl Serve for Filler {
    /// A chain that cannot be filled is given back with nothing in it.
    fn serve<'m>(
        &mut self,
        chain: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
        stopping: &AtomicBool,
    ) -> u32 {
        let mut slices = Slices::new();
        if collect(chain, memory, Direction::ToDriver, LIMIT, &mut slices).is_err() {
            return 0;
        }
        let mut bytes = [0; 4096];
        let mut filled = 0;
        for slice in &slices {
            let mut at = 0;
            while at < slice.len() && filled < MOST && !stopping.load(Ordering::Relaxed) {
                let len = (slice.len() - at).min(MOST - filled).min(bytes.len());
                let Ok(rest) = slice.offset(at) else { return written(filled) };
                if getrandom::fill(&mut bytes[..len]).is_err() {
                    return written(filled);
                }
                rest.copy_from(&bytes[..len]);
                (at, filled) = (at + len, filled + len);
            }
        }
        written(filled)
    }
}

fn written(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("at most 64 KiB")
}
