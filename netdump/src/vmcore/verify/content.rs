//! The content of a core's file as a whole: its hash, its holes.

use std::io;
use std::ops::Range;

use super::super::core_file::CoreFile;
use crate::digest::{Digest, Digester};

/// Bytes that are hashed in one go.
const CHUNK: usize = 1 << 20;

/// The digest of the whole file. Holes are hashed as zeros without being read.
pub(super) fn hash(file: &CoreFile, progress: &mut dyn FnMut(u64, u64)) -> io::Result<Option<Digest>> {
    let mut digester = Digester::new();
    let mut buf = vec![0; CHUNK];
    let mut at = 0;
    let mut data = file.next_data(0);
    while at < file.length() {
        let (end, is_data) = match &data {
            Some(run) if run.start <= at => (run.end, true),
            Some(run) => (run.start, false),
            None => (file.length(), false),
        };
        if is_data {
            let len = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
            file.read(at, &mut buf[..len])?;
            digester.update(&buf[..len]);
        } else {
            digester.zeros(end - at);
        }
        at = digester.length();
        if at == end {
            data = file.next_data(at);
        }
        progress(at, file.length());
    }
    Ok(digester.finish())
}

/// The parts of a file that were never written.
pub(super) struct Holes {
    pub(super) count: usize,
    pub(super) total: u64,
    /// The first few of them.
    pub(super) first: Vec<Range<u64>>,
}

/// Looks for holes, of which the first `listed` are kept.
pub(super) fn holes(file: &CoreFile, listed: usize) -> Holes {
    let mut holes = Holes { count: 0, total: 0, first: Vec::new() };
    let mut at = 0;
    while at < file.length() {
        let data = file.next_data(at).unwrap_or_else(|| file.length()..file.length());
        if data.start > at {
            holes.count += 1;
            holes.total += data.start - at;
            if holes.first.len() < listed {
                holes.first.push(at..data.start);
            }
        }
        at = data.end;
    }
    holes
}
