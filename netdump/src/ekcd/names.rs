//! How servers name an encrypted core, its key and, decrypted, its core:
//!
//! `vmcore_encrypted.REST`, `key.REST`, `vmcore.REST`, where the cores may have `.gz` or `.zst` behind, and cores and
//! keys of dumps that stopped early `.incomplete`.

use std::path::{Path, PathBuf};

/// Endings of a core's name that its key's does not have.
const ENDINGS: [&str; 3] = [".gz", ".zst", ".incomplete"];

/// The path itself, or where it leads if it is a link, such as `vmcore.HOST.last`.
pub(super) fn followed(core: &Path) -> PathBuf {
    let is_link = core.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    let target = is_link.then(|| core.canonicalize().ok()).flatten();
    target.unwrap_or_else(|| core.to_owned())
}

/// Whether the name says that the core is encrypted.
pub(super) fn is_encrypted(core: &Path) -> bool {
    encrypted_rest(core).is_some()
}

/// Whether the name says that the server did not get all of the core.
pub(super) fn is_incomplete(core: &Path) -> bool {
    core.extension().is_some_and(|ending| ending == "incomplete" || ending == "partial")
}

/// The key file of a core that is named as servers name it: also of one named `vmcore.REST`, as netdumpd leaves an
/// encrypted core whose header never came.
pub(super) fn key_of(core: &Path) -> Option<PathBuf> {
    let rest = encrypted_rest(core).or_else(|| core.file_name()?.to_str()?.strip_prefix("vmcore."))?;
    let base = ENDINGS.iter().find_map(|ending| rest.strip_suffix(ending)).unwrap_or(rest);
    let key = core.with_file_name(format!("key.{base}"));
    let incomplete = core.with_file_name(format!("key.{base}.incomplete"));
    Some(if !key.exists() && incomplete.exists() { incomplete } else { key })
}

/// What the decrypted core is to be named.
pub(super) fn plain_of(core: &Path) -> Option<PathBuf> {
    Some(core.with_file_name(format!("vmcore.{}", encrypted_rest(core)?)))
}

/// The encrypted core that a core named `vmcore.REST` may have been decrypted from.
pub(super) fn encrypted_of(core: &Path) -> Option<PathBuf> {
    let rest = core.file_name()?.to_str()?.strip_prefix("vmcore.")?;
    Some(core.with_file_name(format!("vmcore_encrypted.{rest}")))
}

fn encrypted_rest(core: &Path) -> Option<&str> {
    core.file_name()?.to_str()?.strip_prefix("vmcore_encrypted.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_savecore_and_netdumpd() {
        let names = |core: &str| (key_of(Path::new(core)), plain_of(Path::new(core)));
        let both = |key: &str, plain: &str| (Some(PathBuf::from(key)), Some(PathBuf::from(plain)));
        assert_eq!(names("/x/vmcore_encrypted.3"), both("/x/key.3", "/x/vmcore.3"));
        assert_eq!(names("vmcore_encrypted.vm1.0.gz"), both("key.vm1.0", "vmcore.vm1.0.gz"));
        assert_eq!(names("vmcore_encrypted.10.0.0.2.7.zst"), both("key.10.0.0.2.7", "vmcore.10.0.0.2.7.zst"));
        let incomplete = both("key.vm1.0", "vmcore.vm1.0.incomplete");
        assert_eq!(names("vmcore_encrypted.vm1.0.incomplete"), incomplete);
        assert_eq!(names("core"), (None, None));
        assert!(is_incomplete(Path::new("vmcore_encrypted.vm1.0.incomplete")));
        assert!(!is_incomplete(Path::new("vmcore_encrypted.incomplete.0")));
    }

    #[test]
    fn key_of_a_dump_that_stopped_early_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key.vm1.0.incomplete");
        std::fs::write(&key, "").unwrap();
        assert_eq!(key_of(&directory.path().join("vmcore_encrypted.vm1.0.incomplete")), Some(key));
    }
}
