//! The guest's console on the host: what the guest writes goes to an output and past the watchers.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What a watcher makes of console output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    /// Nothing.
    Quiet,
    /// A panic, and it has been reported.
    Panic,
}

/// Sees everything that the guest writes to its console.
pub trait ConsoleWatcher: Send + fmt::Debug {
    /// Looks at what was just written.
    fn watch(&mut self, bytes: &[u8]) -> Watch;

    /// Asked again some time after it sent [`crate::events::MachineEvent::AskConsole`].
    fn ask(&mut self, now: Instant);
}

/// Where console output goes.
pub type ConsoleOutput = Box<dyn Write + Send>;

/// The console: shared by the serial port and the event loop.
#[derive(Clone)]
pub struct Console(Arc<Inner>);

/// Two locks: whoever writes to an output that nobody reads blocks, and the event loop, which asks the watchers, must
/// not wait for that.
struct Inner {
    watched: Mutex<Watched>,
    output: Mutex<ConsoleOutput>,
}

struct Watched {
    watchers: Vec<Box<dyn ConsoleWatcher>>,
    alarm: Watch,
}

impl Console {
    /// A console that writes to `output`.
    pub fn new(output: ConsoleOutput, watchers: Vec<Box<dyn ConsoleWatcher>>) -> Self {
        let watched = Mutex::new(Watched { watchers, alarm: Watch::Quiet });
        Self(Arc::new(Inner { watched, output: Mutex::new(output) }))
    }

    /// Asks the watchers again.
    pub(crate) fn ask(&self, now: Instant) {
        self.watched().watchers.iter_mut().for_each(|watcher| watcher.ask(now));
    }

    /// What the watchers made of the output since the last time.
    pub(crate) fn take_alarm(&self) -> Watch {
        std::mem::replace(&mut self.watched().alarm, Watch::Quiet)
    }

    fn watch(&self, bytes: &[u8]) {
        let Watched { watchers, alarm } = &mut *self.watched();
        for watcher in watchers {
            *alarm = (*alarm).max(watcher.watch(bytes));
        }
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.0.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Watched first: a panic must be seen even if its text never gets out.
        self.watch(bytes);
        let mut output = self.0.output.lock().unwrap_or_else(PoisonError::into_inner);
        // A closed output (a pager that was quit) must not disturb the guest, and above all not its dump.
        let _ = output.write_all(bytes).and_then(|()| output.flush());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Tells when it is written to, and blocks until the test lets go of the other end.
    struct Blocked(mpsc::Sender<()>, mpsc::Receiver<()>);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(());
            let _ = self.1.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Takes everything for a panic, and tells when it is asked.
    #[derive(Debug)]
    struct Afraid(mpsc::Sender<()>);

    impl ConsoleWatcher for Afraid {
        fn watch(&mut self, _bytes: &[u8]) -> Watch {
            Watch::Panic
        }

        fn ask(&mut self, _now: Instant) {
            let _ = self.0.send(());
        }
    }

    #[test]
    fn a_blocked_output_blocks_neither_the_watchers_nor_the_alarm() {
        let (entered, blocked) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let (asked, was_asked) = mpsc::channel();
        let console = Console::new(Box::new(Blocked(entered, released)), vec![Box::new(Afraid(asked))]);
        let mut writer = console.clone();
        let guest = std::thread::spawn(move || writer.write_all(b"panic"));
        blocked.recv().unwrap();
        let (looked, alarm) = mpsc::channel();
        std::thread::spawn(move || {
            console.ask(Instant::now());
            looked.send(console.take_alarm())
        });
        let patience = Duration::from_secs(10);
        assert_eq!(was_asked.recv_timeout(patience), Ok(()));
        assert_eq!(alarm.recv_timeout(patience), Ok(Watch::Panic));
        assert!(!guest.is_finished(), "the output was blocked all the time");
        drop(release);
        guest.join().unwrap().unwrap();
    }
}
