//! What the user sees of a run: for people on stderr (the guest's console has stdout), for machines as lines of JSON on
//! stdout.

use std::io::{IsTerminal, Write, stderr};

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
            Event::CrashLoaded { vcpu } => {
                tracing::info!(vcpu, "guest panicked; its own crash kernel takes over, so it is not dumped");
            }
            Event::Paused { pause } => tracing::info!("paused {pause}"),
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

/// For machines: one object a line.
#[derive(Debug, Default)]
pub(crate) struct Json {
    /// While a dump runs.
    progress: Option<Reporter>,
}

/// Prints an event. When nobody listens any more, the guest and its dump go on all the same.
fn print(event: &impl serde::Serialize) {
    let line = serde_json::to_string(event).expect("events are plain data");
    // One write: lines of vCPU threads and of the event loop must not mix.
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
}

impl Observer for Json {
    fn event(&mut self, event: &Event<'_>) {
        print(event);
    }

    fn progress(&mut self, progress: &Progress) {
        self.progress.get_or_insert_with(|| Reporter::new(ProgressStyle::Json)).update(progress);
    }

    fn dump_ended(&mut self, report: &DumpReport) {
        if let Some(progress) = self.progress.take() {
            progress.finish(report);
        }
    }
}

/// Longest piece of console text in one event.
const LINE_MAX: usize = 4096;

/// The guest's console as events, a line of it each.
#[derive(Debug, Default)]
pub(crate) struct JsonConsole {
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
    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&self.line);
        print(&json!({ "event": "console", "text": text.trim_end_matches('\r') }));
        self.line.clear();
    }
}

impl Drop for JsonConsole {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
    }
}
