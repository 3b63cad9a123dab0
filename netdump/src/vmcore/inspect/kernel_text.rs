//! The part of an [`Inspection`]'s text that tells of the stopped kernel: a minidump's header, its messages, its threads
//! and the way into a debugger. The guest's texts are printed [plainly](plain).

use std::fmt;

use super::Inspection;
use super::render::{bytes_text, counted, labelled, line, plain, rest};
use crate::facts::{Frame, ThreadFacts, ThreadRegisters};

/// Lines of the message buffer that are shown. JSON has all of it.
const MESSAGE_LINES: usize = 40;
/// Threads that are listed before the rest is only counted.
const MAX_THREADS: usize = 1024;

impl Inspection {
    pub(super) fn minidump_header(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(header) = &self.minidump else { return Ok(()) };
        let lost = header.pages_set - header.pages_in_file;
        let cut = if lost > 0 { format!(", {lost} of them are cut off") } else { String::new() };
        let lines = [
            format!(
                "version {}: message buffer {} bytes, dump_avail {}, bitmap {}, page map {}",
                header.version,
                header.message_buffer_len,
                header.dump_avail_len,
                header.bitmap_len,
                header.page_map_len
            ),
            format!(
                "kernel addresses from {:#x}, direct map {:#x} to {:#x}",
                header.kernel_base, header.direct_map_start, header.direct_map_end
            ),
            format!("{} of {} pages are in the dump{cut}", header.pages_set, header.pages),
        ];
        labelled(f, "Header", lines.into_iter())
    }

    pub(super) fn crashed_thread(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kernel.crashed().map_or(Ok(()), |thread| self.thread(f, thread))
    }

    /// Threads beside the crashed one whose call chains were asked for.
    pub(super) fn other_backtraces(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let crashed = self.kernel.crashed_thread;
        // A card has shown the chains of the CPUs.
        let is_shown = |thread: &ThreadFacts| {
            Some(thread.tid) == crashed || (self.card.is_some() && thread.cpu.is_some())
        };
        let others = self.kernel.threads.iter().filter(|thread| !is_shown(thread));
        others.filter(|thread| !thread.backtrace.is_empty()).try_for_each(|thread| self.thread(f, thread))
    }

    fn thread(&self, f: &mut fmt::Formatter<'_>, thread: &ThreadFacts) -> fmt::Result {
        let crashed = self.kernel.crashed_thread == Some(thread.tid);
        let place = thread.cpu.map(|cpu| format!(", on CPU {cpu}")).unwrap_or_default();
        let mark = if crashed { ", CRASHED" } else { "" };
        let from = thread.registers_from.map(|from| format!("; registers of {from}")).unwrap_or_default();
        let name = names(thread);
        line(f, "Thread", format!("{} of pid {} {name}{place}{mark}{from}", thread.tid, thread.pid))?;
        if let Some(registers) = &thread.registers {
            for row in named(registers).chunks(4) {
                let cells: Vec<String> =
                    row.iter().map(|(name, value)| format!("{name:>6} {value:016x}")).collect();
                line(f, "", cells.join(" "))?;
            }
        }
        labelled(f, "Calls", thread.backtrace.iter().map(call))
    }

    pub(super) fn threads(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = &self.kernel.threads;
        if threads.is_empty() {
            return Ok(());
        }
        line(f, "Threads", threads.len())?;
        let has_states = threads.iter().any(|thread| thread.state.is_some());
        let state = |letter: char| if has_states { format!(" {letter}") } else { String::new() };
        let head = state('S');
        line(
            f,
            "",
            format!("{:>7} {:>7} {:>4}{head}  {:<14} process and thread", "pid", "tid", "CPU", "registers"),
        )?;
        for thread in threads.iter().take(MAX_THREADS) {
            let cpu = thread.cpu.map_or_else(|| "-".to_owned(), |cpu| cpu.to_string());
            let from = thread.registers_from.map_or_else(|| "none".to_owned(), |from| from.to_string());
            let mark = if self.kernel.crashed_thread == Some(thread.tid) { ", CRASHED" } else { "" };
            let name = names(thread);
            let letter = state(thread.state.unwrap_or('?'));
            let row =
                format!("{:>7} {:>7} {cpu:>4}{letter}  {from:<14} {name}{mark}", thread.pid, thread.tid);
            line(f, "", row)?;
        }
        rest(f, threads.len(), MAX_THREADS, "thread")
    }

    pub(super) fn messages(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(messages) = &self.kernel.message_buffer else { return Ok(()) };
        let count = messages.lines().count();
        let shown = count.min(MESSAGE_LINES);
        let all = counted(count, "line");
        let size = bytes_text(messages.len() as u64);
        line(f, "Messages", if shown < count { format!("the last {shown} of {all} ({size})") } else { all })?;
        messages.lines().skip(count - shown).try_for_each(|text| line(f, "", plain(text)))
    }

    pub(super) fn debugger_commands(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        labelled(f, "Open with", self.debuggers.iter().map(|command| plain(command)))
    }

    pub(super) fn kernel_problems(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kernel.problems.iter().try_for_each(|problem| line(f, "Problem", plain(problem)))
    }
}

/// "sysctl", or "intr/swi4: clock" where the thread has a name of its own.
fn names(thread: &ThreadFacts) -> String {
    let process = plain(&thread.process);
    if thread.name.is_empty() || thread.name == thread.process {
        return process;
    }
    format!("{process}/{}", plain(&thread.name))
}

fn call(frame: &Frame) -> String {
    plain(&frame.to_string())
}

fn named(r: &ThreadRegisters) -> [(&'static str, u64); 8] {
    [
        ("rip", r.rip),
        ("rsp", r.rsp),
        ("rbp", r.rbp),
        ("rbx", r.rbx),
        ("r12", r.r12),
        ("r13", r.r13),
        ("r14", r.r14),
        ("r15", r.r15),
    ]
}
