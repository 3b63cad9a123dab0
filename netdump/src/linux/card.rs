//! The crash card: what a person wants to know of a Linux kernel that panicked, on one screen and as JSON. Made of the
//! stopped guest's memory alone, before any bulk of it is read.
//!
//! A guest that lies gets a short card, and costs no more than an honest one. Texts are the guest's own words: they may hold
//! control characters, which the text of the card shows as escapes.

mod render;

use std::collections::HashMap;

use serde::Serialize;

use super::Kernel;
use super::backtrace::Unwinder;
use super::kernel::UtsName;
use super::log::KernelLog;
use super::modules::Modules;
use super::tasks::{Tasks, add_backtraces};
use crate::facts::{
    Frame, GuestFacts, KernelState, RegisterSource, StateRequest, ThreadFacts, ThreadRegisters,
};
use crate::vmcore::{Activity, CpuState, KernelSymbols, PhysicalMemory, Registers};

/// Lines of the log that a card has.
const LOG_LINES: usize = 100;
/// Words of the command line that configure the dump begin so.
const OWN_WORDS: &str = "net.dump.";
/// Letters of `tainted_mask`, bit 0 first (`kernel/panic.c`, `taint_flags`). Bit 0 has one for its absence too.
const TAINTS: [char; 19] =
    ['P', 'F', 'S', 'R', 'M', 'B', 'U', 'D', 'A', 'W', 'C', 'I', 'O', 'E', 'L', 'K', 'X', 'T', 'N'];

/// The card.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CrashCard {
    /// What the kernel said as it panicked, behind "Kernel panic - not syncing"; `None` when it did not.
    pub panic_text: Option<String>,
    /// Its release, such as "6.1.0-56-cloud-amd64".
    pub release: String,
    /// "Linux version ...", with compiler and time of build.
    pub version: Option<String>,
    /// The host's name.
    pub host_name: Option<String>,
    /// When it said the last line of its log, in nanoseconds since its start.
    pub uptime_nanoseconds: Option<u64>,
    /// The CPU that panicked, by the kernel's number.
    pub panic_cpu: Option<u32>,
    /// The task that it ran.
    pub task: Option<TaskName>,
    /// What was wrong before, in the kernel's own letters: "Not tainted", or "Tainted: G W".
    pub taint: Option<String>,
    /// The command line that the kernel was started with.
    pub command_line: Option<String>,
    /// The registers of the CPU that panicked.
    pub registers: Option<Box<Registers>>,
    /// The CPUs, each with its call chain.
    pub cpus: Vec<CpuCard>,
    /// The last lines of the log.
    pub log: Vec<String>,
    /// The modules that were loaded, the newest first.
    pub modules: Vec<String>,
    /// The tasks. In the inspection of a core they are its threads instead.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<ThreadFacts>,
    /// What could not be had, one sentence each.
    pub problems: Vec<String>,
}

/// A CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CpuCard {
    /// The virtual CPU's number.
    pub index: u32,
    /// The kernel's number of it, where its per-CPU data tells.
    pub number: Option<u32>,
    /// What it was doing when the guest was paused.
    pub activity: Activity,
    /// The task that it ran.
    pub task: Option<TaskName>,
    /// Its call chain, innermost first, through what was interrupted to stop it.
    pub backtrace: Vec<Frame>,
}

/// A task, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskName {
    /// Its number.
    pub tid: u32,
    /// The number of its process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Address of its structure.
    pub address: u64,
}

/// A stopped Linux guest, with all that is read of it at once.
#[derive(Debug)]
pub struct Crash<'m> {
    kernel: Kernel<'m>,
    log: Option<KernelLog>,
}

impl CrashCard {
    /// The card of the stopped guest in `memory`; `None` when it is no Linux, or one that has not come as far as to have
    /// VMCOREINFO. `file` are the symbols of the kernel's file, where that is known.
    pub fn of(
        memory: &dyn PhysicalMemory,
        file: Option<&KernelSymbols>,
        request: StateRequest,
    ) -> Option<Self> {
        Some(Crash::find(memory, file)?.card(request))
    }
}

impl<'m> Crash<'m> {
    /// The Linux guest in `memory`.
    pub fn find(memory: &'m dyn PhysicalMemory, file: Option<&KernelSymbols>) -> Option<Self> {
        Kernel::find(memory, file).map(Self::new)
    }

    /// The guest that this kernel ran.
    pub fn new(kernel: Kernel<'m>) -> Self {
        let log = KernelLog::read(kernel.memory(), kernel.info());
        Self { kernel, log }
    }

    /// What a guest of any kind may say of itself.
    pub fn facts(&self) -> GuestFacts {
        let kernel = &self.kernel;
        GuestFacts {
            os: kernel.uts_name(UtsName::System),
            release: Some(kernel.info().os_release().to_owned()),
            version: kernel.banner().or_else(|| kernel.uts_name(UtsName::Version)),
            host_name: kernel.uts_name(UtsName::NodeName),
            panic_text: self.panic_text(),
            environment: kernel.command_line().and_then(|line| own_words(&line)),
        }
    }

    /// The guest's clock when it stopped, in seconds since 1970.
    pub fn clock(&self) -> Option<u64> {
        self.kernel.clock()
    }

    /// All of the log, as `dmesg` shows it.
    pub fn log(&self) -> Option<&KernelLog> {
        self.log.as_ref()
    }

    /// The card.
    pub fn card(&self, request: StateRequest) -> CrashCard {
        let kernel = &self.kernel;
        let facts = self.facts();
        let modules = Modules::read(kernel);
        let no_modules = Modules::default();
        let unwinder = Unwinder::new(kernel, modules.as_ref().unwrap_or(&no_modules));
        let tasks = Tasks::new(kernel);
        let mut problems = self.problems(&unwinder, tasks.is_some());
        let cpus = cpus(kernel, &unwinder, tasks.as_ref());
        let panicked = panicked(kernel, &cpus, request);
        let mut list =
            tasks.as_ref().map_or_else(Vec::new, |tasks| tasks.list(&running(&cpus), &mut problems));
        for task in &mut list {
            add_running(kernel, &cpus, task);
        }
        add_backtraces(&unwinder, request.backtraces, &mut list, &mut problems);
        CrashCard {
            panic_text: facts.panic_text,
            release: facts.release.unwrap_or_default(),
            version: facts.version,
            host_name: facts.host_name,
            uptime_nanoseconds: self
                .log
                .as_ref()
                .and_then(|log| log.records.last())
                .map(|last| last.nanoseconds),
            panic_cpu: kernel.panic_cpu(),
            task: panicked.and_then(|cpu| cpu.task.clone()),
            taint: kernel.taint().map(taint_text),
            command_line: kernel.command_line(),
            registers: panicked.and_then(|cpu| registers(kernel, cpu.index)).cloned().map(Box::new),
            log: self.log.as_ref().map_or_else(Vec::new, |log| log.last_lines(LOG_LINES)),
            modules: modules.iter().flat_map(Modules::names).map(str::to_owned).collect(),
            cpus,
            tasks: list,
            problems,
        }
    }

    fn panic_text(&self) -> Option<String> {
        self.log.as_ref()?.panic_text().map(str::to_owned)
    }

    /// What the kernel lacks that others have.
    fn problems(&self, unwinder: &Unwinder<'_, '_>, has_tasks: bool) -> Vec<String> {
        let kernel = &self.kernel;
        let missing = [
            (
                kernel.has_vmcoreinfo(),
                "the kernel has no VMCOREINFO, as early in its start: all this was found without",
            ),
            (self.log.is_some(), "the kernel's log is not where VMCOREINFO says, or damaged"),
            (kernel.symbols().is_some(), "the kernel's table of symbols was not found: nothing can be named"),
            (unwinder.has_tables(), "the kernel has no ORC tables: call chains are guesses"),
            (
                has_tasks,
                "the kernel has no types (BTF), or they are damaged: its tasks and modules cannot be read",
            ),
        ];
        missing.into_iter().filter(|(has, _)| !has).map(|(_, problem)| problem.to_owned()).collect()
    }
}

impl CrashCard {
    /// The CPU that the kernel says has panicked.
    pub fn panicked(&self) -> Option<&CpuCard> {
        self.panic_cpu.and_then(|panicked| self.cpus.iter().find(|cpu| cpu.number == Some(panicked)))
    }

    /// The same as what a kernel of any kind was doing, which takes the tasks along; `log` is all of it.
    pub fn take_state(&mut self, log: Option<&KernelLog>) -> KernelState {
        for cpu in &self.cpus {
            let own = self
                .tasks
                .iter_mut()
                .find(|task| task.registers_from == Some(RegisterSource::VirtualCpu(cpu.index)));
            if let Some(task) = own {
                task.backtrace.clone_from(&cpu.backtrace);
            }
        }
        KernelState {
            message_buffer: log.map(ToString::to_string),
            crashed_thread: self.panic_cpu.and(self.task.as_ref()).map(|task| task.tid),
            threads: std::mem::take(&mut self.tasks),
            problems: std::mem::take(&mut self.problems),
        }
    }
}

fn cpus(kernel: &Kernel<'_>, unwinder: &Unwinder<'_, '_>, tasks: Option<&Tasks<'_, '_>>) -> Vec<CpuCard> {
    let card = |cpu: &CpuState| {
        let registers = cpu.registers.as_deref().filter(|_| cpu.activity != Activity::NotStarted);
        let number = registers.and_then(|registers| kernel.cpu_number(registers));
        let current = number.and_then(|number| kernel.current_task(number));
        let task = current.and_then(|address| tasks?.task(address, None, number));
        CpuCard {
            index: cpu.index,
            number,
            activity: cpu.activity,
            task: task.map(|task| TaskName {
                tid: task.tid,
                pid: task.pid,
                name: task.name,
                address: task.address,
            }),
            backtrace: registers.map_or_else(Vec::new, |registers| unwinder.of_cpu(registers)),
        }
    };
    kernel.memory().physical().cpus().iter().map(card).collect()
}

/// The CPU that the kernel says has panicked, else the one on which it showed.
fn panicked<'c>(kernel: &Kernel<'_>, cpus: &'c [CpuCard], request: StateRequest) -> Option<&'c CpuCard> {
    let by_kernel =
        kernel.panic_cpu().and_then(|panicked| cpus.iter().find(|cpu| cpu.number == Some(panicked)));
    by_kernel.or_else(|| cpus.iter().find(|cpu| Some(cpu.index) == request.panic_cpu))
}

fn running(cpus: &[CpuCard]) -> HashMap<u64, u32> {
    cpus.iter().filter_map(|cpu| Some((cpu.task.as_ref()?.address, cpu.number?))).collect()
}

/// The registers of a task that is on a CPU are the CPU's.
fn add_running(kernel: &Kernel<'_>, cpus: &[CpuCard], task: &mut ThreadFacts) {
    let Some(cpu) = cpus.iter().find(|cpu| task.cpu.is_some() && cpu.number == task.cpu) else { return };
    let Some(r) = registers(kernel, cpu.index) else { return };
    task.registers_from = Some(RegisterSource::VirtualCpu(cpu.index));
    task.registers = Some(ThreadRegisters::from(r));
}

fn registers<'m>(kernel: &Kernel<'m>, index: u32) -> Option<&'m Registers> {
    kernel.memory().physical().cpus().iter().find(|cpu| cpu.index == index)?.registers.as_deref()
}

/// `net.dump.*=` words of a command line, in its order, if it has any.
fn own_words(command_line: &str) -> Option<Vec<(String, String)>> {
    let words = command_line.split_ascii_whitespace().filter(|word| word.starts_with(OWN_WORDS));
    let pair = |word: &str| word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let own: Vec<_> = words.filter_map(pair).collect();
    (!own.is_empty()).then_some(own)
}

/// As the kernel prints it, without the letters of what is not.
fn taint_text(mask: u64) -> String {
    if mask == 0 {
        return "Not tainted".to_owned();
    }
    let set = |(bit, letter): (usize, &char)| (mask >> bit & 1 == 1).then_some(*letter);
    let letters: String = TAINTS.iter().enumerate().filter_map(set).collect();
    let free = if mask & 1 == 0 { "G" } else { "" };
    format!("Tainted: {free}{letters}")
}

#[cfg(test)]
mod tests;
