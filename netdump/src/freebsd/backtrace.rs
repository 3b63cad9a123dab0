//! The call chain of a thread by its frame pointers, which FreeBSD's kernels keep, and across the frames that traps and
//! interrupts leave (`sys/amd64/include/frame.h`; which entry code leaves one is from `sys/amd64/amd64/exception.S` and
//! `apic_vector.S`, and the debugger in the kernel tells them by name likewise).
//!
//! A frame pointer holds the caller's frame pointer and, 8 bytes on, the return address. Stacks grow down, so pointers
//! ascend; one that does not, or leaves the kernel stack, ends the chain, as does a frame from user mode. NMIs (with which
//! a panic stops the other CPUs), machine checks and double faults have stacks of their own: there the trap's frame tells
//! where the thread's stack is.

use crate::facts::{Frame, ThreadRegisters};
use crate::vmcore::VirtualMemory;
use crate::vmcore::kernel_memory::KernelMemory;

/// Deeper chains are cut. A kernel stack of four pages has no room for more frames that do anything.
const MAX_FRAMES: usize = 128;
/// Longest kernel stack where the kernel does not say (`kstack_pages`, usually 4), and most that it is believed.
const MAX_STACK_PAGES: u64 = 64;
const PAGE: u64 = 4096;
/// Entry code that leaves a `struct trapframe` above its own return address; some have variants that end in "_pti".
const TRAP_ENTRIES: [&str; 9] = [
    "calltrap",
    "nmi_calltrap",
    "mchk_calltrap",
    "Xdblfault",
    "Xtimerint",
    "Xcpustop",
    "Xcpususpend",
    "Xrendezvous",
    "Xipi_intr_bitmap_handler",
];
const TRAP_ENTRY_PREFIXES: [&str; 2] = ["Xapic_isr", "Xatpic_intr"];
/// Offsets in `struct trapframe`, and its length.
const TF_RBP: usize = 0x40;
const TF_RIP: usize = 0x98;
const TF_CS: usize = 0xa0;
const TF_RSP: usize = 0xb0;
const TRAP_FRAME_LEN: usize = 0xc0;
/// Privilege level in a code segment selector.
const USER_MODE: u64 = 3;

/// Where a thread with these registers was, and the calls that led there.
pub fn backtrace(kernel: &KernelMemory<'_>, registers: &ThreadRegisters) -> Vec<Frame> {
    let mut frames = vec![frame(kernel, registers.rip, Reached::Exactly, false)];
    let pages = kernel.int("kstack_pages").map_or(MAX_STACK_PAGES, u64::from).clamp(1, MAX_STACK_PAGES);
    let end_of_stack = |rsp: u64| rsp.saturating_add(pages * PAGE);
    let (mut low, mut end, mut pointer) = (registers.rsp, end_of_stack(registers.rsp), registers.rbp);
    while frames.len() < MAX_FRAMES && pointer >= low && pointer < end && pointer.is_multiple_of(8) {
        let mut pair = [0; 16];
        if kernel.read(pointer, &mut pair).is_none() || word(&pair, 8) == 0 {
            break;
        }
        let caller = frame(kernel, word(&pair, 8), Reached::Returning, false);
        let is_trap = caller.function.as_deref().is_some_and(is_trap_entry);
        frames.push(caller);
        low = pointer.saturating_add(16);
        pointer = word(&pair, 0);
        if is_trap {
            let Some(interrupted) = trap_frame(kernel, low) else { break };
            frames.push(frame(kernel, interrupted.rip, Reached::Exactly, true));
            if !(low..end).contains(&interrupted.rsp) {
                end = end_of_stack(interrupted.rsp);
            }
            (low, pointer) = (interrupted.rsp, interrupted.rbp);
        }
    }
    frames
}

/// What the entry code saved at `address` of kernel code that was interrupted; `None` of user code, which has another
/// stack.
fn trap_frame(kernel: &KernelMemory<'_>, address: u64) -> Option<ThreadRegisters> {
    let mut saved = [0; TRAP_FRAME_LEN];
    kernel.read(address, &mut saved)?;
    (word(&saved, TF_CS) & USER_MODE == 0).then(|| ThreadRegisters {
        rip: word(&saved, TF_RIP),
        rsp: word(&saved, TF_RSP),
        rbp: word(&saved, TF_RBP),
        ..ThreadRegisters::default()
    })
}

fn is_trap_entry(function: &str) -> bool {
    let name = function.strip_suffix("_pti").unwrap_or(function);
    TRAP_ENTRIES.contains(&name) || TRAP_ENTRY_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// What an address in a call chain is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reached {
    /// Of the next instruction.
    Exactly,
    /// Behind a call. Where the callee never returns that may be the next function's first byte.
    Returning,
}

fn frame(kernel: &KernelMemory<'_>, address: u64, reached: Reached, interrupted: bool) -> Frame {
    let back = u64::from(reached == Reached::Returning);
    let place = address.checked_sub(back).and_then(|inside| kernel.symbols().function_at(inside));
    Frame {
        address,
        function: place.map(|place| place.function.to_owned()),
        offset: place.map(|place| place.offset + back),
        interrupted,
        ..Frame::default()
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, &byte| (value << 8) | u64::from(byte))
}
