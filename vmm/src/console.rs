//! The guest's console on the host: what the guest writes goes to an output and past the watchers.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
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
pub struct Console(Arc<Mutex<Inner>>);

struct Inner {
    output: ConsoleOutput,
    watchers: Vec<Box<dyn ConsoleWatcher>>,
    alarm: Watch,
}

impl Console {
    /// A console that writes to `output`.
    pub fn new(output: ConsoleOutput, watchers: Vec<Box<dyn ConsoleWatcher>>) -> Self {
        Self(Arc::new(Mutex::new(Inner { output, watchers, alarm: Watch::Quiet })))
    }

    /// Asks the watchers again.
    pub(crate) fn ask(&self, now: Instant) {
        self.with(|inner| inner.watchers.iter_mut().for_each(|watcher| watcher.ask(now)));
    }

    /// What the watchers made of the output since the last time.
    pub(crate) fn take_alarm(&self) -> Watch {
        self.with(|inner| std::mem::replace(&mut inner.alarm, Watch::Quiet))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|inner| {
            for watcher in &mut inner.watchers {
                inner.alarm = inner.alarm.max(watcher.watch(bytes));
            }
            // A closed output (a pager that was quit) must not disturb the guest, and above all not its dump.
            let _ = inner.output.write_all(bytes).and_then(|()| inner.output.flush());
        });
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
