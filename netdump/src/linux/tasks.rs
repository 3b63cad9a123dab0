//! The tasks of a stopped kernel, by the kernel's own types: processes through `init_task`'s list, the threads of each
//! through the list that its signals share (`include/linux/sched.h`, `include/linux/sched/signal.h`).

use std::collections::{HashMap, HashSet};

use super::backtrace::Unwinder;
use super::btf::Structure;
use super::kernel::Kernel;
use crate::facts::{Backtraces, RegisterSource, ThreadFacts, ThreadRegisters};
use crate::vmcore::VirtualMemory;

/// Most tasks that are followed; what a list has beyond is not told.
const MAX_TASKS: usize = 4096;
/// Most frames in the call chains of all tasks.
const MAX_FRAMES: usize = 1 << 15;
/// `TASK_COMM_LEN`.
const NAME_LEN: usize = 16;
/// What `__switch_to_asm` leaves at a task's saved stack pointer, `struct inactive_task_frame`: r15, r14, r13, r12, rbx,
/// rbp and the return address.
const SWITCH_FRAME_LEN: usize = 56;
/// Letters of states by their bits (`fs/proc/array.c`, `task_state_array`).
const STATES: [(u64, char); 7] =
    [(1, 'S'), (2, 'D'), (4, 'T'), (8, 't'), (0x10, 'X'), (0x20, 'Z'), (0x40, 'P')];
/// `TASK_NOLOAD` beside `TASK_UNINTERRUPTIBLE`: a kernel thread that waits for work (`TASK_IDLE`).
const IDLE: u64 = 0x402;

/// Where the fields lie in `struct task_struct`.
#[derive(Debug)]
pub(super) struct Tasks<'k, 'm> {
    kernel: &'k Kernel<'m>,
    tasks: u64,
    pid: u64,
    process: u64,
    name: u64,
    state: Option<(u64, u64)>,
    exit_state: Option<u64>,
    stack_pointer: Option<u64>,
    threads: Option<ThreadOffsets>,
}

/// `task.signal`, `task.thread_node` and `signal.thread_head`.
#[derive(Debug)]
struct ThreadOffsets {
    signal: u64,
    node: u64,
    head: u64,
}

impl<'k, 'm> Tasks<'k, 'm> {
    /// `None` where the kernel has no types, or not these.
    pub(super) fn new(kernel: &'k Kernel<'m>) -> Option<Self> {
        let [task, signal] = kernel.types()?.structures(["task_struct", "signal_struct"]);
        let task: Structure<'_> = task?;
        let state = task.field("__state").or_else(|| task.field("state"));
        let threads = || {
            Some(ThreadOffsets {
                signal: task.offset("signal")?,
                node: task.offset("thread_node")?,
                head: signal?.offset("thread_head")?,
            })
        };
        Some(Self {
            kernel,
            tasks: task.offset("tasks")?,
            pid: task.offset("pid")?,
            process: task.offset("tgid")?,
            name: task.offset("comm")?,
            state: state.map(|field| (field.offset, field.size)),
            exit_state: task.offset("exit_state"),
            stack_pointer: task.offset("thread.sp"),
            threads: threads(),
        })
    }

    /// All tasks but the CPUs' idle ones, in the order in which they began. `running` has the tasks that are on a CPU, by
    /// the kernel's number of it.
    pub(super) fn list(&self, running: &HashMap<u64, u32>, problems: &mut Vec<String>) -> Vec<ThreadFacts> {
        let Some(init) = self.kernel.variable("init_task") else { return Vec::new() };
        let mut seen = HashSet::new();
        let mut list = Vec::new();
        let Some(head) = init.checked_add(self.tasks) else { return list };
        let processes = Ring { kernel: self.kernel, head, node: self.tasks, what: "processes" };
        for process in processes.follow(&mut seen, problems) {
            let name = self.task_name(process);
            let threads = self.threads_of(process, &mut seen, problems);
            for task in std::iter::once(process).chain(threads.into_iter().filter(|&task| task != process)) {
                list.extend(self.task(task, name.as_deref(), running.get(&task).copied()));
            }
        }
        if list.len() >= MAX_TASKS {
            problems.push(format!("the kernel has more than {MAX_TASKS} tasks: these are the first"));
        }
        list
    }

    fn threads_of(&self, process: u64, seen: &mut HashSet<u64>, problems: &mut Vec<String>) -> Vec<u64> {
        let head = || {
            let offsets = self.threads.as_ref()?;
            let signal = self.kernel.memory().read_u64(process.checked_add(offsets.signal)?)?;
            Some((signal.checked_add(offsets.head)?, offsets.node))
        };
        // A process that has ended has no signals any more.
        let Some((head, node)) = head().filter(|&(head, _)| head >> 63 == 1) else { return Vec::new() };
        seen.remove(&process);
        let threads = Ring { kernel: self.kernel, head, node, what: "threads" }.follow(seen, problems);
        seen.insert(process);
        threads
    }

    /// What there is to say of the task at `address`; `process` is the name of its process where that is known.
    pub(super) fn task(&self, address: u64, process: Option<&str>, cpu: Option<u32>) -> Option<ThreadFacts> {
        let half = |offset: u64| self.kernel.memory().read_u32(address.checked_add(offset)?);
        let name = self.task_name(address)?;
        let own = self.switched(address).filter(|_| cpu.is_none());
        Some(ThreadFacts {
            tid: half(self.pid)?,
            pid: half(self.process)?,
            process: process.map_or_else(|| name.clone(), str::to_owned),
            name,
            cpu,
            address,
            state: self.state(address),
            registers_from: own.map(|_| RegisterSource::OwnStack),
            registers: own,
            backtrace: Vec::new(),
        })
    }

    fn task_name(&self, task: u64) -> Option<String> {
        let bytes = self.kernel.memory().read_cut_string(task.checked_add(self.name)?, NAME_LEN)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn state(&self, task: u64) -> Option<char> {
        let (offset, size) = self.state?;
        let address = task.checked_add(offset)?;
        let memory = self.kernel.memory();
        let own = if size == 8 { memory.read_u64(address)? } else { memory.read_u32(address)?.into() };
        let ended =
            self.exit_state.and_then(|offset| memory.read_u32(task.checked_add(offset)?)).unwrap_or(0);
        let bits = own | u64::from(ended);
        if bits & 0x7f == 0 {
            return Some('R');
        }
        if own & IDLE == IDLE {
            return Some('I');
        }
        STATES.iter().rev().find(|(bit, _)| bits & bit != 0).map(|&(_, letter)| letter)
    }

    /// The registers that a task pushed as it was switched away from.
    fn switched(&self, task: u64) -> Option<ThreadRegisters> {
        let memory = self.kernel.memory();
        let sp = memory.read_u64(task.checked_add(self.stack_pointer?)?)?;
        let mut bytes = [0; SWITCH_FRAME_LEN];
        memory.read(sp, &mut bytes)?;
        let words = bytes.as_chunks::<8>().0;
        let [r15, r14, r13, r12, rbx, rbp, rip] =
            std::array::from_fn(|index| u64::from_le_bytes(words[index]));
        let rsp = sp.checked_add(SWITCH_FRAME_LEN as u64)?;
        Some(ThreadRegisters { rip, rsp, rbp, rbx, r12, r13, r14, r15 })
    }
}

/// Adds the call chains that are asked for to tasks that wait.
pub(super) fn add_backtraces(
    unwinder: &Unwinder<'_, '_>,
    wanted: Backtraces,
    tasks: &mut [ThreadFacts],
    problems: &mut Vec<String>,
) {
    let is_wanted = |tid: u32| match wanted {
        Backtraces::All => true,
        Backtraces::Thread(wanted) => wanted == tid,
        Backtraces::Crashed => false,
    };
    let (mut frames, mut left_out) = (0, 0);
    for task in tasks.iter_mut().filter(|task| is_wanted(task.tid) && task.backtrace.is_empty()) {
        let Some(registers) = task.registers else { continue };
        if frames >= MAX_FRAMES {
            left_out += 1;
            continue;
        }
        task.backtrace = unwinder.of_switched(registers.rip, registers.rsp, registers.rbp);
        frames += task.backtrace.len();
    }
    if left_out > 0 {
        problems.push(format!("the call chains of {left_out} tasks are left out: they are too long"));
    }
}

/// A ring of `struct list_head`s.
struct Ring<'k, 'm> {
    kernel: &'k Kernel<'m>,
    head: u64,
    /// Where the node lies in each element.
    node: u64,
    what: &'static str,
}

impl Ring<'_, '_> {
    /// Addresses of the elements. `seen` holds those of all rings.
    fn follow(&self, seen: &mut HashSet<u64>, problems: &mut Vec<String>) -> Vec<u64> {
        let mut elements = Vec::new();
        let mut at = self.head;
        while seen.len() < MAX_TASKS {
            let Some(next) = self.kernel.memory().read_u64(at) else {
                problems.push(format!("the list of {} cannot be followed at {at:#x}", self.what));
                break;
            };
            if next == self.head {
                break;
            }
            let element = next.wrapping_sub(self.node);
            if !seen.insert(element) {
                problems.push(format!("the list of {} comes back to {element:#x}", self.what));
                break;
            }
            elements.push(element);
            at = next;
        }
        elements
    }
}
