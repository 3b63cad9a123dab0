//! The content of a core's file as a whole: its hashes against those of its sender and its receiver, its holes.

use std::ops::Range;

use super::super::core_file::CoreFile;
use super::super::inspect::{bytes_text, counted};
use super::{
    CONTENT, Difference, Finding, Form, LISTED_RANGES, SHOWN_RANGES, TRANSFER, UNCHANGED, Verdict,
    counted_bytes, listed,
};
use crate::digest::{Digest, MAX_LENGTH, PIECE_LEN};
use crate::digest_file::digest_of;
use crate::manifest::Manifest;
use crate::report::DumpReport;

/// Who can tell what a core's content should be.
pub(super) struct Witnesses<'a> {
    pub(super) report: Option<&'a DumpReport>,
    pub(super) manifest: Option<&'a Manifest>,
    pub(super) form: Form,
}

/// Holds a core's content against what its sender and its receiver hashed. `content_at` tells what lies at an offset.
pub(super) fn check(
    verdict: &mut Verdict,
    file: &CoreFile,
    witnesses: &Witnesses<'_>,
    content_at: &dyn Fn(u64) -> Option<String>,
    progress: &mut dyn FnMut(u64, u64),
) {
    let sent = match witnesses.sent(file.length()) {
        Ok(sent) => Some(sent),
        Err((finding, text)) => {
            verdict.add(CONTENT, finding, text);
            None
        }
    };
    let stored = witnesses.manifest.and_then(|manifest| manifest.digest.as_ref());
    if sent.is_none() && stored.is_none() {
        return;
    }
    let found = match digest_of(file, progress) {
        Ok(Some(found)) => found,
        Ok(None) => {
            let text = format!("the file is longer than the {MAX_LENGTH} bytes that can be hashed");
            return verdict.add(CONTENT, Finding::Fail, text);
        }
        Err(error) => {
            let text = format!("the file cannot be read to its end: {error}");
            return verdict.add(CONTENT, Finding::Fail, text);
        }
    };
    let gaps = witnesses.manifest.map(|manifest| manifest.gaps.listed.as_slice()).unwrap_or_default();
    let describe = |range: &Range<u64>| describe(file, range, gaps, content_at);
    if let Some(sent) = sent {
        Comparison {
            check: CONTENT,
            good: "that of the bytes sent",
            expected: "the sender sent",
            found: "the file has",
        }
        .make(verdict, &found, sent, &describe);
    }
    if let Some(stored) = stored {
        let good = "that of the core as it was stored";
        Comparison { check: UNCHANGED, good, expected: "the receiver stored", found: "the file has" }
            .make(verdict, &found, stored, &describe);
    }
    if let (Some(sent), Some(stored)) = (sent, stored) {
        let good = "the same at sender and receiver";
        Comparison { check: TRANSFER, good, expected: "the sender sent", found: "the receiver stored" }.make(
            verdict,
            stored,
            sent,
            &range_text,
        );
    }
}

impl Witnesses<'_> {
    /// The digest of what was sent, if that can be held against the file; else what there is to say.
    fn sent(&self, length: u64) -> Result<&Digest, (Finding, String)> {
        let Some(report) = self.report else {
            let text = "no report of the sender to check the content against";
            return Err((Finding::NotApplicable, text.to_owned()));
        };
        if let Some(packing) = &report.packing
            && self.form.was_changed(packing.compression.is_some(), packing.cipher.is_some())
        {
            if self.form.is_unpacked(packing) && length != packing.unpacked {
                let text = format!("the sender had {} bytes, the file has {length}", packing.unpacked);
                return Err((Finding::Fail, text));
            }
            let text = format!(
                "the report's hash is of the core as it was stored ({packing}), which this file is no more: verify that one"
            );
            return Err((Finding::NotApplicable, text));
        }
        if let Some(digest) = report.digest.as_ref().filter(|digest| digest.length != report.length) {
            let text = format!(
                "the sender sent {} bytes, and hashed {}: no core has both",
                report.length, digest.length
            );
            return Err((Finding::Fail, text));
        }
        report.digest.as_ref().ok_or_else(|| {
            if report.length != length {
                let text = format!("the sender sent {} bytes, the file has {length}", report.length);
                return (Finding::Fail, text);
            }
            let text = "the report holds no hash of the content, as not all of it was sent";
            (Finding::NotApplicable, text.to_owned())
        })
    }
}

/// How two digests are held against each other, in words.
struct Comparison {
    check: &'static str,
    /// What the digest is when it is the same.
    good: &'static str,
    /// Before the length that is expected, and before the one that is found.
    expected: &'static str,
    found: &'static str,
}

impl Comparison {
    /// Adds what `found` is in the light of `expected`.
    fn make(
        &self,
        verdict: &mut Verdict,
        found: &Digest,
        expected: &Digest,
        describe: &dyn Fn(&Range<u64>) -> String,
    ) {
        if found == expected {
            let text = format!("digest {} is {}", found.root_hex(), self.good);
            return verdict.add(self.check, Finding::Pass, text);
        }
        let mut wrong = differing_pieces(found, expected);
        let shown: Vec<String> = wrong.iter().take(SHOWN_RANGES).map(describe).collect();
        let pieces = listed("; different: ", &shown, wrong.len());
        let text = match self.lengths(found.length, expected.length) {
            Some((text, range)) => {
                wrong.push(range);
                text
            }
            None => format!("digest {} is not {}, {}", found.root_hex(), self.good, expected.root_hex()),
        };
        verdict.add(self.check, Finding::Fail, text + &pieces);
        let room = LISTED_RANGES.saturating_sub(verdict.differences.len());
        let wrong = wrong.into_iter().take(room);
        verdict.differences.extend(wrong.map(|Range { start, end }| Difference {
            check: self.check,
            start,
            end,
        }));
    }

    /// What is said of lengths that differ, and the bytes that only one has.
    fn lengths(&self, found: u64, expected: u64) -> Option<(String, Range<u64>)> {
        let range = found.min(expected)..found.max(expected);
        let what = if found < expected { "missing" } else { "too many" };
        let text = format!(
            "{} {expected} bytes, {} {found}: {} from {:#x} on {what}",
            self.expected,
            self.found,
            counted_bytes(range.end - range.start),
            range.start
        );
        (!range.is_empty()).then_some((text, range))
    }
}

/// Where two cores differ, as far as both reach: ranges of pieces. Of two lengths the piece in which the shorter one ends
/// tells nothing.
fn differing_pieces(one: &Digest, other: &Digest) -> Vec<Range<u64>> {
    if one.length == other.length {
        return one.differences(other);
    }
    let whole = one.length.min(other.length) / PIECE_LEN;
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for ((one, other), piece) in one.pieces.iter().zip(&other.pieces).zip(0..whole) {
        let start = piece * PIECE_LEN;
        match ranges.last_mut() {
            _ if one == other => {}
            Some(last) if last.end == start => last.end += PIECE_LEN,
            _ => ranges.push(start..start + PIECE_LEN),
        }
    }
    ranges
}

/// A range with what lies there, and the holes in it that the receiver did not make.
fn describe(
    file: &CoreFile,
    range: &Range<u64>,
    gaps: &[(u64, u64)],
    content_at: &dyn Fn(u64) -> Option<String>,
) -> String {
    let is_gap = |hole: &Range<u64>| gaps.iter().any(|&(start, end)| start <= hole.start && hole.end <= end);
    let holes: Vec<String> = holes_in(file, range.clone())
        .filter(|hole| !is_gap(hole))
        .take(SHOWN_RANGES)
        .map(|hole| range_text(&hole))
        .collect();
    let holes = (!holes.is_empty()).then(|| format!("of which {} is a hole", holes.join(", ")));
    let notes: Vec<String> = content_at(range.start).into_iter().chain(holes).collect();
    let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
    format!("{}{notes}", range_text(range))
}

fn range_text(range: &Range<u64>) -> String {
    format!("{:#x} to {:#x}", range.start, range.end)
}

/// `content_at` tells what lies at an offset of the file.
pub(super) fn check_holes(
    verdict: &mut Verdict,
    file: &CoreFile,
    content_at: &dyn Fn(u64) -> Option<String>,
    report: Option<&DumpReport>,
) {
    let holes = holes(file, SHOWN_RANGES);
    if holes.count == 0 {
        verdict.add("holes", Finding::Pass, "none");
        return;
    }
    let first: Vec<String> = holes
        .first
        .iter()
        .map(|hole| {
            let content = content_at(hole.start).map(|content| format!(" ({content})")).unwrap_or_default();
            format!("{}{content}", range_text(hole))
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
            let left_out = bytes_text(report.bytes_untouched.saturating_add(report.bytes_zero));
            verdict.add("holes", Finding::Pass, format!("{text}; the sender left out {left_out} of zeros"));
        }
        None => verdict.add(
            "holes",
            Finding::NotApplicable,
            format!("{text}; only the sender's report can tell whether the guest had zeros there"),
        ),
    }
}

/// The parts of a file that were never written.
struct Holes {
    count: usize,
    total: u64,
    /// The first few of them.
    first: Vec<Range<u64>>,
}

/// Looks for holes, of which the first `listed` are kept.
fn holes(file: &CoreFile, listed: usize) -> Holes {
    let mut holes = Holes { count: 0, total: 0, first: Vec::new() };
    for hole in holes_in(file, 0..file.length()) {
        holes.count += 1;
        holes.total += hole.end - hole.start;
        if holes.first.len() < listed {
            holes.first.push(hole);
        }
    }
    holes
}

/// The parts of a range that were never written.
fn holes_in(file: &CoreFile, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        while at < range.end {
            let from = at;
            let data = file.next_data(at).unwrap_or(range.end..range.end);
            at = data.end;
            if data.start > from {
                return Some(from..data.start.min(range.end));
            }
        }
        None
    })
}
