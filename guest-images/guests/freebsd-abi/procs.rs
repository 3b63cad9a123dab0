//! Processes, threads, their stacks and contexts, and the `struct pcpu` of each CPU: what debuggers walk. Structures
//! are written field by field at the offsets that the kernel's constants tell.

use crate::contract::{Register, known_register};
use crate::cpus::Cpus;
use crate::flavour::{MAX_CPU, PCB_SIZE};
use crate::freebsd::{self, Thread, offsets};
use crate::global::Global;
use crate::pages::{self, PAGE};
use crate::paging::{self, Mapped, READ_WRITE, USER};
use crate::panic;
use crate::variables::{
    KPML4phys, Launch, allproc, cpu_stacks, cpuid_to_pcpu, fast_syscall_common, fork_trampoline,
    launch_records, mp_maxid, pti_data, pti_data_end, pti_text, sleeping_chain, stoppcbs, stoppcbs_address,
    user_loop,
};

/// Bytes given to a `struct proc` and a `struct thread`; two fit in a page.
const STRUCTURE: u64 = 0x800;
/// Fields of `struct thread` that no constant tells (`sys/sys/proc.h`).
const TD_PROC: usize = 8;
/// Fields of `struct pcpu` (`sys/amd64/include/pcpu.h`).
const PC_CURTHREAD: usize = 0x00;
const PC_IDLETHREAD: usize = 0x08;
const PC_CURPCB: usize = 0x20;
const PC_CPUID: usize = 0x3c;
const PC_PRVSPACE: usize = 0x180;
const PC_KCR3: usize = 0x1a0;
const PC_UCR3: usize = 0x1a8;
const PC_APIC_ID: usize = 0x1d0;
/// Fields of `struct pcb`.
const PCB_RBP: usize = 0x20;
const PCB_RSP: usize = 0x28;
const PCB_RIP: usize = 0x38;
const PCB_CR3: usize = 0x68;
const PCB_REGISTERS: [(usize, Register); 5] = [
    (0x00, Register::R15),
    (0x08, Register::R14),
    (0x10, Register::R13),
    (0x18, Register::R12),
    (0x30, Register::Rbx),
];
/// Between a stack's pcb and its first frame: the trap frame.
const TRAP_FRAME: u64 = 0x100;
/// No CR3 of a user, without page-table isolation.
const NO_CR3: u64 = u64::MAX;
/// Ring-0 and ring-3 code, see `entry.s`.
const KERNEL_CODE: u64 = 0x18;
const USER_CODE: u64 = 0x33;
/// Where the user process has its code, its stack and its thread-local storage.
const USER_TEXT: u64 = 0x40_0000;
const USER_STACK: u64 = 0x7fff_ffff_0000;
const USER_GS: u64 = 0x8_0020_1000;

/// Half a page that is still free, for the next structure.
static HALF: Global<[u64; 2]> = Global::new([0; 2]);

/// Makes everything. `allproc` has the youngest first.
pub fn make(cpus: &Cpus) {
    let idle_root = KPML4phys.read();
    let pcpus = make_pcpus(cpus);
    make_stoppcbs();

    let mut list = List::new(allproc_head());
    let mut shell = Process::new(&mut list, freebsd::CRASHED);
    let panics = panic::is_ordered();
    let on_cpu = if panics { Some(cpus.panicking) } else { None };
    let crashed = shell.thread(freebsd::CRASHED, None, on_cpu);
    shell.thread(freebsd::WORKER, None, None);
    let mut busy_process = Process::new(&mut list, freebsd::BUSY);
    let busy = busy_process.thread(freebsd::BUSY, None, cpus.user);
    let mut idle = Process::new(&mut list, freebsd::IDLE);
    for cpu in cpus.numbers() {
        let is_idle = on_cpu != Some(cpu) && cpus.user != Some(cpu);
        let thread = idle.thread(
            Thread { tid: freebsd::IDLE.tid + cpu as i32, ..freebsd::IDLE },
            Some(cpu),
            is_idle.then_some(cpu),
        );
        let pcpu = &pcpus(cpu);
        put(pcpu, PC_IDLETHREAD, thread.structure.va);
        if on_cpu == Some(cpu) {
            run(pcpu, &crashed, cpu, paging::process_root(), fast_syscall_common as *const () as u64);
        } else if cpus.user == Some(cpu) {
            run_user(pcpu, &busy, cpu);
        } else {
            run(pcpu, &thread, cpu, idle_root, fork_trampoline as *const () as u64);
        }
    }
    Process::new(&mut list, freebsd::INIT).thread(freebsd::INIT, None, None);
    Process::new(&mut list, freebsd::KERNEL).thread(freebsd::KERNEL, None, None);
    #[cfg(flavour = "12")]
    {
        let head = (&raw const crate::variables::zombproc) as u64;
        let mut zombies = List::new(Mapped { va: head, pa: head - crate::handover::KERNBASE });
        Process::new(&mut zombies, freebsd::ZOMBIE).thread(freebsd::ZOMBIE, None, None);
    }
}

/// A singly linked walk over `LIST` or `TAILQ` links: where the next address goes.
struct List {
    link: Mapped,
}

impl List {
    fn new(head: Mapped) -> Self {
        Self { link: head }
    }

    /// Appends a structure with its link (next, address of the previous next) at `offset`.
    fn append(&mut self, structure: &Mapped, offset: usize) {
        put(&self.link, 0, structure.va);
        put(structure, offset + 8, self.link.va);
        self.link = Mapped { va: structure.va + offset as u64, pa: structure.pa + offset as u64 };
    }
}

struct Process {
    structure: Mapped,
    threads: List,
}

struct Running {
    structure: Mapped,
    pcb: Mapped,
}

impl Process {
    fn new(list: &mut List, about: Thread) -> Self {
        let structure = allocate();
        put_u32(&structure, offsets::P_PID, about.pid as u32);
        put_text(&structure, offsets::P_COMM, about.command);
        list.append(&structure, offsets::P_LIST);
        Self { structure, threads: List::new(structure.plus(offsets::P_THREADS)) }
    }

    /// A thread at the end of the process's list: on that CPU, or asleep. An idle thread's name has a number.
    fn thread(&mut self, about: Thread, number: Option<u32>, on_cpu: Option<u32>) -> Running {
        // The shell's threads lie in kernel virtual memory, the others in the direct map.
        let structure = if about.pid == freebsd::CRASHED.pid { paging::heap_page() } else { allocate() };
        put(&structure, TD_PROC, self.structure.va);
        put_u32(&structure, offsets::TD_TID, about.tid as u32);
        put_text(&structure, offsets::TD_NAME, about.name);
        if let Some(number) = number {
            put_number(&structure, offsets::TD_NAME + about.name.len(), number);
        }
        put_u32(&structure, offsets::TD_ONCPU, on_cpu.unwrap_or(u32::MAX));
        let pcb = paging::stack()[3].plus(PAGE as usize - PCB_SIZE);
        put(&structure, offsets::TD_PCB, pcb.va);
        if on_cpu.is_none() {
            sleep(&pcb, about.tid as u32);
        }
        self.threads.append(&structure, offsets::TD_PLIST);
        put(&self.structure, offsets::P_THREADS + 8, self.threads.link.va);
        Running { structure, pcb }
    }
}

/// Makes the stack and the context of a thread that sleeps.
fn sleep(pcb: &Mapped, tid: u32) {
    let page = pcb.va & !(PAGE - 1);
    let stack = Mapped { va: page, pa: pcb.pa & !(PAGE - 1) };
    let (mut sp, mut rbp) = (pcb.va - TRAP_FRAME, 0);
    for frame in (1..8).rev() {
        sp -= 16;
        put(&stack, (sp - page) as usize, rbp);
        put(&stack, (sp + 8 - page) as usize, sleeping_chain.at(frame));
        rbp = sp;
    }
    // What `cpu_switch` returns to, which is where the context says that the thread is.
    sp -= 8;
    put(&stack, (sp - page) as usize, sleeping_chain.at(0));
    put(pcb, PCB_RIP, sleeping_chain.at(0));
    put(pcb, PCB_RSP, sp);
    put(pcb, PCB_RBP, rbp);
    put(pcb, PCB_CR3, KPML4phys.read());
    for (offset, register) in PCB_REGISTERS {
        put(pcb, offset, known_register(tid, register));
    }
}

/// Has a CPU run a thread in the kernel from `rip` on.
fn run(pcpu: &Mapped, thread: &Running, cpu: u32, cr3: u64, rip: u64) {
    give(pcpu, thread, [KPML4phys.read(), NO_CR3]);
    let registers = [Register::Rbx, Register::R12, Register::R13, Register::R14, Register::R15]
        .map(|r| known_register(cpu, r));
    launch_records.set(
        cpu as usize,
        Launch {
            cr3,
            rsp: thread.pcb.va - TRAP_FRAME,
            rip,
            gs_base: pcpu.va,
            kernel_gs_base: USER_GS,
            cs: KERNEL_CODE,
            registers,
        },
    );
}

/// Has a CPU run a thread in user mode, on tables of page-table isolation: of the kernel they have descriptors, one
/// stack and the way out.
fn run_user(pcpu: &Mapped, thread: &Running, cpu: u32) {
    let root = pages::plain();
    let text = pages::plain();
    // SAFETY: a fresh page.
    unsafe { pages::at(text).write(user_loop.read().into()) };
    paging::enter(root, USER_TEXT, text, 0x21 | USER);
    paging::enter(root, USER_STACK - PAGE, crate::pattern::user_page(), 0x67 | USER);
    let first = (&raw const pti_data).addr() as u64;
    let end = (&raw const pti_data_end).addr() as u64;
    let stack = cpu_stacks.address() + u64::from(cpu) * PAGE;
    let text = (&raw const pti_text).addr() as u64;
    for va in (first..end).step_by(PAGE as usize).chain([stack, text]) {
        let flags = if va == text { READ_WRITE & !(1 << 63) } else { READ_WRITE };
        paging::enter(root, va, va - crate::handover::KERNBASE, flags & !0x100);
    }
    give(pcpu, thread, [paging::process_root(), root]);
    launch_records.set(
        cpu as usize,
        Launch {
            cr3: root,
            rsp: USER_STACK - 0x100,
            rip: USER_TEXT,
            gs_base: USER_GS,
            kernel_gs_base: pcpu.va,
            cs: USER_CODE,
            registers: [Register::Rbx, Register::R12, Register::R13, Register::R14, Register::R15]
                .map(|r| known_register(cpu, r)),
        },
    );
}

/// Makes a thread the current one of a CPU.
fn give(pcpu: &Mapped, thread: &Running, [kernel, user]: [u64; 2]) {
    put(pcpu, PC_CURTHREAD, thread.structure.va);
    put(pcpu, PC_CURPCB, thread.pcb.va);
    put(pcpu, PC_KCR3, kernel);
    put(pcpu, PC_UCR3, user);
}

/// A `struct pcpu` for each CPU, and a way to find them.
fn make_pcpus(cpus: &Cpus) -> impl Fn(u32) -> Mapped + use<> {
    let place = pcpu_places();
    for cpu in cpus.numbers() {
        let pcpu = place(cpu);
        cpuid_to_pcpu.set(cpu as usize, pcpu.va);
        put_u32(&pcpu, PC_CPUID, cpu);
        put_u32(&pcpu, PC_APIC_ID, cpu);
        put(&pcpu, PC_PRVSPACE, pcpu.va);
    }
    place
}

/// The array `__pcpu` in the image.
#[cfg(flavour = "12")]
fn pcpu_places() -> impl Fn(u32) -> Mapped {
    let array = crate::variables::__pcpu.address();
    let array = Mapped { va: array, pa: array - crate::handover::KERNBASE };
    move |cpu| array.plus(cpu as usize * PAGE as usize)
}

/// The array that `__pcpu` points at, in pages of kernel virtual memory.
#[cfg(not(flavour = "12"))]
fn pcpu_places() -> impl Fn(u32) -> Mapped {
    static PLACES: Global<[[u64; 2]; crate::variables::MAX_CPUS]> =
        Global::new([[0; 2]; crate::variables::MAX_CPUS]);
    for cpu in 0..=mp_maxid.read() as usize {
        let page = paging::heap_page();
        PLACES.set(cpu, [page.va, page.pa]);
    }
    crate::variables::__pcpu.write(PLACES.at(0)[0]);
    |cpu| {
        let [va, pa] = PLACES.at(cpu as usize);
        Mapped { va, pa }
    }
}

/// `stoppcbs`: an array, or a pointer to one for the CPUs that there are.
fn make_stoppcbs() {
    if crate::flavour::STOPPCBS_SIZE == MAX_CPU * PCB_SIZE {
        stoppcbs_address.write(stoppcbs.address());
        return;
    }
    let bytes = (mp_maxid.read() as usize + 1) * PCB_SIZE;
    let array = paging::direct(pages::direct_run((bytes as u64).div_ceil(PAGE)));
    stoppcbs.write(array.va);
    stoppcbs_address.write(array.va);
}

fn allproc_head() -> Mapped {
    let va = allproc.address();
    Mapped { va, pa: va - crate::handover::KERNBASE }
}

/// Zeroed room for a structure, in a page of the direct map that is in `vm_page_dump`.
fn allocate() -> Mapped {
    let [page, used] = HALF.read();
    if page != 0 && used == STRUCTURE {
        HALF.write([0; 2]);
        return paging::direct(page + used);
    }
    let page = pages::direct();
    HALF.write([page, STRUCTURE]);
    paging::direct(page)
}

impl Mapped {
    fn plus(&self, offset: usize) -> Self {
        Self { va: self.va + offset as u64, pa: self.pa + offset as u64 }
    }
}

fn put(at: &Mapped, offset: usize, value: u64) {
    // SAFETY: inside a structure or a page that this module allocated.
    unsafe { pages::at(at.pa + offset as u64).write_unaligned(value) }
}

fn put_u32(at: &Mapped, offset: usize, value: u32) {
    // SAFETY: as for `put`.
    unsafe { pages::at(at.pa + offset as u64).cast::<u32>().write_unaligned(value) }
}

fn put_text(at: &Mapped, offset: usize, text: &str) {
    // SAFETY: as for `put`; what is behind the text is zero.
    unsafe { pages::at(at.pa + offset as u64).cast::<u8>().copy_from(text.as_ptr(), text.len()) }
}

/// A number below 100 as text.
fn put_number(at: &Mapped, offset: usize, number: u32) {
    let digits = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
    let digits = if number < 10 { &digits[1..] } else { &digits };
    put_text(at, offset, str::from_utf8(digits).expect("digits"));
}
