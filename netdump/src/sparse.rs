//! Writing a file from front to back, its zeros as holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::zeros::are_zeros;

/// What becomes a hole: a block of this many zeros at a multiple of it, as file systems have them.
const BLOCK: usize = 4096;

/// A file that is being written, empty at first.
#[derive(Debug)]
pub(crate) struct SparseWriter {
    file: File,
    /// Where the next byte goes.
    at: u64,
}

impl SparseWriter {
    pub(crate) fn new(file: File) -> Self {
        Self { file, at: 0 }
    }

    /// How many bytes were written so far.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// Adds bytes. The more at a time, the fewer calls of the system.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let to_boundary = self.at.next_multiple_of(BLOCK as u64) - self.at;
        let head = usize::try_from(to_boundary).map_or(bytes.len(), |head| head.min(bytes.len()));
        let (head, mut rest) = bytes.split_at(head);
        if are_zeros(head) {
            self.at += head.len() as u64;
        } else {
            self.put(head)?;
        }
        while !rest.is_empty() {
            let holes = count(rest, are_zeros);
            self.at += holes as u64;
            let (data, behind) = rest[holes..].split_at(count(&rest[holes..], |block| !are_zeros(block)));
            self.put(data)?;
            rest = behind;
        }
        Ok(())
    }

    /// Gives the file its length, which ends in a hole where its last bytes were zeros.
    pub(crate) fn finish(self) -> io::Result<File> {
        self.file.set_len(self.at)?;
        Ok(self.file)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// Bytes of the leading blocks of a kind.
fn count(bytes: &[u8], kind: impl Fn(&[u8]) -> bool) -> usize {
    bytes.chunks(BLOCK).take_while(|block| kind(block)).map(<[u8]>::len).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use std::os::unix::fs::MetadataExt;

    proptest! {
        /// Runs of data and zeros, written in pieces of any length.
        #[test]
        fn the_file_reads_as_what_was_written(
            runs in prop::collection::vec((any::<bool>(), 1..20_000_usize), 0..6),
            piece in 1..30_000_usize,
        ) {
            let bytes: Vec<u8> = runs.iter().flat_map(|&(data, len)| vec![u8::from(data); len]).collect();
            let mut writer = SparseWriter::new(tempfile::tempfile().unwrap());
            for piece in bytes.chunks(piece) {
                writer.write(piece).unwrap();
            }
            prop_assert_eq!(writer.position(), bytes.len() as u64);
            let file = writer.finish().unwrap();
            let mut read = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
            file.read_exact_at(&mut read, 0).unwrap();
            prop_assert_eq!(read, bytes);
        }
    }

    #[test]
    fn zeros_take_no_room() {
        let mut writer = SparseWriter::new(tempfile::tempfile().unwrap());
        writer.write(&[1; 100]).unwrap();
        for _ in 0..64 {
            writer.write(&[0; 1 << 16]).unwrap();
        }
        let file = writer.finish().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100 + (64 << 16));
        let used = file.metadata().unwrap().blocks() * 512;
        assert!(used <= 2 * BLOCK as u64, "{used}");
    }
}
