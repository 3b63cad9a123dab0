//! FreeBSD on a disk: what its loader would boot from a UFS file system, with the environment and the modules that
//! loader.conf asks for.

mod files;
mod line;
mod linker_hints;
mod loader_conf;
mod metadata;
mod root;

use self::files::{Files, Kernel};
use self::line::Setting;
use self::loader_conf::LoaderConf;
use super::boot::{BootLoader, BootPlan, BootPlanError, Candidate, Wishes};
use super::fs::{FileKind, FileSystem, FsError};
use super::{Content, DiskImage, Volume};

const SYSTEM: &str = "FreeBSD";
const KERNEL: &str = "/boot/kernel/kernel";
/// Attributes of a GPT partition (`GPT_ENT_ATTR_BOOTONCE`, `_BOOTME`): where FreeBSD's boot blocks look first.
const BOOT_ONCE: u64 = 1 << 58;
const BOOT_ME: u64 = 1 << 59;
/// Most kernels that are listed.
const MOST_KERNELS: usize = 64;
/// Longest name with its value that a kernel keeps, `=` included, and as many variables as it keeps less those that are
/// added when it is started (`sys/sys/kenv.h`).
const MOST_VARIABLE: usize = 128 + 1 + 128;
const MOST_VARIABLES: usize = 512 - 32;

/// The loader.
#[derive(Debug)]
pub(super) struct FreeBsd;

impl BootLoader for FreeBsd {
    fn name(&self) -> &'static str {
        SYSTEM
    }

    fn find(&self, disk: &DiskImage, wishes: &Wishes) -> Result<Option<BootPlan>, BootPlanError> {
        let mut volumes: Vec<_> = disk.volumes.iter().enumerate().collect();
        volumes.sort_by_key(|(_, volume)| order(volume));
        let mut missing = None;
        for (index, volume) in volumes {
            let Some(fs) = volume.file_system().filter(|fs| fs.kind() == "ufs") else { continue };
            if !is_bootable(fs) {
                continue;
            }
            match plan(index, volume, fs, wishes) {
                Ok(plan) => return Ok(Some(plan)),
                Err(error) => missing = missing.or(Some(error)),
            }
        }
        match (missing, zfs(disk)) {
            (Some(error), _) => Err(error),
            (None, Some(volume)) => Err(BootPlanError::Impossible {
                system: SYSTEM,
                volume: volume.name(),
                problem: "its root is on ZFS, which cannot be read here: give its kernel as a file, and the disk by --disk"
                    .to_owned(),
            }),
            (None, None) => Ok(None),
        }
    }
}

/// Where boot blocks look first comes first.
fn order(volume: &Volume) -> u8 {
    let attributes = volume.partition.as_ref().map_or(0, |partition| partition.attributes);
    match (attributes & BOOT_ONCE != 0, attributes & BOOT_ME != 0) {
        (true, true) => 0,
        (_, true) => 1,
        _ => 2,
    }
}

/// Whether a file system has what a loader looks for.
fn is_bootable(fs: &dyn FileSystem) -> bool {
    ["/boot/loader.conf", "/boot/defaults/loader.conf", KERNEL, "/boot/kernel/kernel.gz"]
        .iter()
        .any(|path| fs.metadata(path).is_ok_and(|found| found.kind == FileKind::File))
}

/// A partition with a ZFS pool.
fn zfs(disk: &DiskImage) -> Option<&Volume> {
    disk.volumes.iter().find(|volume| {
        let kind = volume.partition.as_ref().and_then(|partition| partition.kind.name());
        matches!(&volume.content, Content::Unreadable { kind: "zfs", .. }) || kind == Some("freebsd-zfs")
    })
}

fn plan(
    index: usize,
    volume: &Volume,
    fs: &dyn FileSystem,
    wishes: &Wishes,
) -> Result<BootPlan, BootPlanError> {
    let mut conf = LoaderConf::read(fs);
    let words: Vec<_> = [&wishes.cmdline, &wishes.append].into_iter().flatten().map(String::as_str).collect();
    let cmdline = words.join(" ");
    let mut files = Files::new(fs);
    let kernel = find_kernel(&mut files, &conf, volume, wishes)?;
    let modules = files.modules(&mut conf, &kernel);
    let root = root::set(&mut conf, fs, volume);
    let Kernel { file: kernel, module_path } = kernel;
    conf.environment.insert("kernelname".to_owned(), kernel.path.clone());
    conf.environment.insert("module_path".to_owned(), module_path);
    let root = override_by(&mut conf, &cmdline).unwrap_or(root);
    let environment = environment(&mut conf);
    let source = conf.files.iter().rev().find(|file| file.ends_with("loader.conf"));
    Ok(BootPlan {
        system: system(fs),
        volume: index,
        source: source.cloned().unwrap_or_else(|| kernel.path.clone()),
        candidates: candidates(fs, &kernel.path),
        kernel,
        cmdline,
        environment,
        modules,
        initrd: None,
        root: Some(root),
        remarks: conf.remarks,
    })
}

fn find_kernel(
    files: &mut Files<'_>,
    conf: &LoaderConf,
    volume: &Volume,
    wishes: &Wishes,
) -> Result<Kernel, BootPlanError> {
    let wish = wishes.kernel.as_deref();
    let what = || match wish.map(str::to_owned).or_else(|| conf.value("kernel")) {
        Some(name) => format!("the kernel {}", name.escape_debug()),
        None => format!("the kernel {KERNEL}"),
    };
    let failed = |source| {
        let source = Box::new(source);
        BootPlanError::Read { what: what(), system: SYSTEM, volume: volume.name(), source }
    };
    let kernel = files.kernel(conf, wish).map_err(failed)?;
    kernel.ok_or_else(|| failed(FsError::NotFound { path: wish.unwrap_or(KERNEL).to_owned() }))
}

/// What the command line sets, the settings need not: its variables win. Another root, if it names one.
fn override_by(conf: &mut LoaderConf, cmdline: &str) -> Option<String> {
    let mut root = None;
    for word in cmdline.split_ascii_whitespace().filter(|word| !word.starts_with('-')) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        conf.environment.remove(name);
        if name == "vfs.root.mountfrom" {
            root = Some(value.to_owned());
        }
    }
    root
}

/// The variables that a kernel keeps.
fn environment(conf: &mut LoaderConf) -> Vec<(String, String)> {
    let all = std::mem::take(&mut conf.environment);
    let is_short = |(name, value): &(String, String)| name.len() + 1 + value.len() <= MOST_VARIABLE;
    let (mut kept, long): (Vec<_>, Vec<_>) = all.into_iter().partition(is_short);
    for (name, _) in long {
        let name: String = name.chars().take(80).collect();
        conf.remark(format!("{name} is left out: name and value are longer than a kernel keeps"));
    }
    if kept.len() > MOST_VARIABLES {
        let dropped = kept.len() - MOST_VARIABLES;
        conf.remark(format!("the last {dropped} variables are left out: a kernel keeps no more"));
        kept.truncate(MOST_VARIABLES);
    }
    kept
}

/// The kernels below /boot.
fn candidates(fs: &dyn FileSystem, chosen: &str) -> Vec<Candidate> {
    let folders = fs.list("/boot").unwrap_or_default().into_iter();
    let folders = folders.filter(|entry| matches!(entry.kind, FileKind::Directory | FileKind::Link));
    let mut paths: Vec<_> =
        folders.take(MOST_KERNELS).map(|entry| format!("/boot/{}/kernel", entry.name)).collect();
    paths.retain(|path| {
        let is_file = |path: &str| fs.metadata(path).is_ok_and(|found| found.kind == FileKind::File);
        path == chosen || is_file(path) || is_file(&format!("{path}.gz"))
    });
    if !paths.iter().any(|path| path == chosen) {
        paths.push(chosen.to_owned());
    }
    paths.sort();
    let candidate = |path: String| Candidate { title: path.clone(), chosen: path == chosen, kernel: path };
    paths.into_iter().map(candidate).collect()
}

/// The system with its release, which its `freebsd-version` says.
fn system(fs: &dyn FileSystem) -> String {
    let script = fs.read("/bin/freebsd-version", 1 << 16).unwrap_or_default();
    let script = String::from_utf8_lossy(&script);
    let release = script.lines().find_map(|line| {
        let release = line.strip_prefix("USERLAND_VERSION=")?.trim_matches('"');
        let is_plain = release.len() < 40 && release.bytes().all(|b| b.is_ascii_graphic());
        is_plain.then(|| format!("{SYSTEM} {release}"))
    });
    release.unwrap_or_else(|| SYSTEM.to_owned())
}

#[cfg(test)]
mod tests;
