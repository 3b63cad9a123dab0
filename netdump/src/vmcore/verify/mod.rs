//! Whether a core is whole: what its headers promise, what the server beside it says, and what the sender sent.
//!
//! Each question is one [`Check`] with one sentence. Content can only be proven against the sender's report, which
//! holds the hashes of the bytes as they were sent; without it a core can be well-formed and still hold wrong bytes. The
//! receiver's manifest proves that a core is as it was stored. Manifests, reports and info files are read as what
//! anybody may have written: their sizes are limited, and what they say stays on its line.

mod content;
mod server;
mod structure;

use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Serialize;

use super::core_file::CoreFile;
use super::inspect::plain;
use super::open::{Core, OpenError, open_with};
use crate::report::{DumpReport, Outcome, PackingReport};
use content::Witnesses;

/// Ranges that a sentence names before it says how many more there are.
const SHOWN_RANGES: usize = 4;
/// Most ranges in [`Verdict::differences`].
const LISTED_RANGES: usize = 1000;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// As it must be.
    Pass,
    /// Not so.
    Fail,
    /// Nothing to hold it against.
    NotApplicable,
}

/// One question and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, in a word or two.
    pub name: &'static str,
    /// How it came out.
    pub finding: Finding,
    /// What was found, in one sentence.
    pub text: String,
}

/// A part of the core that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The [`Check::name`] of the check that found it.
    pub check: &'static str,
    /// First byte.
    pub start: u64,
    /// Behind the last byte. Where only hashes differ, the range is of whole MiB.
    pub end: u64,
}

/// All checks of one core.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Verdict {
    /// The checks in the order in which they were made.
    pub checks: Vec<Check>,
    /// The first 1,000 parts of which is known that they are wrong.
    pub differences: Vec<Difference>,
}

impl Verdict {
    /// Whether nothing speaks against the core and something for it: its structure, or its content.
    pub fn whole(&self) -> bool {
        let failed = self.checks.iter().any(|check| check.finding == Finding::Fail);
        !failed && [STRUCTURE, CONTENT, UNCHANGED].iter().any(|name| self.passes(name))
    }

    /// Whether the content was held against the hashes in a report.
    pub fn is_content_proven(&self) -> bool {
        self.passes(CONTENT)
    }

    fn passes(&self, name: &str) -> bool {
        self.checks.iter().any(|check| check.name == name && check.finding == Finding::Pass)
    }

    fn add(&mut self, name: &'static str, finding: Finding, text: impl Into<String>) {
        self.checks.push(Check { name, finding, text: text.into() });
    }

    fn judge(&mut self, name: &'static str, result: Result<String, String>) {
        match result {
            Ok(text) => self.add(name, Finding::Pass, text),
            Err(text) => self.add(name, Finding::Fail, text),
        }
    }
}

const STRUCTURE: &str = "structure";
/// The core's digest against the sender's.
const CONTENT: &str = "content";
/// The core's digest against the receiver's.
const UNCHANGED: &str = "unchanged";
/// The receiver's digest against the sender's.
const TRANSFER: &str = "transfer";

impl fmt::Display for Verdict {
    /// A line for each check, then the verdict. Whatever a server's files or a report say stays on its line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let mark = match check.finding {
                Finding::Pass => "ok",
                Finding::Fail => "FAIL",
                Finding::NotApplicable => "-",
            };
            writeln!(f, "{mark:>4}  {:<10} {}", check.name, plain(&check.text))?;
        }
        f.write_str(match (self.whole(), self.is_content_proven(), self.passes(UNCHANGED)) {
            (true, true, _) => "The core is whole: its content is what the sender sent.",
            (true, false, true) => {
                "The core is whole: it is as the receiver stored it. Whether that is what was sent only a report can tell."
            }
            (true, false, false) => "The core is well-formed; its content could not be checked.",
            (false, ..) => "The core is NOT whole.",
        })
    }
}

/// What a core is held against, beside what lies beside it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence<'a> {
    /// The sender's report.
    pub report: Option<&'a DumpReport>,
    /// The receiver's manifest; if none is named here, the one beside the core.
    pub manifest: Option<&'a Path>,
    /// Most bytes that a compressed core is unpacked to; the usual limit if none is named.
    pub unpack_limit: Option<u64>,
}

/// [`verify_with`] the sender's report, if there is one.
pub fn verify(path: &Path, report: Option<&DumpReport>, progress: &mut dyn FnMut(u64, u64)) -> Verdict {
    verify_with(path, &Evidence { report, ..Evidence::default() }, progress)
}

/// Checks a core. A compressed one is unpacked for its structure; its content is what was sent and is stored,
/// compressed.
///
/// `progress` is called now and then with the bytes hashed so far and the bytes in all.
pub fn verify_with(path: &Path, evidence: &Evidence<'_>, progress: &mut dyn FnMut(u64, u64)) -> Verdict {
    let Evidence { report, manifest, unpack_limit } = *evidence;
    let mut verdict = Verdict::default();
    let core = open_with(path, unpack_limit);
    match &core {
        Ok(core) => structure::check_core(&mut verdict, core),
        Err(
            error @ (OpenError::Unsupported(_) | OpenError::OtherMinidump(_) | OpenError::Encrypted { .. }),
        ) => verdict.add(STRUCTURE, Finding::NotApplicable, sentence(error)),
        Err(error) => verdict.add(STRUCTURE, Finding::Fail, sentence(error)),
    }
    let form = core.as_ref().map_or(Form::Stored, Form::of);
    // What lies at an offset only a core that is not packed can tell.
    let core = core.ok().filter(|core| core.file().packed().is_none());
    let opened = if core.is_some() { None } else { CoreFile::open(path).ok() };
    let file = core.as_ref().map(Core::file).or(opened.as_ref());
    let content_at = |offset| core.as_ref().and_then(|core| core.content_at(offset));
    if let Some(file) = file {
        content::check_holes(&mut verdict, file, &content_at, report);
    }
    let length = file.map(CoreFile::length);
    server::check_name(&mut verdict, path);
    server::check_info(&mut verdict, path, length, form);
    let manifest = server::check_manifest(&mut verdict, path, manifest, length, form);
    if let Some(report) = report {
        verdict.judge("outcome", outcome(report));
    }
    // That a file cannot be opened has been said.
    if let Some(file) = file {
        let witnesses = Witnesses { report, manifest: manifest.as_ref(), form };
        content::check(&mut verdict, file, &witnesses, &content_at, progress);
    }
    verdict
}

/// What became of the file since the server stored it, as far as the file tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// It is compressed, and not encrypted: perhaps any more.
    Compressed,
    /// It is neither: perhaps any more.
    Plain,
    /// It cannot be read as a core. Then it is what the server stored, or damaged.
    Stored,
}

impl Form {
    fn of(core: &Core) -> Self {
        if core.file().packed().is_some() { Self::Compressed } else { Self::Plain }
    }

    /// Whether a file that was stored compressed, or encrypted, is that no more.
    fn was_changed(self, compressed: bool, encrypted: bool) -> bool {
        (self == Self::Plain && compressed) || (self != Self::Stored && encrypted)
    }

    /// Whether a file that was stored compressed is that no more.
    fn is_unpacked(self, packing: &PackingReport) -> bool {
        self.was_changed(packing.compression.is_some(), false)
    }
}

fn outcome(report: &DumpReport) -> Result<String, String> {
    let reason = report.reason.as_deref().unwrap_or("no reason given");
    let missing: Vec<Range<u64>> = report.missing.iter().map(|&(start, end)| start..end).collect();
    let not_acknowledged = ranges_text("; not acknowledged: ", &missing, missing.len());
    match report.outcome {
        Outcome::Failed => Err(format!("the sender gave up: {reason}{}", not_acknowledged)),
        _ if !missing.is_empty() => Err(format!("the server did not acknowledge all{not_acknowledged}")),
        Outcome::Complete => Ok("the server acknowledged everything".to_owned()),
        Outcome::Unconfirmed => Ok(format!("the server acknowledged everything but the end ({reason})")),
    }
}

/// `before` and the ranges, of which there are `count` in all; nothing when there are none.
fn ranges_text(before: &str, first: &[Range<u64>], count: usize) -> String {
    let shown: Vec<String> = first
        .iter()
        .take(SHOWN_RANGES)
        .map(|range| format!("{:#x} to {:#x}", range.start, range.end))
        .collect();
    listed(before, &shown, count)
}

fn listed(before: &str, shown: &[String], count: usize) -> String {
    if shown.is_empty() {
        return String::new();
    }
    let more = if count > shown.len() { format!(" and {} more", count - shown.len()) } else { String::new() };
    format!("{before}{}{more}", shown.join(", "))
}

fn counted_bytes(count: u64) -> String {
    if count == 1 { "1 byte".to_owned() } else { format!("{count} bytes") }
}

/// An error with its causes, as one sentence.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
