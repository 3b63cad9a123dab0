//! Our own note: lines of `key=value` in UTF-8, readable with `readelf -p` or `strings`, so that the file alone tells
//! what the dumper knew.
//!
//! A backslash, control characters and, in keys, `=` are written `\xNN` (a code point below 256). Keys that a reader
//! does not know are passed over; `format` is raised when the meaning of a known one changes.
//!
//! ```text
//! format=1
//! panic.cpu=1             panic.source=pvpanic     panic.text=...       panic.time=1767225600
//! guest.os=FreeBSD        guest.release=...        guest.version=...    guest.hostname=...   guest.panic=...
//! kenv.NAME=VALUE         one for each variable, in the guest's order; `kenv=found` before them
//! cpu.0.activity=halted   cpu.0.cr8=0x0            efer, apic_base, dr0 to dr3, dr6, dr7, msr.0xc0000080, ...
//! ```

use std::fmt::Write as _;

use super::super::cpu::{Activity, CpuState, Msr, Registers};
use super::CoreNotes;

/// Most bytes of one value. A guest's strings are bounded when they are read; this bounds what a file makes us keep.
const MAX_VALUE: usize = 8192;
/// Most variables of the environment and MSRs of one CPU that are taken from a file.
const MAX_VARIABLES: usize = 8192;
const MAX_MSRS: usize = 4096;
const MAX_BAD_LINES: usize = 32;

/// The whole text.
pub(super) fn emit(cpus: &[CpuState], core: &CoreNotes) -> String {
    let mut out = String::from("format=1\n");
    let mut line = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            put_line(&mut out, key, value);
        }
    };
    line("panic.cpu", core.panic_cpu.map(|cpu| cpu.to_string()).as_deref());
    line("panic.source", core.panic_source.as_deref());
    line("panic.text", core.panic_text.as_deref());
    line("panic.time", core.panic_time.map(|time| time.to_string()).as_deref());
    let facts = &core.facts;
    line("guest.os", facts.os.as_deref());
    line("guest.release", facts.release.as_deref());
    line("guest.version", facts.version.as_deref());
    line("guest.hostname", facts.host_name.as_deref());
    line("guest.panic", facts.panic_text.as_deref());
    if let Some(environment) = &facts.environment {
        line("kenv", Some("found"));
        for (name, value) in environment {
            line(&format!("kenv.{name}"), Some(value));
        }
    }
    for cpu in cpus {
        put_cpu(&mut out, cpu);
    }
    out
}

/// Reads the text into notes and CPUs. Second: numbers of lines, from 1, that say nothing that can be understood.
pub(super) fn parse(text: &[u8], cpus: &mut [CpuState]) -> (CoreNotes, Vec<usize>) {
    let mut core = CoreNotes::default();
    let mut bad_lines = Vec::new();
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        if !line.is_empty() && take_line(line, &mut core, cpus).is_none() && bad_lines.len() < MAX_BAD_LINES {
            bad_lines.push(index + 1);
        }
    }
    (core, bad_lines)
}

fn put_cpu(out: &mut String, cpu: &CpuState) {
    let index = cpu.index;
    put_line(out, &format!("cpu.{index}.activity"), activity_name(cpu.activity));
    let Some(registers) = &cpu.registers else { return };
    let mut number =
        |key: &str, value: u64| put_line(out, &format!("cpu.{index}.{key}"), &format!("{value:#x}"));
    let mut registers = registers.clone();
    for (key, value) in named(&mut registers) {
        number(key, *value);
    }
    for Msr { index, value } in &registers.msrs {
        number(&format!("msr.{index:#x}"), *value);
    }
}

/// The registers that no other note holds, by the key of their line.
fn named(registers: &mut Registers) -> [(&'static str, &mut u64); 9] {
    let [dr0, dr1, dr2, dr3] = &mut registers.dr;
    [
        ("cr8", &mut registers.cr8),
        ("efer", &mut registers.efer),
        ("apic_base", &mut registers.apic_base),
        ("dr0", dr0),
        ("dr1", dr1),
        ("dr2", dr2),
        ("dr3", dr3),
        ("dr6", &mut registers.dr6),
        ("dr7", &mut registers.dr7),
    ]
}

/// `None`: the line cannot be understood.
fn take_line(line: &[u8], core: &mut CoreNotes, cpus: &mut [CpuState]) -> Option<()> {
    let (key, value) = std::str::from_utf8(line).ok()?.split_once('=')?;
    let value = unescape(value).filter(|value| value.len() <= MAX_VALUE)?;
    let facts = &mut core.facts;
    match key {
        "panic.cpu" => core.panic_cpu = Some(value.parse().ok()?),
        "panic.source" => core.panic_source = Some(value),
        "panic.text" => core.panic_text = Some(value),
        "panic.time" => core.panic_time = Some(value.parse().ok()?),
        "guest.os" => facts.os = Some(value),
        "guest.release" => facts.release = Some(value),
        "guest.version" => facts.version = Some(value),
        "guest.hostname" => facts.host_name = Some(value),
        "guest.panic" => facts.panic_text = Some(value),
        "kenv" => facts.environment = Some(Vec::new()),
        _ => {
            if let Some(name) = key.strip_prefix("kenv.") {
                let environment = facts.environment.get_or_insert_default();
                let name = unescape(name).filter(|name| name.len() <= MAX_VALUE)?;
                (environment.len() < MAX_VARIABLES).then(|| environment.push((name, value)))?;
            } else if let Some(rest) = key.strip_prefix("cpu.") {
                take_cpu_line(rest, &value, cpus)?;
            }
        }
    }
    Some(())
}

fn take_cpu_line(key: &str, value: &str, cpus: &mut [CpuState]) -> Option<()> {
    let (index, key) = key.split_once('.')?;
    let cpu = cpus.get_mut(index.parse::<usize>().ok()?)?;
    if key == "activity" {
        cpu.activity = activity(value)?;
        if cpu.activity == Activity::NotStopped {
            cpu.registers = None;
        }
        return Some(());
    }
    let number = hexadecimal(value)?;
    let registers = cpu.registers.as_mut()?;
    if let Some(msr) = key.strip_prefix("msr.") {
        let index = u32::try_from(hexadecimal(msr)?).ok()?;
        put_msr(&mut registers.msrs, Msr { index, value: number })?;
    } else if let Some((_, register)) = named(registers).into_iter().find(|(name, _)| *name == key) {
        *register = number;
    }
    Some(())
}

/// Keeps the list ascending and without duplicates.
fn put_msr(msrs: &mut Vec<Msr>, msr: Msr) -> Option<()> {
    match msrs.binary_search_by_key(&msr.index, |known| known.index) {
        Ok(known) => msrs[known] = msr,
        Err(_) if msrs.len() >= MAX_MSRS => return None,
        Err(place) => msrs.insert(place, msr),
    }
    Some(())
}

fn activity_name(activity: Activity) -> &'static str {
    match activity {
        Activity::Running => "running",
        Activity::Halted => "halted",
        Activity::NotStarted => "not_started",
        Activity::NotStopped => "not_stopped",
    }
}

fn activity(name: &str) -> Option<Activity> {
    [Activity::Running, Activity::Halted, Activity::NotStarted, Activity::NotStopped]
        .into_iter()
        .find(|&activity| activity_name(activity) == name)
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn put_line(out: &mut String, key: &str, value: &str) {
    escape(out, key, true);
    out.push('=');
    escape(out, &value[..value.floor_char_boundary(MAX_VALUE)], false);
    out.push('\n');
}

fn escape(out: &mut String, text: &str, is_key: bool) {
    for character in text.chars() {
        if character == '\\' || character.is_control() || (is_key && character == '=') {
            // Control characters of Unicode all lie below U+00A0.
            write!(out, "\\x{:02x}", u32::from(character)).expect("writing to a String cannot fail");
        } else {
            out.push(character);
        }
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        out.push_str(plain);
        let digits = escaped.strip_prefix('x')?.get(..2)?;
        out.push(char::from(u8::from_str_radix(digits, 16).ok()?));
        rest = &escaped[3..];
    }
    out.push_str(rest);
    Some(out)
}
