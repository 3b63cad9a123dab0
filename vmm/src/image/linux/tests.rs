use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::*;
use crate::image::blocks::Blocks;

const GRUB: &str = include_str!("specimens/debian-grub.cfg");
const UUID: &str = "6a1b0c2d-3e4f-4a5b-8c6d-7e8f9a0b1c2d";
const KERNEL: &str = "boot/vmlinuz-6.1.0-50-cloud-amd64";
const OLDER: &str = "boot/vmlinuz-6.1.0-9-cloud-amd64";

/// An ext4 file system of these files, made by mke2fs; `None`, said so, where that is missing.
fn ext4(files: &[(&str, &str)]) -> Option<DiskImage> {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    for (path, text) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    std::fs::create_dir_all(root.join("lost")).unwrap();
    std::os::unix::fs::symlink("boot/vmlinuz-6.1.0-50-cloud-amd64", root.join("vmlinuz")).unwrap();
    std::os::unix::fs::symlink("/loop", root.join("loop")).unwrap();
    let image = folder.path().join("image");
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F", "-U", UUID, "-L", "system", "-d"]).arg(&root).arg(&image).arg("8M");
    match make.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output() {
        Ok(made) if made.status.success() => Some(DiskImage::new(
            Path::new("image"),
            "raw",
            Blocks::new(Arc::new(std::fs::read(image).unwrap())),
        )),
        _ => {
            println!("SKIPPED mkfs: no mkfs.ext4");
            None
        }
    }
}

fn plan(image: &DiskImage, wishes: &Wishes) -> BootPlan {
    Linux.find(image, wishes).unwrap().unwrap()
}

fn kernels(more: &[(&'static str, &'static str)]) -> Option<DiskImage> {
    let initrd = ("boot/initrd.img-6.1.0-50-cloud-amd64", "the initrd");
    let release = ("etc/os-release", "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
    let own = [(KERNEL, "the kernel"), (OLDER, "older"), initrd, release];
    ext4(&[own.as_slice(), more].concat())
}

#[test]
fn a_debian_is_booted_as_its_grub_would_do_it() {
    let Some(image) = kernels(&[("boot/grub/grub.cfg", GRUB)]) else { return };
    let plan = plan(&image, &Wishes::default());
    assert_eq!(plan.system, "Debian GNU/Linux 12 (bookworm)");
    assert_eq!(plan.source, "/boot/grub/grub.cfg: Debian GNU/Linux");
    assert_eq!(
        (plan.kernel.path.as_str(), plan.kernel.bytes.as_slice()),
        ("/boot/vmlinuz-6.1.0-50-cloud-amd64", &b"the kernel"[..])
    );
    assert_eq!(plan.cmdline, format!("root=UUID={UUID} ro quiet console=ttyS0"));
    assert_eq!(plan.initrd.unwrap().bytes, b"the initrd");
    assert_eq!(plan.root, Some(format!("UUID={UUID}")));
    assert!(plan.candidates[0].chosen && !plan.candidates[1].chosen);
    assert_eq!(plan.remarks, Vec::<String>::new());
}

#[test]
fn initrds_have_their_limit_together() {
    let Some(image) = kernels(&[]) else { return };
    let place = (0, "/boot/initrd.img-6.1.0-50-cloud-amd64".to_owned());
    let joined = |times, most| {
        initrd(Disk(&image), &vec![place.clone(); times], &Wishes::default(), most).map(Option::unwrap)
    };
    assert_eq!(joined(2, 21).unwrap().bytes, b"the initrd\0\0the initrd");
    let error = joined(3, 21).unwrap_err();
    assert!(format!("{error:?}").contains("Large"), "{error:?}");
}

#[test]
fn a_loader_entry_wins_and_initrds_are_joined() {
    let entry = "title D\nlinux /boot/vmlinuz-6.1.0-9-cloud-amd64\ninitrd /etc/os-release\n\
                 initrd /boot/initrd.img-6.1.0-50-cloud-amd64\noptions root=/dev/sda1 console=tty0";
    let Some(image) = kernels(&[("boot/grub/grub.cfg", GRUB), ("boot/loader/entries/d.conf", entry)]) else {
        return;
    };
    let found =
        plan(&image, &Wishes { append: Some("net.dump.server=10.0.0.9".to_owned()), ..Wishes::default() });
    assert_eq!(found.cmdline, "root=/dev/sda1 console=tty0 net.dump.server=10.0.0.9");
    let initrd = found.initrd.unwrap();
    assert_eq!(initrd.path, "/etc/os-release /boot/initrd.img-6.1.0-50-cloud-amd64");
    assert!(initrd.bytes.ends_with(b"the initrd") && (initrd.bytes.len() - 10).is_multiple_of(4));
    assert_eq!(
        found.remarks,
        [
            "its console is console=tty0: nothing of it is seen here without --append console=ttyS0",
            "root=/dev/sda1 names another kind of disk: this one is /dev/vda",
        ]
    );
}

#[test]
fn without_a_configuration_the_newest_kernel_is_taken() {
    let Some(image) = kernels(&[("etc/fstab", "")]) else { return };
    let found = plan(&image, &Wishes::default());
    assert_eq!(found.kernel.path, "/boot/vmlinuz-6.1.0-50-cloud-amd64");
    assert_eq!(found.cmdline, format!("root=UUID={UUID} ro console=ttyS0"));
    // Without an initrd nobody knows UUIDs of file systems.
    let older = Wishes { kernel: Some("/boot/vmlinuz-6.1.0-9-cloud-amd64".to_owned()), ..Wishes::default() };
    assert_eq!(plan(&image, &older).cmdline, "root=/dev/vda ro console=ttyS0");
    let own = Wishes { cmdline: Some("quiet".to_owned()), look_only: true, ..Wishes::default() };
    let found = plan(&image, &own);
    assert_eq!((found.cmdline.as_str(), found.kernel.bytes.len()), ("quiet", 0));
    assert!(
        Linux
            .find(&image, &Wishes { kernel: Some("/none".to_owned()), ..Wishes::default() })
            .unwrap()
            .is_none()
    );
}

#[test]
fn ext4_is_read_through_links_and_says_what_is_not_there() {
    let Some(image) = kernels(&[]) else { return };
    let fs = image.volumes[0].file_system().unwrap();
    assert_eq!(
        (fs.kind(), fs.uuid().as_deref(), fs.label().as_deref()),
        ("ext4", Some(UUID), Some("system"))
    );
    assert_eq!(fs.read("/vmlinuz", 100).unwrap(), b"the kernel");
    let told = |path: &str, most| fs.read(path, most).unwrap_err().to_string();
    assert_eq!(told("/none", 1), "there is no /none");
    assert_eq!(told("/etc/os-release/x", 1), "there is no /etc/os-release/x");
    assert_eq!(told("/boot", 1), "/boot is no regular file");
    assert_eq!(told("/vmlinuz", 9), "/vmlinuz has 10 bytes, at most 9 are read");
    assert_eq!(told("/loop", 9), "/loop leads through more than 32 symbolic links");
    assert!(fs.list("/").unwrap().iter().any(|entry| entry.name == "boot"));
    assert!(fs.metadata("/etc/os-release").unwrap().modified.is_some());
}

#[test]
fn damaged_ext4_is_refused_or_read() {
    let Some(image) = kernels(&[("boot/grub/grub.cfg", GRUB)]) else { return };
    let whole = image.volumes[0].blocks.bytes(0, 1 << 20).unwrap();
    // Every word of the superblock, of the block groups and of the first inodes in turn.
    for at in (1024..2048).chain(4096..4160).step_by(12) {
        let mut bytes = whole.clone();
        bytes.resize(8 << 20, 0);
        bytes[at..at + 4].fill(0xff);
        let damaged = DiskImage::new(Path::new("x"), "raw", Blocks::new(Arc::new(bytes)));
        let _ = Linux.find(&damaged, &Wishes { look_only: true, ..Wishes::default() });
    }
    for len in [0, 1024, 1500, 5000, 1 << 20] {
        let blocks = Blocks::new(Arc::new(whole[..len].to_vec()));
        let cut = DiskImage::new(Path::new("x"), "raw", blocks);
        assert!(Linux.find(&cut, &Wishes::default()).unwrap().is_none());
    }
}

/// An EFI system partition as systemd-boot has it, made by mkfs.vfat and mtools.
#[test]
fn an_esp_with_loader_entries_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("esp");
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(arguments).current_dir(folder.path());
        command.output().is_ok_and(|done| done.status.success())
    };
    std::fs::write(folder.path().join("linux"), vec![7; 100_000]).unwrap();
    std::fs::write(
        folder.path().join("e.conf"),
        "linux /Kernels/linux\noptions root=LABEL=x console=ttyS0,115200\n",
    )
    .unwrap();
    let made = run("mkfs.vfat", &["-C", "-F", "32", "-i", "ABCD1234", "-n", "ESP", "esp", "40000"])
        && run("mmd", &["-i", "esp", "::/loader", "::/loader/entries", "::/Kernels"])
        && run("mcopy", &["-i", "esp", "linux", "::/Kernels/linux"])
        && run("mcopy", &["-i", "esp", "e.conf", "::/loader/entries/a-long-name-1.2.conf"]);
    if !made {
        println!("SKIPPED mkfs: no mkfs.vfat or mtools");
        return;
    }
    let disk = DiskImage::new(Path::new("esp"), "raw", Blocks::new(Arc::new(std::fs::read(&image).unwrap())));
    let fs = disk.volumes[0].file_system().unwrap();
    assert_eq!(
        (fs.kind(), fs.uuid().as_deref(), fs.label().as_deref()),
        ("vfat", Some("ABCD-1234"), Some("ESP"))
    );
    let plan = plan(&disk, &Wishes::default());
    assert_eq!(plan.source, "/loader/entries/a-long-name-1.2.conf");
    assert_eq!((plan.kernel.path.as_str(), plan.kernel.bytes.len()), ("/Kernels/linux", 100_000));
    assert_eq!(plan.cmdline, "root=LABEL=x console=ttyS0,115200");
    assert_eq!(fs.read("/kernels/none", 9).unwrap_err().to_string(), "there is no /kernels/none");
    assert_eq!(fs.metadata("/KERNELS/LINUX").unwrap().len, 100_000);
}
