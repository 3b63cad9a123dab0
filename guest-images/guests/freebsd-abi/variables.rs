//! The variables of variables.s, kernel.s and entry.s, as Rust sees them.

use core::arch::global_asm;

use crate::flavour;
use crate::freebsd::{HZ, offsets};
use crate::global::Global;

/// CPUs there is room for; the others halt at once.
pub const MAX_CPUS: usize = 32;
const STACK_SIZE: usize = 4096;
const TSS_SIZE: usize = 1024;

global_asm!(
    include_str!("variables.s"),
    is_12 = const flavour::IS_12 as u32,
    flag_size = const flavour::FLAG_SIZE,
    pcb_size = const flavour::PCB_SIZE,
    stoppcbs_size = const flavour::STOPPCBS_SIZE,
    cpuset_size = const flavour::CPUSET_SIZE,
    max_cpu = const flavour::MAX_CPU,
    prison_size = const flavour::PRISON_SIZE,
    osreldate = const flavour::OSRELDATE,
    hz = const HZ,
    p_pid = const offsets::P_PID,
    p_comm = const offsets::P_COMM,
    p_list = const offsets::P_LIST,
    p_hash = const offsets::P_HASH,
    p_threads = const offsets::P_THREADS,
    td_tid = const offsets::TD_TID,
    td_name = const offsets::TD_NAME,
    td_oncpu = const offsets::TD_ONCPU,
    td_pcb = const offsets::TD_PCB,
    td_plist = const offsets::TD_PLIST,
);
global_asm!(
    include_str!("entry.s"),
    osreldate = const flavour::OSRELDATE,
    max_cpus = const MAX_CPUS,
    stack_size = const STACK_SIZE,
    tss_size = const TSS_SIZE,
    launch_size = const size_of::<Launch>(),
);
global_asm!(
    include_str!("kernel.s"),
    td_tid = const offsets::TD_TID,
    sleep_control = const 0x600,
    pvpanic = const crate::contract::PVPANIC_PORT,
    panic_format = sym crate::panic::FORMAT,
);

/// Where `launch` puts a CPU, and with what in its registers.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Launch {
    pub cr3: u64,
    pub rsp: u64,
    pub rip: u64,
    pub gs_base: u64,
    pub kernel_gs_base: u64,
    pub cs: u64,
    /// RBX, R12, R13, R14, R15.
    pub registers: [u64; 5],
}

macro_rules! variables {
    ($($name:ident: $kind:ty),* $(,)?) => {
        #[allow(non_upper_case_globals)]
        unsafe extern "C" {
            $(pub safe static $name: Global<$kind>;)*
        }
    };
}

variables! {
    KPML4phys: u64,
    kernel_vm_end: u64,
    nkpt: u32,
    dmaplimit: u64,
    kernphys: u64,
    dump_avail: [u64; 128],
    vm_page_dump: u64,
    msgbufp: u64,
    kern_envp: u64,
    md_envp: u64,
    md_env_len: i32,
    md_env_pos: i32,
    kenvp: u64,
    dynamic_kenv: u8,
    cold: u32,
    all_cpus: u64,
    started_cpus: u64,
    mp_maxid: u32,
    mp_ncpus: u32,
    cpuid_to_pcpu: [u64; flavour::MAX_CPU],
    time_second: u64,
    allproc: u64,
    prison0: [u8; flavour::PRISON_SIZE],
    stoppcbs: u64,
    oracle_bitmap: u64,
    oracle_pages: u64,
    pattern_pages: [u64; 1 + 64 * 3],
    order_stop: u64,
    order_others: u32,
    order_after: u64,
    order_delay: u64,
    order_dump_time: u64,
    order_debugger: u32,
    order_save: u32,
    order_dump: u32,
    order_final: u32,
    order_quiet: u32,
    order_text: [u8; 256],
    order_message: [u8; 1024],
    order_damage: [[u64; 2]; 8],
    lapic_address: u64,
    stoppcbs_address: u64,
    idt: [[u64; 2]; 32],
    cpus_arrived: u64,
    launch_now: u32,
    launch_records: [Launch; MAX_CPUS],
    trap_report: [u64; 4],
    sleeping_chain: [u64; 8],
    trap_stubs: u8,
    pti_text: u8,
    pti_data: u8,
    pti_data_end: u8,
    cpu_stacks: [u8; MAX_CPUS * STACK_SIZE],
    trampoline_start: u8,
    trampoline_end: u8,
    user_loop: u32,
    _end: u8,
}

#[cfg(flavour = "12")]
variables! {
    vm_page_dump_size: u32,
    zombproc: u64,
    dumper: u64,
    __pcpu: [u8; flavour::MAX_CPU * 4096],
}
#[cfg(not(flavour = "12"))]
variables! {
    vm_page_dump_pages: u64,
    dumper_configs: [u64; 2],
    __pcpu: u64,
}

unsafe extern "C" {
    pub safe fn enter_ring_0();
    pub safe fn enter_kernel(cpu: u32) -> !;
    pub safe fn fork_trampoline();
    pub safe fn fast_syscall_common();
    pub safe fn nmi_calltrap();
}
