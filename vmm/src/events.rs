//! What happens in the machine, told to its event loop. Devices, vCPU threads and panic sources send; nobody of them
//! waits for an answer, for it might have to come from themselves.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::vcpu::Glance;

/// A guest panic, as the source that noticed it saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PanicEvent {
    /// Name of the source, from the table in [`crate::panic`].
    pub source: &'static str,
    /// The vCPU on which it showed, where that is known.
    pub vcpu: Option<u32>,
    /// When it was noticed.
    pub at: Instant,
    /// The guest's own words.
    pub text: Option<String>,
    /// What was seen, for the report.
    pub detail: String,
    /// Whether the guest can still run: one that cannot is not able to dump for itself either.
    pub survivable: bool,
}

/// Something that the event loop must act on.
#[derive(Debug)]
pub enum MachineEvent {
    /// The guest panicked.
    Panic(PanicEvent),
    /// The guest panicked and its own crash kernel takes over.
    CrashLoaded {
        /// The vCPU that said so.
        vcpu: Option<u32>,
    },
    /// A vCPU was looked at.
    Glance(Glance),
    /// The guest asked for a reset, by the means named.
    Reset(&'static str),
    /// The guest switched itself off.
    PowerOff,
    /// A vCPU cannot be run, and it is no panic of the guest.
    Failed {
        /// The vCPU.
        vcpu: u32,
        /// What KVM said.
        reason: String,
    },
    /// The console wants to be asked again after this time.
    AskConsole(Duration),
}

/// The sending side: any number, one for each device and vCPU.
#[derive(Debug, Clone)]
pub struct EventSender {
    channel: mpsc::Sender<MachineEvent>,
    wake: Arc<EventFd>,
}

/// The receiving side, held by the event loop.
#[derive(Debug)]
pub struct EventQueue {
    channel: mpsc::Receiver<MachineEvent>,
    wake: Arc<EventFd>,
}

/// Makes the two sides.
pub fn channel() -> io::Result<(EventSender, EventQueue)> {
    let (sender, receiver) = mpsc::channel();
    let wake = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
    Ok((EventSender { channel: sender, wake: wake.clone() }, EventQueue { channel: receiver, wake }))
}

impl EventSender {
    /// Tells the event loop. A loop that is gone listens no more, which is no concern of a device.
    pub fn send(&self, event: MachineEvent) {
        if self.channel.send(event).is_ok() {
            // Full (2^64 - 2 unread events) cannot happen, and then the loop is awake anyway.
            let _ = self.wake.write(1);
        }
    }
}

impl EventQueue {
    /// The next event, if one waits. Makes the descriptor unreadable first, so no event is overlooked.
    pub(crate) fn next(&self) -> Option<MachineEvent> {
        let _ = self.wake.read();
        let event = self.channel.try_recv().ok();
        if event.is_some() {
            // There may be more behind it.
            let _ = self.wake.write(1);
        }
        event
    }
}

impl AsFd for EventQueue {
    /// Becomes readable when an event waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

thread_local! {
    static CURRENT_VCPU: Cell<Option<u32>> = const { Cell::new(None) };
}

/// The vCPU whose thread this is, if it is one: how a device knows who accessed it.
pub fn current_vcpu() -> Option<u32> {
    CURRENT_VCPU.get()
}

/// Marks this thread as a vCPU's.
pub(crate) fn set_current_vcpu(index: u32) {
    CURRENT_VCPU.set(Some(index));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_arrive_in_order() {
        let (sender, queue) = channel().unwrap();
        sender.send(MachineEvent::AskConsole(Duration::ZERO));
        sender.send(MachineEvent::PowerOff);
        assert!(matches!(queue.next(), Some(MachineEvent::AskConsole(_))));
        assert!(matches!(queue.next(), Some(MachineEvent::PowerOff)));
        assert!(queue.next().is_none());
    }
}
