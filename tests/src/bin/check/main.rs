//! `cargo xtask test`: everything that CI checks, in the order in which failing costs least time.
//!
//! Installs what the tests need where it can (Debian packages, as root), then formats, lints, documents, builds and
//! tests. Tests that need what the machine lacks print `SKIPPED <need>: <why>`; a need that this machine does meet must
//! not have been skipped, and that is checked here by looking for it once more.

mod fuzz;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use harness::needs::Need;

/// Debian packages whose programs the tests use, with one program of each.
const PACKAGES: [(&str, &str); 11] = [
    ("iproute2", "ip"),
    ("tshark", "tshark"),
    ("gdb", "gdb"),
    ("binutils", "readelf"),
    ("xz-utils", "xz"),
    ("gzip", "gzip"),
    ("zstd", "zstd"),
    ("openssl", "openssl"),
    ("makedumpfile", "makedumpfile"),
    ("makefs", "makefs"),
    ("gdisk", "sgdisk"),
];

/// Debian's Python modules that the tests use, with the module of each.
const PYTHON_MODULES: [(&str, &str); 2] = [("python3-libkdumpfile", "kdumpfile"), ("python3-pip", "pip")];

/// A step of the check.
struct Step {
    name: &'static str,
    run: fn(&Path) -> anyhow::Result<()>,
}

const STEPS: [Step; 9] = [
    Step { name: "install", run: install },
    Step { name: "format", run: format },
    Step { name: "readme", run: readme },
    Step { name: "lint", run: lint },
    Step { name: "fuzz", run: fuzz::fuzz },
    Step { name: "doc", run: doc },
    Step { name: "build", run: build },
    Step { name: "torture", run: torture },
    Step { name: "test", run: test },
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    match run(&wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("check failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `test` alone runs every step; other words run just the steps named.
fn run(wanted: &[String]) -> anyhow::Result<()> {
    let all = wanted.iter().map(String::as_str).eq(["test"]);
    let known = |word: &&String| STEPS.iter().any(|step| step.name == word.as_str());
    if wanted.is_empty() || (!all && !wanted.iter().all(|word| known(&word))) {
        let names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        bail!(
            "usage: cargo xtask test (everything), or any of: {} (`test` last and with others)",
            names.join(" ")
        );
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has a root")?;
    for step in &STEPS {
        if all || wanted.iter().any(|word| word == step.name) {
            eprintln!("== {}", step.name);
            let started = Instant::now();
            (step.run)(root).with_context(|| step.name)?;
            eprintln!("== {} done in {:.1} s", step.name, started.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

fn install(root: &Path) -> anyhow::Result<()> {
    install_packages()?;
    fuzz::install(root)
}

fn install_packages() -> anyhow::Result<()> {
    let programs = PACKAGES.iter().chain(&harness::needs::LAB_PROGRAMS);
    let programs = programs.filter(|(_, program)| !harness::needs::has_program(program));
    let modules = PYTHON_MODULES.iter().filter(|(_, module)| !has_python_module(module));
    let missing: Vec<_> = programs.chain(modules).map(|(package, _)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() || !harness::needs::has_program("apt-get") {
        eprintln!("not installed, and their tests will be skipped: {}", missing.join(" "));
        return Ok(());
    }
    // An old package list that still works saves a minute; a failed update is reported by the install that follows.
    let quiet = |arguments: &[&str]| {
        Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null())
            .status()
    };
    quiet(&["update", "-q"])?;
    let packages = [&["install", "-q", "-y", "--no-install-recommends"], missing.as_slice()].concat();
    ensure!(quiet(&packages)?.success(), "apt-get could not install {}", missing.join(" "));
    Ok(())
}

fn has_python_module(module: &str) -> bool {
    let mut python = Command::new("/usr/bin/python3");
    let import = python.args(["-c", &format!("import {module}")]).stderr(Stdio::null());
    import.status().is_ok_and(|status| status.success())
}

fn format(root: &Path) -> anyhow::Result<()> {
    cargo(root, &["fmt", "--all", "--check"])?;
    // Guests are built by a build script, so cargo does not know their files.
    let guests = root.join("guest-images/guests");
    let mut files = vec![guests.join("rt/lib.rs"), guests.join("freebsd-abi/main.rs")];
    for entry in std::fs::read_dir(&guests)? {
        files.extend(Some(entry?.path()).filter(|path| path.extension().is_some_and(|kind| kind == "rs")));
    }
    succeed(Command::new("rustfmt").current_dir(root).args(["--check", "--edition", "2024"]).args(files))
}

fn lint(root: &Path) -> anyhow::Result<()> {
    cargo(
        root,
        &["clippy", "--quiet", "--release", "--workspace", "--all-targets", "--", "--deny", "warnings"],
    )
}

fn doc(root: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root).env("RUSTDOCFLAGS", "--deny warnings");
    succeed(command.args(["doc", "--quiet", "--release", "--workspace", "--no-deps"]))
}

fn build(root: &Path) -> anyhow::Result<()> {
    cargo(root, &["build", "--quiet", "--release", "--workspace", "--bins"])
}

/// 10,000 seeds of the simulated network; they take seconds.
fn torture(root: &Path) -> anyhow::Result<()> {
    cargo(root, &["run", "--quiet", "--release", "--package", "netdump", "--", "torture"])
}

/// Every path that README names must exist.
fn readme(root: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(root.join("README.md"))?;
    let members = ["vmm/", "netdump/", "guest-images/", "tests/", ".ci/"];
    let quoted = text.split('`').skip(1).step_by(2);
    let paths =
        quoted.filter(|word| members.iter().any(|m| word.starts_with(m)) && !word.contains([' ', '*']));
    let missing: Vec<_> = paths.filter(|path| !root.join(path).exists()).collect();
    ensure!(missing.is_empty(), "README.md names what does not exist: {missing:?}");
    Ok(())
}

/// Runs the tests, shows their output, and judges what was skipped.
fn test(root: &Path) -> anyhow::Result<()> {
    let mut child = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["test", "--release", "--workspace", "--no-fail-fast", "--", "--show-output"])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(child.stdout.take().context("cargo's output is piped")?);
    let mut skipped = Vec::new();
    for line in output.lines() {
        let line = line?;
        writeln!(std::io::stdout(), "{line}")?;
        skipped.extend(line.strip_prefix("SKIPPED ").map(str::to_owned));
    }
    ensure!(child.wait()?.success(), "tests failed");
    skipped.sort();
    skipped.dedup();
    for skip in &skipped {
        eprintln!("SKIPPED {skip}");
    }
    let wrongly: Vec<_> = skipped.iter().filter(|skip| could_have_run(skip)).collect();
    ensure!(wrongly.is_empty(), "skipped although this machine can run it: {wrongly:?}");
    Ok(())
}

fn could_have_run(skip: &str) -> bool {
    let need = skip.split(':').next().and_then(Need::by_name);
    // A need that nobody knows is a mistake in a test, and shows by failing.
    need.is_none_or(|need| need.is_met())
}

fn cargo(root: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    succeed(Command::new(env!("CARGO")).current_dir(root).args(arguments))
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
