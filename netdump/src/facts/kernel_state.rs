//! What a stopped kernel was doing: what it said last, its threads, and where in its code they were.
//!
//! The same for a core file and for a guest that stands still. Texts are the guest's own words: they may hold control
//! characters, so whoever shows them cleans them.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::vmcore::Registers;

/// Threads whose call chains are wanted. The crashed thread's always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backtraces {
    /// No other's.
    #[default]
    Crashed,
    /// This thread's too.
    Thread(u32),
    /// Everyone's.
    All,
}

/// What is asked of a stopped kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateRequest {
    /// Whose call chains are wanted.
    pub backtraces: Backtraces,
    /// The CPU that panicked, where that is known from outside: a kernel that did not come to dump does not say.
    pub panic_cpu: Option<u32>,
}

/// A stopped kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct KernelState {
    /// What the kernel said, the oldest that is left first.
    pub message_buffer: Option<String>,
    /// The thread in which it panicked.
    pub crashed_thread: Option<u32>,
    /// Its threads, processes that were there first before later ones.
    pub threads: Vec<ThreadFacts>,
    /// What could not be followed to its end, one sentence each.
    pub problems: Vec<String>,
}

impl KernelState {
    /// The thread in which the kernel panicked.
    pub fn crashed(&self) -> Option<&ThreadFacts> {
        self.crashed_thread.and_then(|tid| self.thread(tid))
    }

    /// The thread of this number.
    pub fn thread(&self, tid: u32) -> Option<&ThreadFacts> {
        self.threads.iter().find(|thread| thread.tid == tid)
    }
}

/// A thread of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ThreadFacts {
    /// Its number.
    pub tid: u32,
    /// Number of its process.
    pub pid: u32,
    /// Name of its process.
    pub process: String,
    /// Its own name.
    pub name: String,
    /// The CPU that it was on; `None` when it waited.
    pub cpu: Option<u32>,
    /// Address of its structure.
    pub address: u64,
    /// What it was doing, in one letter as `ps` has it, where the kernel keeps that: `R` running or ready, `S` and `D`
    /// waiting, the latter not to be disturbed, `Z` ended, and others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<char>,
    /// Where its registers were found.
    pub registers_from: Option<RegisterSource>,
    /// Its registers as far as a switch between threads keeps them.
    pub registers: Option<ThreadRegisters>,
    /// Its call chain, innermost first; empty when it was not asked for.
    pub backtrace: Vec<Frame>,
}

/// Where a thread's registers were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterSource {
    /// What the crashed thread saved as the dump began.
    DumpContext,
    /// What this CPU saved when the panicking one stopped it.
    StoppedCpu(u32),
    /// The registers of this virtual CPU, as the dumper saw them from outside.
    VirtualCpu(u32),
    /// What was saved when the thread was switched away from.
    Switched,
    /// What was pushed on its own stack when it was switched away from.
    OwnStack,
    /// The same as `Switched` of a thread that was running: where it was earlier, not where it was last.
    Stale,
}

impl fmt::Display for RegisterSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DumpContext => f.write_str("dumppcb"),
            Self::StoppedCpu(cpu) => write!(f, "stoppcbs[{cpu}]"),
            Self::VirtualCpu(cpu) => write!(f, "vCPU {cpu}"),
            Self::Switched => f.write_str("td_pcb"),
            Self::OwnStack => f.write_str("its stack"),
            Self::Stale => f.write_str("td_pcb (stale)"),
        }
    }
}

impl Serialize for RegisterSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The registers that a switch between threads keeps, in x86-64's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[expect(missing_docs, reason = "the architecture's own register names")]
pub struct ThreadRegisters {
    pub rip: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

/// Of a thread that a CPU is executing.
impl From<&Registers> for ThreadRegisters {
    fn from(r: &Registers) -> Self {
        Self {
            rip: r.rip,
            rsp: r.rsp,
            rbp: r.rbp,
            rbx: r.rbx,
            r12: r.r12,
            r13: r.r13,
            r14: r.r14,
            r15: r.r15,
        }
    }
}

/// One place in a call chain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Frame {
    /// Where the thread was, or will return to.
    pub address: u64,
    /// The function there, where the kernel's symbols tell.
    pub function: Option<String>,
    /// Bytes from that function's start.
    pub offset: Option<u64>,
    /// Whether the thread was interrupted here (a fault, an interrupt) rather than called the frame before.
    pub interrupted: bool,
    /// The module that the function is of, where it is not the kernel's image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Whether this is a program's code: the chain ends here, and nothing names it.
    #[serde(skip_serializing_if = "is_false")]
    pub user_mode: bool,
    /// Whether it is a guess: something like a return address that lay on the stack.
    #[serde(skip_serializing_if = "is_false")]
    pub unsure: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.address)?;
        if let (Some(function), Some(offset)) = (&self.function, self.offset) {
            write!(f, " {function}+{offset:#x}")?;
        }
        if let Some(module) = &self.module {
            write!(f, " [{module}]")?;
        }
        f.write_str(if self.unsure { " (unsure)" } else { "" })?;
        f.write_str(if self.user_mode { " (in user mode)" } else { "" })?;
        f.write_str(if self.interrupted { " (interrupted here)" } else { "" })
    }
}
