//! The thread that moves frames while the guest runs.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::port::{Pause, Port, RingError};
use super::{RX, TX};
use crate::devices::virtio::ActivateError;

/// A running worker; dropping it stops it and waits until it has ended.
#[derive(Debug)]
pub(super) struct Worker {
    events: Arc<Events>,
    thread: Option<JoinHandle<()>>,
}

/// What wakes a worker.
#[derive(Debug)]
struct Events {
    stop: EventFd,
    /// The driver has frames to send.
    sent: EventFd,
    /// The driver has room for frames.
    room: EventFd,
}

impl Worker {
    /// Starts a thread that owns `port`.
    pub(super) fn start(port: Port) -> Result<Self, ActivateError> {
        let event = || {
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|errno| ActivateError::EventFd(errno.into()))
        };
        let events = Arc::new(Events { stop: event()?, sent: event()?, room: event()? });
        let theirs = Arc::clone(&events);
        let thread = thread::Builder::new()
            .name("virtio-net".to_owned())
            .spawn(move || run(port, &theirs))
            .map_err(ActivateError::Thread)?;
        Ok(Self { events, thread: Some(thread) })
    }

    /// The driver has put buffers into a queue.
    pub(super) fn notify(&self, queue: u16) {
        match queue {
            RX => wake(&self.events.room),
            TX => wake(&self.events.sent),
            _ => {}
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        wake(&self.events.stop);
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

fn run(mut port: Port, events: &Events) {
    if serve(&mut port, events).is_err() {
        port.notifier().give_up();
    }
}

/// Moves frames until told to stop.
fn serve(port: &mut Port, events: &Events) -> Result<(), RingError> {
    // The driver may have filled the rings before the device was started.
    let (mut sending, mut receiving) = (Pause::Turn, Pause::Turn);
    loop {
        let idle = sending != Pause::Turn && receiving != Pause::Turn;
        let woken = match wait(port, events, idle, receiving == Pause::NoFrames) {
            Ok(woken) => woken,
            Err(Errno::EINTR) => continue,
            // No descriptor here can go bad; without poll there is no way to serve.
            Err(_) => return Ok(()),
        };
        if woken.stop {
            return Ok(());
        }
        if woken.sent || sending == Pause::Turn {
            sending = port.transmit()?;
        }
        let room = woken.room && receiving != Pause::TapGone;
        if room || woken.frames || receiving == Pause::Turn {
            receiving = port.receive()?;
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
fn wait(port: &Port, events: &Events, idle: bool, frames: bool) -> Result<Woken, Errno> {
    let mut fds = [
        PollFd::new(events.stop.as_fd(), PollFlags::POLLIN),
        PollFd::new(events.sent.as_fd(), PollFlags::POLLIN),
        PollFd::new(events.room.as_fd(), PollFlags::POLLIN),
        PollFd::new(port.tap().as_fd(), PollFlags::POLLIN),
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
