//! The files of a Linux system that say how it boots: grub.cfg and grubenv, loader entries and loader.conf, os-release. It
//! boots, or not, and what it would boot keeps its bounds.
//!
//! An input is the files of [`FILES`], in order, each ended by a byte 0xff; the last one takes the rest.

#![no_main]

use std::path::Path;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmm::image::blocks::Blocks;
use vmm::image::boot::{self, Wishes};
use vmm::image::fs::{DirEntry, FileKind, FileSystem, FsError, Metadata};
use vmm::image::{Content, DiskImage, Volume};

const FILES: [&str; 6] = [
    "/boot/grub/grub.cfg",
    "/boot/grub/grubenv",
    "/boot/loader/entries/a-1.2+3-1.conf",
    "/boot/loader/entries/b.conf",
    "/boot/loader/loader.conf",
    "/etc/os-release",
];

fuzz_target!(|bytes: &[u8]| {
    let parts = bytes.splitn(FILES.len(), |&byte| byte == 0xff).map(<[u8]>::to_vec);
    let mut files: Vec<(&'static str, Vec<u8>)> = FILES.into_iter().zip(parts).collect();
    files.push(("/boot/vmlinuz-6.1.0-9-amd64", b"kernel".to_vec()));
    let nothing = Blocks::new(Arc::new(Vec::new()));
    let mut disk = DiskImage::new(Path::new("disk"), "raw", nothing.clone());
    let content = Content::FileSystem(Box::new(Files(files)));
    disk.volumes = vec![Volume { partition: None, blocks: nothing, content }];
    let Ok(plan) = boot::plan(&disk, &Wishes::default()) else { return };
    assert!(plan.candidates.len() <= 64 && plan.remarks.len() <= 64);
    assert!(plan.kernel.path.starts_with('/') && plan.system.chars().count() <= 128);
    assert!(plan.cmdline.contains("console="));
});

#[derive(Debug)]
struct Files(Vec<(&'static str, Vec<u8>)>);

impl Files {
    fn find(&self, path: &str) -> Result<&Vec<u8>, FsError> {
        let found = self.0.iter().find(|(name, _)| *name == path);
        found.map(|(_, bytes)| bytes).ok_or_else(|| FsError::NotFound { path: path.to_owned() })
    }
}

impl FileSystem for Files {
    fn kind(&self) -> &'static str {
        "ext4"
    }

    fn uuid(&self) -> Option<String> {
        None
    }

    fn label(&self) -> Option<String> {
        None
    }

    fn metadata(&self, path: &str) -> Result<Metadata, FsError> {
        self.find(path).map(|bytes| Metadata {
            kind: FileKind::File,
            len: bytes.len() as u64,
            modified: None,
        })
    }

    fn read(&self, path: &str, most: u64) -> Result<Vec<u8>, FsError> {
        let bytes = self.find(path)?;
        let len = bytes.len() as u64;
        if len > most { Err(FsError::Large { path: path.to_owned(), len, most }) } else { Ok(bytes.clone()) }
    }

    fn list(&self, path: &str) -> Result<Vec<DirEntry>, FsError> {
        let inside = |name: &str| name.strip_prefix(path)?.strip_prefix('/').map(str::to_owned);
        let names = self.0.iter().filter_map(|(name, _)| inside(name)).filter(|name| !name.contains('/'));
        Ok(names.map(|name| DirEntry { name, kind: FileKind::File }).collect())
    }
}
