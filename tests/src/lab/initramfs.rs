//! Root file systems that a kernel unpacks into memory: a cpio archive ("newc") with busybox, modules and programs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use cpio::newc;

use super::modules::{self, Modules};
use super::output;

/// Where Debian's busybox-static installs.
const BUSYBOX: [&str; 2] = ["/usr/bin/busybox", "/bin/busybox"];

/// An archive in the making. Paths are without their first slash.
#[derive(Debug, Default)]
pub struct Initramfs {
    archive: Vec<u8>,
    names: BTreeSet<String>,
}

impl Initramfs {
    /// One with busybox as the shell, the folders that a system mounts on, and `init` as the first program.
    pub fn with_busybox(init: &str) -> anyhow::Result<Self> {
        let mut root = Self::default();
        for folder in ["dev", "proc", "sys", "tmp", "run", "etc"] {
            root.folder(folder)?;
        }
        let busybox = BUSYBOX.iter().find(|path| Path::new(path).exists());
        root.copy("bin/busybox", Path::new(busybox.context("busybox is not installed")?))?;
        root.link("bin/sh", "busybox")?;
        root.file("init", init.as_bytes(), 0o755)?;
        Ok(root)
    }

    /// Adds modules with what they need, so that `insmod` of `modules/*` in the order of names loads them.
    pub fn modules<N: AsRef<str>>(&mut self, all: &Modules, names: &[N]) -> anyhow::Result<()> {
        self.folder("modules")?;
        for (number, file) in all.load_order(names)?.iter().enumerate() {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let name = name.trim_end_matches(".xz");
            self.file(&format!("modules/{number:02}-{name}"), &modules::read(file)?, 0o644)?;
        }
        Ok(())
    }

    /// Adds a program as `bin/NAME`, without its debugging information, and the libraries that it is linked with.
    pub fn program(&mut self, program: &Path) -> anyhow::Result<()> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let stripped = tempfile::NamedTempFile::new()?;
        super::succeed(Command::new("strip").arg("-o").arg(stripped.path()).arg(program))?;
        self.file(&format!("bin/{name}"), &fs::read(stripped.path())?, 0o755)?;
        for library in libraries(program)? {
            let path = library.strip_prefix("/").unwrap_or(&library).to_string_lossy().into_owned();
            if !self.names.contains(&path) {
                self.copy(&path, &library)?;
            }
        }
        Ok(())
    }

    /// Adds a file of the host, which may be run.
    pub fn copy(&mut self, path: &str, from: &Path) -> anyhow::Result<()> {
        let contents = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.file(path, &contents, 0o755)
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, contents: &[u8], mode: u32) -> anyhow::Result<()> {
        self.entry(path, 0o100_000 | mode, contents)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> anyhow::Result<()> {
        self.entry(path, 0o120_777, target.as_bytes())
    }

    /// Adds a folder with those that it is in.
    pub fn folder(&mut self, path: &str) -> anyhow::Result<()> {
        if path.is_empty() || self.names.contains(path) {
            return Ok(());
        }
        self.entry(path, 0o040_755, &[])
    }

    /// The archive.
    pub fn finish(self) -> anyhow::Result<Vec<u8>> {
        Ok(newc::trailer(self.archive)?)
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) -> anyhow::Result<()> {
        self.folder(path.rsplit_once('/').map_or("", |(parent, _)| parent))?;
        ensure!(self.names.insert(path.to_owned()), "{path} twice in an initramfs");
        let inode = u32::try_from(self.names.len())?;
        let header = newc::Builder::new(path).ino(inode).nlink(1).mode(mode);
        let archive = std::mem::take(&mut self.archive);
        let mut writer = header.write(archive, u32::try_from(contents.len())?);
        std::io::Write::write_all(&mut writer, contents)?;
        self.archive = writer.finish()?;
        Ok(())
    }
}

/// The libraries of a program, and its dynamic linker, by `ldd`.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    // "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f..)", "\t/lib64/ld-linux-x86-64.so.2 (0x7f..)"
    let list = output(Command::new("ldd").arg(program))?;
    let paths = list.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}
