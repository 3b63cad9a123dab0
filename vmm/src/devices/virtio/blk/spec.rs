//! `--disk`: which file, and what the guest may do with it.

use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// A disk as the user gives it: `FILE`, `FILE,ro` or `FILE,overlay`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// The file or block device.
    pub path: PathBuf,
    /// Whether the guest may write.
    pub access: Access,
}

/// What a guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    Full,
    /// Only read.
    ReadOnly,
    /// Read, and write to a temporary file: the disk's own stays as it is.
    Overlay,
}

impl Access {
    /// Whether the guest may write.
    pub fn may_write(self) -> bool {
        self != Self::ReadOnly
    }
}

/// The text names no disk.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a disk is given as FILE, FILE,ro or FILE,overlay")]
pub struct ParseDiskError;

impl FromStr for DiskSpec {
    type Err = ParseDiskError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let how = [(",ro", Access::ReadOnly), (",overlay", Access::Overlay)];
        let told = how.iter().find_map(|(word, access)| Some((text.strip_suffix(word)?, *access)));
        let (path, access) = told.unwrap_or((text, Access::Full));
        if path.is_empty() { Err(ParseDiskError) } else { Ok(Self { path: path.into(), access }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_files_with_or_without_leave_to_write() {
        let spec = |text: &str| text.parse::<DiskSpec>();
        let disk = |path: &str, access| Ok(DiskSpec { path: path.into(), access });
        assert_eq!(spec("a.img"), disk("a.img", Access::Full));
        assert_eq!(spec("a,b.img,ro"), disk("a,b.img", Access::ReadOnly));
        assert_eq!(spec("a.img,overlay"), disk("a.img", Access::Overlay));
        assert!([",ro", "", ",overlay"].iter().all(|text| spec(text).is_err()));
    }
}
