//! Whether a core is whole: what its headers promise, what the server beside it says, and what the sender sent.
//!
//! Each question is one [`Check`] with one sentence. Content can only be proven against the sender's report, which
//! holds a hash of the bytes as they were sent; without it a core can be well-formed and still hold wrong bytes.

mod content;

use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Serialize;

use super::core_file::CoreFile;
use super::info::{self, InfoFile};
use super::inspect::{bytes_text, counted, plain};
use super::memory::PhysicalMemory;
use super::minidump::read::Minidump;
use super::open::{Core, OpenError, Piece, PieceContent, open_with};
use super::paging::PAGE_SIZE;
use super::unpack::Packed;
use crate::report::{DumpReport, Outcome, PackingReport};

/// Ranges that a sentence names before it says how many more there are.
const SHOWN_RANGES: usize = 4;
/// Last parts of a file's name that say that the core is not whole.
const TELLING_ENDINGS: [&str; 2] = [".incomplete", ".partial"];

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

/// All checks of one core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The checks in the order in which they were made.
    pub checks: Vec<Check>,
}

impl Verdict {
    /// Whether nothing speaks against the core and something for it: its structure, or its content.
    pub fn whole(&self) -> bool {
        let found = |finding| move |check: &Check| check.finding == finding;
        let proves =
            |check: &Check| check.finding == Finding::Pass && [STRUCTURE, CONTENT].contains(&check.name);
        !self.checks.iter().any(found(Finding::Fail)) && self.checks.iter().any(proves)
    }

    /// Whether the content was held against the hash in a report.
    pub fn is_content_proven(&self) -> bool {
        self.checks.iter().any(|check| check.name == CONTENT && check.finding == Finding::Pass)
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
const CONTENT: &str = "content";

impl fmt::Display for Verdict {
    /// A line for each check, then the verdict. Whatever a server's info file or a report says stays on its line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let mark = match check.finding {
                Finding::Pass => "ok",
                Finding::Fail => "FAIL",
                Finding::NotApplicable => "-",
            };
            writeln!(f, "{mark:>4}  {:<10} {}", check.name, plain(&check.text))?;
        }
        f.write_str(match (self.whole(), self.is_content_proven()) {
            (true, true) => "The core is whole: its content is what the sender sent.",
            (true, false) => "The core is well-formed; its content could not be checked.",
            (false, _) => "The core is NOT whole.",
        })
    }
}

/// [`verify_with`], with the usual limit for compressed cores.
pub fn verify(path: &Path, report: Option<&DumpReport>, progress: &mut dyn FnMut(u64, u64)) -> Verdict {
    verify_with(path, report, None, progress)
}

/// Checks a core, and its content if there is a report of the dump. A compressed core is unpacked, to `unpack_limit`
/// bytes at most, for its structure; its content is what was sent and is stored, compressed.
///
/// `progress` is called now and then with the bytes hashed so far and the bytes in all.
pub fn verify_with(
    path: &Path,
    report: Option<&DumpReport>,
    unpack_limit: Option<u64>,
    progress: &mut dyn FnMut(u64, u64),
) -> Verdict {
    let mut verdict = Verdict { checks: Vec::new() };
    let core = open_with(path, unpack_limit);
    match &core {
        Ok(core) => check_core(&mut verdict, core),
        Err(
            error @ (OpenError::Unsupported(_) | OpenError::OtherMinidump(_) | OpenError::Encrypted { .. }),
        ) => verdict.add(STRUCTURE, Finding::NotApplicable, sentence(error)),
        Err(error) => verdict.add(STRUCTURE, Finding::Fail, sentence(error)),
    }
    let form = core.as_ref().map_or(Form::Stored, Form::of);
    let file = match core {
        Ok(core) if core.file().packed().is_none() => {
            check_holes(&mut verdict, core.file(), &|offset| core.content_at(offset), report);
            Ok(core.into_file())
        }
        Ok(_) | Err(_) => {
            CoreFile::open(path).inspect(|file| check_holes(&mut verdict, file, &|_| None, report))
        }
    };
    check_name(&mut verdict, path);
    check_info(&mut verdict, path, file.as_ref().ok(), form);
    match (report, file) {
        (Some(report), Ok(file)) => check_report(&mut verdict, &file, form, report, progress),
        (None, Ok(_)) => {
            verdict.add(
                CONTENT,
                Finding::NotApplicable,
                "no report of the sender to check the content against",
            );
        }
        // That it cannot be opened has been said.
        (_, Err(_)) => {}
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

    /// Whether a file that was stored compressed is that no more.
    fn is_unpacked(self, packing: &PackingReport) -> bool {
        self == Self::Plain && packing.compression.is_some()
    }

    /// Whether a file that was stored encrypted is that no more.
    fn is_decrypted(self, packing: &PackingReport) -> bool {
        self != Self::Stored && packing.cipher.is_some()
    }
}

fn check_core(verdict: &mut Verdict, core: &Core) {
    if let Some(packed) = core.file().packed() {
        let Packed { method, stored, unpacked, damage } = packed;
        let text = format!("{} of {stored} bytes, {unpacked} unpacked", method.name());
        verdict.judge("packing", damage.as_ref().map_or(Ok(text), |damage| Err(damage.to_string())));
    }
    verdict.judge(STRUCTURE, structure(core));
    verdict.judge("length", length(core));
    if core.pieces().iter().any(|piece| piece.content == PieceContent::Notes) {
        verdict.judge("notes", notes(core));
    } else {
        verdict.add("notes", Finding::NotApplicable, "the core has none");
    }
}

/// The pieces lie in the file in the order of their headers, none on another; memory is in ascending order.
fn structure(core: &Core) -> Result<String, String> {
    let mut before: Option<&Piece> = None;
    for piece in core.pieces().iter().filter(|piece| piece.len > 0) {
        if let Some(before) = before.filter(|before| piece.offset < before.end()) {
            return Err(format!(
                "{} at offset {:#x} begins before the end of {} at {:#x}",
                piece.content,
                piece.offset,
                before.content,
                before.end()
            ));
        }
        before = Some(piece);
    }
    let memory = core.pieces().iter().filter_map(|piece| match piece.content {
        PieceContent::Memory(range) => Some(range),
        _ => None,
    });
    let mut end = 0;
    for range in memory {
        if range.start < end {
            return Err(format!(
                "memory at {:#x} is listed behind memory that ends at {end:#x}",
                range.start
            ));
        }
        end = range.end();
    }
    let ranges = core.ranges();
    let total: u64 = ranges.iter().map(|range| range.len).sum();
    let memory = format!("{} of memory in {}", bytes_text(total), counted(ranges.len(), "range"));
    match core.minidump() {
        Some(minidump) => {
            minidump_structure(minidump).map(|pages| format!("{}, {pages} of {memory}", core.kind()))
        }
        None => Ok(format!("{}, {memory}", core.kind())),
    }
}

/// The bitmap names pages that exist.
fn minidump_structure(minidump: &Minidump) -> Result<String, String> {
    let (set, all) = (minidump.pages().len(), minidump.pages().numbers().bits());
    match minidump.stray_bits() {
        0 => Ok(format!("{set} of {all} pages")),
        stray => Err(format!("{stray} bits of the bitmap, behind the {all} that stand for pages, are set")),
    }
}

fn length(core: &Core) -> Result<String, String> {
    let (is, should) = (core.file().length(), core.expected_length());
    let lost = || {
        if let Some(minidump) = core.minidump() {
            let missing = minidump.pages().len() - minidump.pages_in(is);
            let first = core.address_at(is).map_or_else(String::new, |address| {
                format!(", the first of guest-physical {:#x}", address / PAGE_SIZE * PAGE_SIZE)
            });
            return format!("; {missing} of the {} pages are missing{first}", minidump.pages().len());
        }
        let first = core.pieces().iter().filter(|piece| piece.end() > is).min_by_key(|piece| piece.offset);
        first.map_or_else(String::new, |piece| format!("; the first that lacks bytes is {}", piece.content))
    };
    match is.cmp(&should) {
        std::cmp::Ordering::Equal => Ok(format!("{is} bytes, as the headers say")),
        std::cmp::Ordering::Less => Err(format!(
            "the file ends at offset {is:#x}, {} before the end at {should:#x}{}",
            counted_bytes(should - is),
            lost()
        )),
        std::cmp::Ordering::Greater => {
            Err(format!("{} too many, from offset {should:#x} on", counted_bytes(is - should)))
        }
    }
}

fn notes(core: &Core) -> Result<String, String> {
    match core.problems() {
        [] => Ok(format!("{} described", counted(core.cpus().len(), "CPU"))),
        [only] => Err(only.to_string()),
        [first, rest @ ..] => Err(format!("{first}, and {}", counted(rest.len(), "more problem"))),
    }
}

fn check_name(verdict: &mut Verdict, path: &Path) {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some(ending) = TELLING_ENDINGS.iter().find(|ending| name.ends_with(**ending)) {
        verdict.add(
            "name",
            Finding::Fail,
            format!("the name ends with {ending}: the server did not get all of it"),
        );
    }
}

fn check_info(verdict: &mut Verdict, path: &Path, file: Option<&CoreFile>, form: Form) {
    const NAME: &str = "info";
    let Some(info_path) = info::beside(path) else {
        verdict.add(NAME, Finding::NotApplicable, "no info file of a server beside the core");
        return;
    };
    let info = match InfoFile::read(&info_path) {
        Ok(info) => info,
        Err(error) => {
            verdict.add(NAME, Finding::Fail, format!("{} cannot be read: {error}", info_path.display()));
            return;
        }
    };
    verdict.judge(NAME, judge_info(&info, file.map(CoreFile::length), form));
}

fn judge_info(info: &InfoFile, length: Option<u64>, form: Form) -> Result<String, String> {
    let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "nothing".to_owned());
    if !info.is_complete() {
        let missing =
            info.missing.as_ref().map(|missing| format!("; missing: {missing}")).unwrap_or_default();
        return Err(format!("the server says of the end of the dump: {}{missing}", said(&info.ending)));
    }
    if info.parity.as_deref() != Some("Pass") {
        return Err(format!("the server says of the header's parity: {}", said(&info.parity)));
    }
    if form == Form::Plain && info.is_compressed() {
        return match (info.dump_extent, length) {
            (Some(extent), Some(length)) if extent != length => {
                Err(format!("the header announced {extent} bytes unpacked, the file has {length}"))
            }
            _ => Ok("the server has the whole dump, compressed; the header's parity is right".to_owned()),
        };
    }
    match (info.dump_length, length) {
        (Some(dump_length), Some(length)) if dump_length != length => {
            Err(format!("the header announced {dump_length} bytes, the file has {length}"))
        }
        (None, _) => Err("the server does not say how long the dump is".to_owned()),
        _ => Ok("the server has the whole dump, the header's parity and length are right".to_owned()),
    }
}

fn check_report(
    verdict: &mut Verdict,
    file: &CoreFile,
    form: Form,
    report: &DumpReport,
    progress: &mut dyn FnMut(u64, u64),
) {
    verdict.judge("outcome", outcome(report));
    let packing = report.packing.as_ref();
    let (what, length) = match packing.filter(|packing| form.is_unpacked(packing)) {
        Some(packing) => ("had", packing.unpacked),
        None => ("sent", report.length),
    };
    if file.length() != length {
        let text = format!("the sender {what} {length} bytes, the file has {}", file.length());
        verdict.add(CONTENT, Finding::Fail, text);
        return;
    }
    if let Some(packing) = packing.filter(|packing| form.is_unpacked(packing) || form.is_decrypted(packing)) {
        let text = format!(
            "the report's hash is of the core as it was stored ({packing}), which this file is no more: verify that one"
        );
        verdict.add(CONTENT, Finding::NotApplicable, text);
        return;
    }
    let Some(sent) = &report.digest else {
        let text = "the report holds no hash of the content, as not all of it was sent";
        verdict.add(CONTENT, Finding::NotApplicable, text);
        return;
    };
    verdict.judge(
        CONTENT,
        match content::hash(file, progress) {
            Ok(Some(found)) if found == *sent => {
                Ok(format!("digest {} is that of the bytes sent", found.root_hex()))
            }
            Ok(found) => {
                let differences = found.map(|found| found.differences(sent)).unwrap_or_default();
                let ranges = ranges_text(": ", &differences, differences.len());
                Err(format!("the digest is not that of the bytes sent, {}{ranges}", sent.root_hex()))
            }
            Err(error) => Err(format!("the file cannot be read to its end: {error}")),
        },
    );
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

/// `content_at` tells what lies at an offset of the file.
fn check_holes(
    verdict: &mut Verdict,
    file: &CoreFile,
    content_at: &dyn Fn(u64) -> Option<String>,
    report: Option<&DumpReport>,
) {
    let holes = content::holes(file, SHOWN_RANGES);
    if holes.count == 0 {
        verdict.add("holes", Finding::Pass, "none");
        return;
    }
    let first: Vec<String> = holes
        .first
        .iter()
        .map(|hole| {
            let content = content_at(hole.start).map(|content| format!(" ({content})")).unwrap_or_default();
            format!("{:#x} to {:#x}{content}", hole.start, hole.end)
        })
        .collect();
    let text = format!(
        "{} in {} that read as zeros{}",
        bytes_text(holes.total),
        counted(holes.count, "hole"),
        listed(": ", &first, holes.count)
    );
    match report {
        Some(report) => {
            let untouched = bytes_text(report.bytes_untouched);
            verdict.add("holes", Finding::Pass, format!("{text}; the sender left out {untouched} of zeros"));
        }
        None => verdict.add(
            "holes",
            Finding::NotApplicable,
            format!("{text}; only the sender's report can tell whether the guest had zeros there"),
        ),
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
