//! How a dump ended, for machines: written by the sender, read by `netdump verify`.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::linux::filter::FilterCounts;
use crate::stream::Packing;

/// Most bytes of a report file that are read. Of one with 1,000 missing ranges and 1,000 CPUs the digest is the most:
/// 68 to 80 bytes for each MiB that is not all zeros.
const MAX_FILE: u64 = 512 << 20;

/// The three ways a dump ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The receiver acknowledged everything, FINISHED included: the core is on its stable storage.
    Complete,
    /// Everything but FINISHED was acknowledged: the receiver very likely has the core.
    Unconfirmed,
    /// The dump stopped early; what arrived before stays at the receiver.
    #[default]
    Failed,
}

/// One dump as its sender saw it. The default is one of which nothing was sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DumpReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Why, in one sentence, unless it is complete.
    pub reason: Option<String>,
    /// The receiver's address and the port it gave this dump (0 when it never answered).
    pub server: String,
    /// The directory asked for, below the receiver's.
    pub path: Option<String>,
    /// Bytes of the core as it is stored. Of one that was packed on its way and failed before its end was known, the
    /// bytes packed until then.
    pub length: u64,
    /// What was left out of a filtered core, in pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterCounts>,
    /// Hashes of the core as it is stored; absent when not all of it was acknowledged, or there was no time to hash it.
    pub digest: Option<Digest>,
    /// How the core was packed on its way; absent when it is stored as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packing: Option<PackingReport>,
    /// Core bytes sent at least once.
    pub bytes_sent: u64,
    /// Core bytes not sent because the guest never touched them and they read as zeros anyway.
    pub bytes_untouched: u64,
    /// Core bytes not sent because they are zeros, though the guest has touched them.
    #[serde(default)]
    pub bytes_zero: u64,
    /// Ranges of the core that were not acknowledged, as `[start, end)`; at most 1,000 are listed.
    pub missing: Vec<(u64, u64)>,
    /// Messages sent for the first time.
    pub messages: u64,
    /// Messages sent again.
    pub resends: u64,
    /// How often the server was silent or gone, and then went on with what it had.
    #[serde(default)]
    pub resumes: u64,
    /// How often it began anew, so that everything was sent again.
    #[serde(default)]
    pub restarts: u64,
    /// What may be on its way, where that was an option: as in `--window`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Bytes of frames that may be sent in a second, where that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Frames received and ignored, by reason.
    pub ignored: Vec<(String, u64)>,
    /// Guest pages that could not be read and were sent as zeros.
    pub bad_pages: u64,
    /// From the first ARP request to the end, in seconds: of a complete dump until FINISHED was acknowledged.
    pub seconds: f64,
    /// How much longer it took to hash the rest of the core, which is done on the side.
    #[serde(default)]
    pub digest_seconds: f64,
}

/// What became of a core on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackingReport {
    /// Bytes of the core before.
    pub unpacked: u64,
    /// What compressed it, if anything, with its level: as in `zstd:6`.
    pub compression: Option<String>,
    /// What encrypted it, if anything.
    pub cipher: Option<String>,
    /// How many bytes of the core one stored byte stands for; absent when the end was not reached.
    pub ratio: Option<f64>,
}

impl fmt::Display for PackingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let means: Vec<_> =
            [&self.compression, &self.cipher].into_iter().flatten().map(String::as_str).collect();
        f.write_str(&means.join(", "))
    }
}

impl PackingReport {
    /// Of a core of `unpacked` bytes of which `stored` bytes were made, if it came to its end.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub(crate) fn new(packing: &Packing, unpacked: u64, stored: Option<u64>) -> Self {
        Self {
            unpacked,
            compression: packing.compressor().map(|used| used.to_string()),
            cipher: packing.encryption().map(|used| used.cipher.to_string()),
            ratio: stored.filter(|&stored| stored > 0).map(|stored| unpacked as f64 / stored as f64),
        }
    }
}

/// Why a report file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The operating system refused.
    #[error("reading the report")]
    Read(#[source] io::Error),
    /// A file longer than any report.
    #[error("the report is longer than {MAX_FILE} bytes")]
    TooLong,
    /// Not JSON, or JSON of another shape.
    #[error("this is no report of a dump: a JSON object with the key \"dump\" is expected")]
    Shape(#[source] serde_json::Error),
    /// The VMM's report of a run without a dump.
    #[error("the report tells of no dump: its \"dump\" is null")]
    NoDump,
}

/// Reads the dump's part of a report file: the value of the key "dump" of a JSON object, whatever else is in it.
pub fn read(path: &Path) -> Result<DumpReport, ReportError> {
    #[derive(Deserialize)]
    struct Report {
        dump: serde_json::Value,
    }
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text))
        .map_err(ReportError::Read)?;
    if text.len() as u64 > MAX_FILE {
        return Err(ReportError::TooLong);
    }
    let report: Report = serde_json::from_slice(&text).map_err(ReportError::Shape)?;
    if report.dump.is_null() {
        return Err(ReportError::NoDump);
    }
    serde_json::from_value(report.dump).map_err(ReportError::Shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> DumpReport {
        DumpReport {
            outcome: Outcome::Unconfirmed,
            reason: Some("FINISHED was not acknowledged".into()),
            server: "10.0.0.9:4711".into(),
            path: Some("vms".into()),
            length: 1 << 40,
            digest: Some(Digest::of(&[1; 4096])),
            packing: None,
            filter: None,
            bytes_sent: 4096,
            bytes_untouched: (1 << 40) - 8192,
            bytes_zero: 4096,
            missing: vec![(0, 4096)],
            messages: 3,
            resends: 1,
            resumes: 1,
            restarts: 0,
            window: Some("classic".into()),
            rate: Some(500_000_000),
            ignored: vec![("bad checksum".into(), 2)],
            bad_pages: 1,
            seconds: 0.5,
            digest_seconds: 0.25,
        }
    }

    fn read_text(text: &[u8]) -> Result<DumpReport, ReportError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn dump_is_found_among_other_keys() {
        let text = serde_json::json!({ "source": "pvpanic", "dump": report(), "cpus": [1, 2] }).to_string();
        assert_eq!(read_text(text.as_bytes()).unwrap(), report());
    }

    #[test]
    fn report_without_packing_is_read_and_one_with_it_too() {
        let plain = serde_json::json!({ "dump": report() });
        assert!(plain["dump"].get("packing").is_none(), "as before there was any");
        let packing = PackingReport {
            unpacked: 100,
            compression: Some("gzip:6".into()),
            cipher: Some("chacha20".into()),
            ratio: Some(2.5),
        };
        let packed = DumpReport { packing: Some(packing), ..report() };
        assert_eq!(read_text(serde_json::json!({ "dump": packed }).to_string().as_bytes()).unwrap(), packed);
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        assert!(matches!(read_text(b"\x7fELF"), Err(ReportError::Shape(_))));
        assert!(matches!(read_text(b"{}"), Err(ReportError::Shape(_))));
        assert!(matches!(read_text(b"{\"dump\": 3}"), Err(ReportError::Shape(_))));
        assert!(matches!(read_text(b"{\"dump\": null}"), Err(ReportError::NoDump)));
        assert!(matches!(read(Path::new("/nonexistent")), Err(ReportError::Read(_))));
    }
}
