//! Disks with a distribution's system, made by the distribution's own tools: `disk_image.sh` has how.
//!
//! What is made lies in a file that is named for the newest kernel of the release and for the recipe: a disk is made once for
//! each of them. Runs get copies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::kernels::Apt;
use super::scenario::DiskState;
use super::{output, succeed};

/// A disk that the lab knows.
#[derive(Debug, Clone, Copy)]
pub struct DiskName {
    /// Its name in scenarios.
    pub name: &'static str,
    /// The release of Debian on it.
    suite: &'static str,
}

/// All of them; which ones are tested is up to the scenarios.
pub const ALL: [DiskName; 1] = [DiskName { name: "debian-12", suite: "bookworm" }];

/// How a disk is made.
const RECIPE: &str = include_str!("disk_image.sh");
/// The package that its newest kernel is found by, and where its root file system begins, in bytes: both are the recipe's.
const KERNEL: &str = "linux-image-cloud-amd64";
const ROOT: u64 = 9 << 20;
/// What the disk's unit writes, and where.
const WRITTEN: (&str, &str) = ("/var/lib/lab", "written by the guest\n");

/// A disk as it was made.
#[derive(Debug, Clone)]
pub struct DiskImage {
    file: PathBuf,
}

/// The copy of a disk that a run of that name has, in the folder of the runs' guests.
pub fn working_copy(guests: &Path, run: &str) -> PathBuf {
    guests.join(format!("{run}.raw"))
}

impl DiskImage {
    /// The disk of that name, made below `lab` unless it is there already.
    pub fn fetch(lab: &Path, name: &str) -> anyhow::Result<Self> {
        let known = ALL.iter().find(|disk| disk.name == name);
        let names = || ALL.map(|disk| disk.name).join(", ");
        let known = known.with_context(|| format!("no disk '{name}'; the lab knows {}", names()))?;
        let apt = Apt::new(lab, known.suite)?;
        let kernel = apt.file_stem(&apt.newest(KERNEL)?)?;
        let recipe = blake3::hash(RECIPE.as_bytes()).to_hex();
        let file = lab.join("disks").join(format!("{name}_{kernel}_{}.raw", &recipe[..8]));
        if !file.exists() {
            make(known.suite, &apt.sources(), &file).with_context(|| format!("making {}", file.display()))?;
        }
        Ok(Self { file })
    }

    /// Copies it, and no holes.
    pub fn copy(&self, to: &Path) -> anyhow::Result<()> {
        succeed(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(&self.file).arg(to))
    }

    /// Whether a copy is as it must be.
    pub fn judge(&self, copy: &Path, state: DiskState) -> anyhow::Result<()> {
        match state {
            DiskState::Same => succeed(Command::new("cmp").arg(&self.file).arg(copy)),
            DiskState::Clean => is_clean(copy),
        }
    }
}

/// Makes a disk; the file appears when it is complete.
fn make(suite: &str, sources: &Path, file: &Path) -> anyhow::Result<()> {
    let folder = file.parent().context("disks lie in a folder")?;
    fs::create_dir_all(folder)?;
    let aside = tempfile::tempdir_in(folder)?;
    let made = aside.path().join("made");
    let mut recipe = Command::new("sh");
    recipe.args(["-c", RECIPE, "disk_image.sh", suite]).arg(sources.canonicalize()?).arg("made");
    succeed(recipe.current_dir(aside.path()))?;
    Ok(fs::rename(made, file)?)
}

/// Its root file system was written to by the guest, and unmounted: nothing is left in its journal, and e2fsck, which only
/// looks, finds nothing to repair.
fn is_clean(disk: &Path) -> anyhow::Result<()> {
    let root = format!("{}?offset={ROOT}", disk.display());
    let written = output(Command::new("debugfs").args(["-R", &format!("cat {}", WRITTEN.0), &root]))?;
    ensure!(written == WRITTEN.1, "{} has '{written}'", WRITTEN.0);
    let said = output(Command::new("e2fsck").args(["-f", "-n", &root]))?;
    ensure!(!said.contains("journal"), "it was not unmounted: {said}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needs::has_program;

    /// A file system behind 9 MiB of nothing, as on the disk.
    fn disk(folder: &Path, text: &str) -> PathBuf {
        let (files, disk) = (folder.join("files"), folder.join("disk"));
        fs::create_dir_all(files.join("var/lib")).unwrap();
        fs::write(files.join("var/lib/lab"), text).unwrap();
        fs::File::create(&disk).unwrap().set_len(ROOT + (8 << 20)).unwrap();
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-E", &format!("offset={ROOT}"), "-d"]).arg(files).arg(&disk).arg("8M");
        succeed(&mut mkfs).unwrap();
        disk
    }

    #[test]
    fn clean_is_written_to_and_without_fault() {
        if !has_program("mkfs.ext4") || !has_program("debugfs") {
            println!("SKIPPED lab: there is no e2fsprogs");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        is_clean(&disk(folder.path(), WRITTEN.1)).unwrap();
        let error = is_clean(&disk(folder.path(), "another\n")).unwrap_err().to_string();
        assert!(error.contains("/var/lib/lab has 'another"), "{error}");
        let good = disk(folder.path(), WRITTEN.1);
        // The count of free blocks, in the superblock.
        let mut bytes = fs::read(&good).unwrap();
        bytes[usize::try_from(ROOT).unwrap() + 1024 + 0xc] ^= 1;
        fs::write(&good, bytes).unwrap();
        is_clean(&good).unwrap_err();
    }

    #[test]
    fn a_copy_is_the_same_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let image = DiskImage { file: folder.path().join("image") };
        fs::write(&image.file, [7; 5000]).unwrap();
        let copy = folder.path().join("copy");
        image.copy(&copy).unwrap();
        image.judge(&copy, DiskState::Same).unwrap();
        fs::write(&copy, [8; 5000]).unwrap();
        image.judge(&copy, DiskState::Same).unwrap_err();
    }
}
