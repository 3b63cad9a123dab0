//! Where the kernel finds its root file system: what the settings say, else the disk's fstab, else the partition that
//! the kernel came from (freebsd-src `stand/common/boot.c` `getrootmount`).

use super::loader_conf::LoaderConf;
use crate::image::Volume;
use crate::image::boot::MOST_CONFIG;
use crate::image::fs::FileSystem;

const VARIABLE: &str = "vfs.root.mountfrom";
/// The kernel's name for the first virtio disk, and the loader's for the first disk.
const DISK: &str = "vtbd0";
const LOADER_DISK: &str = "disk0";
/// Disks of other drivers, behind `/dev/`.
const DISKS: [&str; 7] = ["ada", "da", "nda", "nvd", "ad", "mfid", "xbd"];

/// Sets the variables about root that the settings leave open; which root it is.
pub(super) fn set(conf: &mut LoaderConf, fs: &dyn FileSystem, volume: &Volume) -> String {
    let name = |disk: &str| match &volume.partition {
        Some(partition) => partition.place.on_freebsd(disk),
        None => disk.to_owned(),
    };
    for variable in ["currdev", "loaddev"] {
        conf.environment.insert(variable.to_owned(), format!("{}:", name(LOADER_DISK)));
    }
    let here = name(DISK);
    if let Some(root) = conf.value(VARIABLE) {
        return root;
    }
    let fstab = fs.read("/etc/fstab", MOST_CONFIG).unwrap_or_default();
    let root = match root_of(&String::from_utf8_lossy(&fstab)) {
        Some((device, kind, options)) => {
            conf.environment.insert(format!("{VARIABLE}.options"), options);
            let root = format!("{kind}:{device}");
            match partition_elsewhere(&device) {
                Some(partition) => {
                    let second = format!("{kind}:/dev/{DISK}{partition}");
                    conf.remark(format!(
                        "/etc/fstab has the root on {device}, a disk that is not here: the kernel tries {second} next, and \
                         what fstab mounts at boot fails until labels (/dev/gpt/..., /dev/ufs/...) name it there"
                    ));
                    // The kernel tries one after the other, with the same options (`vfs_mountroot_conf0`).
                    format!("{root} {second}")
                }
                None => root,
            }
        }
        None => format!("ufs:/dev/{here}"),
    };
    conf.environment.insert(VARIABLE.to_owned(), root.clone());
    root
}

/// Device, type and options of `/` in an fstab.
fn root_of(fstab: &str) -> Option<(String, String, String)> {
    fstab.lines().find_map(|line| {
        let mut fields = line.split(['#', '\0']).next()?.split_ascii_whitespace();
        let (device, on, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (on == "/").then(|| (device.to_owned(), kind.to_owned(), options.to_owned()))
    })
}

/// Which partition (`p2`, `s1a`, nothing for a whole disk) of a disk a device is, if its driver is one for disks that this
/// machine does not have.
fn partition_elsewhere(device: &str) -> Option<&str> {
    let name = device.strip_prefix("/dev/")?;
    let unit = DISKS.iter().find_map(|disk| {
        name.strip_prefix(disk).filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })?;
    Some(unit.trim_start_matches(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_an_fstab() {
        let fstab = "# Device\tMountpoint\tFStype\tOptions\tDump\tPass#\n#/dev/x / ufs rw 1 1\n/dev/gpt/swap none swap sw 0 0\n\
                     /dev/gpt/rootfs\t/\tufs\trw,noatime\t1\t1\n/dev/y / ufs ro 1 1\n";
        let root = root_of(fstab).unwrap();
        assert_eq!((&*root.0, &*root.1, &*root.2), ("/dev/gpt/rootfs", "ufs", "rw,noatime"));
        assert_eq!(root_of("/dev/a / ufs\nproc /proc procfs rw 0 0\n"), None);
    }

    #[test]
    fn disks_by_other_drivers_are_noticed() {
        for (device, expected) in [
            ("/dev/ada0p2", Some("p2")),
            ("/dev/da11s1a", Some("s1a")),
            ("/dev/nvd0", Some("")),
            ("/dev/vtbd0p3", None),
            ("/dev/gpt/rootfs", None),
            ("/dev/data", None),
            ("zroot/ROOT", None),
        ] {
            assert_eq!(partition_elsewhere(device), expected, "{device}");
        }
    }
}
