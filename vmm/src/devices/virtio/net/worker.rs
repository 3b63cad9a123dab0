//! Moves frames while the guest runs: a thread for those that arrive, and for those that are sent either that thread or the
//! vCPU that notifies ([`Sending`]).
//!
//! With [`Sending::AtOnce`] frames have left when a driver's notification returns: a thread that sends them later would be
//! enough for virtio, and not for FreeBSD's own netdump client (`sys/net/debugnet.c`, seen in 14.0-CURRENT). That sends up to 46
//! frames which point into one buffer, takes the acknowledgement of the 32nd for all behind it (`1 << i` is an int), and
//! fills the buffer anew. Frames that are still in the ring then carry other bytes than their checksums were made of;
//! the receiver's kernel drops them, nobody sends them again, and the core has a hole that its sender does not know of.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::port::{Pause, Port};
use super::{RX, TX};
use crate::devices::virtio::ActivateError;
use crate::devices::virtio::rings::RingError;
use crate::sys::eventfd;
use crate::sys::tap::Tap;

/// Who sends what the driver has queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// The vCPU that notifies, before it goes on.
    AtOnce,
    /// The worker, while the vCPU goes on.
    ByWorker,
}

/// Eventfds that KVM writes when the driver notifies.
#[derive(Debug, Default)]
pub(super) struct Doorbells {
    pub(super) sent: Option<Arc<EventFd>>,
    pub(super) room: Option<Arc<EventFd>>,
}

/// A running worker; dropping it stops it and waits until it has ended.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    sending: Sending,
    events: Events,
    /// `None` once the driver broke the rings.
    port: Mutex<Option<Port>>,
}

/// What wakes a worker.
#[derive(Debug)]
struct Events {
    stop: EventFd,
    /// The driver has frames to send: any, or more than go in one turn.
    sent: Arc<EventFd>,
    /// The driver has room for frames.
    room: Arc<EventFd>,
}

impl Worker {
    /// Starts a thread that serves `port`.
    pub(super) fn start(port: Port, sending: Sending, bells: &Doorbells) -> Result<Self, ActivateError> {
        let event = |bell: &Option<Arc<EventFd>>| match bell {
            Some(bell) => Ok(Arc::clone(bell)),
            None => EventFd::new(EFD_CLOEXEC).map(Arc::new).map_err(ActivateError::EventFd),
        };
        let stop = EventFd::new(EFD_CLOEXEC).map_err(ActivateError::EventFd)?;
        let events = Events { stop, sent: event(&bells.sent)?, room: event(&bells.room)? };
        let tap = Arc::clone(port.tap());
        let shared = Arc::new(Shared { sending, events, port: Mutex::new(Some(port)) });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("virtio-net".to_owned())
            .spawn(move || theirs.serve(&tap))
            .map_err(ActivateError::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The driver has put buffers into a queue. What it sends at once is sent here, but for more than one turn's worth.
    pub(super) fn notify(&self, queue: u16) {
        match queue {
            RX => wake(&self.shared.events.room),
            TX if self.shared.sending == Sending::ByWorker => wake(&self.shared.events.sent),
            TX if self.shared.serve_port(Port::transmit) == Some(Pause::Turn) => {
                wake(&self.shared.events.sent)
            }
            _ => {}
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        wake(&self.shared.events.stop);
        if let Some(thread) = self.thread.take() {
            // A worker that panicked is as quiet as one that ended.
            let _ = thread.join();
        }
    }
}

fn wake(event: &EventFd) {
    // Fails only when the counter is full, and then the worker is awake.
    let _ = event.write(1);
}

impl Shared {
    /// Moves frames one way; `None` when the rings are broken, now or before.
    fn serve_port(&self, serve: fn(&mut Port) -> Result<Pause, RingError>) -> Option<Pause> {
        let mut port: MutexGuard<'_, Option<Port>> = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        let result = serve(port.as_mut()?);
        if result.is_err()
            && let Some(port) = port.take()
        {
            port.notifier().give_up();
        }
        result.ok()
    }

    /// The thread: moves frames until told to stop, or the rings are broken.
    fn serve(&self, tap: &Tap) {
        // The driver may have filled the rings before the device was started.
        let (mut sending, mut receiving) = (Pause::Turn, Pause::Turn);
        loop {
            let idle = sending != Pause::Turn && receiving != Pause::Turn;
            let woken = match wait(tap, &self.events, idle, receiving == Pause::NoFrames) {
                Ok(woken) => woken,
                Err(Errno::EINTR) => continue,
                // No descriptor here can go bad; without poll there is no way to serve.
                Err(_) => return,
            };
            if woken.stop {
                return;
            }
            if woken.sent || sending == Pause::Turn {
                let Some(pause) = self.serve_port(Port::transmit) else { return };
                sending = pause;
            }
            let room = woken.room && receiving != Pause::TapGone;
            if room || woken.frames || receiving == Pause::Turn {
                let Some(pause) = self.serve_port(Port::receive) else { return };
                receiving = pause;
            }
        }
    }
}

/// What woke the worker.
struct Woken {
    stop: bool,
    sent: bool,
    room: bool,
    frames: bool,
}

/// Looks for something to do, and waits for it when `idle`. Frames in the tap are of interest only while the driver
/// has room for them, as they would wake us again and again.
fn wait(tap: &Tap, events: &Events, idle: bool, frames: bool) -> Result<Woken, Errno> {
    let mut fds = [
        PollFd::new(eventfd::as_fd(&events.stop), PollFlags::POLLIN),
        PollFd::new(eventfd::as_fd(&events.sent), PollFlags::POLLIN),
        PollFd::new(eventfd::as_fd(&events.room), PollFlags::POLLIN),
        PollFd::new(tap.as_fd(), PollFlags::POLLIN),
    ];
    // Left out and not only masked: the errors of a tap that was removed are reported whatever the mask.
    let watched = if frames { &mut fds[..] } else { &mut fds[..3] };
    poll(watched, if idle { PollTimeout::NONE } else { PollTimeout::ZERO })?;
    let [stop, sent, room, frames] = fds.map(|fd| fd.any().unwrap_or(true));
    Ok(Woken { stop, sent: sent && taken(&events.sent), room: room && taken(&events.room), frames })
}

/// Resets an eventfd that poll found written, which nobody else reads; whether that went well.
fn taken(event: &EventFd) -> bool {
    event.read().is_ok()
}
