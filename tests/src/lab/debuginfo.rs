//! Readers that want the kernel's debug information, which is large to fetch: crash, and drgn with the kernel's types. Both
//! must begin where the VMM found the CPU that panicked.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::judge::in_order;
use super::output;
use super::readers::{PYTHON, Specimen, banner, drgn_folder};

const SCRIPT: &str = include_str!("debuginfo.py");
/// What crash is asked.
const QUESTIONS: &str = "sys\nlog\nbt -a\nquit\n";

/// A kernel as its debugger sees it.
#[derive(Debug)]
pub(super) struct Debugged<'a> {
    /// The ELF file with debug information.
    pub(super) vmlinux: &'a Path,
    /// Functions on the stack of the CPU that panicked, the innermost first, with others between.
    pub(super) stack: &'a [String],
}

/// What crash and drgn say against the core.
pub(super) fn complaints(specimen: &Specimen<'_>, debugged: &Debugged<'_>, lab: &Path) -> Vec<String> {
    let found = [
        crash(specimen, debugged).context("crash"),
        drgn(specimen, debugged, lab).context("drgn with debug information"),
    ];
    found.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect()
}

/// The first release of crash that sees KASLR in kernels from 6.10 on, which lack `module_load_offset`.
const CRASH_SEES_KASLR: [u32; 3] = [8, 0, 6];
/// The first that walks from the stack of an interrupt where the kernel has none for #VC (its commit 8a11aa0).
const CRASH_WALKS_FROM_INTERRUPTS: [u32; 3] = [9, 0, 0];

/// It opens the core with no option, knows the kernel, has its log, and walks the stack from the CPU's own registers.
fn crash(specimen: &Specimen<'_>, debugged: &Debugged<'_>) -> anyhow::Result<()> {
    let version = output(Command::new("crash").arg("--version"))?;
    let version = numbers(version.trim_start().trim_start_matches("crash "));
    let kernel = banner(specimen)?.trim_start_matches("Linux version ");
    if version < CRASH_SEES_KASLR && numbers(kernel) >= [6, 10, 0] {
        eprintln!("lab: crash {version:?} is too old for {kernel:.20}: it is not asked");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let questions = folder.path().join("questions");
    fs::write(&questions, QUESTIONS)?;
    // It takes a path with an `@` for something else.
    let core = folder.path().join("core");
    std::os::unix::fs::symlink(fs::canonicalize(specimen.core)?, &core)?;
    let mut crash = Command::new("timeout");
    crash.args(["300", "crash", "-s", "-i"]).arg(questions).arg(debugged.vmlinux).arg(core);
    let said = output(crash.env("TERM", "dumb").stdin(Stdio::null()))?;
    let value = |name: &str| {
        said.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
    };
    let release = value("RELEASE").context("`sys` tells no release")?;
    ensure!(banner(specimen)?.contains(release), "the release is {release}");
    ensure!(said.contains(specimen.panic), "the log has no '{}'", specimen.panic);
    let (number, registers) = panicked(specimen)?;
    if version < CRASH_WALKS_FROM_INTERRUPTS && was_interrupted(specimen, number) {
        eprintln!("lab: crash {version:?} is too old to walk from an interrupt: its stack is not looked at");
        return Ok(());
    }
    let frames = frames(&said, number);
    let functions = frames.iter().map(|(_, function)| *function).collect::<Vec<_>>();
    ensure!(in_order(debugged.stack, &functions), "the stack is {functions:?}");
    let (rsp, first) = (&registers["rsp"], frames.first().map(|(place, _)| *place));
    ensure!(first == rsp.as_u64(), "the stack begins at {first:x?}, and RSP was {rsp}");
    Ok(())
}

/// The first three numbers of a version, such as 6.12.117+deb13.
fn numbers(version: &str) -> [u32; 3] {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

/// Whether that CPU was in an interrupt when the VMM paused it.
fn was_interrupted(specimen: &Specimen<'_>, cpu: u64) -> bool {
    let cpus = specimen.report["card"]["cpus"].as_array().map(Vec::as_slice).unwrap_or_default();
    let its = cpus.iter().filter(|card| card["number"] == cpu);
    its.filter_map(|card| card["backtrace"].as_array()).flatten().any(|frame| frame["interrupted"] == true)
}

/// Of `bt -a`, the frames of that CPU's task: where each lies and its function, from lines as ` #0 [ffffd0fe4000bb58] panic at
/// ffffffffb37cd21a`.
fn frames(said: &str, cpu: u64) -> Vec<(u64, &str)> {
    let is_task = |line: &&str| line.starts_with("PID: ");
    let is_its = |line: &&str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "CPU:");
        is_task(line) && words.nth(1).and_then(|number| number.parse().ok()) == Some(cpu)
    };
    let lines = said.lines().skip_while(|line| !is_its(line)).skip(1).take_while(|line| !is_task(line));
    lines.filter_map(frame).collect()
}

fn frame(line: &str) -> Option<(u64, &str)> {
    let (place, rest) = line.trim_start().strip_prefix('#')?.split_once('[')?.1.split_once(']')?;
    Some((u64::from_str_radix(place, 16).ok()?, rest.split_whitespace().next()?))
}

/// It finds the thread that crashed, on our registers.
fn drgn(specimen: &Specimen<'_>, debugged: &Debugged<'_>, lab: &Path) -> anyhow::Result<()> {
    let mut python = Command::new(PYTHON);
    python.env("PYTHONPATH", drgn_folder(lab)?).args(["-c", SCRIPT]).arg(specimen.core).arg(debugged.vmlinux);
    let found: Value = serde_json::from_str(&output(&mut python)?)?;
    let (_, registers) = panicked(specimen)?;
    for register in ["rip", "rsp"] {
        let (has, had) = (&found[register], &registers[register]);
        ensure!(has == had, "{register} is {has}, and was {had}");
    }
    let stack = found["stack"].as_array().map(Vec::as_slice).unwrap_or_default();
    let functions = stack.iter().filter_map(Value::as_str).collect::<Vec<_>>();
    // It names functions, not labels in them.
    let wanted = debugged.stack.iter().map(|name| name.replace("_after_hwframe", "")).collect::<Vec<_>>();
    ensure!(in_order(&wanted, &functions), "the stack is {functions:?}");
    Ok(())
}

/// The CPU that panicked, and its registers when the VMM paused it.
fn panicked<'a>(specimen: &'a Specimen<'_>) -> anyhow::Result<(u64, &'a Value)> {
    let number = specimen.report["card"]["panic_cpu"].as_u64().context("the report names no CPU")?;
    let cpu = usize::try_from(number).ok().and_then(|number| specimen.report["cpus"].get(number));
    Ok((number, &cpu.context("the report lacks the CPU")?["registers"]))
}

#[cfg(test)]
mod tests {
    use super::{frames, numbers};

    #[test]
    fn versions_are_numbers() {
        assert_eq!(numbers("6.12.117+deb13-cloud-amd64 (debian"), [6, 12, 117]);
        assert_eq!([numbers("8.0.2"), numbers("9.0")], [[8, 0, 2], [9, 0, 0]]);
    }

    #[test]
    fn frames_of_one_cpu_are_taken_from_all_stacks() {
        let said = "      KERNEL: vmlinux\n        CPUS: 2\n\
             PID: 0        TASK: ffff88dbc124c800  CPU: 1    COMMAND: \"swapper/1\"\n #0 [fffffe000004fe48] idle at ffffffffb2e5\n\
             PID: 1        TASK: ffff88dbc11f9800  CPU: 0    COMMAND: \"init\"\n #0 [ffffd0fe4000bb58] panic at ffffffffb37cd21a\n\
             #10 [ffffd0fe4000bbd8] sysrq_handle_crash at ffffffffb34a8a06\n    RIP: 000000000047b7a0  RSP: 00007ffe7f3aeef8\n\
             PID: 7        TASK: ffff88dbc11f9900  CPU: 2    COMMAND: \"sh\"\n #0 [ffffd0fe40000000] other at ffffffffb37c";
        let want = [(0xffff_d0fe_4000_bb58, "panic"), (0xffff_d0fe_4000_bbd8, "sysrq_handle_crash")];
        assert_eq!(frames(said, 0), want);
        assert!(frames(said, 3).is_empty());
    }
}
