//! A file system of a test's own: paths and contents.

use std::collections::BTreeMap;

use super::{DirEntry, FileKind, FileSystem, FsError, Metadata};

#[derive(Debug, Default)]
pub(in crate::image) struct TestFs(BTreeMap<String, Vec<u8>>);

impl TestFs {
    /// Of texts.
    pub(in crate::image) fn new(files: &[(&str, &str)]) -> Self {
        Self::of_bytes(files.iter().map(|(path, text)| (*path, text.as_bytes().to_vec())))
    }

    /// Of any content.
    pub(in crate::image) fn of_bytes<'a>(files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Self {
        Self(files.into_iter().map(|(path, bytes)| (path.to_owned(), bytes)).collect())
    }

    fn is_folder(&self, path: &str) -> bool {
        let within = format!("{}/", path.trim_end_matches('/'));
        self.0.keys().any(|file| file.starts_with(&within))
    }
}

impl FileSystem for TestFs {
    fn kind(&self) -> &'static str {
        "ufs"
    }

    fn uuid(&self) -> Option<String> {
        None
    }

    fn label(&self) -> Option<String> {
        None
    }

    fn metadata(&self, path: &str) -> Result<Metadata, FsError> {
        let (kind, len) = match self.0.get(path) {
            Some(bytes) => (FileKind::File, bytes.len() as u64),
            None if self.is_folder(path) => (FileKind::Directory, 0),
            None => return Err(FsError::NotFound { path: path.to_owned() }),
        };
        Ok(Metadata { kind, len, modified: None })
    }

    fn read(&self, path: &str, most: u64) -> Result<Vec<u8>, FsError> {
        let path = path.to_owned();
        match self.0.get(&path) {
            Some(bytes) if bytes.len() as u64 > most => {
                Err(FsError::Large { path, len: bytes.len() as u64, most })
            }
            Some(bytes) => Ok(bytes.clone()),
            None if self.is_folder(&path) => Err(FsError::Kind { path, wanted: "regular file" }),
            None => Err(FsError::NotFound { path }),
        }
    }

    fn list(&self, path: &str) -> Result<Vec<DirEntry>, FsError> {
        let within = format!("{}/", path.trim_end_matches('/'));
        let mut entries: BTreeMap<String, FileKind> = BTreeMap::new();
        for file in self.0.keys().filter_map(|file| file.strip_prefix(&within)) {
            match file.split_once('/') {
                Some((folder, _)) => entries.insert(folder.to_owned(), FileKind::Directory),
                None => entries.insert(file.to_owned(), FileKind::File),
            };
        }
        if entries.is_empty() {
            return Err(FsError::NotFound { path: path.to_owned() });
        }
        Ok(entries.into_iter().map(|(name, kind)| DirEntry { name, kind }).collect())
    }
}
