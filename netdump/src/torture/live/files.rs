//! What a server has in its directory, seen from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::torture::judge::Stored;

/// Largest file that is looked at: no core of a run is larger.
const MAX_FILE: u64 = 32 << 20;
/// How deep directories are looked into: a HERALD may name one below the server's.
const MAX_DEPTH: u32 = 4;

/// A file that may be a core.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    core: Vec<u8>,
}

impl File {
    pub(super) fn stored(&self) -> Stored<'_> {
        let name = self.path.as_os_str().as_encoded_bytes();
        let is_cut = [&b".partial"[..], b".incomplete"].iter().any(|end| name.ends_with(end));
        Stored { core: &self.core, is_complete: !is_cut }
    }
}

/// The files below `dir` that were written since. One that vanishes while it is looked for is passed over: dumps of
/// others end too, and have their files renamed.
pub(super) fn since(dir: &Path, since: SystemTime) -> Vec<File> {
    let mut files = Vec::new();
    collect(dir, since, MAX_DEPTH, &mut files);
    files
}

fn collect(dir: &Path, since: SystemTime, depth: u32, files: &mut Vec<File>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // Links are not followed: the ".last" ones lead to what is here anyway.
        let (Ok(kind), path) = (entry.file_type(), entry.path()) else { continue };
        if kind.is_dir() && depth > 0 {
            collect(&path, since, depth - 1, files);
        }
        let is_new = |metadata: &fs::Metadata| metadata.modified().is_ok_and(|at| at >= since);
        let fits = |metadata: &fs::Metadata| metadata.is_file() && metadata.len() <= MAX_FILE;
        if entry.metadata().is_ok_and(|metadata| fits(&metadata) && is_new(&metadata))
            && let Ok(core) = fs::read(&path)
        {
            files.push(File { path, core });
        }
    }
}
