//! What tests need of the machine, and how a test that does not find it says so.
//!
//! A test that cannot run prints `SKIPPED <need>: <why>` and passes; the check then looks for itself whether the machine
//! really lacks it.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Something that not every machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A usable /dev/kvm.
    Kvm,
    /// Root, `/dev/net/tun` and network namespaces.
    Network,
    /// Root.
    Root,
    /// An independent decoder of packets.
    Tshark,
    /// A debugger.
    Gdb,
    /// GNU readelf.
    Readelf,
    /// Unpacker of the recorded session.
    Xz,
    /// Unpacker of the recorded core.
    Bzip2,
    /// The usual gzip.
    Gzip,
    /// The usual zstd.
    Zstd,
    /// An independent implementation of ciphers and RSA.
    Openssl,
    /// The right to mount a tmpfs.
    Mount,
    /// A file system that takes sparse files of 8 TiB for temporary files.
    LargeFiles,
    /// A nightly toolchain of Rust, which fuzzing needs.
    Nightly,
    /// Recorded sessions and cores of real FreeBSD kernels.
    Fixtures,
    /// Packages of kernels, and a processor in software that runs them: see [`LAB_PROGRAMS`].
    Lab,
    /// A reader of Linux cores.
    Makedumpfile,
    /// Another one, with its Python module.
    Libkdumpfile,
    /// A maker of UFS file systems.
    Makefs,
    /// A maker of GUID partition tables.
    Sgdisk,
}

/// Debian packages that the lab needs, with one program of each.
pub const LAB_PROGRAMS: [(&str, &str); 11] = [
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("busybox-static", "busybox"),
    ("kmod", "modinfo"),
    ("dpkg", "dpkg"),
    ("apt", "apt-get"),
    ("libc-bin", "ldd"),
    // Disk images.
    ("mmdebstrap", "mmdebstrap"),
    ("e2fsprogs", "mkfs.ext4"),
    ("dosfstools", "mkfs.vfat"),
    ("mtools", "mcopy"),
    ("gdisk", "sgdisk"),
];

/// Every need with its name in `SKIPPED` lines.
const NAMES: &[(&str, Need)] = &[
    ("kvm", Need::Kvm),
    ("network", Need::Network),
    ("root", Need::Root),
    ("tshark", Need::Tshark),
    ("gdb", Need::Gdb),
    ("readelf", Need::Readelf),
    ("xz", Need::Xz),
    ("bzip2", Need::Bzip2),
    ("gzip", Need::Gzip),
    ("zstd", Need::Zstd),
    ("openssl", Need::Openssl),
    ("mount", Need::Mount),
    ("large-files", Need::LargeFiles),
    ("nightly", Need::Nightly),
    ("fixtures", Need::Fixtures),
    ("lab", Need::Lab),
    ("makedumpfile", Need::Makedumpfile),
    ("libkdumpfile", Need::Libkdumpfile),
    ("makefs", Need::Makefs),
    ("sgdisk", Need::Sgdisk),
];

impl Need {
    /// The need of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, need)| *need)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, need)| *need == self).map_or("?", |(name, _)| name)
    }

    /// Whether this machine has it.
    pub fn is_met(self) -> bool {
        let root = nix::unistd::geteuid().is_root();
        match self {
            Self::Kvm => OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok(),
            Self::Network => root && Path::new("/dev/net/tun").exists() && has_program("ip"),
            Self::Root => root,
            Self::Tshark => has_program("tshark"),
            Self::Gdb => has_program("gdb"),
            Self::Readelf => has_program("readelf"),
            Self::Xz => has_program("xz"),
            Self::Bzip2 => has_program("bzip2"),
            Self::Gzip => has_program("gzip"),
            Self::Zstd => has_program("zstd"),
            Self::Openssl => has_program("openssl"),
            Self::Mount => may_mount(),
            Self::LargeFiles => tempfile::tempfile().is_ok_and(|file| file.set_len(1 << 43).is_ok()),
            Self::Nightly => succeeds(Command::new("rustup").args(["run", "nightly", "cargo", "--version"])),
            Self::Fixtures => fixtures().is_some(),
            Self::Lab => LAB_PROGRAMS.iter().all(|(_, program)| has_program(program)),
            Self::Makedumpfile => has_program("makedumpfile"),
            Self::Makefs => has_program("makefs"),
            Self::Sgdisk => has_program("sgdisk"),
            Self::Libkdumpfile => succeeds(Command::new("/usr/bin/python3").args(["-c", "import kdumpfile"])),
        }
    }

    /// Whether a test may go on; if not, it has said so.
    pub fn or_skip(self) -> bool {
        let met = self.is_met();
        if !met {
            println!("SKIPPED {}: this machine does not have it", self.name());
        }
        met
    }
}

/// Whether a program is on the path.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn may_mount() -> bool {
    let Ok(folder) = tempfile::tempdir() else { return false };
    succeeds(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(folder.path()))
        && succeeds(Command::new("umount").arg(folder.path()))
}

/// The folder of recorded sessions and cores: beside the repository, or where `NETDUMP_FIXTURES` says.
pub fn fixtures() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    let folder = std::env::var_os("NETDUMP_FIXTURES").map_or_else(beside, PathBuf::from);
    folder.is_dir().then_some(folder)
}
