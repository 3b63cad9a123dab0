//! Whether a file that is to be read as a core is an encrypted one: its bytes look like noise, so its name and the files
//! beside it tell.

use std::path::{Path, PathBuf};

use super::names;
use crate::vmcore::{self, unpack};

/// What tells that a core is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Sign {
    /// It is named `vmcore_encrypted.*`.
    #[error("its name says so")]
    Name,
    /// The key of an encrypted dump lies beside it.
    #[error("its key lies beside it: {}", .0.display())]
    KeyFile(PathBuf),
}

/// What tells that the file of this name, which begins with `head`, is an encrypted core.
pub fn sign(path: &Path, head: &[u8]) -> Option<Sign> {
    let core = names::followed(path);
    if vmcore::ALL.iter().any(|format| format.recognise(head)) || head.starts_with(b"minidump FreeBSD/") {
        return None;
    }
    if names::is_encrypted(&core) {
        return Some(Sign::Name);
    }
    let is_decrypted = names::encrypted_of(&core).is_some_and(|encrypted| encrypted.exists());
    if is_decrypted || unpack::Method::recognise(head).is_some() {
        return None;
    }
    names::key_of(&core).filter(|key| key.is_file()).map(Sign::KeyFile)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISE: &[u8] = b"\x93\x1b\x00\xff noise";

    #[test]
    fn names_and_keys_tell_unless_the_content_is_a_core() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        assert_eq!(sign(&path("vmcore_encrypted.vm1.0.gz"), NOISE), Some(Sign::Name));
        assert_eq!(sign(&path("vmcore_encrypted.vm1.0"), b"minidump FreeBSD/amd64\0"), None);
        assert_eq!(sign(&path("vmcore.vm1.0"), NOISE), None);
        std::fs::write(path("key.vm1.0"), "").unwrap();
        assert_eq!(sign(&path("vmcore.vm1.0"), NOISE), Some(Sign::KeyFile(path("key.vm1.0"))));
        assert_eq!(sign(&path("vmcore.vm1.0"), b"\x1f\x8b\x08\0"), None);
        // A core decrypted here lies beside its key too.
        std::fs::write(path("vmcore_encrypted.vm1.0"), "").unwrap();
        assert_eq!(sign(&path("vmcore.vm1.0"), NOISE), None);
    }

    #[test]
    fn links_are_judged_by_what_they_lead_to() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("vmcore.vm1.last");
        std::fs::write(directory.path().join("vmcore_encrypted.vm1.0"), NOISE).unwrap();
        std::os::unix::fs::symlink("vmcore_encrypted.vm1.0", &link).unwrap();
        assert_eq!(sign(&link, NOISE), Some(Sign::Name));
    }
}
