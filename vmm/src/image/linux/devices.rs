//! A disk as GRUB sees it: `hd0`, with partitions `hd0,gpt2` and `hd0,msdos1`.

use super::super::DiskImage;
use super::super::boot::MOST_CONFIG;
use super::super::fs::{FileKind, FileSystem};
use super::super::partitions::Place;
use super::grub::{Devices, SearchBy};

/// The disk; volumes are named by their index.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk<'a>(pub(super) &'a DiskImage);

impl<'a> Disk<'a> {
    /// GRUB's name of a volume.
    pub(super) fn name(self, volume: usize) -> String {
        match self.0.volumes[volume].partition.as_ref().map(|partition| partition.place) {
            Some(Place::Gpt(number)) => format!("hd0,gpt{number}"),
            Some(Place::Mbr(number)) => format!("hd0,msdos{number}"),
            Some(Place::Bsd(number, letter)) => format!("hd0,msdos{number},bsd{letter}"),
            None => "hd0".to_owned(),
        }
    }

    /// The volume of that name, which may lack the kind of its partition: `hd0,2`.
    pub(super) fn volume(self, name: &str) -> Option<usize> {
        let short = |name: &str| name.replace("gpt", "").replace("msdos", "");
        (0..self.0.volumes.len()).find(|&volume| short(&self.name(volume)) == short(name))
    }

    pub(super) fn fs(self, volume: usize) -> Option<&'a dyn FileSystem> {
        self.0.volumes.get(volume)?.file_system()
    }

    /// A small text; bytes that are no UTF-8 are replaced.
    pub(super) fn text(self, volume: usize, path: &str) -> Option<String> {
        let bytes = self.fs(volume)?.read(path, MOST_CONFIG).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(super) fn has(self, volume: usize, path: &str) -> bool {
        let found = self.fs(volume).and_then(|fs| fs.metadata(path).ok());
        found.is_some_and(|found| found.kind == FileKind::File)
    }
}

impl Devices for Disk<'_> {
    fn read(&self, device: &str, path: &str) -> Option<Vec<u8>> {
        self.fs(self.volume(device)?)?.read(path, MOST_CONFIG).ok()
    }

    fn has(&self, device: &str, path: &str) -> bool {
        self.volume(device).is_some_and(|volume| Disk::has(*self, volume, path))
    }

    fn search(&self, by: SearchBy<'_>) -> Option<String> {
        let is_it = |&volume: &usize| {
            let Some(fs) = self.fs(volume) else { return false };
            match by {
                SearchBy::Uuid(uuid) => fs.uuid().is_some_and(|own| own.eq_ignore_ascii_case(uuid)),
                SearchBy::Label(label) => fs.label().is_some_and(|own| own == label),
                SearchBy::File(path) => Disk::has(*self, volume, path),
            }
        };
        (0..self.0.volumes.len()).find(is_it).map(|volume| self.name(volume))
    }
}
