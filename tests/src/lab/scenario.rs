//! Scenarios: one small file each, in `tests/lab/scenarios`, saying which guest does what and what must come of it.
//!
//! ```toml
//! about = "what this shows"
//! kernels = ["6.1-cloud"]       # a run for each; or guest = "smp-panic" for a micro guest, or disk_image = "debian-12"
//! cmdline = "console=ttyS0"
//! modules = ["virtio_net"]      # loaded in this order, with what they need
//! init = "echo c > /proc/sysrq-trigger"
//! vmm = ["--boot", "bzimage"]   # more options of `vmm run`
//!
//! [expect]
//! exit = 10
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::broken::Fault;

/// A scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it shows, in one line.
    pub about: String,
    /// The kernels to run it with.
    #[serde(default)]
    pub kernels: Vec<String>,
    /// A micro guest of `guest-images`, instead of kernels.
    pub guest: Option<String>,
    /// A disk with a system of its own, instead of kernels: `vmm` is told nothing of kernel, command line and netdump, and
    /// works on a copy of the file.
    pub disk_image: Option<String>,
    /// Guest RAM, for `--memory`.
    #[serde(default = "memory")]
    pub memory: String,
    /// vCPUs.
    #[serde(default = "cpus")]
    pub cpus: u8,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// Modules that the guest loads.
    #[serde(default)]
    pub modules: Vec<String>,
    /// Modules that are made to fail when they are loaded, by how: `null-jump` is `/null-jump.ko` in the guest.
    #[serde(default)]
    pub broken: BTreeMap<Fault, String>,
    /// The guest has its own kernel's image as `/image`, and `load_crash_kernel` to load what is open as 3 (a kernel) and
    /// 4 (its initramfs) for when it panics.
    #[serde(default)]
    pub crash_kernel: bool,
    /// Shell commands that the guest runs before it switches itself off.
    #[serde(default)]
    pub init: String,
    /// More options of `vmm run`.
    #[serde(default)]
    pub vmm: Vec<String>,
    /// What is between the guest and the receiver.
    #[serde(default)]
    pub network: Network,
    /// Percent of the packets lost, each way.
    #[serde(default)]
    pub loss: u8,
    /// Bring back what the dump sent and received, as a capture file whose frames are cut after their headers.
    #[serde(default)]
    pub pcap: bool,
    /// Signals for `vmm`, by name.
    #[serde(default)]
    pub signal: Option<SignalAfter>,
    /// Runs of each kernel.
    #[serde(default = "once")]
    pub repeat: u32,
    /// Longest time of one run in seconds, boot and dump together.
    #[serde(default = "limit")]
    pub limit: u64,
    /// Not part of a run of everything: too slow for every day.
    #[serde(default)]
    pub by_name_only: bool,
    /// What must come of it.
    pub expect: Expect,
}

/// What is between the guest and the receiver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// A tap on a bridge to the receiver's network.
    #[default]
    Bridge,
    /// A tap on a bridge to a router, and the receiver behind that.
    Gateway,
    /// Nothing: the guest has no network card, and the receiver is the embedded one.
    None,
}

/// A signal for `vmm`, sent when the guest's console says something.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalAfter {
    /// Its name, such as SIGUSR1.
    pub name: String,
    /// What the console says first.
    pub console: String,
}

/// What must come of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Exit code of `vmm`.
    pub exit: i32,
    /// Texts that the console must have.
    #[serde(default)]
    pub console: Vec<String>,
    /// Texts that neither the console nor the log of `vmm` may have.
    #[serde(default)]
    pub absent: Vec<String>,
    /// Sources that must have seen the panic, in any order.
    #[serde(default)]
    pub seen_by: Vec<String>,
    /// Texts that the report must have, by JSON pointer.
    #[serde(default)]
    pub report: BTreeMap<String, Value>,
    /// Functions on the stack of the CPU that panicked, the innermost first, with others between: in the report's crash card
    /// and in `netdump inspect` of the core.
    #[serde(default)]
    pub stack: Vec<String>,
    /// A panic line that third-party readers must find in the core; they are run if it is there.
    pub readers: Option<String>,
    /// What must be true of the disk image afterwards.
    pub disk: Option<DiskState>,
    /// The file that the guest fetched must have come back as it was.
    #[serde(default)]
    pub file_moved: bool,
}

/// What became of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskState {
    /// The very bytes that it had.
    Same,
    /// Written to, and a file system in which e2fsck finds nothing to repair.
    Clean,
}

impl Expect {
    /// Whether a core must have been stored: `vmm` says so by its exit code.
    pub fn core(&self) -> bool {
        self.exit == 10
    }
}

fn memory() -> String {
    "512M".to_owned()
}

fn cpus() -> u8 {
    2
}

fn once() -> u32 {
    1
}

/// Ten times what a run takes on a machine that has nothing else to do.
fn limit() -> u64 {
    300
}

/// A scenario with one of its kernels.
#[derive(Debug, Clone)]
pub struct Named {
    /// Its name: the file's, the kernel's and the number of the repetition.
    pub name: String,
    /// The kernel, unless a micro guest is run.
    pub kernel: Option<String>,
    /// What to do.
    pub scenario: Scenario,
}

impl Named {
    /// Its name without the number of the repetition.
    pub fn scenario_name(&self) -> &str {
        self.name.split('#').next().unwrap_or_default()
    }
}

/// Where the scenarios are.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/scenarios")
}

/// All runs of all scenarios; with names, those whose own names begin with one of them.
pub fn find(names: &[String]) -> anyhow::Result<Vec<Named>> {
    let mut files: Vec<_> =
        fs::read_dir(folder())?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    files.sort();
    let mut all = Vec::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "toml")) {
        all.extend(read(file).with_context(|| format!("{}", file.display()))?);
    }
    for name in names {
        ensure!(all.iter().any(|run| run.name.starts_with(name.as_str())), "there is no scenario '{name}'");
    }
    let wanted = |run: &Named| match names {
        [] => !run.scenario.by_name_only,
        names => names.iter().any(|name| {
            let whole = run.scenario_name().split('@').next().unwrap_or_default();
            // `power-off` does not mean `power-off-long`.
            run.name.starts_with(name.as_str()) && (!run.scenario.by_name_only || name.starts_with(whole))
        }),
    };
    all.retain(wanted);
    Ok(all)
}

fn read(file: &Path) -> anyhow::Result<Vec<Named>> {
    let scenario: Scenario = toml::from_str(&fs::read_to_string(file)?)?;
    let kinds = [scenario.guest.is_some(), scenario.disk_image.is_some(), !scenario.kernels.is_empty()];
    ensure!(kinds.iter().filter(|is| **is).count() == 1, "either a guest or a disk image or kernels");
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let kernels = scenario.kernels.iter().cloned().map(Some).collect::<Vec<_>>();
    let kernels = if kernels.is_empty() { vec![None] } else { kernels };
    let mut runs = Vec::new();
    for kernel in kernels {
        let name = kernel.as_ref().map_or_else(|| stem.to_string(), |kernel| format!("{stem}@{kernel}"));
        for number in 1..=scenario.repeat {
            let name = if scenario.repeat == 1 { name.clone() } else { format!("{name}#{number}") };
            runs.push(Named { name, kernel: kernel.clone(), scenario: scenario.clone() });
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_scenarios_are_understood() {
        let all = find(&[]).expect("the scenarios are well-formed");
        assert!(all.iter().any(|run| run.kernel.as_deref() == Some("6.1-cloud")));
        let known = |name: &String| super::super::kernels::ALL.iter().any(|kernel| kernel.name == name);
        assert!(all.iter().filter_map(|run| run.kernel.as_ref()).all(known));
        let known = |name: &String| super::super::disk_image::ALL.iter().any(|disk| disk.name == name);
        assert!(all.iter().filter_map(|run| run.scenario.disk_image.as_ref()).all(known));
    }

    #[test]
    fn a_long_scenario_runs_by_its_whole_name_alone() {
        let named = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            find(&names).expect("there are such").iter().filter(|run| run.scenario.by_name_only).count()
        };
        assert_eq!([named(&[]), named(&["power-off"]), named(&["power-off-long"])], [0, 0, 200]);
        assert_eq!(named(&["power-off-long@6.1-cloud"]), 100);
    }

    #[test]
    fn a_scenario_that_does_not_exist_is_told() {
        let error = find(&["no-such-scenario".to_owned()]).expect_err("there is none");
        assert_eq!(error.to_string(), "there is no scenario 'no-such-scenario'");
    }
}
