//! What a CPU ends in: halted, shut down, or busy with known registers.

use core::arch::{asm, global_asm, naked_asm};

use crate::contract::{self, Register};
use crate::global::Global;
use crate::trap;

/// CPUs there is room for; the others halt at once.
pub const MAX_CPUS: usize = 32;
const STACK_SIZE: usize = 8192;
/// TSS, I/O bitmap and ring-0 stack of a CPU.
const TSS_SIZE: usize = 1024;

#[repr(align(4096))]
struct Aligned<T>(Global<T>);

/// Stack of each CPU, for a host that looks where RSP lies.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.scratch.stacks")]
#[allow(non_upper_case_globals)]
static cpu_stacks: Aligned<[[u8; STACK_SIZE]; MAX_CPUS]> = Aligned(Global::new([[0; STACK_SIZE]; MAX_CPUS]));

#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.scratch.tss")]
#[allow(non_upper_case_globals)]
static cpu_tss: Aligned<[[u8; TSS_SIZE]; MAX_CPUS]> = Aligned(Global::new([[0; TSS_SIZE]; MAX_CPUS]));

global_asm!(
    include_str!("entry.s"),
    max_cpus = const MAX_CPUS,
    stack_size = const STACK_SIZE,
    tss_size = const TSS_SIZE,
    idt_size = const trap::IDT_SIZE,
);

/// Stops this CPU for ever: interrupts off, HLT.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn halt() -> ! {
    naked_asm!("int3", "2: cli", "hlt", "jmp 2b")
}

/// Goes on at `address` in ring 0, on a small stack.
///
/// # Safety
/// Whatever is there has the machine.
pub unsafe fn jump_in_ring_0(address: u64) -> ! {
    // SAFETY: the caller's promise.
    unsafe { asm!("int3", "jmp rax", in("rax") address, options(noreturn)) }
}

/// Pseudo-descriptor of an empty interrupt table.
static NO_IDT: [u8; 10] = [0; 10];

/// Values for the registers of a CPU: XMM0 to XMM15, then the general ones in the order of [`Register::ALL`].
#[repr(C, align(16))]
pub struct RegisterImage {
    xmm: [u128; 16],
    general: [u64; 15],
}

impl RegisterImage {
    /// The known values of CPU `cpu`.
    pub fn known(cpu: u32) -> Self {
        let mut image = Self { xmm: [0; 16], general: [0; 15] };
        for (index, value) in image.xmm.iter_mut().enumerate() {
            *value = contract::known_xmm(cpu, index as u8);
        }
        for (register, value) in Register::ALL.into_iter().zip(&mut image.general) {
            *value = contract::known_register(cpu, register);
        }
        image
    }

    /// The same with another value for one register.
    pub fn with(mut self, register: Register, value: u64) -> Self {
        self.general[register as usize] = value;
        self
    }
}

/// Loads all registers from the image at RDI.
macro_rules! load_registers {
    () => {
        "
        movaps xmm0, [rdi]
        movaps xmm1, [rdi + 16]
        movaps xmm2, [rdi + 32]
        movaps xmm3, [rdi + 48]
        movaps xmm4, [rdi + 64]
        movaps xmm5, [rdi + 80]
        movaps xmm6, [rdi + 96]
        movaps xmm7, [rdi + 112]
        movaps xmm8, [rdi + 128]
        movaps xmm9, [rdi + 144]
        movaps xmm10, [rdi + 160]
        movaps xmm11, [rdi + 176]
        movaps xmm12, [rdi + 192]
        movaps xmm13, [rdi + 208]
        movaps xmm14, [rdi + 224]
        movaps xmm15, [rdi + 240]
        mov rax, [rdi + 256]
        mov rbx, [rdi + 264]
        mov rcx, [rdi + 272]
        mov rdx, [rdi + 280]
        mov rsi, [rdi + 288]
        mov rbp, [rdi + 304]
        mov r8, [rdi + 312]
        mov r9, [rdi + 320]
        mov r10, [rdi + 328]
        mov r11, [rdi + 336]
        mov r12, [rdi + 344]
        mov r13, [rdi + 352]
        mov r14, [rdi + 360]
        mov r15, [rdi + 368]
        mov rdi, [rdi + 296]
        "
    };
}

/// Loads the registers and jumps to itself for ever.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn busy_spin(_: &RegisterImage) -> ! {
    naked_asm!(load_registers!(), "2: jmp 2b")
}

/// Loads the registers and writes AL to port DX for ever. RBX counts writes begun, RCX writes done.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn busy_out(_: &RegisterImage) -> ! {
    naked_asm!(load_registers!(), "2: inc rbx", "out dx, al", "inc rcx", "jmp 2b")
}

/// Loads the registers and reads AL from port DX for ever, with RAX zeroed before each read. RBX counts reads begun,
/// RCX reads done.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn busy_in(_: &RegisterImage) -> ! {
    naked_asm!(load_registers!(), "2: inc rbx", "xor eax, eax", "in al, dx", "inc rcx", "jmp 2b")
}

/// Loads the registers and reads EAX from the address in RDX for ever, with RAX zeroed before each read. RBX counts
/// reads begun, RCX reads done.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn busy_mmio(_: &RegisterImage) -> ! {
    naked_asm!(load_registers!(), "2: inc rbx", "xor eax, eax", "mov eax, [rdx]", "inc rcx", "jmp 2b")
}

/// Loads the registers, then triple fault: an exception with an empty interrupt table.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn triple_fault(_: &RegisterImage) -> ! {
    naked_asm!(load_registers!(), "int3", "lidt [{no_idt}]", "ud2", no_idt = sym NO_IDT)
}

/// Loads the registers, writes AL to port DX, and jumps to itself for ever.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn signal_and_spin(_: &RegisterImage) -> ! {
    naked_asm!(load_registers!(), "out dx, al", "2: jmp 2b")
}
