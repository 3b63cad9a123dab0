//! Paths, walked name by name and within bounds; symbolic links are followed on the way.

use super::{FsError, MOST_LINKS};

/// Longest target of a symbolic link, in bytes (`PATH_MAX` of Linux; FreeBSD's `MAXPATHLEN` is 1024).
pub(super) const MOST_TARGET: u64 = 4096;
/// Most names that a lookup walks, links included.
const MOST_NAMES: usize = 256;

/// A file system with links.
pub(super) trait Tree {
    /// A file, or what is needed to read one.
    type File;

    /// The directory that `/` is.
    fn root(&self) -> Result<Self::File, FsError>;

    /// What a directory has under a name; links are not followed. `path` is what is looked up.
    fn child(&self, directory: &Self::File, name: &[u8], path: &str) -> Result<Self::File, FsError>;

    /// Where a symbolic link leads to; `None` of anything else. More than [`MOST_TARGET`] bytes are not read.
    fn target(&self, file: &Self::File) -> Result<Option<Vec<u8>>, FsError>;

    /// What is at a path, the last link followed, too.
    fn lookup(&self, path: &str) -> Result<Self::File, FsError> {
        // Names still to be walked, the next one last; a link puts its target's there.
        let mut names = split(path.as_bytes());
        // The directories from the root to here, for `..`: the disk's own entries could lead astray.
        let mut parents = Vec::new();
        let mut here = self.root()?;
        let (mut links, mut walked) = (0, 0);
        while let Some(name) = names.pop() {
            walked += 1;
            if walked > MOST_NAMES {
                let most = MOST_NAMES as u64;
                return Err(FsError::TooMany { place: path.to_owned(), what: "names", most });
            }
            if name == b".." {
                here = parents.pop().unwrap_or(here);
                continue;
            }
            let next = self.child(&here, &name, path)?;
            let Some(target) = self.target(&next)? else {
                parents.push(std::mem::replace(&mut here, next));
                continue;
            };
            links += 1;
            if links > MOST_LINKS {
                return Err(FsError::Links { path: path.to_owned() });
            }
            if target.starts_with(b"/") {
                here = self.root()?;
                parents.clear();
            }
            names.extend(split(&target));
        }
        Ok(here)
    }
}

/// The names of a path, last one first.
fn split(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&byte| byte == b'/');
    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
    let mut names: Vec<_> = parts.map(<[u8]>::to_vec).collect();
    names.reverse();
    names
}
