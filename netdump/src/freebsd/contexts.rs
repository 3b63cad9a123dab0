//! The registers of the CPUs, where debuggers of FreeBSD kernels look for them (kgdb's FreeBSD target, LLDB's
//! FreeBSDKernel plugin): a core has no notes for them.
//!
//! - The thread whose number is in `dumptid` has its registers in `dumppcb`: the one that panicked.
//! - A thread that was on another CPU has them in `stoppcbs[cpu]`, if that CPU's bit in `stopped_cpus` is set.
//!
//! A kernel that stops its CPUs and dumps itself fills all of this (`cpustop_handler`, `dump_savectx`). One that was
//! stopped from outside may not have come so far. What is missing is made here from the virtual CPUs' registers, as
//! patches of the core.
//!
//! What is left as the guest has it:
//! - a CPU whose bit is set and whose pcb was filled: it waits in the kernel's stop handler, where nobody wants to see
//!   it; its pcb has what it did before (with the handler's frame on top, as in every FreeBSD core).
//! - `dumppcb`, if it belongs to this panic: `dumptid` is the thread that the panicking CPU runs now, and the saved
//!   stack pointer lies close to the CPU's own, as the frames that called the dumper are still on the stack. A pcb left
//!   by an earlier dump (DDB can make one and go on) fails that, and the live registers are right in any case.
//!
//! A CPU that was caught in user mode is shown there. The kernel's own handler would have been called on the thread's
//! kernel stack; there is no such frame, and the stack below it is empty.
//!
//! References: FreeBSD `sys/kern/kern_shutdown.c`, `sys/kern/subr_smp.c`, `sys/x86/x86/mp_x86.c`.

use super::layout::KERNBASE;
use super::pcb;
use super::pcpu::{Pcpu, Pcpus, is_user};
use crate::vmcore::VirtualMemory;
use crate::vmcore::kernel_memory::KernelMemory;
use crate::vmcore::virtual_memory::left_in_page;
use crate::vmcore::{Activity, Registers};

/// A pcb has 0x140 bytes, or a few words more or less; any other size is damage.
const MAX_PCB: u64 = 0x1000;
/// Kernel stacks have 16 to 32 KiB.
const STACK_REACH: u64 = 64 << 10;
/// Longest call chain that is searched for the panic.
const MAX_FRAMES: usize = 64;
/// Longest function of [`PANIC_FUNCTIONS`] when the symbols do not say.
const MAX_FUNCTION: u64 = 0x1000;
/// Only the CPU that panics is in one of these.
const PANIC_FUNCTIONS: [&str; 6] = ["vpanic", "panic", "kern_reboot", "doadump", "kdb_enter", "trap_fatal"];

/// Bytes that a core should show at a guest-physical address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Guest-physical address. The bytes lie in one page.
    pub address: u64,
    /// What is shown.
    pub bytes: Vec<u8>,
}

/// What the guest did not save itself.
#[derive(Debug, Default)]
pub struct Contexts {
    /// To be shown in the core.
    pub patches: Vec<Patch>,
    /// What a person should know, one sentence each.
    pub remarks: Vec<String>,
}

/// What debuggers need and the guest did not save. `panic_cpu` is the virtual CPU that panicked, where that is known.
pub fn missing(kernel: &KernelMemory<'_>, panic_cpu: Option<u32>) -> Contexts {
    let mut out = Contexts::default();
    let Some(pcb_len) = pcb_len(kernel) else {
        out.remarks.push(
            "the size of the kernel's pcb is not known (no pcb_size, no dumppcb): debuggers will not find the \
             registers of running threads"
                .to_owned(),
        );
        return out;
    };
    let (cpus, lost) = running(kernel);
    if !lost.is_empty() {
        let numbers: Vec<_> = lost.iter().map(u32::to_string).collect();
        out.remarks.push(format!(
            "debuggers will not find the registers of virtual CPU {}: its registers do not lead to the kernel's \
             per-CPU data",
            numbers.join(", ")
        ));
    }
    let stops = Stops::read(kernel, pcb_len);
    let panicked = if panic_cpu.is_some_and(|cpu| lost.contains(&cpu)) {
        None
    } else {
        panicked(kernel, &cpus, &stops, panic_cpu, &mut out.remarks)
    };
    if let Some(cpu) = panicked {
        cpu.save_as_dumper(kernel, pcb_len, &mut out);
    }
    let others: Vec<&Running<'_>> =
        cpus.iter().filter(|cpu| Some(cpu.pcpu) != panicked.map(|cpu| cpu.pcpu)).collect();
    stops.save(kernel, &others, &mut out);
    out
}

/// Bytes of a pcb, as the kernel says for debuggers.
fn pcb_len(kernel: &KernelMemory<'_>) -> Option<usize> {
    let told = kernel.int("pcb_size").map(u64::from);
    let len = told.or_else(|| kernel.symbols().size("dumppcb"))?;
    usize::try_from(len).ok().filter(|len| (pcb::CORE_LEN as u64..=MAX_PCB).contains(&(*len as u64)))
}

/// A virtual CPU that the kernel knows.
struct Running<'m> {
    index: u32,
    registers: &'m Registers,
    pcpu: Pcpu,
}

/// The CPUs whose registers and per-CPU data are known, one for each of the kernel's numbers, and the numbers of those
/// that have registers only.
fn running<'m>(kernel: &KernelMemory<'m>) -> (Vec<Running<'m>>, Vec<u32>) {
    let pcpus = Pcpus::read(kernel);
    let (mut known, mut lost): (Vec<Running<'m>>, _) = (Vec::new(), Vec::new());
    let started = |activity| matches!(activity, Activity::Running | Activity::Halted);
    for cpu in kernel.physical().cpus().iter().filter(|cpu| started(cpu.activity)) {
        let Some(registers) = cpu.registers.as_deref() else { continue };
        match pcpus.of(kernel, registers) {
            Some(pcpu) if known.iter().all(|other| other.pcpu.cpu != pcpu.cpu) => {
                known.push(Running { index: cpu.index, registers, pcpu });
            }
            _ => lost.push(cpu.index),
        }
    }
    (known, lost)
}

/// The CPU that panicked: the one that the host saw; else the only one that the kernel did not stop; else one that is
/// in the functions of a panic. In a guest that did not panic, the first: a debugger begins with some thread.
fn panicked<'a, 'm>(
    kernel: &KernelMemory<'_>,
    cpus: &'a [Running<'m>],
    stops: &Stops,
    seen: Option<u32>,
    remarks: &mut Vec<String>,
) -> Option<&'a Running<'m>> {
    if let Some(cpu) = cpus.iter().find(|cpu| Some(cpu.index) == seen) {
        return Some(cpu);
    }
    let left: Vec<_> = cpus.iter().filter(|cpu| !stops.is_stopped(cpu.pcpu.cpu)).collect();
    if let [only] = left[..] {
        return Some(only);
    }
    let functions = Functions::find(kernel);
    let panicking = left.iter().copied().find(|cpu| functions.are_called_by(kernel, cpu.registers));
    if panicking.is_none() && !left.is_empty() {
        remarks.push("which CPU panicked is not known: debuggers begin with another thread".to_owned());
    }
    panicking.or_else(|| left.first().copied())
}

/// Where the code of the functions lies that only a panicking CPU is in.
struct Functions(Vec<(u64, u64)>);

impl Functions {
    fn find(kernel: &KernelMemory<'_>) -> Self {
        let symbols = kernel.symbols();
        let range = |name: &str| {
            let start = symbols.address(name)?;
            let len = symbols.size(name).filter(|&len| len != 0).unwrap_or(MAX_FUNCTION).min(MAX_FUNCTION);
            Some((start, start.checked_add(len)?))
        };
        Self(PANIC_FUNCTIONS.into_iter().filter_map(range).collect())
    }

    /// Whether a CPU with these registers is in one of them, or in something that they called.
    fn are_called_by(&self, kernel: &KernelMemory<'_>, registers: &Registers) -> bool {
        let has = |rip: u64| self.0.iter().any(|&(start, end)| start <= rip && rip < end);
        if is_user(registers) {
            return false;
        }
        let (mut rip, mut frame) = (registers.rip, registers.rbp);
        for _ in 0..MAX_FRAMES {
            if has(rip) {
                return true;
            }
            let (Some(caller), Some(back)) =
                (kernel.read_u64(frame), frame.checked_add(8).and_then(|at| kernel.read_u64(at)))
            else {
                return false;
            };
            if caller <= frame {
                return has(back);
            }
            (rip, frame) = (back, caller);
        }
        false
    }
}

impl Running<'_> {
    /// Makes this CPU the one that dumped, unless the guest did.
    fn save_as_dumper(&self, kernel: &KernelMemory<'_>, pcb_len: usize, out: &mut Contexts) {
        let symbols = kernel.symbols();
        let (Some(dumppcb), Some(dumptid)) = (symbols.address("dumppcb"), symbols.address("dumptid")) else {
            out.remarks
                .push("the kernel has no dumppcb and dumptid to show the panicked thread with".to_owned());
            return;
        };
        let Some(tid) = self.thread_number(kernel) else {
            out.remarks.push("the number of the panicked thread cannot be read".to_owned());
            return;
        };
        let mut bytes = vec![0; pcb_len];
        // What cannot be read cannot be shown either: the patch will say so.
        let _ = kernel.read(dumppcb, &mut bytes);
        if kernel.read_u32(dumptid) == Some(tid) && self.is_of_this_stack(&bytes) {
            return;
        }
        pcb::save(&mut bytes, self.registers, self.pcpu.address);
        patch(kernel, dumppcb, &bytes, out);
        patch(kernel, dumptid, &tid.to_le_bytes(), out);
    }

    /// Whether a pcb was saved on the stack that this CPU is on.
    fn is_of_this_stack(&self, bytes: &[u8]) -> bool {
        pcb::rip(bytes) >= KERNBASE
            && !is_user(self.registers)
            && pcb::rsp(bytes).abs_diff(self.registers.rsp) < STACK_REACH
    }

    fn thread_number(&self, kernel: &KernelMemory<'_>) -> Option<u32> {
        let offset = kernel.int("thread_off_td_tid")?;
        let thread = self.pcpu.current_thread(kernel)?;
        kernel.read_u32(thread.checked_add(u64::from(offset))?)
    }
}

/// `stoppcbs` and `stopped_cpus`.
struct Stops {
    pcb_len: usize,
    /// Address of the first pcb and how many there are.
    pcbs: Option<(u64, u64)>,
    /// Address of the set.
    set: Option<u64>,
    /// Its words.
    stopped: Vec<u64>,
}

impl Stops {
    fn read(kernel: &KernelMemory<'_>, pcb_len: usize) -> Self {
        let symbols = kernel.symbols();
        let set = symbols.address("stopped_cpus");
        let words = symbols.size("stopped_cpus").unwrap_or(0).div_ceil(8).clamp(1, 64);
        let word = |index: u64| kernel.read_u64(set?.checked_add(8 * index)?);
        let stopped = (0..words).map_while(word).collect();
        Self { pcb_len, pcbs: Self::pcbs(kernel, pcb_len), set, stopped }
    }

    /// A static array in older kernels, a pointer to `mp_maxid + 1` of them in 14 and later: the symbol's size tells.
    fn pcbs(kernel: &KernelMemory<'_>, pcb_len: usize) -> Option<(u64, u64)> {
        let symbols = kernel.symbols();
        let max_cpus = Pcpus::read(kernel).max_cpus().unwrap_or(super::pcpu::MAX_CPUS);
        match symbols.size("stoppcbs")? {
            8 => {
                let count = kernel.int("mp_maxid").map_or(1, |last| u64::from(last) + 1);
                let first = kernel.pointer("stoppcbs").filter(|&address| address != 0)?;
                Some((first, count.min(max_cpus)))
            }
            size => Some((symbols.address("stoppcbs")?, size / pcb_len as u64)),
        }
    }

    fn is_stopped(&self, cpu: u64) -> bool {
        let word = usize::try_from(cpu / 64).ok().and_then(|index| self.stopped.get(index));
        word.is_some_and(|word| word >> (cpu % 64) & 1 != 0)
    }

    /// Address of a CPU's pcb.
    fn pcb(&self, cpu: u64) -> Option<u64> {
        let (first, count) = self.pcbs?;
        (cpu < count).then(|| first.checked_add(cpu * self.pcb_len as u64)).flatten()
    }

    /// Shows these CPUs as stopped, but for those that the guest stopped.
    fn save(&self, kernel: &KernelMemory<'_>, cpus: &[&Running<'_>], out: &mut Contexts) {
        let mut stopped = self.stopped.clone();
        let mut lost = Vec::new();
        for cpu in cpus {
            let number = cpu.pcpu.cpu;
            let word = usize::try_from(number / 64).ok().and_then(|index| stopped.get_mut(index));
            let place = self.pcb(number).filter(|&address| kernel.translate(address).is_some());
            let (Some(address), Some(word)) = (place, word) else {
                lost.push(number.to_string());
                continue;
            };
            let mut bytes = vec![0; self.pcb_len];
            let readable = kernel.read(address, &mut bytes).is_some();
            if readable && self.is_stopped(number) && pcb::rip(&bytes) != 0 {
                continue;
            }
            pcb::save(&mut bytes, cpu.registers, cpu.pcpu.address);
            patch(kernel, address, &bytes, out);
            *word |= 1 << (number % 64);
        }
        if !lost.is_empty() {
            out.remarks.push(format!(
                "debuggers will not find the registers of CPU {}: the kernel's stoppcbs or stopped_cpus have no \
                 place for them",
                lost.join(", ")
            ));
        }
        if let Some(set) = self.set.filter(|_| stopped != self.stopped) {
            let bytes: Vec<u8> = stopped.iter().flat_map(|word| word.to_le_bytes()).collect();
            patch(kernel, set, &bytes, out);
        }
    }
}

/// Shows bytes at a virtual address, page by page.
fn patch(kernel: &KernelMemory<'_>, address: u64, bytes: &[u8], out: &mut Contexts) {
    let (mut at, mut rest) = (address, bytes);
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(rest.len().min(left_in_page(at)));
        let Some(physical) = kernel.translate(at) else {
            out.remarks.push(format!(
                "the kernel's {address:#x} is not mapped: its registers cannot be shown there"
            ));
            return;
        };
        out.patches.push(Patch { address: physical, bytes: piece.to_vec() });
        at = at.wrapping_add(piece.len() as u64);
        rest = behind;
    }
}
