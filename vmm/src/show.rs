//! What the user sees of a run: for people on stderr (the guest's console has stdout), for machines as lines of JSON on
//! stdout.

use std::io::{IsTerminal, Write, stderr};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use netdump::drive::Progress;
use netdump::progress::{ProgressStyle, Reporter};
use netdump::report::DumpReport;
use serde_json::json;
use vmm::report::{Event, Observer};

/// For people.
#[derive(Debug, Default)]
pub(crate) struct Text {
    /// While a dump runs.
    progress: Option<Reporter>,
    /// Boots so far.
    boots: u64,
}

impl Text {
    /// A guest that resets for ever must not fill the log: after the first few boots, ever fewer are told of.
    fn tells_of_this_boot(&self) -> bool {
        self.boots <= 4 || self.boots.is_power_of_two()
    }
}

impl Observer for Text {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Booting { .. } = event {
            self.boots += 1;
        }
        match event {
            Event::Booting { .. } | Event::Reset { .. } if !self.tells_of_this_boot() => {}
            Event::Booting { image, memory, cpus, protocol } => {
                let boot = self.boots;
                tracing::info!(image, memory_mib = memory >> 20, cpus, protocol, boot, "booting");
            }
            Event::Panic { seen } => tracing::info!(source = seen.source, vcpu = seen.vcpu, "guest panicked"),
            Event::CrashLoaded { vcpu, why } => {
                tracing::info!(
                    vcpu,
                    "guest panicked; {why}, so it is not dumped (SIGUSR1 dumps it all the same)"
                );
            }
            Event::Paused { pause } => tracing::info!("paused {pause}"),
            Event::Card { card } => eprint!("{}", card.card),
            Event::Dumping { target, length } => {
                let server = target.server.as_deref().unwrap_or("embedded receiver");
                tracing::info!(link = target.link, server, mib = length >> 20, "dumping");
            }
            Event::Dumped { report } => eprint!("{report}"),
            Event::Reset { by } => tracing::info!(by, "guest resets"),
            Event::PowerOff => tracing::info!("guest switched itself off"),
            Event::Holding => tracing::info!("guest stays paused until SIGTERM"),
            Event::Stopped { by } => tracing::info!(by, "stopping"),
        }
    }

    fn progress(&mut self, progress: &Progress) {
        let style = if stderr().is_terminal() { ProgressStyle::Bar } else { ProgressStyle::Lines };
        self.progress.get_or_insert_with(|| Reporter::new(style)).update(progress);
    }

    /// The whole report follows.
    fn dump_ended(&mut self, _report: &DumpReport) {
        if let Some(progress) = self.progress.take() {
            progress.clear();
        }
    }
}

/// Lines that may wait for whoever reads standard output.
const QUEUE: usize = 1024;
/// How long the event loop waits for room in the queue, and in the end for the queue to empty.
const PATIENCE: Duration = Duration::from_secs(1);

/// For machines: one object a line.
///
/// A thread of its own writes: a reader that stalls must cost lines, and not the dump.
#[derive(Debug)]
pub(crate) struct Json {
    lines: SyncSender<Line>,
    lost: u64,
}

/// What the writing thread is given.
#[derive(Debug)]
enum Line {
    Text(String),
    /// Everything before has been written.
    Mark(SyncSender<()>),
}

impl Json {
    pub(crate) fn new() -> std::io::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("json".into()).spawn(move || {
            for line in queue {
                match line {
                    // When nobody listens any more, the guest and its dump go on all the same.
                    Line::Text(text) => drop(writeln!(std::io::stdout(), "{text}")),
                    Line::Mark(seen) => drop(seen.send(())),
                }
            }
        })?;
        Ok(Self { lines, lost: 0 })
    }

    /// The guest's console as events. It waits for room: the guest can, the event loop cannot.
    pub(crate) fn console(&self) -> JsonConsole {
        JsonConsole { lines: self.lines.clone(), line: Vec::new() }
    }

    /// Hands an event over, unless there is no room for it before `until`.
    fn print(&mut self, event: &impl serde::Serialize, patience: Duration) {
        let until = Instant::now() + patience;
        let mut line = Line::Text(serde_json::to_string(event).expect("events are plain data"));
        while let Err(TrySendError::Full(back)) = self.lines.try_send(line) {
            if Instant::now() >= until {
                self.lost += 1;
                return;
            }
            line = back;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until everything is written, or for as long as a stalled reader deserves.
    pub(crate) fn finish(self) {
        let (seen, written) = sync_channel(1);
        let queued = self.lines.try_send(Line::Mark(seen)).is_ok();
        if !(queued && written.recv_timeout(PATIENCE).is_ok()) || self.lost > 0 {
            tracing::warn!(lost = self.lost, "standard output is not read: events are missing there");
        }
    }
}

impl Observer for Json {
    fn event(&mut self, event: &Event<'_>) {
        self.print(event, PATIENCE);
    }

    fn progress(&mut self, progress: &Progress) {
        let event = json!({
            "event": "progress",
            "phase": progress.phase.to_string(),
            "done": progress.done,
            "total": progress.total,
            "resends": progress.resends,
            "seconds": progress.elapsed.as_secs_f64(),
        });
        self.print(&event, Duration::ZERO);
    }

    /// The whole report follows.
    fn dump_ended(&mut self, _report: &DumpReport) {}
}

/// Longest piece of console text in one event.
const LINE_MAX: usize = 4096;

/// The guest's console as events, a line of it each.
#[derive(Debug)]
pub(crate) struct JsonConsole {
    lines: SyncSender<Line>,
    line: Vec<u8>,
}

impl Write for JsonConsole {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
            }
            if byte == b'\n' || self.line.len() >= LINE_MAX {
                self.end_line();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl JsonConsole {
    /// The console of another boot.
    pub(crate) fn fresh(&self) -> Self {
        Self { lines: self.lines.clone(), line: Vec::new() }
    }

    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&self.line);
        let event = json!({ "event": "console", "text": text.trim_end_matches('\r') });
        // The writing thread lives as long as the process.
        let _ = self.lines.send(Line::Text(event.to_string()));
        self.line.clear();
    }
}

impl Drop for JsonConsole {
    /// The rest of an unfinished line, if there is room for it: a drop must not wait.
    fn drop(&mut self) {
        if !self.line.is_empty() {
            let text = String::from_utf8_lossy(&self.line);
            let event = json!({ "event": "console", "text": text });
            let _ = self.lines.try_send(Line::Text(event.to_string()));
        }
    }
}
