//! Ctrl-C and SIGTERM as something to wait for, so that dumps end in order.
//!
//! By handlers, not by blocking them: programs that are started here, a hook for one, would inherit what is blocked.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use signal_hook::consts::SIGXFSZ;
use signal_hook::{flag, low_level};

/// The signals that ask for an end, readable.
#[derive(Debug)]
pub(super) struct Signals {
    /// Has a byte for each that has come.
    wake: UnixStream,
    /// The number of the last one.
    last: Arc<AtomicUsize>,
}

impl Signals {
    /// Takes them over, for the whole program. A limit to the size of files (`ulimit -f`) becomes an error of the write
    /// that goes beyond it, as a full disk is.
    pub(super) fn take() -> io::Result<Self> {
        let (wake, write) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let last = Arc::new(AtomicUsize::new(0));
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let number = signal as i32;
            flag::register_usize(number, Arc::clone(&last), usize::try_from(number).unwrap_or_default())?;
            low_level::pipe::register(number, write.try_clone()?)?;
        }
        flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        Ok(Self { wake, last })
    }

    /// The next one that has come.
    pub(super) fn received(&self) -> Option<Signal> {
        match (&self.wake).read(&mut [0]) {
            Ok(1) => i32::try_from(self.last.load(Ordering::SeqCst))
                .ok()
                .and_then(|number| Signal::try_from(number).ok()),
            _ => None,
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
