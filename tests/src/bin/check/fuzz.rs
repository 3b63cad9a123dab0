//! The fuzz targets, which are outside the workspace: that they build, and where there is a nightly toolchain, a run of
//! each.
//!
//! No sanitizer: what they reach has no unsafe code, and checks of arithmetic and assertions are on without one.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, ensure};
use harness::needs::{Need, has_program};

use super::{cargo, succeed};

/// The crates of the targets, and for how many seconds each of their targets runs unless `FUZZ_SECONDS` says otherwise;
/// with 0 none is run. What the network reaches gets more than what a host chooses to boot.
const CRATES: [(&str, u64); 2] = [("netdump/fuzz", 120), ("vmm/fuzz", 20)];
/// Where what is built and found lies between runs.
const FOLDER: &str = "target/fuzz";
/// Where cargo-fuzz is installed when the machine has none.
const TOOLS: &str = "target/tools";

/// Installs cargo-fuzz where it is of use.
pub(super) fn install(root: &Path) -> anyhow::Result<()> {
    let is_there = has_program("cargo-fuzz") || root.join(TOOLS).join("bin/cargo-fuzz").exists();
    if is_there || !Need::Nightly.is_met() {
        return Ok(());
    }
    cargo(root, &["install", "--quiet", "--locked", "--root", TOOLS, "cargo-fuzz"])
}

/// Builds all targets, and runs them where that is possible.
pub(super) fn fuzz(root: &Path) -> anyhow::Result<()> {
    for (folder, _) in CRATES {
        let manifest = format!("{folder}/Cargo.toml");
        cargo(root, &["fmt", "--check", "--manifest-path", &manifest])?;
    }
    if !Need::Nightly.or_skip() {
        return check(root);
    }
    for (folder, _) in CRATES {
        succeed(&mut cargo_fuzz(root, "build", folder)?)?;
    }
    let wanted = std::env::var("FUZZ_SECONDS").ok();
    let wanted =
        wanted.map(|seconds| seconds.parse::<u64>().context("FUZZ_SECONDS is no number")).transpose()?;
    if wanted == Some(0) { Ok(()) } else { run_all(root, wanted) }
}

/// Without nightly they can be neither run nor linked, but checked.
fn check(root: &Path) -> anyhow::Result<()> {
    for (folder, _) in CRATES {
        let manifest = format!("{folder}/Cargo.toml");
        let check = ["check", "--quiet", "--release", "--locked", "--target-dir", "target"];
        cargo(root, &[&check[..], &["--manifest-path", &manifest]].concat())?;
    }
    Ok(())
}

/// Runs every target, as many at a time as there are CPUs, and tells of all that fail.
fn run_all(root: &Path, seconds: Option<u64>) -> anyhow::Result<()> {
    let waiting = Mutex::new(targets(root, seconds)?);
    let failures = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(target) = waiting.lock().expect("nobody panics").pop() {
            match run(root, &target) {
                Ok(told) => eprintln!("{}: {told}", target.name),
                Err(error) => drop(failures.lock().expect("nobody panics").insert(target.name, error)),
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().expect("nobody panics");
    for (target, error) in &failures {
        eprintln!("{target}: {error:#}");
    }
    ensure!(failures.is_empty(), "fuzzing failed: {:?}", failures.keys());
    Ok(())
}

/// A fuzz target.
struct Target {
    folder: &'static str,
    name: String,
    seconds: u64,
}

/// All targets: each is a file.
fn targets(root: &Path, seconds: Option<u64>) -> anyhow::Result<Vec<Target>> {
    let mut targets = Vec::new();
    for (folder, of_crate) in CRATES {
        for entry in std::fs::read_dir(root.join(folder).join("fuzz_targets"))? {
            let path = entry?.path();
            let name = path.file_stem().context("a file has a name")?.to_string_lossy().into_owned();
            targets.push(Target { folder, name, seconds: seconds.unwrap_or(of_crate) });
        }
    }
    Ok(targets)
}

/// Runs one, from its seeds and what was found earlier on this machine. What is found now is not put among the seeds.
fn run(root: &Path, target: &Target) -> anyhow::Result<String> {
    let Target { folder, name, seconds } = target;
    let found = root.join(FOLDER).join("corpus").join(name);
    std::fs::create_dir_all(&found)?;
    let seeds = root.join(folder).join("corpus").join(name);
    let log = root.join(FOLDER).join(format!("{name}.log"));
    let output = File::create(&log)?;
    let mut command = cargo_fuzz(root, "run", folder)?;
    command.arg(name).arg(found).arg(seeds);
    command.args(["--", "-timeout=20", "-print_final_stats=1", &format!("-max_total_time={seconds}")]);
    let status = command.stdout(output.try_clone()?).stderr(output).status()?;
    let log = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
    // The end names the input that was found, and the command that repeats it.
    let end = log.lines().count().saturating_sub(60);
    ensure!(status.success(), "{status}\n{}", log.lines().skip(end).collect::<Vec<_>>().join("\n"));
    let told = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    Ok(format!("{} inputs", told.map_or("?", str::trim)))
}

/// cargo-fuzz on the nightly toolchain.
fn cargo_fuzz(root: &Path, verb: &str, folder: &str) -> anyhow::Result<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = std::iter::once(root.join(TOOLS).join("bin")).chain(std::env::split_paths(&path));
    let mut command = Command::new("rustup");
    command.current_dir(root).env("PATH", std::env::join_paths(tools.collect::<Vec<PathBuf>>())?);
    command.args(["run", "nightly", "cargo", "fuzz", verb, "--sanitizer", "none"]);
    command.args(["--fuzz-dir", folder, "--target-dir", FOLDER]);
    Ok(command)
}
