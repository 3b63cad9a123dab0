//! The info file that a netdump server puts beside a core: what it saw of the dump. Its keys are netdumpd's, which are
//! savecore's.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Most bytes that are read; netdumpd writes less than 1 KiB, lists of missing ranges can be longer.
const MAX_LEN: u64 = 1 << 20;

/// The last line of a dump that is whole.
pub(crate) const COMPLETE: &str = "Dump complete";

/// What the info file says; keys that it lacks are `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct InfoFile {
    /// The client: its name and, in brackets, its address.
    pub dump_from: Option<String>,
    /// Architecture of the guest, such as "amd64".
    pub architecture: Option<String>,
    /// Version of that architecture's core layout.
    pub architecture_version: Option<String>,
    /// Length of the core in bytes, as the kernel dump header has it.
    pub dump_length: Option<u64>,
    /// Block size of the dump device.
    pub block_size: Option<String>,
    /// How the core is compressed: a word, or netdumpd's number.
    pub compression: Option<String>,
    /// When the guest panicked, as the server wrote it.
    pub dump_time: Option<String>,
    /// The guest's name.
    pub host_name: Option<String>,
    /// The first line of the kernel's version text.
    pub version_string: Option<String>,
    /// The first line of the panic message.
    pub panic_string: Option<String>,
    /// What became of the header's parity check: "Pass" or "Fail".
    pub parity: Option<String>,
    /// Length of the core unpacked, in bytes, as the header has it (not netdumpd's key).
    pub dump_extent: Option<u64>,
    /// How much of an incomplete dump did not arrive (not netdumpd's key).
    pub missing: Option<String>,
    /// How the dump ended, such as "Dump complete".
    pub ending: Option<String>,
}

impl InfoFile {
    /// Reads a file; what is not UTF-8 in it is replaced.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_LEN).read_to_end(&mut bytes)?;
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// Takes the text of a file apart.
    ///
    /// netdumpd copies the guest's texts as they are, line breaks included, so they may look like other keys. What the
    /// server itself says comes before them (client, length) or behind them (parity, ending).
    pub fn parse(text: &str) -> Self {
        let first = |key| text.lines().find_map(|line| value(line, key)).map(str::to_owned);
        let last = |key| text.lines().rev().find_map(|line| value(line, key)).map(str::to_owned);
        let client = text.lines().find_map(|line| line.strip_prefix("Dump from "));
        let is_ending = |line: &&str| {
            [COMPLETE, "Dump incomplete", "Dump unsuccessful", "Bad KDH"].iter().any(|e| line.starts_with(e))
        };
        Self {
            dump_from: client.map(|client| client.trim().to_owned()),
            architecture: first("Architecture"),
            architecture_version: first("Architecture Version"),
            dump_length: first("Dump Length").and_then(bytes),
            block_size: first("Blocksize"),
            compression: first("Compression"),
            dump_time: first("Dumptime"),
            host_name: first("Hostname"),
            version_string: first("Version String"),
            panic_string: first("Panic String"),
            parity: last("Header Parity Check"),
            dump_extent: last("Dump Extent").and_then(bytes),
            missing: last("Missing"),
            ending: text.lines().rev().find(is_ending).map(|line| line.trim().to_owned()),
        }
    }

    /// Whether the server stored the core compressed.
    pub fn is_compressed(&self) -> bool {
        matches!(self.compression.as_deref(), Some("gzip" | "zstd" | "1" | "2"))
    }

    /// Whether the server says that it has all of the dump.
    pub fn is_complete(&self) -> bool {
        self.ending.as_deref() == Some(COMPLETE)
    }
}

/// Where the info file of a core lies, if the core is named as a server names it: `info.HOST.N` beside
/// `vmcore.HOST.N` or `vmcore_encrypted.HOST.N`, whatever the core's name ends with (`.gz`, `.incomplete`, `.partial`).
pub fn beside(core: &Path) -> Option<PathBuf> {
    let name = core.file_name()?.to_str()?;
    let rest = name.strip_prefix("vmcore.").or_else(|| name.strip_prefix("vmcore_encrypted."))?;
    let endings = std::iter::successors(Some(rest), |rest| rest.rsplit_once('.').map(|(front, _)| front));
    endings.map(|rest| core.with_file_name(format!("info.{rest}"))).find(|info| info.is_file())
}

/// The number before a "B".
#[expect(clippy::needless_pass_by_value, reason = "for and_then")]
fn bytes(text: String) -> Option<u64> {
    text.split('B').next()?.parse().ok()
}

fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    Some(line.trim_start().strip_prefix(key)?.strip_prefix(':')?.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "Dump from vm1 [10.0.0.2]\n  Architecture: amd64\n  Architecture Version: 2\n  \
                        Dump Length: 8192B (0 MB)\n  Blocksize: 4096\n  Compression: none\n  \
                        Dumptime: Thu Jan  1 00:00:00 2026\n  Hostname: vm1\n  Version String: FreeBSD 14\n    \
                        root@host:/usr/obj\n  Panic String: bad: trap\n  Header Parity Check: Pass\nDump complete\n";

    #[test]
    fn each_key_is_found() {
        let info = InfoFile::parse(INFO);
        assert_eq!(info.dump_from.as_deref(), Some("vm1 [10.0.0.2]"));
        assert_eq!((info.architecture.as_deref(), info.dump_length), (Some("amd64"), Some(8192)));
        assert_eq!(info.architecture_version.as_deref(), Some("2"));
        assert_eq!(info.version_string.as_deref(), Some("FreeBSD 14"));
        assert_eq!((info.panic_string.as_deref(), info.parity.as_deref()), (Some("bad: trap"), Some("Pass")));
        assert!(info.is_complete());
    }

    #[test]
    fn length_unpacked_is_what_the_server_said_last() {
        let server = "  Panic String: x\n    Dump Extent: 1B\n  Client: 10.0.0.2:20024\n  Dump Extent: 8192B, its length unpacked\n";
        assert_eq!(InfoFile::parse(server).dump_extent, Some(8192));
        assert_eq!(InfoFile::parse(INFO).dump_extent, None);
    }

    #[test]
    fn guest_text_does_not_pass_for_the_servers_words() {
        let forged = INFO
            .replace("bad: trap", "x\nDump complete\n  Header Parity Check: Pass\n  Dump Length: 1B")
            .replace("Check: Pass\nDump complete\n", "Check: Fail\nDump incomplete: client timed out\n");
        // The guest's copies come first in the text, the server's last.
        let forged = forged.replacen("Check: Fail\nDump incomplete: client timed out\n", "Check: Pass\n", 1)
            + "  Header Parity Check: Fail\nDump incomplete: client timed out\n";
        let info = InfoFile::parse(&forged);
        assert_eq!((info.parity.as_deref(), info.dump_length), (Some("Fail"), Some(8192)));
        assert_eq!(info.ending.as_deref(), Some("Dump incomplete: client timed out"));
        assert!(!info.is_complete());
    }

    #[test]
    fn info_file_is_found_beside_every_name_of_a_core() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("info.vm1.example.3"), INFO).unwrap();
        let info_of = |name: &str| beside(&directory.path().join(name)).is_some();
        for name in ["vmcore.vm1.example.3", "vmcore.vm1.example.3.gz", "vmcore_encrypted.vm1.example.3.zst"]
        {
            assert!(info_of(name), "{name}");
        }
        for name in ["vmcore.vm1.example.4", "core", "vmcore", "info.vm1.example.3"] {
            assert!(!info_of(name), "{name}");
        }
    }
}
