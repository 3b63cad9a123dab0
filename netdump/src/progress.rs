//! Tells a person or a program how far a dump is.

use std::fmt::Write as _;
use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressStyle as BarTemplate};
use serde::Serialize;

use crate::client::Phase;
use crate::drive::Progress;
use crate::report::{DumpReport, Outcome};
use crate::vmcore::inspect::bytes_text;

/// How to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressStyle {
    /// A bar on standard error, which should be a terminal.
    Bar,
    /// A line on standard error for each phase and each tenth.
    Lines,
    /// A JSON object a line on standard output.
    Json,
    /// Not at all.
    Quiet,
}

/// Tells of one dump.
#[derive(Debug)]
pub struct Reporter {
    kind: Kind,
    phase: Option<Phase>,
    /// Tenths of the core told of.
    tenths: u64,
}

#[derive(Debug)]
enum Kind {
    Bar(ProgressBar),
    Lines,
    Json,
    Quiet,
}

/// A line of [`ProgressStyle::Json`].
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    Progress { phase: String, done: u64, total: u64, resends: u64, seconds: f64 },
    Dump(&'a DumpReport),
}

impl Reporter {
    /// Begins to tell.
    pub fn new(style: ProgressStyle) -> Self {
        let kind = match style {
            ProgressStyle::Bar => Kind::Bar(ProgressBar::new(0).with_style(template())),
            ProgressStyle::Lines => Kind::Lines,
            ProgressStyle::Json => Kind::Json,
            ProgressStyle::Quiet => Kind::Quiet,
        };
        Self { kind, phase: None, tenths: 0 }
    }

    /// Tells how far the dump is, where that is news in this style.
    pub fn update(&mut self, progress: &Progress) {
        let news = self.is_news(progress);
        match &self.kind {
            // The phases before take an instant or a log line; a bar drawn among the log would leave its remains there.
            Kind::Bar(bar) if progress.phase >= Phase::Key => {
                bar.set_length(progress.total);
                bar.set_position(progress.done);
                bar.set_message(with_resends(&progress.phase.to_string(), progress.resends));
            }
            Kind::Lines if news => say(&line(progress)),
            Kind::Json if news => print_line(&Line::Progress {
                phase: progress.phase.to_string(),
                done: progress.done,
                total: progress.total,
                resends: progress.resends,
                seconds: progress.elapsed.as_secs_f64(),
            }),
            Kind::Bar(_) | Kind::Lines | Kind::Json | Kind::Quiet => {}
        }
    }

    /// Tells how the dump ended.
    pub fn finish(self, report: &DumpReport) {
        match &self.kind {
            Kind::Bar(bar) => {
                bar.finish_and_clear();
                say(&summary(report));
            }
            Kind::Lines => say(&summary(report)),
            Kind::Json => print_line(&Line::Dump(report)),
            Kind::Quiet => {}
        }
    }

    /// Ends without a word, for a caller that tells of the dump's end itself.
    pub fn clear(self) {
        if let Kind::Bar(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }

    fn is_news(&mut self, progress: &Progress) -> bool {
        let tenths = (progress.done.saturating_mul(10)).checked_div(progress.total).unwrap_or(0);
        let news = self.phase != Some(progress.phase) || tenths > self.tenths;
        self.phase = Some(progress.phase);
        self.tenths = tenths;
        news
    }
}

fn template() -> BarTemplate {
    BarTemplate::with_template("{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}")
        .unwrap_or_else(|_| BarTemplate::default_bar())
}

fn line(progress: &Progress) -> String {
    let Progress { phase, done, total, resends, elapsed } = progress;
    let mut line = format!("{:6.1} s  {phase}", elapsed.as_secs_f64());
    if *phase == Phase::Data {
        let percent = done.saturating_mul(100).checked_div(*total).unwrap_or(100);
        // Writing to a String cannot fail.
        let _ = write!(line, ": {percent} % of {} MiB", total >> 20);
    }
    with_resends(&line, *resends)
}

fn with_resends(text: &str, resends: u64) -> String {
    match resends {
        0 => text.to_owned(),
        1 => format!("{text}, 1 message sent again"),
        more => format!("{text}, {more} messages sent again"),
    }
}

/// What became of the server on the way.
pub fn with_restarts(report: &DumpReport) -> String {
    let times = |count: u64| if count == 1 { "once".to_owned() } else { format!("{count} times") };
    let resumes = (report.resumes > 0).then(|| format!(", gone on with {}", times(report.resumes)));
    let restarts = (report.restarts > 0).then(|| format!(", begun anew {}", times(report.restarts)));
    resumes.unwrap_or_default() + &restarts.unwrap_or_default()
}

fn summary(report: &DumpReport) -> String {
    let DumpReport { outcome, server, bytes_sent, bytes_untouched, bytes_zero, seconds, .. } = report;
    // As long as the server has not answered there is no port.
    let server = server.strip_suffix(":0").unwrap_or(server);
    let what = match outcome {
        Outcome::Complete => format!("core delivered to {server}"),
        Outcome::Unconfirmed => format!("core sent to {server}, but not confirmed"),
        Outcome::Failed => format!("dump to {server} failed"),
    };
    let mib = |bytes: &u64| *bytes >> 20;
    let sizes = match &report.packing {
        // Where its end is not known, nobody knows what the whole core would have become.
        Some(packing) if packing.ratio.is_none() => {
            let (sent, core) = (bytes_text(*bytes_sent), bytes_text(packing.unpacked));
            format!("{sent} sent of a core of {core} ({packing}), {seconds:.2} s")
        }
        Some(packing) => {
            let (core, stored) = (bytes_text(packing.unpacked), bytes_text(report.length));
            format!("{core} packed into {stored} ({packing}), {seconds:.2} s")
        }
        None => {
            let zeros = if *bytes_zero > 0 {
                format!(", {} MiB of zeros left out", mib(bytes_zero))
            } else {
                String::new()
            };
            let (sent, untouched) = (mib(bytes_sent), mib(bytes_untouched));
            format!("{sent} MiB sent, {untouched} MiB untouched{zeros}, {seconds:.2} s")
        }
    };
    let line = with_resends(&format!("{what}: {sizes}"), report.resends) + &with_restarts(report);
    match &report.reason {
        Some(reason) => format!("{line}: {reason}"),
        None => line,
    }
}

/// A reader that has gone away is no reason to stop a dump.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The same of standard output.
fn print_line(line: &Line<'_>) {
    if let Ok(json) = serde_json::to_string(line) {
        let _ = writeln!(io::stdout(), "{json}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::PackingReport;

    fn progress(phase: Phase, done: u64) -> Progress {
        Progress { phase, done, total: 100 << 20, resends: 0, elapsed: Duration::from_millis(1250) }
    }

    fn report(outcome: Outcome, reason: Option<&str>) -> DumpReport {
        DumpReport {
            outcome,
            reason: reason.map(str::to_owned),
            server: "10.0.0.9:4000".into(),
            length: 3 << 20,
            bytes_sent: 2 << 20,
            bytes_untouched: 1 << 20,
            messages: 1452,
            resends: 1,
            seconds: 0.25,
            ..DumpReport::default()
        }
    }

    #[test]
    fn a_line_is_told_for_each_phase_and_each_tenth() {
        let mut reporter = Reporter::new(ProgressStyle::Quiet);
        let mut told = |phase, mib: u64| reporter.is_news(&progress(phase, mib << 20));
        let news =
            [(Phase::Resolve, 0), (Phase::Resolve, 0), (Phase::Data, 0), (Phase::Data, 9), (Phase::Data, 10)];
        assert_eq!(news.map(|(phase, mib)| told(phase, mib)), [true, false, true, false, true]);
        assert!(!told(Phase::Data, 11) && told(Phase::Data, 35) && told(Phase::Data, 41));
    }

    #[test]
    fn lines_say_phase_share_and_resends() {
        assert_eq!(line(&progress(Phase::Resolve, 0)), "   1.2 s  looking for the server");
        assert_eq!(line(&progress(Phase::Data, 50 << 20)), "   1.2 s  sending memory: 50 % of 100 MiB");
        let lossy = Progress { resends: 7, ..progress(Phase::Data, 0) };
        assert_eq!(line(&lossy), "   1.2 s  sending memory: 0 % of 100 MiB, 7 messages sent again");
        let empty = Progress { total: 0, ..progress(Phase::Data, 0) };
        assert_eq!(line(&empty), "   1.2 s  sending memory: 100 % of 0 MiB");
    }

    #[test]
    fn summaries_say_where_the_core_is_or_why_not() {
        let said = summary(&report(Outcome::Complete, None));
        assert_eq!(
            said,
            "core delivered to 10.0.0.9:4000: 2 MiB sent, 1 MiB untouched, 0.25 s, 1 message sent again"
        );
        let troubled =
            DumpReport { bytes_zero: 5 << 20, resumes: 2, restarts: 1, ..report(Outcome::Complete, None) };
        let said = summary(&troubled);
        let want = "core delivered to 10.0.0.9:4000: 2 MiB sent, 1 MiB untouched, 5 MiB of zeros left out, 0.25 s, \
                    1 message sent again, gone on with 2 times, begun anew once";
        assert_eq!(said, want);
        let said = summary(&report(Outcome::Failed, Some("no route")));
        assert!(said.starts_with("dump to 10.0.0.9:4000 failed: ") && said.ends_with(": no route"), "{said}");
        let packing = Some(PackingReport {
            unpacked: 30 << 20,
            compression: Some("zstd:6".into()),
            cipher: Some("chacha20".into()),
            ratio: Some(10.0),
        });
        let said = summary(&DumpReport { packing, resends: 0, ..report(Outcome::Complete, None) });
        let want = "core delivered to 10.0.0.9:4000: 30.0 MiB packed into 3.0 MiB (zstd:6, chacha20), 0.25 s";
        assert_eq!(said, want);
        let packing = Some(PackingReport {
            unpacked: 4096 << 20,
            compression: Some("gzip:6".into()),
            cipher: None,
            ratio: None,
        });
        let said = summary(&DumpReport { packing, resends: 0, ..report(Outcome::Failed, Some("silence")) });
        let want =
            "dump to 10.0.0.9:4000 failed: 2.0 MiB sent of a core of 4.0 GiB (gzip:6), 0.25 s: silence";
        assert_eq!(said, want);
        let said = summary(&report(Outcome::Unconfirmed, Some("silence")));
        assert!(said.starts_with("core sent to 10.0.0.9:4000, but not confirmed: "), "{said}");
    }

    #[test]
    fn json_lines_name_their_event() {
        let line =
            Line::Progress { phase: "sending memory".into(), done: 1, total: 2, resends: 0, seconds: 0.5 };
        let want =
            r#"{"event":"progress","phase":"sending memory","done":1,"total":2,"resends":0,"seconds":0.5}"#;
        assert_eq!(serde_json::to_string(&line).unwrap(), want);
        let json = serde_json::to_value(Line::Dump(&report(Outcome::Complete, None))).unwrap();
        assert_eq!((&json["event"], &json["outcome"]), (&"dump".into(), &"complete".into()));
    }
}
