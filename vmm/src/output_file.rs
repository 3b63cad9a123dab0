//! Files that the user names for output, which may be anything: a regular file, a link, a device, a pipe.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Finds out whether a file can be written, and changes nothing. What can only be found out by writing (a pipe nobody
/// reads, a link to nowhere) passes.
pub fn check(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if found.is_file() => OpenOptions::new().append(true).open(path).map(drop),
        Ok(_) => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) if path.is_symlink() => Ok(()),
        Err(_) => {
            File::create_new(path)?;
            fs::remove_file(path)
        }
    }
}

/// Writes a whole file, so that whoever waits for it never sees half of it: aside, then renamed. A device or pipe is
/// written to, not replaced, and a link stays a link.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    let target = if path.is_symlink() { path.canonicalize()? } else { path.to_owned() };
    let aside = target.with_added_extension("partial");
    let written = fs::write(&aside, bytes).and_then(|()| fs::rename(&aside, &target));
    if written.is_err() {
        // It may not even be there.
        let _ = fs::remove_file(&aside);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, symlink};

    use super::*;

    #[test]
    fn checking_leaves_everything_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("there"), "text").unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        for name in ["new", "there", "dangling"] {
            check(&at(name)).unwrap();
        }
        assert!(!at("new").exists() && !at("nowhere").exists() && at("dangling").is_symlink());
        assert_eq!(fs::read(at("there")).unwrap(), b"text");
        assert!(check(folder.path()).is_err() && check(&at("no/folder")).is_err());
    }

    #[test]
    fn devices_are_written_to_and_links_stay_links() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write_whole(Path::new("/dev/null"), b"{}").unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        fs::write(at("real"), "old").unwrap();
        symlink(at("real"), at("link")).unwrap();
        write_whole(&at("link"), b"new").unwrap();
        assert!(at("link").is_symlink());
        assert_eq!(fs::read(at("real")).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left aside");
    }

    #[test]
    fn a_failed_write_leaves_nothing_aside() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::create_dir(folder.path().join("file.partial")).unwrap();
        assert!(write_whole(&file, b"x").is_err());
        assert!(!file.exists());
    }
}
