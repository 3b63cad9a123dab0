//! The signals that this process acts on, as a descriptor for the event loop: SIGINT, SIGTERM, SIGHUP and SIGQUIT stop
//! it (in order, so that the terminal gets its mode back), SIGUSR1 asks for a dump.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The blocked signals.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
    /// A stop that came during a dump, kept for whoever asks next.
    stop: Mutex<Option<Signal>>,
}

impl Signals {
    /// Blocks the signals in this thread and all that it starts from now on.
    pub(crate) fn block() -> std::io::Result<Self> {
        let mut set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1].into_iter().collect();
        // A blocked signal reaches the descriptor even if it is ignored, which is how nohup and shells ask to stay alive.
        let ignored = ignored();
        set.extend(
            [Signal::SIGHUP, Signal::SIGQUIT].into_iter().filter(|&signal| ignored & bit(signal) == 0),
        );
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { fd, stop: Mutex::new(None) })
    }

    /// The next signal, if one waits.
    pub(crate) fn next(&self) -> Option<Signal> {
        let info = self.fd.read_signal().ok().flatten()?;
        i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok())
    }

    /// Whether a signal to stop has come. A dump is running already, so SIGUSR1 asks for nothing more.
    pub(crate) fn stop_requested(&self) -> Option<Signal> {
        let mut stop = self.stop.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while stop.is_none() {
            *stop = Some(self.next()?).filter(|&signal| signal != Signal::SIGUSR1);
        }
        *stop
    }

    /// Sleeps until a signal to stop has come.
    pub(crate) fn wait_for_stop(&self) {
        while self.stop_requested().is_none() {
            // EINTR is as good as a signal: the loop looks again.
            let _ = poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
        }
    }
}

/// The signals that this process was started to ignore, a bit each (proc(5), `SigIgn`).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
