//! The state of one stopped virtual CPU, as plain data: what KVM's GET_REGS, GET_SREGS, GET_DEBUGREGS, GET_XSAVE and
//! GET_MSRS report, or what a core file's notes hold.

use serde::{Deserialize, Serialize};

/// One CPU of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// CPU number, which is also its place in every list.
    pub index: u32,
    /// What it was doing when the guest was paused.
    pub activity: Activity,
    /// Its registers; `None` when it did not stop in time.
    pub registers: Option<Box<Registers>>,
}

/// What a CPU was doing when the guest was paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// Executing instructions.
    Running,
    /// In HLT, waiting for an interrupt.
    Halted,
    /// An application processor that the guest has not started.
    NotStarted,
    /// It did not stop before the deadline; nothing is known of it.
    NotStopped,
}

/// The registers of one CPU. Integers are the guest's own values; addresses are virtual unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the architecture's own register names")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub ldt: Segment,
    pub tr: Segment,
    pub gdt: Segment,
    pub idt: Segment,
    pub cr0: u64,
    pub cr2: u64,
    /// Physical address of the page-table root, with its flag bits.
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    /// Model-specific registers that a debugger wants, in ascending order of number.
    pub msrs: Vec<Msr>,
    /// The XSAVE area in the standard (not compacted) format; empty when unknown.
    #[serde(skip)]
    pub xsave: Vec<u8>,
}

/// A segment register with its hidden part, or a descriptor table register (selector and flags 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Attributes in the places they have in a descriptor's second word: type 8-11, S 12, DPL 13-14, P 15, AVL 20,
    /// L 21, DB 22, G 23.
    pub flags: u32,
}

/// One model-specific register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    /// Its number, as in RDMSR's ECX.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// MSR number of the kernel GS base that SWAPGS exchanges.
pub const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

impl Registers {
    /// Where the CPU is and its general registers, by name, in the order in which debuggers show them.
    pub fn named(&self) -> [(&'static str, u64); 18] {
        [
            ("rip", self.rip),
            ("rsp", self.rsp),
            ("rbp", self.rbp),
            ("rflags", self.rflags),
            ("rax", self.rax),
            ("rbx", self.rbx),
            ("rcx", self.rcx),
            ("rdx", self.rdx),
            ("rsi", self.rsi),
            ("rdi", self.rdi),
            ("r8", self.r8),
            ("r9", self.r9),
            ("r10", self.r10),
            ("r11", self.r11),
            ("r12", self.r12),
            ("r13", self.r13),
            ("r14", self.r14),
            ("r15", self.r15),
        ]
    }

    /// The value of an MSR, where it was read.
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|msr| msr.index == index).map(|msr| msr.value)
    }
}
