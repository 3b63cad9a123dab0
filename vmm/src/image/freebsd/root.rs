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
/// Disks by their drivers, behind `/dev/`: names that depend on the machine.
const DISKS: [&str; 8] = ["ada", "da", "nda", "nvd", "vtbd", "ad", "mfid", "xbd"];

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
            if names_another(&device, &here) {
                let advice = format!("if the kernel does not find it, set {VARIABLE}=ufs:/dev/{here}");
                conf.remark(format!("/etc/fstab has the root on {device}, which is {here} here: {advice}"));
            }
            conf.environment.insert(format!("{VARIABLE}.options"), options);
            format!("{kind}:{device}")
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

/// Whether a device is a disk by its driver, and not this one.
fn names_another(device: &str, here: &str) -> bool {
    let Some(name) = device.strip_prefix("/dev/") else { return false };
    let by_driver = |disk: &str| {
        name.strip_prefix(disk).is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
    };
    name != here && DISKS.iter().any(|disk| by_driver(disk))
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
    fn disks_by_their_drivers_are_noticed() {
        for (device, expected) in [
            ("/dev/ada0p2", true),
            ("/dev/vtbd0p3", true),
            ("/dev/vtbd0p2", false),
            ("/dev/gpt/rootfs", false),
            ("/dev/data", false),
            ("zroot/ROOT", false),
        ] {
            assert_eq!(names_another(device, "vtbd0p2"), expected, "{device}");
        }
    }
}
