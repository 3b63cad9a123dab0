//! `struct pcpu`: a CPU's own data, which the kernel reaches through GS (`sys/sys/pcpu.h`, `sys/amd64/include/pcpu.h`).

use crate::vmcore::Registers;
use crate::vmcore::VirtualMemory;
use crate::vmcore::cpu::MSR_KERNEL_GS_BASE;
use crate::vmcore::kernel_memory::KernelMemory;

/// `pc_curthread` comes first: the kernel reads it as `%gs:0`.
const CURTHREAD: u64 = 0;
/// `pc_cpuid`, in the machine-independent part that has been stable for years.
const CPUID: u64 = 0x3c;
/// `pc_prvspace`, the structure's own address (FreeBSD 12 to early 14).
const PRVSPACE: u64 = 0x180;
/// Most CPUs that a kernel is taken to know (`MAXCPU` is 256, later 1024).
pub const MAX_CPUS: u64 = 4096;

/// The per-CPU data of a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pcpu {
    /// Its virtual address.
    pub address: u64,
    /// The kernel's number of the CPU.
    pub cpu: u64,
}

/// All CPUs that the kernel knows.
#[derive(Debug, Default)]
pub struct Pcpus {
    /// `cpuid_to_pcpu`: the address of each CPU's data, 0 for a CPU that is not there; empty when not known.
    by_number: Vec<u64>,
}

impl Pcpus {
    /// Reads the kernel's table.
    pub fn read(kernel: &KernelMemory<'_>) -> Self {
        Self { by_number: table(kernel).unwrap_or_default() }
    }

    /// How many CPUs the kernel was compiled for (`MAXCPU`), where its table says so.
    pub fn max_cpus(&self) -> Option<u64> {
        (!self.by_number.is_empty()).then_some(self.by_number.len() as u64)
    }

    /// The data of the CPU with these registers: its GS base, or the one that SWAPGS would bring.
    ///
    /// In user mode and in the first instructions of the kernel's entries GS is the user's. So both are tried, the one
    /// that the privilege level suggests first.
    pub fn of(&self, kernel: &KernelMemory<'_>, registers: &Registers) -> Option<Pcpu> {
        let hidden = registers.msr(MSR_KERNEL_GS_BASE).unwrap_or(0);
        let candidates =
            if is_user(registers) { [hidden, registers.gs.base] } else { [registers.gs.base, hidden] };
        candidates.into_iter().filter(|&address| address != 0).find_map(|address| self.known(kernel, address))
    }

    fn known(&self, kernel: &KernelMemory<'_>, address: u64) -> Option<Pcpu> {
        if let Some(cpu) = self.by_number.iter().position(|&known| known == address) {
            return Some(Pcpu { address, cpu: cpu as u64 });
        }
        let itself = kernel.read_u64(address.checked_add(PRVSPACE)?)?;
        let cpu = u64::from(kernel.read_u32(address.checked_add(CPUID)?)?);
        (self.by_number.is_empty() && itself == address && cpu < MAX_CPUS).then_some(Pcpu { address, cpu })
    }
}

impl Pcpu {
    /// Address of the thread that the CPU runs.
    pub fn current_thread(&self, kernel: &KernelMemory<'_>) -> Option<u64> {
        kernel.read_u64(self.address.checked_add(CURTHREAD)?).filter(|&thread| thread != 0)
    }
}

/// Whether a CPU with these registers executes user code.
pub fn is_user(registers: &Registers) -> bool {
    registers.cs.selector & 3 == 3
}

fn table(kernel: &KernelMemory<'_>) -> Option<Vec<u64>> {
    let symbols = kernel.symbols();
    let count = (symbols.size("cpuid_to_pcpu")? / 8).min(MAX_CPUS);
    let mut bytes = vec![0; usize::try_from(8 * count).ok()?];
    kernel.read(symbols.address("cpuid_to_pcpu")?, &mut bytes)?;
    Some(
        bytes
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
            .collect(),
    )
}
