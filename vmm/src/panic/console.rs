//! The kernel's own words on the serial console: `panic: ...` (FreeBSD) or `Kernel panic - not syncing: ...` (Linux).
//!
//! A line is looked at as a whole, however many writes it came in, and what follows the words is kept as the panic
//! message. A kernel that stops in the middle of its line is given a moment, then the text so far must do. Anything that
//! may write to the console can forge such a line: that costs a dump, not safety.

use std::time::{Duration, Instant};

use super::{PanicSource, Places};
use crate::bus::BusError;
use crate::console::{ConsoleWatcher, Watch};
use crate::events::{EventSender, MachineEvent, PanicEvent, current_vcpu};

pub(super) const NAME: &str = "console";
/// What FreeBSD's vpanic() prints before its message.
const FREEBSD: &str = "panic: ";
/// What Linux's panic() prints; a colon and the message follow.
const LINUX: &str = "Kernel panic - not syncing";
/// Longest line that is kept; a kernel's panic line is shorter.
const LINE_MAX: usize = 1024;
/// How long an unfinished panic line may take.
const PATIENCE: Duration = Duration::from_millis(250);

/// The source.
#[derive(Debug)]
pub(super) struct Console;

impl PanicSource for Console {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "the serial console says 'panic: ' or 'Kernel panic - not syncing'"
    }

    fn arm(&'static self, places: &mut Places<'_>) -> Result<(), BusError> {
        places.console.push(Box::new(LineWatcher::new(places.events.clone())));
        Ok(())
    }
}

/// Collects the current line and looks for the words in it.
#[derive(Debug)]
struct LineWatcher {
    events: EventSender,
    line: Vec<u8>,
    /// When the words were first seen in the current, unfinished line, and by whom they were written.
    seen: Option<(Instant, Option<u32>)>,
}

impl LineWatcher {
    fn new(events: EventSender) -> Self {
        Self { events, line: Vec::with_capacity(LINE_MAX), seen: None }
    }

    fn take(&mut self, byte: u8) -> Watch {
        let full = self.line.len() >= LINE_MAX;
        if byte == b'\n' || byte == b'\r' || full {
            let verdict = self.end_line();
            self.line.clear();
            return verdict;
        }
        self.line.push(byte);
        // Every pattern ends in one of two characters: look only then.
        if self.seen.is_none() && matches!(byte, b' ' | b'g') && message(&self.line).is_some() {
            self.seen = Some((Instant::now(), current_vcpu()));
            self.events.send(MachineEvent::AskConsole(PATIENCE));
        }
        Watch::Quiet
    }

    fn end_line(&mut self) -> Watch {
        let Some((_, vcpu)) = self.seen.take() else { return Watch::Quiet };
        let text = message(&self.line).unwrap_or_default();
        self.events.send(MachineEvent::Panic(PanicEvent {
            source: NAME,
            vcpu,
            at: Instant::now(),
            detail: String::from_utf8_lossy(&self.line).trim().to_owned(),
            text: Some(text).filter(|text| !text.is_empty()),
            survivable: true,
        }));
        Watch::Panic
    }
}

impl ConsoleWatcher for LineWatcher {
    fn watch(&mut self, bytes: &[u8]) -> Watch {
        bytes.iter().fold(Watch::Quiet, |so_far, &byte| so_far.max(self.take(byte)))
    }

    fn ask(&mut self, now: Instant) {
        if self.seen.is_some_and(|(since, _)| now.duration_since(since) >= PATIENCE) {
            self.end_line();
            self.line.clear();
        }
    }
}

/// The panic message in a line that announces one.
fn message(line: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(line);
    let text = if let Some((_, rest)) = line.split_once(LINUX) {
        rest.trim_start_matches(':')
    } else {
        after_word(&line, FREEBSD)?
    };
    let printable = text.chars().filter(|c| !c.is_control()).collect::<String>();
    Some(printable.trim().to_owned())
}

/// What follows `word`, where a word begins: "don't-panic: " is nobody's panic.
fn after_word<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    line.match_indices(word).find_map(|(at, _)| {
        let before = line[..at].chars().next_back();
        let begins = !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'));
        begins.then(|| &line[at + word.len()..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{self, EventQueue};

    fn watcher() -> (LineWatcher, EventQueue) {
        let (events, queue) = events::channel().unwrap();
        (LineWatcher::new(events), queue)
    }

    fn panic(queue: &EventQueue) -> Option<PanicEvent> {
        while let Some(event) = queue.next() {
            if let MachineEvent::Panic(panic) = event {
                return Some(panic);
            }
        }
        None
    }

    fn text(console: &str) -> Option<String> {
        let (mut watcher, queue) = watcher();
        watcher.watch(console.as_bytes());
        panic(&queue).map(|event| event.text.unwrap_or_default())
    }

    #[test]
    fn both_kernels_messages_are_kept() {
        assert_eq!(text("panic: page fault\ncpuid = 0\n").unwrap(), "page fault");
        assert_eq!(
            text("[    1.5] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009\r\n")
                .unwrap(),
            "Attempted to kill init! exitcode=0x00000009"
        );
        assert_eq!(
            text("mountroot> panic: mountroot: unable to (re-)mount root.\n").unwrap(),
            "mountroot: unable to (re-)mount root."
        );
        assert_eq!(text("Kernel panic - not syncing\n").unwrap(), "");
    }

    #[test]
    fn words_split_over_writes_are_found() {
        let (mut watcher, queue) = watcher();
        for byte in b"boot\nKernel panic - not syncing: VFS\n" {
            watcher.watch(&[*byte]);
        }
        assert_eq!(panic(&queue).unwrap().text.as_deref(), Some("VFS"));
    }

    #[test]
    fn words_split_over_lines_or_inside_other_words_are_not_found() {
        for console in [
            "pan\nic: x\n",
            "Kernel panic - not\nsyncing: x\n",
            "nopanic: x\n",
            "don't-panic: x\n",
            "panic:x\n",
        ] {
            assert_eq!(text(console), None, "{console:?}");
        }
    }

    #[test]
    fn an_unfinished_line_counts_after_a_moment() {
        let (mut watcher, queue) = watcher();
        assert_eq!(watcher.watch(b"panic: half a mess"), Watch::Quiet);
        assert!(matches!(queue.next(), Some(MachineEvent::AskConsole(PATIENCE))));
        watcher.ask(Instant::now());
        assert!(panic(&queue).is_none());
        watcher.ask(Instant::now() + PATIENCE);
        assert_eq!(panic(&queue).unwrap().text.as_deref(), Some("half a mess"));
    }

    #[test]
    fn an_endless_line_is_cut_and_control_characters_are_dropped() {
        let (mut watcher, queue) = watcher();
        assert_eq!(watcher.watch(&[b"panic: \x1b[1m".as_slice(), &[b'x'; 4000]].concat()), Watch::Panic);
        assert!(panic(&queue).unwrap().text.unwrap().len() < LINE_MAX);
    }
}
