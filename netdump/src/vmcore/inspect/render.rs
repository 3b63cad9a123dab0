//! The text of an [`Inspection`] for a terminal: one block a subject, facts at a glance. Texts of others (the guest, a
//! server, a file's name) are printed [plainly](plain).

use std::fmt::{self, Display, Write as _};

use super::{Inspection, RangeFacts};
use crate::calendar::CalendarTime;
use crate::vmcore::cpu::{Activity, CpuState, Registers};
use crate::vmcore::unpack::Packed;

/// Ranges and CPUs that are listed before the rest is only counted. JSON has them all.
const MAX_LISTED: usize = 64;
/// Width of the left column.
const LABEL: usize = 9;

impl Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", plain(&self.path.display().to_string()))?;
        self.file(f)?;
        self.minidump_header(f)?;
        self.panic(f)?;
        self.guest(f)?;
        self.dump(f)?;
        match &self.card {
            Some(card) => card.summary(f)?,
            None => self.crashed_thread(f)?,
        }
        self.messages(f)?;
        self.memory(f)?;
        self.cpus(f)?;
        self.threads(f)?;
        self.other_backtraces(f)?;
        self.environment(f)?;
        self.debugger_commands(f)?;
        self.kernel_problems(f)?;
        self.problems.iter().try_for_each(|problem| line(f, "Problem", plain(problem)))
    }
}

impl Inspection {
    fn file(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "Core", self.kind)?;
        if let Some(Packed { method, stored, damage, .. }) = &self.packed {
            line(f, "", format!("unpacked from {} of {}", bytes_text(*stored), method.name()))?;
            if let Some(damage) = damage {
                line(f, "", format!("DAMAGED: {}", plain(&damage.to_string())))?;
            }
        }
        let length = format!("{} ({} bytes)", bytes_text(self.length), self.length);
        match self.length.checked_sub(self.expected_length) {
            Some(0) => line(f, "", length),
            Some(more) => line(f, "", format!("{length}, {more} bytes MORE than its headers say")),
            None => {
                let lost = self.expected_length - self.length;
                line(
                    f,
                    "",
                    format!("{length}, CUT: {} ({lost} bytes) are missing at its end", bytes_text(lost)),
                )
            }
        }
    }

    fn panic(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let panic = &self.panic;
        let facts = [
            panic.cpu.map(|cpu| format!("on CPU {cpu}")),
            panic.source.as_ref().map(|source| format!("noticed by {}", plain(source))),
            panic.time.map(|time| format!("at {}", utc(time))),
        ];
        let facts: Vec<String> = facts.into_iter().flatten().collect();
        if panic.text.is_none() && facts.is_empty() {
            return Ok(());
        }
        line(f, "Panic", panic.text.as_deref().map_or_else(|| "(no text)".to_owned(), plain))?;
        if facts.is_empty() { Ok(()) } else { line(f, "", facts.join(", ")) }
    }

    fn guest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guest = &self.guest;
        let name = guest.host_name.as_ref().map(|name| format!("\"{}\"", plain(name)));
        let system: Vec<String> = guest.os.iter().chain(&guest.release).map(|text| plain(text)).collect();
        let system = (!system.is_empty()).then(|| system.join(" "));
        let first: Vec<String> = system.into_iter().chain(name).collect();
        let version = guest.version.iter().flat_map(|text| text.lines()).map(plain);
        let lines = (!first.is_empty()).then(|| first.join(", ")).into_iter().chain(version);
        labelled(f, "Guest", lines)
    }

    fn dump(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(info) = &self.info else { return Ok(()) };
        let said = |label: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!("{label}{}", plain(value)))
        };
        let header: Vec<String> = [
            said("missing ", &info.missing),
            said("header parity ", &info.parity),
            said("", &info.architecture),
            info.dump_length.map(|length| format!("{length} bytes")),
            said("compression ", &info.compression),
            said("host name ", &info.host_name),
            said("at ", &info.dump_time),
        ]
        .into_iter()
        .flatten()
        .collect();
        let ended =
            said("", &info.ending).unwrap_or_else(|| "the server does not say how it ended".to_owned());
        let from = said("from ", &info.dump_from).into_iter().chain([ended]).collect::<Vec<_>>().join(": ");
        labelled(f, "Dump", [from, header.join(", ")].into_iter().filter(|text| !text.is_empty()))
    }

    fn memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |of: fn(&RangeFacts) -> u64| bytes_text(self.memory.iter().map(of).sum());
        let total = format!(
            "{} in {} range{}, {} stored",
            sum(|range| range.len),
            self.memory.len(),
            if self.memory.len() == 1 { "" } else { "s" },
            sum(|range| range.stored)
        );
        line(f, "Memory", total)?;
        for range in self.memory.iter().take(MAX_LISTED) {
            let (start, last) = (range.start, range.start.saturating_add(range.len - 1));
            let (len, stored) = (bytes_text(range.len), bytes_text(range.stored));
            line(f, "", format!("{start:#014x} to {last:#014x} {len:>12} {stored:>12} stored"))?;
        }
        rest(f, self.memory.len(), MAX_LISTED, "range")
    }

    fn cpus(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cpus.is_empty() && self.minidump.is_some() {
            return Ok(());
        }
        line(f, "CPUs", self.cpus.len())?;
        for cpu in self.cpus.iter().take(MAX_LISTED) {
            let panicked = self.panic.cpu == Some(cpu.index);
            let mark = if panicked { ", PANICKED" } else { "" };
            line(f, "", format!("CPU {}: {}{mark}", cpu.index, activity_text(cpu)))?;
            let Some(registers) = &cpu.registers else { continue };
            let shown = if panicked || self.cpus.len() == 1 { all(registers) } else { main(registers) };
            for row in shown.chunks(4) {
                let cells: Vec<String> =
                    row.iter().map(|(name, value)| format!("{name:>6} {value:016x}")).collect();
                line(f, "", cells.join(" "))?;
            }
        }
        rest(f, self.cpus.len(), MAX_LISTED, "CPU")
    }

    fn environment(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(environment) = &self.guest.environment else { return Ok(()) };
        line(f, "Kenv", counted(environment.len(), "variable"))?;
        environment
            .iter()
            .try_for_each(|(name, value)| line(f, "", format!("{}=\"{}\"", plain(name), plain(value))))
    }
}

/// A number of bytes as a human reads it: "4.0 KiB", "1.5 GiB".
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let unit = usize::try_from(bytes.ilog2() / 10).expect("a u64 has 64 bits") - 1;
    let shift = 10 * (unit + 1);
    // Tenths, rounded to the nearest, in integers: a float has not enough digits for exact sizes.
    let tenths = (u128::from(bytes) * 10 + (1 << (shift - 1))) >> shift;
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Registers that tell where a CPU is.
fn main(r: &Registers) -> Vec<(&'static str, u64)> {
    vec![("rip", r.rip), ("rsp", r.rsp), ("rbp", r.rbp), ("cr3", r.cr3)]
}

fn all(r: &Registers) -> Vec<(&'static str, u64)> {
    let mut shown = r.named().to_vec();
    shown.extend([
        ("cs", r.cs.selector.into()),
        ("ss", r.ss.selector.into()),
        ("cr0", r.cr0),
        ("cr2", r.cr2),
        ("cr3", r.cr3),
        ("cr4", r.cr4),
        ("efer", r.efer),
        ("fsbase", r.fs.base),
        ("gsbase", r.gs.base),
    ]);
    shown.extend(r.msr(crate::vmcore::cpu::MSR_KERNEL_GS_BASE).map(|base| ("kgs", base)));
    shown
}

fn activity_text(cpu: &CpuState) -> &'static str {
    match cpu.activity {
        Activity::Running => "running",
        Activity::Halted => "halted",
        Activity::NotStarted => "not started by the guest",
        Activity::NotStopped => "did not stop, nothing is known of it",
    }
}

pub(crate) fn line(f: &mut fmt::Formatter<'_>, label: &str, text: impl Display) -> fmt::Result {
    writeln!(f, "{label:<LABEL$} {text}")
}

pub(crate) fn labelled(
    f: &mut fmt::Formatter<'_>,
    label: &str,
    lines: impl Iterator<Item = String>,
) -> fmt::Result {
    for (index, text) in lines.enumerate() {
        line(f, if index == 0 { label } else { "" }, text)?;
    }
    Ok(())
}

/// What a list that shows at most `shown` of `count` entries leaves out.
pub(crate) fn rest(f: &mut fmt::Formatter<'_>, count: usize, shown: usize, what: &str) -> fmt::Result {
    match count.saturating_sub(shown) {
        0 => Ok(()),
        more => line(f, "", format!("and {}", counted(more, &format!("more {what}")))),
    }
}

/// "1 range", "2 ranges".
pub(crate) fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Somebody else's text without anything that a terminal would obey, be it a command or a change of direction.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.trim_end().chars() {
        let turns =
            matches!(character, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || turns {
            write!(out, "{}", character.escape_default()).expect("writing to a String cannot fail");
        } else {
            out.push(character);
        }
    }
    out
}

/// Seconds since 1970 as "2026-01-31 12:00:00 UTC".
fn utc(seconds: u64) -> String {
    let CalendarTime { year, month, day, hour, minute, second, .. } = CalendarTime::from_unix(seconds);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_to_tenths() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (640 << 10, "640.0 KiB"),
            ((1 << 30) + (1 << 29), "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes_text(bytes), text);
        }
    }

    #[test]
    fn guest_text_cannot_command_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\u{9b}c\u{202e}d\n"), "a\\u{1b}[2Jb\\u{9b}c\\u{202e}d");
    }
}
