//! A stopped Linux kernel with what is needed to find things in it: VMCOREINFO, its memory, its symbols, its types.

use std::collections::HashMap;
use std::sync::Arc;

use super::btf::Btf;
use super::early::{self, EarlyKernel};
use super::kallsyms::{Kallsyms, Place};
use super::{LinuxMemory, Vmcoreinfo};
use crate::vmcore::VirtualMemory;
use crate::vmcore::cpu::MSR_KERNEL_GS_BASE;
use crate::vmcore::{KernelSymbols, PhysicalMemory, Registers};

/// The symbols that are looked up anywhere here, in one pass over the kernel's table.
const VARIABLES: [&str; 25] = [
    "__per_cpu_offset",
    "__start_BTF",
    "__start_orc_header",
    "__start_orc_unwind",
    "__start_orc_unwind_ip",
    "__stop_BTF",
    "__stop_orc_unwind_ip",
    "_einittext",
    "_etext",
    "_sinittext",
    "_stext",
    "arch_rethook_trampoline",
    "current_task",
    "init_task",
    "linux_banner",
    "modules",
    "nr_cpu_ids",
    "panic_cpu",
    "pcpu_hot",
    "ret_from_fork_asm",
    "return_to_handler",
    "saved_command_line",
    "shadow_timekeeper",
    "tainted_mask",
    "tk_core",
];
/// Most CPUs (`NR_CPUS` of distributions is 8192).
const MAX_CPUS: u32 = 8192;
/// Longest of the kernel's texts.
const MAX_TEXT: usize = 4096;
/// Each of the texts in `struct new_utsname` has this many bytes.
const UTS_LEN: u64 = 65;

/// The kernel.
#[derive(Debug)]
pub struct Kernel<'m> {
    info: Vmcoreinfo,
    memory: LinuxMemory<'m>,
    symbols: Option<Kallsyms>,
    variables: HashMap<&'static str, u64>,
    types: Option<Btf>,
}

/// One of the texts that `uname` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UtsName {
    /// The operating system, "Linux".
    System = 0,
    /// The host's name.
    NodeName = 1,
    /// The kernel's release.
    Release = 2,
    /// Number and time of its build.
    Version = 3,
}

impl<'m> Kernel<'m> {
    /// The Linux kernel in `memory`, if there is one: through VMCOREINFO, or, where it has not come that far, through what its
    /// image holds. `file` are the symbols of the kernel's file, where it is known: they make finding it quicker and surer.
    pub fn find(memory: &'m dyn PhysicalMemory, file: Option<&KernelSymbols>) -> Option<Self> {
        match Vmcoreinfo::locate(memory, file) {
            Some(info) => Self::of(memory, info),
            None => Self::early(memory),
        }
    }

    /// Whether there is one, for less than [`find`](Self::find) costs.
    pub fn is_in(memory: &dyn PhysicalMemory, file: Option<&KernelSymbols>) -> bool {
        Vmcoreinfo::locate(memory, file).is_some() || early::find(memory).is_some()
    }

    /// A kernel that has no VMCOREINFO yet.
    pub fn early(memory: &'m dyn PhysicalMemory) -> Option<Self> {
        let EarlyKernel { info, symbols, .. } = Arc::unwrap_or_clone(early::find(memory)?);
        Some(Self::new(LinuxMemory::new(memory, &info)?, info, Some(symbols)))
    }

    /// Whether it had come as far in its start as to have VMCOREINFO.
    pub fn has_vmcoreinfo(&self) -> bool {
        !self.info.is_put_together()
    }

    /// The kernel that `info` is of.
    pub fn of(memory: &'m dyn PhysicalMemory, info: Vmcoreinfo) -> Option<Self> {
        let memory = LinuxMemory::new(memory, &info)?;
        let symbols = Kallsyms::from_memory(&memory, &info);
        Some(Self::new(memory, info, symbols))
    }

    pub(super) fn new(memory: LinuxMemory<'m>, info: Vmcoreinfo, symbols: Option<Kallsyms>) -> Self {
        let found = symbols.as_ref().map(|symbols| symbols.addresses(VARIABLES));
        let named = found.into_iter().flat_map(|found| VARIABLES.into_iter().zip(found));
        let variables = named.filter_map(|(name, address)| Some((name, address?))).collect();
        let mut kernel = Self { info, memory, symbols, variables, types: None };
        kernel.types = kernel.types_between("__start_BTF", "__stop_BTF");
        kernel
    }

    /// What the kernel says to tools that read its dumps.
    pub fn info(&self) -> &Vmcoreinfo {
        &self.info
    }

    /// Its virtual memory.
    pub fn memory(&self) -> &LinuxMemory<'m> {
        &self.memory
    }

    /// Its symbols, where they were found.
    pub fn symbols(&self) -> Option<&Kallsyms> {
        self.symbols.as_ref()
    }

    /// Its types, where it has them.
    pub fn types(&self) -> Option<&Btf> {
        self.types.as_ref()
    }

    /// Address of a variable.
    pub(super) fn variable(&self, name: &str) -> Option<u64> {
        debug_assert!(VARIABLES.contains(&name), "{name} is not looked up");
        self.variables.get(name).copied().or_else(|| self.info.symbol(name))
    }

    /// The function at an address of its image.
    pub(super) fn function_at(&self, address: u64) -> Option<Place> {
        self.symbols.as_ref()?.function_at(address)
    }

    /// Whether this is code of its image, of its start too.
    pub(super) fn is_code(&self, address: u64) -> bool {
        let between = |start, end| {
            let bounds = self.variable(start).zip(self.variable(end));
            bounds.is_some_and(|(start, end)| (start..end).contains(&address))
        };
        between("_stext", "_etext") || between("_sinittext", "_einittext")
    }

    /// One of the names that `uname` shows.
    pub fn uts_name(&self, name: UtsName) -> Option<String> {
        let texts = self.info.symbol("init_uts_ns")?.checked_add(self.info.offset("uts_namespace.name")?)?;
        let address = texts.checked_add(UTS_LEN * name as u64)?;
        self.text(address, usize::try_from(UTS_LEN).ok()?)
    }

    /// "Linux version ...", with compiler and time of build.
    pub fn banner(&self) -> Option<String> {
        self.text(self.variable("linux_banner")?, MAX_TEXT)
    }

    /// The command line that the kernel was started with.
    pub fn command_line(&self) -> Option<String> {
        self.text(self.memory.read_u64(self.variable("saved_command_line")?)?, MAX_TEXT)
    }

    /// The CPU that panicked, by the kernel's number; `None` when none did.
    pub fn panic_cpu(&self) -> Option<u32> {
        self.memory.read_u32(self.variable("panic_cpu")?).filter(|&cpu| cpu < MAX_CPUS)
    }

    /// `tainted_mask`.
    pub fn taint(&self) -> Option<u64> {
        self.memory.read_u64(self.variable("tainted_mask")?)
    }

    /// Its clock when it stopped, in seconds since 1970.
    pub fn clock(&self) -> Option<u64> {
        // A copy of its own since before 6.1; since 6.13 it lies behind the original.
        let copy = self.variable("shadow_timekeeper");
        let [keeper, core] = self.types()?.structures(["timekeeper", "tk_data"]);
        let keeper_at = || self.variable("tk_core")?.checked_add(core?.offset("timekeeper")?);
        let seconds = keeper?.offset("xtime_sec")?;
        self.memory.read_u64(copy.or_else(keeper_at)?.checked_add(seconds)?)
    }

    /// The kernel's number of the CPU that has these registers: by its GS base, which in kernel mode is that of its
    /// per-CPU data.
    pub fn cpu_number(&self, registers: &Registers) -> Option<u32> {
        let in_user_mode = registers.cs.selector & 3 == 3;
        let saved = registers.msr(MSR_KERNEL_GS_BASE);
        let bases = if in_user_mode { [saved, None] } else { [Some(registers.gs.base), saved] };
        let count =
            self.variable("nr_cpu_ids").and_then(|count| self.memory.read_u32(count)).unwrap_or(MAX_CPUS);
        let areas: Vec<u64> = (0..count.min(MAX_CPUS)).map_while(|cpu| self.cpu_area(cpu)).collect();
        let number = |base: u64| areas.iter().position(|&area| area == base && base != 0);
        u32::try_from(bases.into_iter().flatten().find_map(number)?).ok()
    }

    /// Address of the structure of the task that a CPU runs, by the kernel's number of the CPU.
    pub fn current_task(&self, cpu: u32) -> Option<u64> {
        // From 6.2 to 6.14 it is the first field of a structure of what is used most.
        let variable = self.variable("current_task").or_else(|| self.variable("pcpu_hot"))?;
        let task = self.memory.read_u64(self.cpu_area(cpu)?.wrapping_add(variable))?;
        (task != 0).then_some(task)
    }

    /// What is added to the address of a per-CPU variable for this CPU's.
    fn cpu_area(&self, cpu: u32) -> Option<u64> {
        let table = self.variable("__per_cpu_offset")?;
        self.memory.read_u64(table.checked_add(8 * u64::from(cpu))?)
    }

    fn text(&self, address: u64, max: usize) -> Option<String> {
        let bytes = self.memory.read_cut_string(address, max)?;
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        (!text.is_empty()).then_some(text)
    }

    fn types_between(&self, start: &str, end: &str) -> Option<Btf> {
        Btf::read(&self.memory, self.variable(start)?, self.variable(end)?)
    }
}
