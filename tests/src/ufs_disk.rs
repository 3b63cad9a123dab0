//! Disks with a FreeBSD file system, made by the programs that Debian has for that: makefs and sgdisk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::programs::{arg, run};

/// Where the file system's partition begins: the second one, behind one for a boot block.
const START: u64 = 4 << 20;

/// A folder that becomes a file system and a disk.
#[derive(Debug)]
pub struct UfsDisk {
    folder: TempDir,
}

impl Default for UfsDisk {
    fn default() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        fs::create_dir(folder.path().join("root")).expect("it can be written to");
        Self { folder }
    }
}

impl UfsDisk {
    /// What becomes the root of the file system.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Adds a file at a path below the root.
    #[must_use]
    pub fn with(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.root().join(path);
        let parent = path.parent().expect("it lies below the root");
        fs::create_dir_all(parent).expect("folders can be made");
        fs::write(&path, content).expect("files can be written");
        self
    }

    /// Makes the file system; `options` are those of `makefs -o`, such as `version=2`.
    pub fn file_system(&self, options: &str) -> PathBuf {
        let image = self.folder.path().join("ufs.img");
        let ended = run("makefs", &["-t", "ffs", "-b", "30%", "-o", options, arg(&image), arg(&self.root())]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        image
    }

    /// Makes a disk with a GUID partition table whose partition 2 is the file system; a sparse file of `len` bytes.
    pub fn disk(&self, options: &str, len: u64) -> PathBuf {
        let (ufs, disk) = (self.file_system(options), self.folder.path().join("disk.img"));
        let blocks = fs::metadata(&ufs).expect("it was made").len().div_ceil(512);
        let file = File::create(&disk).expect("a file can be made");
        file.set_len(len).expect("sparse files are possible");
        let root = format!("2:{}:+{blocks}", START / 512);
        // freebsd-boot, freebsd-ufs (`sys/sys/disk/gpt.h`).
        let types = ["-n", "1:2048:4095", "-t", "1:a501", "-n", &root, "-t", "2:a503", "-c", "2:rootfs"];
        let ended = run("sgdisk", &[&types[..], &[arg(&disk)]].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        copy_into(&ufs, &disk);
        disk
    }
}

fn copy_into(ufs: &Path, disk: &Path) {
    use std::os::unix::fs::FileExt;
    let bytes = fs::read(ufs).expect("it was made");
    let disk = File::options().write(true).open(disk).expect("it was made");
    disk.write_all_at(&bytes, START).expect("the disk has room");
}
