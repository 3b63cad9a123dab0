//! Kernel modules with those that they need, in the order in which they are loaded.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::output;

/// The modules of one kernel by name. Files and names differ in `-` and `_`, which mean the same.
#[derive(Debug)]
pub struct Modules {
    files: HashMap<String, PathBuf>,
    /// What other kernels have as modules, and this one in itself.
    built_in: HashSet<String>,
}

impl Modules {
    /// All modules below a folder.
    pub fn below(folder: &Path) -> anyhow::Result<Self> {
        let mut files = HashMap::<String, PathBuf>::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(below) = folders.pop() {
            for entry in fs::read_dir(&below).with_context(|| format!("reading {}", below.display()))? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else if let Some((name, _)) = name.split_once(".ko") {
                    files.insert(normal(name), entry.path());
                }
            }
        }
        let built_in = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        // kernel/drivers/virtio/virtio_pci.ko
        let names = built_in.lines().filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"));
        Ok(Self { files, built_in: names.map(normal).collect() })
    }

    /// The file of a module.
    pub fn file(&self, name: &str) -> anyhow::Result<&Path> {
        let file = self.files.get(&normal(name)).with_context(|| format!("there is no module {name}"))?;
        Ok(file)
    }

    /// The files to load, in this order, for the modules named.
    pub fn load_order<N: AsRef<str>>(&self, names: &[N]) -> anyhow::Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        for name in names {
            self.add(name.as_ref(), &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<PathBuf>) -> anyhow::Result<()> {
        if self.built_in.contains(&normal(name)) {
            return Ok(());
        }
        let file = self.file(name)?;
        if order.iter().any(|other| other == file) {
            return Ok(());
        }
        let depends = output(Command::new("modinfo").args(["-F", "depends"]).arg(file))?;
        for needed in depends.trim().split(',').filter(|name| !name.is_empty()) {
            self.add(needed, order)?;
        }
        order.push(file.to_owned());
        Ok(())
    }
}

/// The contents of a module's file, unpacked: not every `insmod` unpacks.
pub fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file.extension().is_none_or(|kind| kind != "xz") {
        return fs::read(file).with_context(|| format!("reading {}", file.display()));
    }
    let unpacked = Command::new("xz").arg("-dc").arg(file).output().context("starting xz")?;
    anyhow::ensure!(unpacked.status.success(), "xz cannot unpack {}", file.display());
    Ok(unpacked.stdout)
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}
