//! The processes and threads of a stopped kernel, and where the registers of each are: by the list `allproc`, each
//! process's list of threads, and the kernel's own constants for the offsets in both structures (`proc_off_*`,
//! `thread_off_*`), which it has so that debuggers need no type information.
//!
//! Registers are chosen as kgdb does: the thread that began the dump has them in `dumppcb`, one that was on a CPU in
//! `stoppcbs` if that CPU's bit in `stopped_cpus` is set, any other in its `td_pcb`. A kernel that never came to save
//! them may have been seen from outside: then the virtual CPU's registers count.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use super::backtrace::backtrace;
use super::pcb::CORE_LEN;
use super::pcpu::{Pcpu, Pcpus};
use crate::facts::{Backtraces, KernelState, RegisterSource, StateRequest, ThreadFacts, ThreadRegisters};
use crate::vmcore::CpuState;
use crate::vmcore::VirtualMemory;
use crate::vmcore::kernel_memory::KernelMemory;

/// Most processes and most threads that are followed. FreeBSD itself ends at 99,999 processes, far beyond what fits
/// into a machine whose dump is read by hand.
const MAX_PROCESSES: usize = 1 << 16;
const MAX_THREADS: usize = 1 << 16;
/// Most frames in all call chains together, and most problems that are told: a hostile core may have any number.
const MAX_FRAMES: usize = 1 << 17;
const MAX_PROBLEMS: usize = 16;
/// `MAXCOMLEN`, with its NUL, of process and thread names.
const NAME_LEN: usize = 20;
/// No structure is that long; a greater offset is none.
const MAX_OFFSET: u32 = 1 << 16;
/// No kernel has more CPUs (`MAXCPU` is 256, or 1024 in later ones).
const MAX_CPUS: u32 = 1 << 14;
const PCB_SIZES: RangeInclusive<u32> = 64..=1 << 16;

/// All threads of the kernel into `state`, with the call chains that are asked for.
pub fn gather(kernel: &KernelMemory<'_>, request: StateRequest, state: &mut KernelState) {
    let Some(offsets) = Offsets::read(kernel) else {
        state.problems.push("the kernel has no constants for the places in its process list".to_owned());
        return;
    };
    let contexts = Contexts::read(kernel);
    let processes = processes(kernel, &offsets, &mut state.problems);
    let mut seen = HashSet::new();
    // New processes are put in front.
    for process in processes.into_iter().rev() {
        threads_of(kernel, &offsets, &contexts, process, &mut seen, state);
    }
    state.crashed_thread = crashed(&contexts, request, &state.threads);
    let crashed = state.crashed_thread;
    let (mut frames, mut left_out) = (0, 0);
    for thread in &mut state.threads {
        let wanted = match request.backtraces {
            Backtraces::All => true,
            Backtraces::Thread(tid) => thread.tid == tid || crashed == Some(thread.tid),
            Backtraces::Crashed => crashed == Some(thread.tid),
        };
        if let Some(registers) = thread.registers.as_ref().filter(|_| wanted) {
            if frames >= MAX_FRAMES && crashed != Some(thread.tid) {
                left_out += 1;
                continue;
            }
            thread.backtrace = backtrace(kernel, registers);
            frames += thread.backtrace.len();
        }
    }
    if left_out > 0 {
        state.problems.push(format!("the call chains of {left_out} threads are left out: they are too long"));
    }
    let more = state.problems.len().saturating_sub(MAX_PROBLEMS);
    if more > 0 {
        state.problems.truncate(MAX_PROBLEMS);
        state.problems.push(format!("and {more} more problems in these lists"));
    }
}

/// The thread that began the dump; else the one that the CPU that panicked was running.
fn crashed(contexts: &Contexts, request: StateRequest, threads: &[ThreadFacts]) -> Option<u32> {
    let find = |is: &dyn Fn(&ThreadFacts) -> bool| threads.iter().find(|thread| is(thread)).map(|t| t.tid);
    let dumped = contexts.dumped_thread.and_then(|tid| find(&|thread| thread.tid == tid));
    dumped.or_else(|| {
        let cpu = contexts.seen.iter().find(|cpu| Some(cpu.index) == request.panic_cpu)?;
        let current = cpu.thread.and_then(|address| find(&|thread| thread.address == address));
        current.or_else(|| find(&|thread| thread.cpu == Some(cpu.number)))
    })
}

/// Where the fields lie in `struct proc` and `struct thread`.
struct Offsets {
    next_process: u64,
    pid: u64,
    command: u64,
    first_thread: u64,
    next_thread: u64,
    tid: u64,
    name: u64,
    cpu: u64,
    pcb: u64,
}

impl Offsets {
    fn read(kernel: &KernelMemory<'_>) -> Option<Self> {
        let offset = |symbol| kernel.int(symbol).filter(|&offset| offset <= MAX_OFFSET).map(u64::from);
        Some(Self {
            next_process: offset("proc_off_p_list")?,
            pid: offset("proc_off_p_pid")?,
            command: offset("proc_off_p_comm")?,
            first_thread: offset("proc_off_p_threads")?,
            next_thread: offset("thread_off_td_plist")?,
            tid: offset("thread_off_td_tid")?,
            name: offset("thread_off_td_name")?,
            cpu: offset("thread_off_td_oncpu")?,
            pcb: offset("thread_off_td_pcb")?,
        })
    }
}

/// Addresses of the processes in the order of the list, those that have ended first.
fn processes(kernel: &KernelMemory<'_>, offsets: &Offsets, problems: &mut Vec<String>) -> Vec<u64> {
    let Some(first) = kernel.pointer("allproc") else {
        problems.push("the kernel's list of processes cannot be read".to_owned());
        return Vec::new();
    };
    let list = List { what: "processes", next: offsets.next_process, most: MAX_PROCESSES };
    let mut seen = HashSet::new();
    let alive = list.follow(kernel, first, &mut seen, problems);
    // Kernels before FreeBSD 13 keep processes that have ended in a list of their own.
    let ended = kernel.pointer("zombproc").map(|first| list.follow(kernel, first, &mut seen, problems));
    ended.into_iter().flatten().chain(alive).collect()
}

/// A list whose elements point at the next.
struct List {
    what: &'static str,
    next: u64,
    most: usize,
}

impl List {
    /// Addresses of the elements from `first` on. `seen` holds those of all lists that may share none.
    fn follow(
        &self,
        kernel: &KernelMemory<'_>,
        first: u64,
        seen: &mut HashSet<u64>,
        problems: &mut Vec<String>,
    ) -> Vec<u64> {
        let what = self.what;
        let mut elements = Vec::new();
        let mut at = first;
        while at != 0 {
            if seen.len() >= self.most {
                problems.push(format!("the list of {what} goes on behind {} elements", self.most));
                break;
            }
            if !seen.insert(at) {
                problems.push(format!("the list of {what} comes back to {at:#x}"));
                break;
            }
            let Some(next) = at.checked_add(self.next).and_then(|address| kernel.read_u64(address)) else {
                problems.push(format!("the list of {what} cannot be followed at {at:#x}"));
                break;
            };
            elements.push(at);
            at = next;
        }
        elements
    }
}

fn threads_of(
    kernel: &KernelMemory<'_>,
    offsets: &Offsets,
    contexts: &Contexts,
    process: u64,
    seen: &mut HashSet<u64>,
    state: &mut KernelState,
) {
    let field = |address: u64, offset: u64| address.checked_add(offset);
    let name = |address: Option<u64>| {
        let bytes = kernel.read_cut_string(address?, NAME_LEN)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let pid = field(process, offsets.pid).and_then(|address| kernel.read_u32(address));
    let first = field(process, offsets.first_thread).and_then(|address| kernel.read_u64(address));
    let (Some(pid), Some(first)) = (pid, first) else {
        state.problems.push(format!("the process at {process:#x} cannot be read"));
        return;
    };
    let process_name = name(field(process, offsets.command)).unwrap_or_default();
    let list = List { what: "threads", next: offsets.next_thread, most: MAX_THREADS };
    for address in list.follow(kernel, first, seen, &mut state.problems) {
        let Some(tid) = field(address, offsets.tid).and_then(|address| kernel.read_u32(address)) else {
            continue;
        };
        let cpu = field(address, offsets.cpu)
            .and_then(|address| kernel.read_u32(address))
            .filter(|&cpu| cpu < MAX_CPUS);
        let own = field(address, offsets.pcb).and_then(|address| kernel.read_u64(address));
        let found = contexts.registers(kernel, tid, cpu, own);
        state.threads.push(ThreadFacts {
            tid,
            pid,
            process: process_name.clone(),
            name: name(field(address, offsets.name)).unwrap_or_default(),
            cpu,
            address,
            state: None,
            registers_from: found.map(|(source, _)| source),
            registers: found.map(|(_, registers)| registers),
            backtrace: Vec::new(),
        });
    }
}

/// Where the kernel saved registers when it stopped.
struct Contexts {
    dumped_thread: Option<u32>,
    dump_pcb: Option<u64>,
    stopped: Option<StoppedCpus>,
    seen: Vec<SeenCpu>,
}

/// A virtual CPU whose registers are known from outside.
struct SeenCpu {
    index: u32,
    /// The kernel's number of it.
    number: u32,
    /// Address of the thread that it runs, where its per-CPU data tells.
    thread: Option<u64>,
    /// `None` when they are not the kernel's any more: a triple fault may have reset the CPU.
    registers: Option<ThreadRegisters>,
}

/// `stoppcbs`: the first of `count` elements of `stride` bytes.
struct StoppedCpus {
    first: u64,
    stride: u64,
    count: u32,
    /// `stopped_cpus` and its length in bytes; kernels of symbol lists may lack it, then any saved registers count.
    set: Option<(u64, u64)>,
}

impl Contexts {
    fn read(kernel: &KernelMemory<'_>) -> Self {
        Self {
            dumped_thread: kernel.int("dumptid").filter(|&tid| tid != 0),
            dump_pcb: kernel.symbols().address("dumppcb"),
            stopped: StoppedCpus::read(kernel),
            seen: seen_cpus(kernel),
        }
    }

    fn registers(
        &self,
        kernel: &KernelMemory<'_>,
        tid: u32,
        cpu: Option<u32>,
        own: Option<u64>,
    ) -> Option<(RegisterSource, ThreadRegisters)> {
        let own = |source| Some((source, pcb(kernel, own?)?));
        if self.dumped_thread == Some(tid)
            && let Some(saved) = self.dump_pcb.and_then(|address| pcb(kernel, address))
        {
            return Some((RegisterSource::DumpContext, saved));
        }
        let Some(cpu) = cpu else { return own(RegisterSource::Switched) };
        let stopped = || {
            let saved = pcb(kernel, self.stopped.as_ref()?.pcb(kernel, cpu)?)?;
            Some((RegisterSource::StoppedCpu(cpu), saved))
        };
        let seen = || {
            let seen = self.seen.iter().find(|seen| seen.number == cpu)?;
            Some((RegisterSource::VirtualCpu(seen.index), seen.registers?))
        };
        stopped().or_else(seen).or_else(|| own(RegisterSource::Stale))
    }
}

impl StoppedCpus {
    /// An array, or since FreeBSD 14 a pointer to one with an element for each CPU: the symbol's size tells.
    fn read(kernel: &KernelMemory<'_>) -> Option<Self> {
        let symbols = kernel.symbols();
        let (address, size) = (symbols.address("stoppcbs")?, symbols.size("stoppcbs")?);
        let stride = kernel.int("pcb_size").filter(|size| PCB_SIZES.contains(size))?;
        let stride = u64::from(stride);
        let (first, count) = if size == 8 {
            (kernel.read_u64(address).filter(|&array| array != 0)?, MAX_CPUS)
        } else {
            (address, u32::try_from(size / stride).map_or(MAX_CPUS, |count| count.min(MAX_CPUS)))
        };
        let set = symbols.address("stopped_cpus").zip(symbols.size("stopped_cpus"));
        Some(Self { first, stride, count, set })
    }

    fn pcb(&self, kernel: &KernelMemory<'_>, cpu: u32) -> Option<u64> {
        let inside = cpu < self.count && self.has_stopped(kernel, cpu);
        inside.then(|| self.first.checked_add(u64::from(cpu) * self.stride)).flatten()
    }

    fn has_stopped(&self, kernel: &KernelMemory<'_>, cpu: u32) -> bool {
        let Some((set, len)) = self.set else { return true };
        // A bit for each CPU in little-endian words.
        let (byte, bit) = (u64::from(cpu / 8), cpu % 8);
        let mut bits = [0];
        let read = byte < len && set.checked_add(byte).and_then(|at| kernel.read(at, &mut bits)).is_some();
        read && bits[0] >> bit & 1 == 1
    }
}

/// The registers in the `struct pcb` at `address`; `None` when nobody saved any there.
fn pcb(kernel: &KernelMemory<'_>, address: u64) -> Option<ThreadRegisters> {
    let mut bytes = [0; CORE_LEN];
    kernel.read(address, &mut bytes)?;
    let (words, _) = bytes.as_chunks::<8>();
    let [r15, r14, r13, r12, rbp, rsp, rbx, rip] = std::array::from_fn(|i| u64::from_le_bytes(words[i]));
    let registers = ThreadRegisters { rip, rsp, rbp, rbx, r12, r13, r14, r15 };
    (registers != ThreadRegisters::default()).then_some(registers)
}

/// The virtual CPUs with the kernel's own numbers, which its per-CPU data tells. Where it does not, the numbers are
/// taken to be the same; the registers of a CPU that the kernel's table of that data lacks are no thread's.
fn seen_cpus(kernel: &KernelMemory<'_>) -> Vec<SeenCpu> {
    let cpus = kernel.physical().cpus();
    if cpus.is_empty() {
        return Vec::new();
    }
    let pcpus = Pcpus::read(kernel);
    let seen = |cpu: &CpuState| {
        let r = cpu.registers.as_deref()?;
        let own = pcpus.of(kernel, r);
        let registers = ThreadRegisters::from(r);
        let number = own.and_then(|own| u32::try_from(own.cpu).ok()).unwrap_or(cpu.index);
        let thread = own.and_then(|own: Pcpu| own.current_thread(kernel));
        let registers = (own.is_some() || pcpus.max_cpus().is_none()).then_some(registers);
        Some(SeenCpu { index: cpu.index, number, thread, registers })
    };
    cpus.iter().filter_map(seen).collect()
}
