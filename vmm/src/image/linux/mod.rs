//! Linux: what its boot loaders' configuration, or its kernels' names, say would be booted.
//!
//! In this order: the default of `loader/entries/*.conf`, that of GRUB's `grub.cfg`, the newest `vmlinuz-*`; each in `/boot`
//! and at the root of every file system of the disk, as `/boot` may be one of its own.

mod devices;
pub mod entries;
pub mod grub;
mod menu;
mod version;

use self::devices::Disk;
use self::menu::{Item, Menu};
use super::DiskImage;
use super::boot::{BootFile, BootLoader, BootPlan, BootPlanError, Candidate, MOST_CONFIG, MOST_FILE, Wishes};

/// A disk with a Linux system.
#[derive(Debug)]
pub struct Linux;

const SYSTEM: &str = "Linux";
/// The console that `vmm` shows.
const CONSOLE: &str = "console=ttyS0";

impl BootLoader for Linux {
    fn name(&self) -> &'static str {
        SYSTEM
    }

    fn find(&self, image: &DiskImage, wishes: &Wishes) -> Result<Option<BootPlan>, BootPlanError> {
        let disk = Disk(image);
        let Some(mut menu) = Menu::of(disk) else { return Ok(None) };
        let Some(item) = menu.choose(disk, wishes.kernel.as_deref()) else { return Ok(None) };
        let mut remarks = std::mem::take(&mut menu.remarks);
        let cmdline = command_line(&item, disk, wishes, &mut remarks);
        let root = cmdline.split(' ').rev().find_map(|word| word.strip_prefix("root=")).map(str::to_owned);
        if let Some(name) = root.as_deref().and_then(|root| root.strip_prefix("/dev/"))
            && ["sd", "hd", "xvd", "nvme"].iter().any(|kind| name.starts_with(kind))
        {
            remarks.push(format!("root=/dev/{name} names another kind of disk: this one is /dev/vda"));
        }
        let candidates = menu.items.iter().map(|other| Candidate {
            title: other.title.clone(),
            kernel: other.kernel.1.clone(),
            chosen: *other == item,
        });
        Ok(Some(BootPlan {
            system: pretty_name(disk).unwrap_or_else(|| SYSTEM.to_owned()),
            volume: item.kernel.0,
            source: item.source.clone(),
            kernel: file(disk, &item.kernel, "kernel", wishes, MOST_FILE)?,
            cmdline,
            environment: Vec::new(),
            modules: Vec::new(),
            initrd: initrd(disk, &item.initrds, wishes, MOST_FILE)?,
            root,
            candidates: candidates.collect(),
            remarks,
        }))
    }
}

/// The entry's command line with what the user wants.
fn command_line(item: &Item, disk: Disk<'_>, wishes: &Wishes, remarks: &mut Vec<String>) -> String {
    let mut words = wishes.cmdline.clone().unwrap_or_else(|| item.cmdline.clone());
    let mut add = |more: &str| {
        if !more.is_empty() {
            words = if words.is_empty() { more.to_owned() } else { format!("{words} {more}") };
        }
    };
    if wishes.cmdline.is_none() && item.guessed {
        let has_initrd = wishes.initrd_is_given || !item.initrds.is_empty();
        match root(disk, item, has_initrd) {
            Some(root) => add(&format!("root={root} ro")),
            None => remarks
                .push("no volume of it looks like a root file system: give --append root=...".to_owned()),
        }
    }
    add(wishes.append.as_deref().unwrap_or_default());
    let consoles: Vec<_> = words.split(' ').filter(|word| word.starts_with("console=")).collect();
    if consoles.is_empty() && wishes.cmdline.is_none() {
        return format!("{words} {CONSOLE}").trim_start().to_owned();
    }
    if !consoles.is_empty() && !consoles.iter().any(|console| console.starts_with(CONSOLE)) {
        remarks.push(format!(
            "its console is {}: nothing of it is seen here without --append {CONSOLE}",
            consoles.join(" ")
        ));
    }
    words
}

/// What the kernel is told of its root, where no configuration says it.
fn root(disk: Disk<'_>, item: &Item, has_initrd: bool) -> Option<String> {
    let is_root = |volume: &usize| {
        let has = |path| disk.has(*volume, path);
        has("/etc/fstab") || has("/etc/os-release") || has("/sbin/init")
    };
    let volumes = 0..disk.0.volumes.len();
    let volume = Some(item.kernel.0).filter(is_root).or_else(|| volumes.into_iter().find(is_root))?;
    let volume = &disk.0.volumes[volume];
    // Only an initrd knows file systems by their UUID, the kernel itself knows partitions.
    let by_file_system =
        volume.file_system()?.uuid().filter(|_| has_initrd).map(|uuid| format!("UUID={uuid}"));
    let partition = volume.partition.as_ref();
    let by_partition =
        partition.and_then(|partition| partition.uuid.as_ref()).map(|uuid| format!("PARTUUID={uuid}"));
    let by_name = || match partition {
        Some(partition) => partition.place.on_linux("/dev/vda"),
        None => Some("/dev/vda".to_owned()),
    };
    by_file_system.or(by_partition).or_else(by_name)
}

fn file(
    disk: Disk<'_>,
    (volume, path): &(usize, String),
    what: &str,
    wishes: &Wishes,
    most: u64,
) -> Result<BootFile, BootPlanError> {
    let failed = |source| BootPlanError::Read {
        what: format!("the {what} {path}"),
        system: SYSTEM,
        volume: disk.0.volumes[*volume].name(),
        source: Box::new(source),
    };
    let Some(fs) = disk.0.volumes[*volume].file_system() else {
        return Err(failed(super::fs::FsError::NotFound { path: path.clone() }));
    };
    let bytes = match wishes.look_only {
        true => fs.metadata(path).map(|_| Vec::new()),
        false => fs.read(path, most),
    };
    Ok(BootFile { path: path.clone(), bytes: bytes.map_err(failed)? })
}

/// The initrds, joined as the kernel wants it: each archive begins at a multiple of 4 (Linux
/// `Documentation/driver-api/early-userspace/buffer-format.rst`). Together they have at most `most` bytes.
fn initrd(
    disk: Disk<'_>,
    places: &[(usize, String)],
    wishes: &Wishes,
    most: u64,
) -> Result<Option<BootFile>, BootPlanError> {
    if wishes.initrd_is_given || places.is_empty() {
        return Ok(None);
    }
    let mut joined = BootFile { path: String::new(), bytes: Vec::new() };
    for place in places {
        let left = most.saturating_sub(joined.bytes.len() as u64);
        let BootFile { path, mut bytes } = file(disk, place, "initrd", wishes, left)?;
        joined.bytes.resize(joined.bytes.len().next_multiple_of(4), 0);
        joined.bytes.append(&mut bytes);
        joined.path = if joined.path.is_empty() { path } else { format!("{} {path}", joined.path) };
    }
    Ok(Some(joined))
}

/// `PRETTY_NAME` of os-release(5).
fn pretty_name(disk: Disk<'_>) -> Option<String> {
    let places = ["/etc/os-release", "/usr/lib/os-release"];
    let volumes = disk.0.volumes.iter().filter_map(|volume| volume.file_system());
    let text = volumes.flat_map(|fs| places.map(|path| fs.read(path, MOST_CONFIG).ok())).flatten().next()?;
    let text = String::from_utf8_lossy(&text);
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    let name: String =
        name.trim().trim_matches(['"', '\'']).chars().filter(|c| !c.is_control()).take(128).collect();
    Some(name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests;
