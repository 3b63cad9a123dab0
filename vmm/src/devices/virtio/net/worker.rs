//! Moves frames while the guest runs: a thread for those that arrive, the vCPU that notifies for those it sends.
//!
//! When a driver's notification returns, its frames have left: a thread that sends them later would be enough for
//! virtio, and not for FreeBSD's own netdump client (`sys/net/debugnet.c`, seen in 14.0-CURRENT). That sends up to 46
//! frames which point into one buffer, takes the acknowledgement of the 32nd for all behind it (`1 << i` is an int), and
//! fills the buffer anew. Frames that are still in the ring then carry other bytes than their checksums were made of;
//! the receiver's kernel drops them, nobody sends them again, and the core has a hole that its sender does not know of.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::port::{Pause, Port};
use super::{RX, TX};
use crate::devices::virtio::ActivateError;
use crate::devices::virtio::rings::RingError;
use crate::sys::tap::Tap;

/// A running worker; dropping it stops it and waits until it has ended.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    events: Events,
    /// `None` once the driver broke the rings.
    port: Mutex<Option<Port>>,
}

/// What wakes a worker.
#[derive(Debug)]
struct Events {
    stop: EventFd,
    /// The driver has more frames to send than go in one turn.
    sent: EventFd,
    /// The driver has room for frames.
    room: EventFd,
}

impl Worker {
    /// Starts a thread that serves `port`.
    pub(super) fn start(port: Port) -> Result<Self, ActivateError> {
        let event = || {
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|errno| ActivateError::EventFd(errno.into()))
        };
        let events = Events { stop: event()?, sent: event()?, room: event()? };
        let tap = Arc::clone(port.tap());
        let shared = Arc::new(Shared { events, port: Mutex::new(Some(port)) });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("virtio-net".to_owned())
            .spawn(move || theirs.serve(&tap))
            .map_err(ActivateError::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The driver has put buffers into a queue. What it sends is sent here, but for more than one turn's worth.
    pub(super) fn notify(&self, queue: u16) {
        match queue {
            RX => wake(&self.shared.events.room),
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
        PollFd::new(events.stop.as_fd(), PollFlags::POLLIN),
        PollFd::new(events.sent.as_fd(), PollFlags::POLLIN),
        PollFd::new(events.room.as_fd(), PollFlags::POLLIN),
        PollFd::new(tap.as_fd(), PollFlags::POLLIN),
    ];
    // Left out and not only masked: the errors of a tap that was removed are reported whatever the mask.
    let watched = if frames { &mut fds[..] } else { &mut fds[..3] };
    poll(watched, if idle { PollTimeout::NONE } else { PollTimeout::ZERO })?;
    let [stop, sent, room, frames] = fds.map(|fd| fd.any().unwrap_or(true));
    Ok(Woken { stop, sent: sent && taken(&events.sent), room: room && taken(&events.room), frames })
}

/// Resets an eventfd; whether it had been written.
fn taken(event: &EventFd) -> bool {
    event.read().is_ok()
}
