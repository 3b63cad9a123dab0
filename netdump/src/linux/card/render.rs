//! The text of a [`CrashCard`] for a terminal.

use std::fmt;
use std::time::Duration;

use super::{CpuCard, CrashCard, TaskName};
use crate::facts::{Frame, ThreadFacts};
use crate::vmcore::inspect::{counted, labelled, line, plain, rest};
use crate::vmcore::{Activity, Registers};

/// Lines of the log that are shown; JSON has more.
const LOG_LINES: usize = 40;
/// CPUs that are shown with their call chains.
const MAX_CPUS: usize = 64;

impl fmt::Display for CrashCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let silent = || "(the kernel did not say that it panicked)".to_owned();
        line(f, "Panic", self.panic_text.as_deref().map_or_else(silent, plain))?;
        let kernel = self.version.as_deref().unwrap_or(&self.release);
        line(f, "Kernel", plain(kernel))?;
        self.state(f)?;
        self.registers(f)?;
        self.call_chains(f)?;
        self.tasks(f)?;
        self.problems.iter().try_for_each(|problem| line(f, "Problem", plain(problem)))?;
        self.log(f)
    }
}

impl CrashCard {
    /// What the inspection of a core does not show itself.
    pub(crate) fn summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state(f)?;
        self.call_chains(f)
    }

    fn state(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let up = self.uptime_nanoseconds.map(|nanoseconds| Duration::from_nanos(nanoseconds).as_secs_f64());
        let up = up.map(|seconds| format!("up {seconds:.3} s"));
        let host = self.host_name.as_ref().map(|name| format!("host \"{}\"", plain(name)));
        let state: Vec<String> = up.into_iter().chain(host).chain(self.taint.clone()).collect();
        labelled(f, "State", (!state.is_empty()).then(|| state.join(", ")).into_iter())?;
        let cpu = self.panic_cpu.map(|cpu| format!("on CPU {cpu}"));
        let task = self.task.as_ref().map(|task| format!("in {}", task_text(task)));
        let place: Vec<String> = cpu.into_iter().chain(task).collect();
        labelled(f, "Crashed", (!place.is_empty()).then(|| place.join(", ")).into_iter())?;
        labelled(f, "Command", self.command_line.as_deref().map(plain).into_iter())
    }

    fn registers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(registers) = &self.registers else { return Ok(()) };
        shown(registers).chunks(4).try_for_each(|row| {
            let cells: Vec<String> =
                row.iter().map(|(name, value)| format!("{name:>6} {value:016x}")).collect();
            line(f, "", cells.join(" "))
        })
    }

    fn call_chains(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let panicked = self.panicked().map(|cpu| cpu.index);
        let others = self.cpus.iter().filter(|cpu| Some(cpu.index) != panicked);
        for cpu in self.panicked().into_iter().chain(others).take(MAX_CPUS) {
            cpu_text(f, cpu, Some(cpu.index) == panicked)?;
        }
        rest(f, self.cpus.len(), MAX_CPUS, "CPU")?;
        labelled(f, "Modules", (!self.modules.is_empty()).then(|| plain(&self.modules.join(" "))).into_iter())
    }

    fn tasks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tasks.is_empty() {
            return Ok(());
        }
        let count = |is: fn(&ThreadFacts) -> bool| self.tasks.iter().filter(|task| is(task)).count();
        let (running, waiting) = (count(|task| task.cpu.is_some()), count(|task| task.state == Some('D')));
        let all = self.tasks.len();
        line(f, "Tasks", format!("{all}, {running} on a CPU, {waiting} in uninterruptible sleep"))
    }

    fn log(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.log.len().min(LOG_LINES);
        if shown == 0 {
            return Ok(());
        }
        line(f, "Log", format!("the last {}", counted(shown, "line")))?;
        self.log[self.log.len() - shown..].iter().try_for_each(|text| line(f, "", plain(text)))
    }
}

fn cpu_text(f: &mut fmt::Formatter<'_>, cpu: &CpuCard, panicked: bool) -> fmt::Result {
    let other = cpu.number.filter(|&number| number != cpu.index);
    let vcpu = other.map(|_| format!(" (vCPU {})", cpu.index)).unwrap_or_default();
    let task = cpu.task.as_ref().map(|task| format!(", {}", task_text(task))).unwrap_or_default();
    let doing = match cpu.activity {
        Activity::Running => "",
        Activity::Halted => ", halted",
        Activity::NotStarted => ", not started",
        Activity::NotStopped => ", did not stop",
    };
    let mark = if panicked { ", PANICKED" } else { "" };
    line(f, "CPU", format!("{}{vcpu}{task}{doing}{mark}", cpu.number.unwrap_or(cpu.index)))?;
    cpu.backtrace.iter().try_for_each(|frame| line(f, "", call(frame)))
}

fn task_text(task: &TaskName) -> String {
    let process = if task.pid == task.tid { String::new() } else { format!(" of process {}", task.pid) };
    format!("task {} \"{}\"{process}", task.tid, plain(&task.name))
}

fn call(frame: &Frame) -> String {
    plain(&frame.to_string())
}

fn shown(r: &Registers) -> Vec<(&'static str, u64)> {
    [&r.named()[..], &[("cr2", r.cr2), ("cr3", r.cr3)]].concat()
}
