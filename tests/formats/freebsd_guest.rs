//! A stopped guest with a kernel of FreeBSD's kind that never ran: processes, threads, saved registers, stacks and
//! messages laid out here, with the constants by which a debugger finds them.

use harness::fake_guest::FakeGuest;
use harness::fake_kernel::FakeKernel;
use harness::fake_minidump::{self, FakeMinidump};
use netdump::vmcore::{KernelSymbols, PhysicalMemory, Registers};

/// The kernel is linked at `BASE + DATA` and lies at physical `DATA`.
pub(crate) const BASE: u64 = 0xffff_ffff_8000_0000;
pub(crate) const DATA: u64 = 0x20_0000;
/// Heap, by physical address; its virtual addresses are those of the direct map.
pub(crate) const HEAP: u64 = 0x60_0000;
pub(crate) const DIRECT_MAP: u64 = fake_minidump::DIRECT_MAP;
/// Code, by virtual address.
pub(crate) const TEXT: u64 = BASE + 0x30_0000;
const PML4: u64 = 0x40_0000;
const RAM: u64 = 0x100_0000;

/// Variables by offset from `DATA`.
pub(crate) const VARIABLES: [(&str, u64, u64); 20] = [
    ("KPML4phys", 0x000, 8),
    ("allproc", 0x008, 8),
    ("dumptid", 0x010, 4),
    ("pcb_size", 0x014, 4),
    ("proc_off_p_pid", 0x018, 4),
    ("proc_off_p_comm", 0x01c, 4),
    ("proc_off_p_list", 0x020, 4),
    ("proc_off_p_threads", 0x028, 4),
    ("thread_off_td_tid", 0x02c, 4),
    ("thread_off_td_name", 0x030, 4),
    ("thread_off_td_oncpu", 0x034, 4),
    ("thread_off_td_pcb", 0x038, 4),
    ("thread_off_td_plist", 0x03c, 4),
    ("stopped_cpus", 0x040, 32),
    ("msgbufp", 0x060, 8),
    ("kernbase", 0, 0),
    ("dumppcb", 0x080, 0x140),
    ("stoppcbs", 0x200, 4 * 0x140),
    ("version", 0x800, 128),
    ("panicstr", 0x068, 8),
];
const OFFSETS: [(&str, u32); 9] = [
    ("proc_off_p_pid", 0xc4),
    ("proc_off_p_comm", 0x3d8),
    ("proc_off_p_list", 0),
    ("proc_off_p_threads", 0x10),
    ("thread_off_td_tid", 0xa0),
    ("thread_off_td_name", 0x2bc),
    ("thread_off_td_oncpu", 0x6bc),
    ("thread_off_td_pcb", 0x438),
    ("thread_off_td_plist", 0x10),
];
/// Functions by offset from `TEXT`, and their sizes.
pub(crate) const FUNCTIONS: [(&str, u64, u64); 5] = [
    ("panic", 0, 0x100),
    ("vpanic", 0x100, 0x80),
    ("calltrap", 0x200, 0),
    ("victim", 0x300, 0x40),
    ("fork_exit", 0x400, 0x40),
];
pub(crate) const MESSAGES: &str = "---<<BOOT>>---\nFreeBSD 14.1-RELEASE #0: Tue\npanic: from the messages\n";

/// A thread to be: number, name, CPU or -1, the `r12` that its `td_pcb` holds.
pub(crate) type Thread = (u32, &'static str, i32, u64);

/// The guest.
pub(crate) struct FreeBsd {
    pub(crate) memory: FakeGuest,
}

pub(crate) fn symbols() -> KernelSymbols {
    KernelSymbols::parse(&kernel_behind(FakeKernel::default()).image()).unwrap()
}

/// The kernel's image, its symbols behind those that `kernel` has.
pub(crate) fn kernel_behind(kernel: FakeKernel) -> FakeKernel {
    let kernel = kernel.segment(BASE + DATA, DATA, 0x20_0000);
    let kernel = VARIABLES.iter().fold(kernel, |kernel, &(name, offset, size)| match name {
        "kernbase" => kernel.symbol(name, BASE, 0),
        "dumppcb" | "dumptid" => kernel.local(name, BASE + DATA + offset, size),
        _ => kernel.symbol(name, BASE + DATA + offset, size),
    });
    FUNCTIONS
        .iter()
        .fold(kernel, |kernel, &(name, offset, size)| kernel.raw_symbol(name, TEXT + offset, size, 0x12, 1))
}

/// Physical address of a process and of a thread in it.
pub(crate) fn process_at(process: u64) -> u64 {
    HEAP + 0x1_0000 * process
}

pub(crate) fn thread_at(process: u64, thread: u64) -> u64 {
    process_at(process) + 0x1000 * (1 + thread)
}

impl FreeBsd {
    /// A guest with these processes (number, name, threads), the first of which heads the list.
    pub(crate) fn new(processes: &[(u32, &str, &[Thread])]) -> Self {
        Self::with_cpus(processes, Vec::new())
    }

    pub(crate) fn with_cpus(processes: &[(u32, &str, &[Thread])], cpus: Vec<Registers>) -> Self {
        let empty = FakeGuest::new(3).ram(0, RAM);
        let mut memory = cpus.into_iter().fold(empty, FakeGuest::cpu_with);
        for zeroed in [DATA..DATA + 0x1000, PML4..PML4 + 0x4000, HEAP..HEAP + 0x8_0000] {
            memory.write(zeroed.start, &vec![0; usize::try_from(zeroed.end - zeroed.start).unwrap()]);
        }
        // Slot 511, 510: the kernel; slot 496, 0: the direct map; both 16 MiB in pages of 2 MiB.
        memory.write_words(DATA, &[PML4]);
        memory.write_words(PML4 + 8 * 511, &[PML4 + 0x1003]);
        memory.write_words(PML4 + 8 * 496, &[PML4 + 0x2003]);
        memory.write_words(PML4 + 0x1000 + 8 * 510, &[PML4 + 0x3003]);
        memory.write_words(PML4 + 0x2000, &[PML4 + 0x3003]);
        memory.write_words(PML4 + 0x3000, &directory());
        let mut guest = Self { memory };
        guest.int("pcb_size", 0x140);
        OFFSETS.iter().for_each(|&(name, offset)| guest.int(name, offset));
        guest.text("version", b"FreeBSD 14.1-RELEASE GENERIC\n\0");
        guest.put_processes(processes);
        guest.put_messages(MESSAGES.as_bytes());
        guest
    }

    fn put_processes(&mut self, processes: &[(u32, &str, &[Thread])]) {
        let mut link = variable("allproc");
        for (index, &(pid, name, threads)) in (0..).zip(processes) {
            let process = process_at(index);
            self.memory.write_words(link, &[DIRECT_MAP + process]);
            link = process;
            self.memory.write(process + 0xc4, &pid.to_le_bytes());
            self.memory.write(process + 0x3d8, name.as_bytes());
            let mut link = process + 0x10;
            for (number, &(tid, name, cpu, r12)) in (0..).zip(threads) {
                let thread = thread_at(index, number);
                self.memory.write_words(link, &[DIRECT_MAP + thread]);
                link = thread + 0x10;
                self.memory.write(thread + 0xa0, &tid.to_le_bytes());
                self.memory.write(thread + 0x2bc, name.as_bytes());
                self.memory.write(thread + 0x6bc, &cpu.to_le_bytes());
                self.memory.write_words(thread + 0x438, &[DIRECT_MAP + thread + 0x800]);
                self.pcb(thread + 0x800, r12);
            }
        }
    }

    /// The ring of 4096 - 72 bytes with its structure behind it, the text across its end.
    fn put_messages(&mut self, text: &[u8]) {
        let (ring, size) = (HEAP + 0x7_0000, 4096 - 72);
        let start = size - 20;
        self.memory.write(ring + start, &text[..20]);
        self.memory.write(ring, &text[20..]);
        let structure = ring + size;
        self.memory.write_words(structure, &[DIRECT_MAP + ring, 0x06_3062 | size << 32]);
        let written = size * 3 + start + text.len() as u64;
        self.memory.write_words(structure + 16, &[written]);
        self.pointer("msgbufp", DIRECT_MAP + structure);
    }

    /// A pcb whose registers tell whose it is.
    pub(crate) fn pcb(&mut self, physical: u64, r12: u64) {
        let [r15, r14, r13] = [1, 2, 3].map(|register| r12 + register);
        let stack = DIRECT_MAP + HEAP + 0x6_0000;
        self.memory.write_words(physical, &[r15, r14, r13, r12, stack + 0x10, stack, r12 + 6, TEXT + 8]);
    }

    pub(crate) fn dumped_by(&mut self, tid: u32, r12: u64) {
        self.int("dumptid", tid);
        self.pcb(variable("dumppcb"), r12);
    }

    pub(crate) fn stopped(&mut self, cpu: u64, r12: u64) {
        self.pcb(variable("stoppcbs") + 0x140 * cpu, r12);
        let set = self.memory.byte(variable("stopped_cpus")) | 1 << cpu;
        self.memory.write(variable("stopped_cpus"), &[set]);
    }

    /// What stacks hold from `HEAP + 0x6_0000` on, as offset and words. Its virtual address begins at [`STACK`].
    pub(crate) fn stack(&mut self, offset: u64, words: &[u64]) {
        self.memory.write_words(HEAP + 0x6_0000 + offset, words);
    }

    pub(crate) fn int(&mut self, name: &str, value: u32) {
        self.memory.write(variable(name), &value.to_le_bytes());
    }

    pub(crate) fn pointer(&mut self, name: &str, value: u64) {
        self.memory.write_words(variable(name), &[value]);
    }

    pub(crate) fn text(&mut self, name: &str, value: &[u8]) {
        self.memory.write(variable(name), value);
    }

    /// The same memory as a minidump with a message buffer of its own.
    pub(crate) fn minidump(&self) -> FakeMinidump {
        let mut fake = FakeMinidump::new(&[(0, RAM)]);
        for range in [DATA..DATA + 0x1000, HEAP..HEAP + 0x8_0000] {
            for address in range.step_by(4096) {
                fake = fake.page(address, |at| self.memory.byte(at));
            }
        }
        fake.page_map = directory();
        fake
    }

    /// The same kernel, loaded `distance` bytes behind the place of its load map, as a UEFI loader may: its tables say
    /// so. What lay there is gone.
    pub(crate) fn load_elsewhere(&mut self, distance: u64) {
        let mut image = vec![0; 0x1000];
        self.memory.read(DATA, &mut image).unwrap();
        self.memory.write(DATA, &[0xa5; 0x1000]);
        self.memory.write(DATA + distance, &image);
        // A directory of its own: the direct map's stays.
        let moved: Vec<u64> = directory().into_iter().map(|entry| entry + distance).collect();
        self.memory.write(PML4 + 0x4000, &[0; 0x1000]);
        self.memory.write_words(PML4 + 0x4000, &moved);
        self.memory.write_words(PML4 + 0x1000 + 8 * 510, &[PML4 + 0x4003]);
    }

    /// The same memory as the kernel's full dump.
    pub(crate) fn full_dump(&self) -> Vec<u8> {
        let mut out = b"\x7fELF\x02\x01\x01\xff\0\0\0\0\0\0\0\0\x04\0\x3e\0\0\0\0\0".to_vec();
        let words = |out: &mut Vec<u8>, words: &[u64]| out.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        words(&mut out, &[0, 64, 0]);
        out.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0]);
        words(&mut out, &[0x1000, 0, 0, RAM, RAM, 0x1000]);
        out.resize(0x1000, 0);
        let mut memory = vec![0; usize::try_from(RAM).unwrap()];
        self.memory.read(0, &mut memory).unwrap();
        out.extend(memory);
        out
    }
}

/// Virtual address of what [`FreeBsd::stack`] writes at 0, and the rsp of every pcb; their rbp is 16 bytes on.
pub(crate) const STACK: u64 = DIRECT_MAP + HEAP + 0x6_0000;

fn directory() -> Vec<u64> {
    (0..8).map(|page| page << 21 | 0x83).collect()
}

/// Physical address of a variable.
pub(crate) fn variable(name: &str) -> u64 {
    DATA + VARIABLES.iter().find(|(known, _, _)| *known == name).unwrap().1
}
