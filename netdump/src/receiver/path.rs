//! The directory that a HERALD asks for (`netdump.4`, `net.netdump.path`): cleaned to plain relative parts.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::wire::message::MAX_PATH;

/// Longest name of one directory on the file systems in use (`NAME_MAX`).
const MAX_PART: usize = 255;

/// A relative path without `.`, `..`, empty parts or control characters. Links on the way are the store's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpPath(PathBuf);

impl DumpPath {
    /// Reads a HERALD's payload. `Ok(None)`: none is asked for, or the path means the store's own directory.
    pub fn from_herald(payload: &[u8]) -> Result<Option<Self>, PathRefusal> {
        if payload.is_empty() {
            return Ok(None);
        }
        if payload.len() > MAX_PATH {
            return Err(PathRefusal::TooLong(payload.len()));
        }
        let (&last, text) = payload.split_last().ok_or(PathRefusal::Unterminated)?;
        if last != 0 {
            return Err(PathRefusal::Unterminated);
        }
        if text.contains(&0) {
            return Err(PathRefusal::InnerNul);
        }
        if text.iter().any(|byte| byte.is_ascii_control()) {
            return Err(PathRefusal::ControlCharacter);
        }
        if text.first() == Some(&b'/') {
            return Err(PathRefusal::Absolute);
        }
        let mut path = PathBuf::new();
        for part in text.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(PathRefusal::Climbs),
                long if long.len() > MAX_PART => return Err(PathRefusal::LongPart(long.len())),
                plain => path.push(OsStr::from_bytes(plain)),
            }
        }
        Ok((!path.as_os_str().is_empty()).then_some(Self(path)))
    }

    /// The path, relative to the store's directory.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

/// Why a HERALD's path is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathRefusal {
    /// More than the protocol's limit.
    #[error("it has {0} bytes, more than 1024")]
    TooLong(usize),
    /// The payload's last byte is not NUL.
    #[error("it does not end with a NUL")]
    Unterminated,
    /// A NUL before the end.
    #[error("it holds a NUL")]
    InnerNul,
    /// A byte that would garble a terminal or the info file.
    #[error("it holds a control character")]
    ControlCharacter,
    /// It begins with a slash.
    #[error("it is absolute")]
    Absolute,
    /// It holds `..`.
    #[error("it holds '..'")]
    Climbs,
    /// One of its parts is longer than a directory's name can be.
    #[error("one of its parts has {0} bytes, more than 255")]
    LongPart(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(payload: &[u8]) -> Result<Option<String>, PathRefusal> {
        DumpPath::from_herald(payload).map(|path| path.map(|p| p.as_path().to_str().unwrap().to_owned()))
    }

    #[test]
    fn plain_paths_are_taken() {
        assert_eq!(parse(b"vm1\0"), Ok(Some("vm1".into())));
        assert_eq!(parse(b"a/b c/d\0"), Ok(Some("a/b c/d".into())));
    }

    #[test]
    fn dots_and_doubled_slashes_are_cleaned_away() {
        assert_eq!(parse(b"./a//b/./c/\0"), Ok(Some("a/b/c".into())));
        for nothing in [&b""[..], b"\0", b".\0", b"./\0"] {
            assert_eq!(parse(nothing), Ok(None), "{nothing:?}");
        }
    }

    #[test]
    fn paths_that_could_lead_elsewhere_are_refused() {
        assert_eq!(parse(b"/etc\0"), Err(PathRefusal::Absolute));
        for climbing in [&b"..\0"[..], b"a/../../b\0", b"a/..\0"] {
            assert_eq!(parse(climbing), Err(PathRefusal::Climbs), "{climbing:?}");
        }
        assert_eq!(parse(b"...\0"), Ok(Some("...".into())));
    }

    #[test]
    fn malformed_paths_are_refused() {
        assert_eq!(parse(b"vm1"), Err(PathRefusal::Unterminated));
        assert_eq!(parse(b"vm1\0x\0"), Err(PathRefusal::InnerNul));
        assert_eq!(parse(b"vm\n1\0"), Err(PathRefusal::ControlCharacter));
        assert_eq!(parse(&[b'a'; 2048]), Err(PathRefusal::TooLong(2048)));
        let mut long = vec![b'a'; 256];
        long.push(0);
        assert_eq!(parse(&long), Err(PathRefusal::LongPart(256)));
    }
}
