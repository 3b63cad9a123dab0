//! Disks with FreeBSD's file system, as makefs makes it: what the VMM's own reader finds there.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use harness::guests::{assert_code, verify};
use harness::programs::{Running, arg, program, run, start};
use harness::ufs_disk::UfsDisk;
use tempfile::TempDir;
use vmm::image::DiskImage;
use vmm::image::boot::{self, Wishes};
use vmm::image::fs::FileSystem;

use crate::needs;

/// No two blocks of it are alike.
fn content(len: usize) -> Vec<u8> {
    (0..len.div_ceil(8) as u64).flat_map(|n| (n * 0x9e37_79b9).to_le_bytes()).take(len).collect()
}

fn ufs(disk: &DiskImage) -> &dyn FileSystem {
    disk.volumes.iter().find_map(|volume| volume.file_system()).expect("the disk has a file system")
}

#[test]
fn everything_that_makefs_writes_is_read() {
    needs!(Makefs);
    let big = content((17 << 20) + 12_345);
    let lens = [0, 1, 511, 512, 4096, 49_152, 49_153, 98_304, 98_305, 2_146_304, 2_146_305, big.len()];
    let mut disk = UfsDisk::default();
    for len in lens {
        disk = disk.with(&format!("files/{len}"), &big[..len]);
    }
    for n in 0..700 {
        disk = disk.with(&format!("many/a-name-of-some-length-{n}"), n.to_string());
    }
    let mut holes = vec![0; 3 << 20];
    holes[2_500_000..2_600_000].fill(7);
    disk = disk.with("files/holes", &holes);
    symlink(format!("{}files/1", "./".repeat(100)), disk.root().join("long")).unwrap();
    symlink("/many", disk.root().join("short")).unwrap();
    for options in
        ["version=2", "version=1", "version=2,bsize=4096,fsize=512", "version=1,bsize=65536,fsize=8192"]
    {
        let image = disk.file_system(options);
        let image = DiskImage::open(&image).unwrap();
        let fs = ufs(&image);
        for len in lens {
            let read = fs.read(&format!("/files/{len}"), len as u64).unwrap();
            assert!(read == big[..len], "{options}: {len}");
        }
        assert!(fs.read("/files/holes", 3 << 20).unwrap() == holes, "{options}");
        assert_eq!(fs.read("/long", 1).unwrap(), big[..1], "{options}");
        assert_eq!(fs.read("/short/a-name-of-some-length-699", 3).unwrap(), b"699", "{options}");
        assert_eq!(fs.list("/short").unwrap().len(), 700, "{options}");
    }
}

#[test]
fn a_disk_with_freebsd_boots_what_its_loader_would() {
    needs!(Makefs, Sgdisk);
    let kernel = guest_images::find("freebsd-abi").unwrap().elf;
    let disk = UfsDisk::default()
        .with("boot/kernel/kernel", kernel)
        .with("boot/device.hints", "hint.uart.0.at=\"isa\"\n")
        .with("boot/loader.conf", "net.dump.server=\"192.0.2.9\" # where to\nbad line\n")
        .with("etc/fstab", "/dev/gpt/rootfs / ufs rw 1 1\n");
    // A disk of 10 GiB is looked at as quickly as a small one.
    let path = disk.disk("version=2", 10 << 30);
    let image = DiskImage::open(&path).unwrap();
    assert_eq!(image.scheme, "GPT");
    let plan = boot::plan(&image, &Wishes::default()).unwrap();
    assert!(plan.kernel.bytes == kernel);
    assert_eq!((&*plan.system, &*plan.source), ("FreeBSD", "/boot/loader.conf"));
    let variables = [
        ("currdev", "disk0p2:"),
        ("hint.uart.0.at", "isa"),
        ("kernelname", "/boot/kernel/kernel"),
        ("loaddev", "disk0p2:"),
        ("module_path", "/boot/kernel;/boot/modules"),
        ("net.dump.server", "192.0.2.9"),
        ("vfs.root.mountfrom", "ufs:/dev/gpt/rootfs"),
        ("vfs.root.mountfrom.options", "rw"),
    ];
    for (name, value) in variables {
        assert!(plan.environment.contains(&(name.into(), value.into())), "{name}: {:?}", plan.environment);
    }
    assert_eq!(plan.remarks, ["/boot/loader.conf, line 2 is dropped for its form: bad line"]);
    fs::remove_file(path).unwrap();
}

/// A receiver on this machine: its folder, itself, and its address.
fn receiver() -> (TempDir, Running, String) {
    let folder = tempfile::tempdir().unwrap();
    let serve = ["serve", "--once", "--dir", arg(folder.path()), "--listen", "127.0.0.1:0"];
    let running = start(program("netdump"), &serve);
    running.wait_for_stderr(" directory=");
    let log = running.stderr();
    let address = log.split_once("address=").unwrap().1.split_whitespace().next().unwrap().to_owned();
    (folder, running, address)
}

#[test]
fn a_guest_booted_from_its_disk_dumps_to_where_its_loader_conf_says() {
    needs!(Kvm, Makefs, Sgdisk);
    for (options, compressed) in [("version=2", false), ("version=1", true)] {
        let (folder, receiver, address) = receiver();
        fs::create_dir(folder.path().join("blue")).unwrap();
        let mut kernel = guest_images::find("freebsd-abi").unwrap().elf.to_vec();
        let mut path = "boot/lab/kernel";
        if compressed {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&kernel).unwrap();
            (kernel, path) = (encoder.finish().unwrap(), "boot/lab/kernel.gz");
        }
        let conf =
            format!("kernel=lab\ntenant=blue\nnet.dump.server=\"{address}\"\nnet.dump.path=\"$tenant\"\n");
        let disk = UfsDisk::default().with(path, kernel).with("boot/loader.conf", conf);
        let image = disk.disk(options, 64 << 20);
        let before = fs::read(&image).unwrap();
        let report = folder.path().join("report.json");
        let allowed = ["run", "--memory=64M", "--overlay", "--allow-server", "127.0.0.1"];
        let crash = folder.path().join("crash");
        let files = ["--crash-dir", arg(&crash), "--report", arg(&report), arg(&image)];
        assert_code(&run(program("vmm"), &[&allowed[..], &files].concat()), 10);
        assert_code(&receiver.wait(), 0);
        let mut cores = fs::read_dir(folder.path().join("blue")).unwrap().map(|entry| entry.unwrap().path());
        let core = cores.find(|path| path.to_str().unwrap().contains("/vmcore.")).unwrap();
        verify(&core, &report);
        let told: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        let environment = told["guest"]["environment"].as_array().unwrap();
        for (name, value) in [("kernelname", "/boot/lab/kernel"), ("currdev", "disk0p2:"), ("tenant", "blue")]
        {
            let pair = serde_json::json!([name, value]);
            assert!(environment.contains(&pair), "{name}: {environment:?}");
        }
        assert!(fs::read(&image).unwrap() == before, "the disk was changed");
    }
}
