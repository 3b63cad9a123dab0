//! Third-party readers over the cores of the lab: programs that know nothing of this project, and need no hint from a
//! person. What they find is held against what the guest itself said on its console, and against the VMM's report.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use netdump::linux::Vmcoreinfo;
use netdump::linux::filter;
use serde_json::Value;

use super::output;

/// The Python that Debian's packages are for.
pub(super) const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = include_str!("readers.py");

/// A core with what is known of it.
#[derive(Debug)]
pub struct Specimen<'a> {
    /// The file.
    pub core: &'a Path,
    /// The panic line.
    pub panic: &'a str,
    /// What the guest's console had.
    pub console: &'a str,
    /// The report of `vmm`.
    pub report: &'a Value,
}

/// One reader: what it is called, and its look at a core. What it found wrong is the error.
type Reader = (&'static str, fn(&Specimen<'_>, &Path) -> anyhow::Result<()>);

const ALL: [Reader; 6] = [
    ("makedumpfile --dump-dmesg", dmesg),
    ("makedumpfile -d 31 -c", refilter),
    ("makedumpfile's counts", counts),
    ("libkdumpfile", libkdumpfile),
    ("drgn", drgn),
    ("readelf -n", notes),
];

/// Lets every reader open the core; what they say against it.
pub fn complaints(specimen: &Specimen<'_>, lab: &Path) -> Vec<String> {
    let judge = |(name, read): &Reader| read(specimen, lab).err().map(|error| format!("{name}: {error:#}"));
    ALL.iter().filter_map(judge).collect()
}

/// The kernel log holds the panic line.
fn dmesg(specimen: &Specimen<'_>, _: &Path) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    output(Command::new("makedumpfile").arg("--dump-dmesg").arg(specimen.core).arg(&log))?;
    let log = fs::read(log)?;
    ensure!(String::from_utf8_lossy(&log).contains(specimen.panic), "the log has no '{}'", specimen.panic);
    Ok(())
}

/// It filters the core, and reads what it made of it.
fn refilter(specimen: &Specimen<'_>, lab: &Path) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let filtered = folder.path().join("filtered");
    output(Command::new("makedumpfile").args(["-d", "31", "-c"]).arg(specimen.core).arg(&filtered))?;
    // A kdump core may be what makedumpfile itself would write.
    let most = fs::metadata(specimen.core)?.len() / if is_elf(specimen) { 2 } else { 1 };
    ensure!(fs::metadata(&filtered)?.len() <= most, "it left out little");
    dmesg(&Specimen { core: &filtered, ..*specimen }, lab).context("what it wrote")
}

/// It tells of as many pages of each kind as the filter of this project: the dump's own, or, of a dump that was not filtered, one
/// of the core.
fn counts(specimen: &Specimen<'_>, _: &Path) -> anyhow::Result<()> {
    // What a kdump core leaves out makedumpfile does not look at again.
    if !is_elf(specimen) {
        return Ok(());
    }
    let core = netdump::vmcore::open(specimen.core)?;
    let ours = match &specimen.report["dump"]["filter"] {
        Value::Null => filter::for_dump(&core, None, "31".parse()?)?.context("no filter")?.counts(),
        counts => serde_json::from_value(counts.clone())?,
    };
    let folder = tempfile::tempdir()?;
    let mut makedumpfile = Command::new("makedumpfile");
    makedumpfile.args(["-d", "31", "-c", "--message-level", "16"]);
    let said = output(makedumpfile.arg(specimen.core).arg(folder.path().join("filtered")))?;
    let theirs = |what: &str| {
        let number = said.lines().find_map(|line| line.trim().strip_prefix(what)?.split_once("0x"));
        let (_, digits) = number.with_context(|| format!("it does not tell its '{what}'"))?;
        Ok::<_, anyhow::Error>(u64::from_str_radix(digits.trim(), 16)?)
    };
    let mut kinds = vec![
        ("Free pages", ours.free),
        ("Non-private cache pages", ours.cache),
        ("Private cache pages", ours.private_cache),
    ];
    // Slab pages have no flag since 6.10, and makedumpfile before 1.7.6 takes some of them for processes'.
    let info = Vmcoreinfo::locate(&core, None).context("no VMCOREINFO")?;
    if info.number("PG_slab").is_some() {
        kinds.push(("User process data pages", ours.user));
    }
    for (what, ours) in kinds {
        let theirs = theirs(what)?;
        ensure!(theirs == ours, "{what}: {theirs}, and {ours} here");
    }
    Ok(())
}

fn is_elf(specimen: &Specimen<'_>) -> bool {
    let mut magic = [0; 4];
    fs::File::open(specimen.core).is_ok_and(|mut core| core.read_exact(&mut magic).is_ok())
        && magic == *b"\x7fELF"
}

/// It translates an address of the kernel's, and has every CPU's registers as they were when the VMM paused them.
fn libkdumpfile(specimen: &Specimen<'_>, _: &Path) -> anyhow::Result<()> {
    let found = python(&[], "libkdumpfile", specimen)?;
    let banner = banner(specimen)?;
    for key in ["banner", "by_physical"] {
        ensure!(
            found[key].as_str().map(str::trim_end) == Some(banner),
            "{key} {} is not '{banner}'",
            found[key]
        );
    }
    let paused = specimen.report["cpus"].as_array().context("the report has no CPUs")?;
    let cpus = found["cpus"].as_array().context("no CPUs")?;
    ensure!(cpus.len() == paused.len(), "{} CPUs instead of {}", cpus.len(), paused.len());
    for (number, (cpu, paused)) in cpus.iter().zip(paused).enumerate() {
        for register in ["rip", "rsp", "rflags"] {
            let (has, had) = (&cpu[register], &paused["registers"][register]);
            ensure!(has == had, "{register} of CPU {number} is {has}, and was {had}");
        }
    }
    Ok(())
}

/// It takes the core for a Linux kernel's, knows its release, and reads through the kernel's own page tables.
fn drgn(specimen: &Specimen<'_>, lab: &Path) -> anyhow::Result<()> {
    let found = python(&[("PYTHONPATH", &drgn_folder(lab)?)], "drgn", specimen)?;
    let banner = banner(specimen)?;
    ensure!(found["is_kernel"] == true, "not taken for a Linux kernel");
    ensure!(
        found["banner"].as_str().map(str::trim_end) == Some(banner),
        "banner {} is not '{banner}'",
        found["banner"]
    );
    let release = found["release"].as_str().unwrap_or_default();
    ensure!(banner.contains(release) && !release.is_empty(), "release '{release}' is not in '{banner}'");
    Ok(())
}

/// The notes are where GNU's reader looks for them.
fn notes(specimen: &Specimen<'_>, _: &Path) -> anyhow::Result<()> {
    // A kdump file has no ELF notes to show.
    if !is_elf(specimen) {
        return Ok(());
    }
    let shown = output(Command::new("readelf").arg("-nW").arg(specimen.core))?;
    let cpus = specimen.report["cpus"].as_array().context("the report has no CPUs")?.len();
    let count =
        |word| shown.lines().filter(|line| line.split_whitespace().any(|other| other == word)).count();
    ensure!(count("NT_PRSTATUS") == cpus, "{} notes of CPUs instead of {cpus}", count("NT_PRSTATUS"));
    ensure!(count("VMCOREINFO") == 1, "{} notes VMCOREINFO", count("VMCOREINFO"));
    Ok(())
}

/// What the kernel says it is, as the guest read it in /proc/version.
pub(super) fn banner<'a>(specimen: &'a Specimen<'_>) -> anyhow::Result<&'a str> {
    said(specimen.console, "guest: banner is ").context("the guest did not tell its banner")
}

/// What follows these words on their line of the console.
fn said<'a>(console: &'a str, words: &str) -> Option<&'a str> {
    console.lines().find_map(|line| line.split_once(words)).map(|(_, rest)| rest.trim_end())
}

fn python(environment: &[(&str, &Path)], which: &str, specimen: &Specimen<'_>) -> anyhow::Result<Value> {
    let address =
        said(specimen.console, "guest: linux_banner is at ").context("the guest did not tell an address")?;
    let mut command = Command::new(PYTHON);
    command.envs(environment.iter().copied()).args(["-c", SCRIPT, which]).arg(specimen.core).arg(address);
    Ok(serde_json::from_str(&output(&mut command)?)?)
}

/// drgn from PyPI, installed once in a folder of the lab's.
pub fn drgn_folder(lab: &Path) -> anyhow::Result<PathBuf> {
    let folder = lab.join("python");
    if !folder.is_dir() {
        fs::create_dir_all(lab)?;
        let aside = tempfile::tempdir_in(lab)?;
        let mut pip = Command::new(PYTHON);
        pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--root-user-action=ignore", "--target"]);
        super::succeed(pip.arg(aside.path()).arg(DRGN))?;
        fs::rename(aside.path(), &folder)?;
    }
    Ok(folder)
}

/// The version that the cores are known to open in; a new one is for whoever takes the time to look at it.
const DRGN: &str = "drgn==0.3.0";
