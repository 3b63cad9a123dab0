use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::image::blocks::Blocks;
use crate::image::fs::test_fs::TestFs;
use crate::image::partitions::{Kind, Partition, Place};

const CONF: &str = "/boot/loader.conf";
const MODULE: &[u8] = include_bytes!("testdata/module.ko");

fn partition(number: u32, attributes: u64, kind: Kind) -> Option<Partition> {
    let place = Place::Gpt(number);
    let (name, uuid) = (String::new(), None);
    Some(Partition { place, start: 0, len: 0, kind, name, uuid, attributes })
}

fn volume(partition: Option<Partition>, fs: TestFs) -> Volume {
    let blocks = Blocks::new(Arc::new(Vec::new()));
    Volume { partition, blocks, content: Content::FileSystem(Box::new(fs)) }
}

fn disk(volumes: Vec<Volume>) -> DiskImage {
    let mut disk = DiskImage::new(Path::new("disk.img"), "raw", Blocks::new(Arc::new(Vec::new())));
    disk.volumes = volumes;
    disk
}

fn ufs(number: u32, attributes: u64, files: TestFs) -> Volume {
    volume(partition(number, attributes, Kind::Mbr(0xa5)), files)
}

fn find_with(files: TestFs, wishes: &Wishes) -> Result<BootPlan, String> {
    let found = FreeBsd.find(&disk(vec![ufs(2, 0, files)]), wishes);
    let told = |error: BootPlanError| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        format!("{error}{}", source.unwrap_or_default())
    };
    found.map_err(told).map(|plan| plan.expect("the disk has FreeBSD"))
}

fn find(files: &[(&str, &str)]) -> Result<BootPlan, String> {
    find_with(TestFs::new(files), &Wishes::default())
}

fn value<'a>(plan: &'a BootPlan, name: &str) -> Option<&'a str> {
    plan.environment.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

#[test]
fn a_plain_system_boots_with_what_its_loader_would_set() {
    let plan = find(&[
        (KERNEL, "kernel"),
        (CONF, "net.dump.server=\"10.0.0.9\"\n"),
        ("/boot/kernel.old/kernel", "old"),
        ("/bin/freebsd-version", "#!/bin/sh\nUSERLAND_VERSION=\"14.1-RELEASE-p2\"\n"),
    ]);
    let plan = plan.unwrap();
    assert_eq!((&*plan.system, plan.volume, &*plan.source), ("FreeBSD 14.1-RELEASE-p2", 0, CONF));
    assert_eq!((&*plan.kernel.path, &*plan.kernel.bytes), (KERNEL, &b"kernel"[..]));
    assert_eq!(plan.root.as_deref(), Some("ufs:/dev/vtbd0p2"));
    for (name, expected) in [
        ("currdev", "disk0p2:"),
        ("loaddev", "disk0p2:"),
        ("kernelname", KERNEL),
        ("module_path", "/boot/kernel;/boot/modules"),
        ("net.dump.server", "10.0.0.9"),
        ("vfs.root.mountfrom", "ufs:/dev/vtbd0p2"),
    ] {
        assert_eq!(value(&plan, name), Some(expected), "{name}");
    }
    let candidates: Vec<_> = plan.candidates.iter().map(|c| (&*c.kernel, c.chosen)).collect();
    assert_eq!(candidates, [("/boot/kernel.old/kernel", false), (KERNEL, true)]);
    assert_eq!(plan.remarks, [""; 0]);
}

#[test]
fn the_settings_name_the_kernel() {
    let files = [
        (KERNEL, "usual"),
        ("/boot/test/kernel", "of a folder below /boot"),
        ("/boot/test/debug", "named by bootfile"),
        ("/other/kernel", "of a folder"),
        ("/boot/kernel/single", "a file"),
        ("/lone", "a path"),
    ];
    for (settings, path) in [
        ("", KERNEL),
        ("kernel=test", "/boot/test/kernel"),
        ("kernel=test\nbootfile=debug", "/boot/test/debug"),
        ("kernel=test\nbootfile=\"none;debug\"", "/boot/test/debug"),
        ("kernel=\"/other\"", "/other/kernel"),
        ("kernel=single", "/boot/kernel/single"),
        ("kernel=\"/lone\"", "/lone"),
        ("bootfile=single", "/boot/kernel/single"),
        ("module_path=\"/boot/test/\"", "/boot/test/kernel"),
    ] {
        let plan = find(&[&files[..], &[(CONF, settings)]].concat()).unwrap();
        assert_eq!(plan.kernel.path, path, "{settings}");
    }
    let plan = find(&[&files[..], &[(CONF, "kernel=test")]].concat()).unwrap();
    assert_eq!(value(&plan, "module_path"), Some("/boot/test;/boot/kernel;/boot/modules"));
    let wish = |kernel: &str| Wishes { kernel: Some(kernel.into()), ..Wishes::default() };
    let plan = find_with(TestFs::new(&files), &wish("/other/kernel")).unwrap();
    assert_eq!(
        (&*plan.kernel.path, value(&plan, "module_path")),
        ("/other/kernel", Some("/other;/boot/kernel;/boot/modules"))
    );
    let told = find_with(TestFs::new(&files), &wish("/none")).unwrap_err();
    assert_eq!(told, "reading the kernel /none of the FreeBSD system on partition 2: there is no /none");
    let told = find(&[(CONF, "kernel=test")]).unwrap_err();
    assert!(told.starts_with("reading the kernel test of the FreeBSD system on partition 2"), "{told}");
}

#[test]
fn packed_kernels_are_unpacked_within_bounds() {
    let packed = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let find = |bytes| find_with(TestFs::of_bytes([("/boot/kernel/kernel.gz", bytes)]), &Wishes::default());
    let plan = find(packed(b"kernel")).unwrap();
    assert_eq!((&*plan.kernel.path, &*plan.kernel.bytes), (KERNEL, &b"kernel"[..]));
    assert!(plan.candidates[0].chosen && plan.candidates.len() == 1);
    let half = packed(&[7; 1000])[..20].to_vec();
    assert!(find(half).unwrap_err().contains("gzip"));
}

#[test]
fn roots_come_from_the_settings_or_the_fstab() {
    let fstab = ("/etc/fstab", "/dev/ada0p2 / ufs rw,noatime 1 1\n");
    let plan = find(&[(KERNEL, ""), fstab]).unwrap();
    assert_eq!(value(&plan, "vfs.root.mountfrom"), Some("ufs:/dev/ada0p2 ufs:/dev/vtbd0p2"));
    assert_eq!(value(&plan, "vfs.root.mountfrom.options"), Some("rw,noatime"));
    assert!(plan.remarks[0].contains("the kernel tries ufs:/dev/vtbd0p2 next"), "{:?}", plan.remarks);
    let plan = find(&[(KERNEL, ""), ("/etc/fstab", "/dev/gpt/rootfs / ufs rw 1 1\n")]).unwrap();
    assert_eq!(value(&plan, "vfs.root.mountfrom"), Some("ufs:/dev/gpt/rootfs"));
    assert_eq!(plan.remarks, [""; 0]);
    let set = (CONF, "vfs.root.mountfrom=\"ufs:/dev/gpt/rootfs\"\n");
    let plan = find(&[(KERNEL, ""), fstab, set]).unwrap();
    assert_eq!(plan.root.as_deref(), Some("ufs:/dev/gpt/rootfs"));
    assert_eq!(plan.remarks, [""; 0]);
}

#[test]
fn the_command_line_wins_over_the_settings() {
    let files = TestFs::new(&[(KERNEL, ""), (CONF, "net.dump.server=\"10.0.0.9\"\na=1\n")]);
    let wishes = Wishes {
        cmdline: Some("-v a=2".into()),
        append: Some("vfs.root.mountfrom=ufs:/dev/md0".into()),
        ..Wishes::default()
    };
    let plan = find_with(files, &wishes).unwrap();
    assert_eq!(plan.cmdline, "-v a=2 vfs.root.mountfrom=ufs:/dev/md0");
    assert_eq!((value(&plan, "a"), value(&plan, "vfs.root.mountfrom")), (None, None));
    assert_eq!(plan.root.as_deref(), Some("ufs:/dev/md0"));
    assert_eq!(value(&plan, "net.dump.server"), Some("10.0.0.9"));
}

#[test]
fn modules_come_with_what_they_need() {
    let conf = "if_test_load=\"YES\"\nother_load=\"NO\"\nimage_load=\"YES\"\nimage_type=\"md_image\"\n\
                image_name=\"/boot/root.img\"\nimage_after=\"set after=1\"\nlost_load=\"YES\"\nlost_error=\"set lost=1\"\n";
    let files = |extra: &'static [(&'static str, &'static [u8])]| {
        let all = [
            (CONF, conf.as_bytes()),
            (KERNEL, b"kernel"),
            ("/boot/kernel/if_test.ko", MODULE),
            ("/boot/root.img", b"image"),
        ];
        TestFs::of_bytes(all.iter().chain(extra).map(|(path, bytes)| (*path, bytes.to_vec())))
    };
    let plan = find_with(files(&[("/boot/modules/bus_test.ko", MODULE)]), &Wishes::default()).unwrap();
    let modules: Vec<_> = plan.modules.iter().map(|m| (&*m.path, m.kind.as_deref())).collect();
    let expected = [
        ("/boot/kernel/if_test.ko", None),
        ("/boot/modules/bus_test.ko", None),
        ("/boot/root.img", Some("md_image")),
    ];
    assert_eq!(modules, expected);
    assert_eq!(plan.remarks, ["lost_load=\"YES\" is left out: there is no module lost"]);
    assert_eq!((value(&plan, "after"), value(&plan, "lost")), (Some("1"), Some("1")));
    let plan = find_with(files(&[("/boot/kernel/bus_test.ko", b"text")]), &Wishes::default()).unwrap();
    assert!(plan.remarks[0].ends_with("/boot/kernel/bus_test.ko is no kernel module"), "{:?}", plan.remarks);
    let plan = find_with(files(&[]), &Wishes::default()).unwrap();
    assert_eq!(plan.modules.len(), 1, "a module without what it needs is of no use");
    assert_eq!(plan.remarks[0], "if_test_load=\"YES\" is left out: there is no module bus_test");
}

#[test]
fn modules_that_need_each_other_end() {
    let conf = "if_test_load=\"YES\"\n";
    // It needs bus_test, whose file needs bus_test: the same content under that name.
    let all = [
        (CONF, conf.as_bytes()),
        (KERNEL, b""),
        ("/boot/kernel/if_test.ko", MODULE),
        ("/boot/kernel/bus_test.ko", MODULE),
    ];
    let files = TestFs::of_bytes(all.iter().map(|(path, bytes)| (*path, bytes.to_vec())));
    assert_eq!(find_with(files, &Wishes::default()).unwrap().modules.len(), 2);
}

#[test]
fn the_kernel_never_sees_what_it_would_drop() {
    let many: String = (0..600).map(|n| format!("hint.{n:03}=1\n")).collect();
    let plan = find(&[(KERNEL, ""), (CONF, &format!("a_long=\"{}\"\n{many}", "x".repeat(300)))]).unwrap();
    assert_eq!((plan.environment.len(), value(&plan, "a_long")), (MOST_VARIABLES, None));
    assert_eq!(plan.remarks.len(), 2, "{:?}", plan.remarks);
}

#[test]
fn partitions_that_boot_blocks_prefer_come_first() {
    let fs = |text: &'static str| TestFs::new(&[(KERNEL, text)]);
    let disk =
        disk(vec![ufs(1, 0, TestFs::new(&[("/x", "")])), ufs(2, 0, fs("two")), ufs(3, BOOT_ME, fs("three"))]);
    let plan = FreeBsd.find(&disk, &Wishes::default()).unwrap().unwrap();
    assert_eq!((plan.volume, &*plan.kernel.bytes), (2, &b"three"[..]));
    assert_eq!(plan.root.as_deref(), Some("ufs:/dev/vtbd0p3"));
}

#[test]
fn a_disk_without_the_system_is_another_loaders_and_zfs_is_refused() {
    let found = FreeBsd.find(&disk(vec![ufs(1, 0, TestFs::new(&[("/home/x", "")]))]), &Wishes::default());
    assert_eq!(found.unwrap(), None);
    let reason = FsError::Unsupported { what: "a ZFS pool", advice: "" };
    let blocks = Blocks::new(Arc::new(Vec::new()));
    let pool = Volume { partition: None, blocks, content: Content::Unreadable { kind: "zfs", reason } };
    let told = FreeBsd.find(&disk(vec![pool]), &Wishes::default()).unwrap_err().to_string();
    assert!(told.contains("its root is on ZFS, which cannot be read here"), "{told}");
}
