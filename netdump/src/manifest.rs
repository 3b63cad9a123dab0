//! `manifest.HOST.N.json`: what a receiver knows of a dump that it stored, for machines, and what proves that the core is
//! still as it was then. Written by the receiver when it has read the stored core back; read by `netdump verify`.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::receiver::ranges::Gaps;
use crate::receiver::summary::{DumpSummary, HeaderSeen};
use crate::vmcore::KernelDumpHeader;
use crate::vmcore::kdh::Compression;

/// The version of the format that is written and read here. Keys that are not known are no reason for another one.
pub const VERSION: u32 = 1;
/// Most bytes of a manifest that are read. The digest is the most of it: 68 to 80 bytes for each MiB of a core that is not
/// all zeros.
const MAX_FILE: u64 = 512 << 20;

/// A stored dump.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub manifest: u32,
    /// What wrote it, with its version.
    pub receiver: String,
    /// Name of the core's file, which lies beside the manifest.
    pub core: String,
    /// Name of the info file beside it.
    pub info: String,
    /// The key block beside it, of an encrypted dump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<StoredKey>,
    /// Whether the dump is whole.
    pub complete: bool,
    /// How it ended: the last line of the info file.
    pub ending: String,
    /// Bytes of the core's file.
    pub length: u64,
    /// Hashes of the core's file.
    pub digest: Option<Digest>,
    /// Why there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_digest: Option<String>,
    /// Parts of the core that never came: in a complete dump zeros that the client left out.
    pub gaps: GapList,
    /// Core bytes received, each counted once.
    pub bytes: u64,
    /// Messages taken, repeated ones included.
    pub messages: u64,
    /// Data messages that brought nothing new.
    pub repeated: u64,
    /// Datagrams from the client that were ignored.
    pub ignored: u64,
    /// How often the client took the dump up again after it had lost the receiver.
    pub resumed: u64,
    /// When it began: UTC, as in RFC 3339.
    pub began: String,
    /// When it ended.
    pub ended: String,
    /// How long it took.
    pub seconds: f64,
    /// Bytes received in a second; absent when it took no time.
    pub bytes_per_second: Option<f64>,
    /// Who sent it.
    pub client: ClientFacts,
    /// What its header says; absent when none came that can be read.
    pub header: Option<HeaderFacts>,
}

/// The key block of an encrypted dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredKey {
    /// Name of its file.
    pub file: String,
    /// Bytes.
    pub length: u64,
    /// BLAKE3 of them, in hexadecimal.
    pub blake3: String,
}

/// Parts of a core that did not come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GapList {
    /// How many there are.
    pub count: u64,
    /// Their bytes together.
    pub bytes: u64,
    /// The first 1,000 of them as `[start, end)`, ascending.
    pub listed: Vec<(u64, u64)>,
}

impl GapList {
    /// Whether the gaps that are listed lie one behind the other in a core of this length, and are no more than counted.
    pub fn fit(&self, length: u64) -> bool {
        let mut end = 0;
        let ascending = self.listed.iter().all(|&(start, stop)| {
            let behind = end <= start && start < stop && stop <= length;
            end = stop;
            behind
        });
        // Ascending and below `length`, so that their sum cannot overflow.
        let listed = || self.listed.iter().map(|&(start, stop)| stop - start).sum::<u64>();
        ascending && self.listed.len() as u64 <= self.count && self.bytes <= length && listed() <= self.bytes
    }
}

impl From<&Gaps> for GapList {
    fn from(gaps: &Gaps) -> Self {
        let listed = gaps.listed.iter().map(|gap| (gap.start, gap.end)).collect();
        Self { count: gaps.count, bytes: gaps.bytes, listed }
    }
}

impl Manifest {
    /// Whether the core is stored compressed.
    pub fn is_compressed(&self) -> bool {
        self.header.as_ref().is_some_and(|header| header.parity && header.compression != "none")
    }

    /// Whether the core is stored encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.key.is_some()
    }
}

/// Who sent a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFacts {
    /// Address and port.
    pub address: SocketAddrV4,
    /// HOST in the names of the files.
    pub name: String,
    /// The receiver's address that it sent to.
    pub local: Ipv4Addr,
    /// The directory that it asked for and got.
    pub path: Option<String>,
}

/// The kernel dump header, as text where it is text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderFacts {
    /// Whether its parity is right.
    pub parity: bool,
    /// `MACHINE_ARCH`.
    pub architecture: String,
    /// Bytes of the core by the header.
    pub length: u64,
    /// Bytes of the core unpacked by the header; 0 when it does not say.
    pub extent: u64,
    /// `none`, `gzip` or `zstd`.
    pub compression: String,
    /// Bytes of the key block by the header.
    pub key_size: u32,
    /// When the guest panicked: seconds since 1970.
    pub dump_time: u64,
    /// The guest's name.
    pub host_name: String,
    /// Its kernel.
    pub version: String,
    /// Why it panicked.
    pub panic: String,
}

impl HeaderFacts {
    /// What a header says, if one came that can be read.
    pub fn of(seen: &HeaderSeen) -> Option<Self> {
        match seen {
            HeaderSeen::Valid(header) => Some(Self::new(header, true)),
            HeaderSeen::BadParity(header) => Some(Self::new(header, false)),
            HeaderSeen::Missing | HeaderSeen::Unreadable { .. } => None,
        }
    }

    fn new(header: &KernelDumpHeader, parity: bool) -> Self {
        let compression = match header.compression {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        Self {
            parity,
            architecture: header.architecture.clone(),
            length: header.dump_length,
            extent: header.dump_extent,
            compression: compression.to_owned(),
            key_size: header.key_size,
            dump_time: header.dump_time,
            host_name: header.host_name.clone(),
            version: header.version_string.clone(),
            panic: header.panic_string.clone(),
        }
    }
}

/// Bytes in a second.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn rate(summary: &DumpSummary) -> Option<f64> {
    let seconds = summary.elapsed.as_secs_f64();
    (seconds > 0.0).then(|| summary.bytes as f64 / seconds)
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The operating system refused.
    #[error("the manifest cannot be read")]
    Read(#[source] io::Error),
    /// A file longer than any manifest.
    #[error("the manifest is longer than {MAX_FILE} bytes")]
    TooLong,
    /// Not JSON, or JSON of another shape, or its hashes do not fit together.
    #[error("the manifest makes no sense")]
    Shape(#[source] serde_json::Error),
    /// Written by a later program.
    #[error("the manifest has version {0} of its format; version {VERSION} can be read")]
    Version(u32),
}

/// Reads a manifest file.
pub fn read(path: &Path) -> Result<Manifest, ManifestError> {
    // Opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(ManifestError::Read)?;
    if !metadata.is_file() {
        return Err(ManifestError::Read(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        )));
    }
    if metadata.len() > MAX_FILE {
        return Err(ManifestError::TooLong);
    }
    let file = File::open(path).map_err(ManifestError::Read)?;
    let text = BufReader::with_capacity(1 << 16, file.take(MAX_FILE));
    let manifest: Manifest = serde_json::from_reader(text).map_err(|error| match error.io_error_kind() {
        Some(kind) => ManifestError::Read(kind.into()),
        None => ManifestError::Shape(error),
    })?;
    if manifest.manifest != VERSION {
        return Err(ManifestError::Version(manifest.manifest));
    }
    Ok(manifest)
}

/// Where the manifest of a core lies, if the core is named as a receiver names it: `manifest.HOST.N.json` beside
/// `vmcore.HOST.N`, whatever the core's name ends with.
pub fn beside(core: &Path) -> Option<PathBuf> {
    let name = core.file_name()?.to_str()?;
    let rest = name.strip_prefix("vmcore.").or_else(|| name.strip_prefix("vmcore_encrypted."))?;
    let endings = std::iter::successors(Some(rest), |rest| rest.rsplit_once('.').map(|(front, _)| front));
    endings.map(|rest| core.with_file_name(format!("manifest.{rest}.json"))).find(|path| path.is_file())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn manifest_of(core: &str, bytes: &[u8]) -> Manifest {
        Manifest {
            manifest: VERSION,
            receiver: "netdump 0".into(),
            core: core.into(),
            info: "info".into(),
            key: None,
            complete: true,
            ending: "Dump complete".into(),
            length: bytes.len() as u64,
            digest: Some(Digest::of(bytes)),
            no_digest: None,
            gaps: GapList::default(),
            bytes: bytes.len() as u64,
            messages: 1,
            repeated: 0,
            ignored: 0,
            resumed: 0,
            began: "2026-11-23T00:00:00Z".into(),
            ended: "2026-11-23T00:00:01Z".into(),
            seconds: 1.0,
            bytes_per_second: Some(1.0),
            client: ClientFacts {
                address: "10.0.0.2:20024".parse().unwrap(),
                name: "vm1".into(),
                local: Ipv4Addr::LOCALHOST,
                path: None,
            },
            header: HeaderFacts::of(&HeaderSeen::Valid(KernelDumpHeader::default())),
        }
    }

    fn read_text(text: &str) -> Result<Manifest, ManifestError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn what_is_written_is_read() {
        let manifest = manifest_of("vmcore.vm1.0", &[1; 3_000_000]);
        assert_eq!(read_text(&serde_json::to_string(&manifest).unwrap()).unwrap(), manifest);
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        let manifest = manifest_of("vmcore.vm1.0", &[1; 3_000_000]);
        let mut json = serde_json::to_value(&manifest).unwrap();
        json["manifest"] = 2.into();
        assert!(matches!(read_text(&json.to_string()), Err(ManifestError::Version(2))));
        json["manifest"] = 1.into();
        json["from_a_later_version"] = "x".into();
        assert_eq!(read_text(&json.to_string()).unwrap(), manifest);
        json["digest"]["pieces"][1] = json["digest"]["pieces"][2].clone();
        assert!(
            matches!(read_text(&json.to_string()), Err(ManifestError::Shape(_))),
            "the root is not theirs"
        );
        assert!(matches!(read_text("\x7fELF"), Err(ManifestError::Shape(_))));
        assert!(matches!(read_text("{}"), Err(ManifestError::Shape(_))));
        assert!(matches!(read(Path::new("/dev/zero")), Err(ManifestError::Read(_))));
        assert!(matches!(read(Path::new("/nonexistent")), Err(ManifestError::Read(_))));
        let long = tempfile::NamedTempFile::new().unwrap();
        long.as_file().set_len(MAX_FILE + 1).unwrap();
        assert!(matches!(read(long.path()), Err(ManifestError::TooLong)));
    }

    #[test]
    fn manifest_is_found_beside_every_name_of_a_core() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("manifest.10.0.0.2.3.json"), "").unwrap();
        let is_found = |name: &str| beside(&directory.path().join(name)).is_some();
        for name in
            ["vmcore.10.0.0.2.3", "vmcore.10.0.0.2.3.gz", "vmcore_encrypted.10.0.0.2.3.zst.incomplete"]
        {
            assert!(is_found(name), "{name}");
        }
        for name in ["vmcore.10.0.0.2.4", "vmcore.10.0.0.2", "core", "manifest.10.0.0.2.3.json"] {
            assert!(!is_found(name), "{name}");
        }
    }
}
