//! Distribution kernels exactly as their packages ship them: found, fetched and unpacked by apt and dpkg.
//!
//! apt runs with a configuration, lists and a cache of its own below the lab's folder, so that it knows suites that the host
//! does not use, and needs no root. What is unpacked lies in a folder named like the package's file, which has the version in
//! its name: a newer kernel gets a new folder, and an old one is never fetched twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::{output, succeed};

/// A kernel that the lab knows.
#[derive(Debug, Clone, Copy)]
pub struct KernelName {
    /// Its name in scenarios.
    pub name: &'static str,
    /// The release of Debian that it is of.
    pub suite: &'static str,
    /// The package that depends on the newest one.
    pub package: &'static str,
}

/// All of them; which ones are tested is up to the scenarios.
pub const ALL: [KernelName; 4] = [
    KernelName { name: "6.1-cloud", suite: "bookworm", package: "linux-image-cloud-amd64" },
    KernelName { name: "6.1-generic", suite: "bookworm", package: "linux-image-amd64" },
    KernelName { name: "6.12-cloud", suite: "trixie", package: "linux-image-cloud-amd64" },
    KernelName { name: "6.12-generic", suite: "trixie", package: "linux-image-amd64" },
];

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its name in scenarios.
    pub name: &'static str,
    folder: PathBuf,
}

/// Lists of packages older than this are fetched anew.
const LISTS_LAST: Duration = Duration::from_secs(24 * 60 * 60);

impl Kernel {
    /// The kernel of that name, fetched and unpacked below `lab` unless it is there already.
    pub fn fetch(lab: &Path, name: &str) -> anyhow::Result<Self> {
        let known = ALL.iter().find(|kernel| kernel.name == name);
        let names = || ALL.map(|kernel| kernel.name).join(", ");
        let known = known.with_context(|| format!("no kernel '{name}'; the lab knows {}", names()))?;
        let apt = Apt::new(lab, known.suite)?;
        let package = apt.newest(known.package)?;
        let folder = lab.join("kernels").join(apt.file_stem(&package)?);
        if !folder.exists() {
            apt.unpack(&package, &folder).with_context(|| format!("fetching {package}"))?;
        }
        Ok(Self { name: known.name, folder })
    }

    /// The bzImage.
    pub fn image(&self) -> anyhow::Result<PathBuf> {
        let boot = self.folder.join("boot");
        let is_image = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        };
        entries(&boot)?.into_iter().find(is_image).with_context(|| format!("no kernel in {}", boot.display()))
    }

    /// `uname -r` of it.
    pub fn release(&self) -> anyhow::Result<String> {
        let image = self.image()?;
        let name = image.file_name().unwrap_or_default().to_string_lossy();
        Ok(name.trim_start_matches("vmlinuz-").to_owned())
    }

    /// The folder of its modules. Newer packages keep to the merged /usr.
    pub fn modules(&self) -> anyhow::Result<PathBuf> {
        let release = self.release()?;
        let places = ["lib/modules", "usr/lib/modules"].map(|place| self.folder.join(place).join(&release));
        places.into_iter().find(|place| place.is_dir()).with_context(|| format!("{release} has no modules"))
    }
}

/// What a folder holds.
fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// apt with a configuration of its own for one release of Debian.
pub(super) struct Apt {
    folder: PathBuf,
}

impl Apt {
    pub(super) fn new(lab: &Path, suite: &str) -> anyhow::Result<Self> {
        let folder = lab.join("apt").join(suite);
        let apt = Self { folder };
        for name in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(apt.folder.join(name))?;
        }
        let sources = format!(
            "deb [signed-by=/usr/share/keyrings/debian-archive-{suite}-automatic.gpg] http://deb.debian.org/debian {suite} main\n\
             deb [signed-by=/usr/share/keyrings/debian-archive-{suite}-security-automatic.gpg] http://deb.debian.org/debian-security {suite}-security main\n"
        );
        fs::write(apt.sources(), sources)?;
        apt.update()?;
        Ok(apt)
    }

    /// Its `sources.list`.
    pub(super) fn sources(&self) -> PathBuf {
        self.folder.join("sources.list")
    }

    /// Fetches the lists of packages when they have become old. Old ones serve when the network does not.
    fn update(&self) -> anyhow::Result<()> {
        let stamp = self.folder.join("updated");
        let age = fs::metadata(&stamp).and_then(|file| file.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age < LISTS_LAST) {
            return Ok(());
        }
        match succeed(&mut self.command("apt-get", &["update", "-qq"])) {
            Ok(()) => Ok(fs::write(stamp, "")?),
            Err(error) if age.is_some() => {
                eprintln!("lab: kernels may not be the newest: {error:#}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The package that another one depends on: kernels have their version in their name.
    pub(super) fn newest(&self, package: &str) -> anyhow::Result<String> {
        let depends = output(&mut self.command("apt-cache", &["depends", package]))?;
        let mut named = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let kernel = named.find(|name| name.starts_with("linux-image-"));
        Ok(kernel.with_context(|| format!("{package} depends on no kernel"))?.to_owned())
    }

    /// The name of the package's file without `.deb`, which tells its version.
    pub(super) fn file_stem(&self, package: &str) -> anyhow::Result<String> {
        // 'http://HOST/PATH/FILE.deb' FILE.deb SIZE SHA256:SUM
        let uris = output(&mut self.command("apt-get", &["download", "--print-uris", "-qq", package]))?;
        let file = uris.split_whitespace().nth(1).and_then(|name| name.strip_suffix(".deb"));
        let file = file.with_context(|| format!("apt-get tells no file of {package}: {uris:?}"))?;
        ensure!(!file.contains('/'), "apt-get names a file with a path: {file}");
        Ok(file.to_owned())
    }

    /// Downloads and unpacks a package; the folder appears when it is complete.
    fn unpack(&self, package: &str, folder: &Path) -> anyhow::Result<()> {
        let kernels = folder.parent().context("kernels lie in a folder")?;
        fs::create_dir_all(kernels)?;
        let aside = tempfile::tempdir_in(kernels)?;
        succeed(self.command("apt-get", &["download", "-qq", package]).current_dir(aside.path()))?;
        let files = entries(aside.path())?;
        let [file] = files.as_slice() else { bail!("apt-get left {files:?} for {package}") };
        let unpacked = aside.path().join("unpacked");
        succeed(Command::new("dpkg").arg("-x").arg(file).arg(&unpacked))?;
        match fs::rename(&unpacked, folder) {
            // Another run of the lab was faster.
            Err(_) if folder.is_dir() => Ok(()),
            result => Ok(result?),
        }
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let option = |name: &str, path: &Path| format!("{name}={}", path.display());
        let mut command = Command::new(program);
        command.args(["-o", &option("Dir::Etc::sourcelist", &self.sources())]);
        command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Get::List-Cleanup=0"]);
        command.args(["-o", &option("Dir::State::lists", &self.folder.join("lists"))]);
        command.args(["-o", &option("Dir::Cache", &self.folder)]);
        // Else apt tries to give the download to a user who cannot write here.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "APT::Architecture=amd64"]);
        command.args(arguments);
        command
    }
}
