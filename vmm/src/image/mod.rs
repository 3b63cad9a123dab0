//! What a disk image holds: its partitions, their file systems, and what a system's own boot loader would boot from
//! them. Nothing here knows KVM; nothing is written.
//!
//! `container` (raw, qcow2) > [`partitions`] (GPT, MBR, BSD label, none) > [`fs`] > [`boot`].

pub mod blocks;
pub mod boot;
pub(crate) mod container;
mod freebsd;
pub mod fs;
pub mod linux;
pub mod partitions;

use std::path::{Path, PathBuf};

pub use container::{ContainerError, Qcow2, Qcow2Error};

use self::blocks::{Blocks, ReadBlocksError};
use self::fs::{FileSystem, FsError};
use self::partitions::{Partition, Table};

/// An open disk image.
#[derive(Debug)]
pub struct DiskImage {
    /// The file.
    pub path: PathBuf,
    /// What kind of file it is: `raw` or `qcow2`.
    pub container: &'static str,
    /// The disk's length in bytes.
    pub len: u64,
    /// How it is divided: `GPT`, `MBR` or `none`.
    pub scheme: &'static str,
    /// The partition table's identity.
    pub uuid: Option<String>,
    /// Its partitions with what they hold; the whole disk as one if it has no partition table.
    pub volumes: Vec<Volume>,
    /// What is odd about its partition table.
    pub remarks: Vec<String>,
}

/// A partition, or a disk without any.
#[derive(Debug)]
pub struct Volume {
    /// The partition; `None` for a whole disk.
    pub partition: Option<Partition>,
    /// Its bytes.
    pub blocks: Blocks,
    /// What it holds.
    pub content: Content,
}

/// What a volume holds.
#[derive(Debug)]
pub enum Content {
    /// A file system.
    FileSystem(Box<dyn FileSystem>),
    /// A file system, or a container of some, that cannot be read.
    Unreadable {
        /// Its type's name.
        kind: &'static str,
        /// Why not.
        reason: FsError,
    },
    /// Nothing that is known here.
    Unknown,
}

impl DiskImage {
    /// Opens an image file or block device and looks at what it holds. It is only read.
    pub fn open(path: &Path) -> Result<Self, ContainerError> {
        let (container, blocks) = container::open_path(path)?;
        Ok(Self::new(path, container, blocks))
    }

    /// Looks at what a disk holds; `path` is its name.
    pub fn new(path: &Path, container: &'static str, blocks: Blocks) -> Self {
        let len = blocks.length();
        let table = partitions::read(&blocks, || fs::recognise(&blocks).is_some());
        let table = table.unwrap_or(Table {
            scheme: "none",
            uuid: None,
            partitions: Vec::new(),
            remarks: Vec::new(),
        });
        let mut remarks = table.remarks;
        let mut volumes = Vec::new();
        for partition in table.partitions {
            match volume(&blocks, &partition) {
                Ok(volume) => volumes.push(volume),
                Err(error) => remarks.push(format!("{} is left out: {error}", partition.place)),
            }
        }
        if table.scheme == "none" {
            volumes.push(Volume { partition: None, content: Content::of(&blocks), blocks });
        }
        let path = path.to_owned();
        Self { path, container, len, scheme: table.scheme, uuid: table.uuid, volumes, remarks }
    }

    /// Whether it has a partition table or anything else that is known here.
    pub fn is_something(&self) -> bool {
        self.scheme != "none" || self.volumes.iter().any(|volume| !matches!(volume.content, Content::Unknown))
    }

    /// Its volumes, in a sentence.
    pub fn summary(&self) -> String {
        let volumes: Vec<_> = self
            .volumes
            .iter()
            .map(|volume| match &volume.content {
                Content::FileSystem(fs) => format!("{} has {} without a kernel", volume.name(), fs.kind()),
                Content::Unreadable { reason, .. } => format!("{}: {reason}", volume.name()),
                Content::Unknown => format!("{} has no known file system", volume.name()),
            })
            .collect();
        if volumes.is_empty() { "it has no partitions".to_owned() } else { volumes.join("; ") }
    }
}

fn volume(disk: &Blocks, partition: &Partition) -> Result<Volume, ReadBlocksError> {
    let blocks = disk.slice(partition.start..partition.start.saturating_add(partition.len))?;
    Ok(Volume { partition: Some(partition.clone()), content: Content::of(&blocks), blocks })
}

impl Volume {
    /// Its name for messages: `partition 2` or `the disk`.
    pub fn name(&self) -> String {
        self.partition.as_ref().map_or_else(|| "the disk".to_owned(), |partition| partition.place.to_string())
    }

    /// Its file system, if it has one that can be read.
    pub fn file_system(&self) -> Option<&dyn FileSystem> {
        match &self.content {
            Content::FileSystem(fs) => Some(fs.as_ref()),
            Content::Unreadable { .. } | Content::Unknown => None,
        }
    }
}

impl Content {
    /// Finds out what is in `blocks`.
    fn of(blocks: &Blocks) -> Self {
        let Some(kind) = fs::recognise(blocks) else { return Self::Unknown };
        match kind.open(blocks.clone()) {
            Ok(fs) => Self::FileSystem(fs),
            Err(reason) => Self::Unreadable { kind: kind.name(), reason },
        }
    }
}
