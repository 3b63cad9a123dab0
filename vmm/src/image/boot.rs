//! Boot loaders: how a system's own loader would find its kernel on a disk and what it would hand over. Each is a module
//! and a line in [`ALL`].

use std::fmt;

use thiserror::Error;

use super::DiskImage;
use super::fs::FsError;

/// Largest kernel, module or initrd that is read from an image, in bytes.
pub const MOST_FILE: u64 = 1 << 30;
/// Largest configuration file that is read from an image, in bytes.
pub const MOST_CONFIG: u64 = 4 << 20;

/// Every loader, in the order in which they are asked.
pub static ALL: &[&dyn BootLoader] = &[&super::freebsd::FreeBsd, &super::linux::Linux];

/// A system's way to boot from a disk.
pub trait BootLoader: Sync + fmt::Debug {
    /// The system's name, such as `FreeBSD`.
    fn name(&self) -> &'static str;

    /// What would be booted from this disk; `None` when it does not hold this system at all.
    fn find(&self, disk: &DiskImage, wishes: &Wishes) -> Result<Option<BootPlan>, BootPlanError>;
}

/// What the user wants otherwise than the disk says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Path in the image of the kernel to boot, for the one that the disk's configuration names.
    pub kernel: Option<String>,
    /// The whole command line (for FreeBSD: boot flags and variables, which win over loader.conf).
    pub cmdline: Option<String>,
    /// More of the command line, behind whichever it is.
    pub append: Option<String>,
    /// An initrd comes from the host: the image's own need not be read.
    pub initrd_is_given: bool,
    /// The kernel's file is wanted for its name only (`inspect-image`): contents may be left empty.
    pub look_only: bool,
}

/// What a loader would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPlan {
    /// The system, such as `FreeBSD` or `Debian GNU/Linux 12 (bookworm)`.
    pub system: String,
    /// Index in [`DiskImage::volumes`] of the volume that the kernel is on.
    pub volume: usize,
    /// What decided, such as `/boot/loader.conf`, `/boot/grub/grub.cfg: Debian GNU/Linux` or `the newest kernel`.
    pub source: String,
    /// The kernel, unpacked if it was a `.gz`.
    pub kernel: BootFile,
    /// Its command line, whole: with what [`Wishes`] say.
    pub cmdline: String,
    /// The kernel environment, in order (FreeBSD).
    pub environment: Vec<(String, String)>,
    /// Modules and other files, in the order in which they are handed over (FreeBSD).
    pub modules: Vec<BootModule>,
    /// The first root file system (Linux), several joined into one.
    pub initrd: Option<BootFile>,
    /// Where the root file system is, as the kernel is told, such as `ufs:/dev/vtbd0p2` or `UUID=...`.
    pub root: Option<String>,
    /// Every kernel or entry that could be booted, the chosen one among them.
    pub candidates: Vec<Candidate>,
    /// What the user should know: lines that were dropped, files that are missing.
    pub remarks: Vec<String>,
}

/// A file of the image.
#[derive(Clone, PartialEq, Eq)]
pub struct BootFile {
    /// Its path in the image.
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// A file that is handed over beside the kernel.
#[derive(Clone, PartialEq, Eq)]
pub struct BootModule {
    /// Its path in the image.
    pub path: String,
    /// Its type, such as `md_image`; `None` for kernel modules, whose type their content tells.
    pub kind: Option<String>,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// Something that could be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its title, or its kernel's path.
    pub title: String,
    /// Its kernel's path in the image.
    pub kernel: String,
    /// Whether it is the one that is booted.
    pub chosen: bool,
}

/// Why nothing can be booted from a disk.
#[derive(Debug, Error)]
pub enum BootPlanError {
    /// Something that is needed cannot be read.
    #[error("reading {what} of the {system} system on {volume}")]
    Read {
        /// What is needed, such as `the kernel /boot/kernel/kernel`.
        what: String,
        /// The system.
        system: &'static str,
        /// The volume, such as `partition 2`.
        volume: String,
        /// Why it cannot be read.
        #[source]
        source: Box<FsError>,
    },
    /// No loader knows anything on it.
    #[error("no system is found on {image} that could be booted: {seen}")]
    Nothing {
        /// The file.
        image: String,
        /// What is there, such as `partition 1: vfat; partition 2: a ZFS pool, which cannot be read here: ...`.
        seen: String,
    },
    /// What was asked for is not there.
    #[error("--kernel {path} is on no file system of {image}")]
    NoSuchKernel {
        /// The path.
        path: String,
        /// The file.
        image: String,
    },
    /// It cannot be booted, and this is why.
    #[error("the {system} system on {volume} cannot be booted: {problem}")]
    Impossible {
        /// The system.
        system: &'static str,
        /// The volume.
        volume: String,
        /// Why, such as `its root is on ZFS, which cannot be read here`.
        problem: String,
    },
}

impl fmt::Debug for BootFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.path, self.bytes.len())
    }
}

impl fmt::Debug for BootModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes, {:?})", self.path, self.bytes.len(), self.kind)
    }
}

/// What would be booted from a disk: the first loader's plan that has one.
pub fn plan(disk: &DiskImage, wishes: &Wishes) -> Result<BootPlan, BootPlanError> {
    for loader in ALL {
        if let Some(plan) = loader.find(disk, wishes)? {
            return Ok(plan);
        }
    }
    Err(BootPlanError::Nothing { image: disk.path.display().to_string(), seen: disk.summary() })
}
