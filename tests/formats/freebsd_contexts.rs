//! The registers of stopped CPUs in FreeBSD cores: where debuggers look, at offsets written down here.

use harness::fake_guest::FakeGuest;
use harness::fake_kernel::FakeKernel;
use netdump::ReadAt;
use netdump::vmcore::cpu::Msr;
use netdump::vmcore::{CoreNotes, KernelSymbols, Registers, StoppedGuest};

const BASE: u64 = 0xffff_ffff_8020_0000;
const PCB: u64 = 0x140;
/// In the image: pcbs, per-CPU data of CPU 0 (others follow at 4 KiB), threads of them.
const DUMPPCB: u64 = 0x100;
const DUMPTID: u64 = 0x300;
const STOPPED: u64 = 0x308;
const TABLE: u64 = 0x400;
const STOPPCBS: u64 = 0x1f00;
const PCPU: u64 = 0x4000;
const THREADS: u64 = 0xa000;
const STACK: u64 = 0x1_0000;
const TEXT: u64 = 0x2_0000;
const VPANIC: u64 = 0x2_1000;
const LEN: u64 = 0x3_0000;
const TID: u64 = 0xa0;

/// A kernel of four CPUs, loaded at 0.
fn kernel(pointer: bool) -> KernelSymbols {
    let at =
        |name: &str, offset: u64, size: u64, kernel: FakeKernel| kernel.symbol(name, BASE + offset, size);
    let mut kernel = FakeKernel::default().segment(BASE, 0, LEN);
    for (name, offset, size) in [
        ("kenvp", 0, 8),
        ("pcb_size", 0x10, 4),
        ("thread_off_td_tid", 0x14, 4),
        ("mp_maxid", 0x18, 4),
        ("dumppcb", DUMPPCB, PCB),
        ("dumptid", DUMPTID, 4),
        ("stopped_cpus", STOPPED, 32),
        ("cpuid_to_pcpu", TABLE, 256 * 8),
        ("vpanic", VPANIC, 0x100),
    ] {
        kernel = at(name, offset, size, kernel);
    }
    kernel =
        if pointer { at("stoppcbs", 0x20, 8, kernel) } else { at("stoppcbs", STOPPCBS, 256 * PCB, kernel) };
    KernelSymbols::parse(&kernel.image()).unwrap()
}

/// What the CPU with this number does in kernel code.
fn registers(cpu: u64) -> Registers {
    let mut r = Registers {
        r15: 0x15 + cpu,
        r14: 0x14 + cpu,
        r13: 0x13 + cpu,
        r12: 0x12 + cpu,
        rbp: 0,
        rsp: BASE + STACK + 0x1000 * cpu + 0x800,
        rbx: 0xb + cpu,
        rip: BASE + TEXT + cpu,
        cr0: 0x8005_0033,
        cr2: 0x22,
        cr3: 0x33,
        cr4: 0x44,
        efer: 0xd01,
        dr: [1, 2, 3, 4],
        dr6: 6,
        dr7: 7,
        msrs: vec![Msr { index: 0xc000_0082, value: 0x82 }, Msr { index: 0xc000_0102, value: 0x7fff_0000 }],
        ..Registers::default()
    };
    r.gs.base = BASE + PCPU + 0x1000 * cpu;
    r.fs.base = 0xf5;
    r.tr.selector = 0x48;
    (r.gdt.limit, r.gdt.base) = (0x67, 0x6d7);
    (r.idt.limit, r.idt.base) = (0xfff, 0x1d7);
    r
}

fn in_user_mode(cpu: u64) -> Registers {
    let mut r = registers(cpu);
    r.cs.selector = 0x43;
    r.rip = 0x40_1000;
    r.gs.base = 0x7fff_0000;
    r.msrs[1].value = BASE + PCPU + 0x1000 * cpu;
    r
}

fn guest(cpus: Vec<Registers>) -> FakeGuest {
    let count = cpus.len() as u64;
    let mut guest = cpus.into_iter().fold(FakeGuest::new(9).ram(0, LEN), FakeGuest::cpu_with);
    guest.write(0, &vec![0; usize::try_from(LEN).unwrap()]);
    guest.write_words(0x10, &[PCB | TID << 32, count - 1, BASE + STOPPCBS]);
    for cpu in 0..count {
        guest.write_words(TABLE + 8 * cpu, &[BASE + PCPU + 0x1000 * cpu]);
        guest.write_words(PCPU + 0x1000 * cpu, &[BASE + THREADS + 0x1000 * cpu]);
        guest.write_words(THREADS + 0x1000 * cpu + TID, &[10_0000 + cpu]);
    }
    guest
}

/// What the core shows of the kernel's image.
struct Shown(Vec<u8>, Vec<String>);

impl Shown {
    fn of(guest: &FakeGuest, pointer: bool, panic_cpu: Option<u32>) -> Self {
        let symbols = kernel(pointer);
        let notes = CoreNotes { panic_cpu, ..CoreNotes::default() };
        let stopped = StoppedGuest { memory: guest, symbols: Some(&symbols), notes: &notes };
        let planned = netdump::vmcore::format("full").unwrap().plan(&stopped).unwrap();
        let mut bytes = vec![0; usize::try_from(LEN).unwrap()];
        planned.image.read_at(4096, &mut bytes).unwrap();
        Self(bytes, planned.remarks.into_iter().filter(|remark| !remark.contains("dump_avail")).collect())
    }

    fn word(&self, at: u64) -> u64 {
        let at = usize::try_from(at).unwrap();
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    fn tid(&self) -> u64 {
        self.word(DUMPTID) & 0xffff_ffff
    }

    fn holds(&self, pcb: u64, r: &Registers) -> bool {
        let words: Vec<u64> = (0..8).map(|index| self.word(pcb + 8 * index)).collect();
        words == [r.r15, r.r14, r.r13, r.r12, r.rbp, r.rsp, r.rbx, r.rip]
    }
}

#[test]
fn panicked_cpu_becomes_the_dumper_and_the_others_are_stopped() {
    for pointer in [false, true] {
        let guest = guest((0..4).map(registers).collect());
        let shown = Shown::of(&guest, pointer, Some(2));
        assert!(shown.1.is_empty(), "{:?}", shown.1);
        assert!(shown.holds(DUMPPCB, &registers(2)));
        assert_eq!(shown.tid(), 10_0002);
        assert_eq!(shown.word(STOPPED), 0b1011);
        for cpu in [0, 1, 3] {
            assert!(shown.holds(STOPPCBS + PCB * cpu, &registers(cpu)), "CPU {cpu}");
        }
        assert_eq!(shown.word(STOPPCBS + PCB * 2 + 0x38), 0, "the CPU that panicked is not stopped");
    }
}

#[test]
fn pcb_holds_what_savectx_stores() {
    let shown = Shown::of(&guest(vec![registers(0)]), false, None);
    let words = [
        (0x40, 0xf5),
        (0x48, BASE + PCPU),
        (0x50, 0x7fff_0000),
        (0x58, 0x8005_0033),
        (0x60, 0x22),
        (0x68, 0x33),
        (0x70, 0x44),
        (0x78, 1),
        (0x80, 2),
        (0x88, 3),
        (0x90, 4),
        (0x98, 6),
        (0xa0, 7),
        (0xaa, 0x6d7),
        (0xb4, 0x1d7),
        (0xe8, 0xd01),
        (0xf8, 0x82),
    ];
    for (at, value) in words {
        assert_eq!(shown.word(DUMPPCB + at), value, "{at:#x}");
    }
    assert_eq!(shown.word(DUMPPCB + 0xa8) & 0xffff, 0x67);
    assert_eq!(shown.word(DUMPPCB + 0xb2) & 0xffff, 0xfff);
    assert_eq!(shown.word(DUMPPCB + 0xc6) & 0xffff, 0x48);
}

#[test]
fn what_the_guest_saved_itself_is_left_alone() {
    let mut guest = guest((0..3).map(registers).collect());
    // CPU 1 waits in the stop handler; the dumper's frames are on CPU 0's stack.
    guest.write_words(STOPPED, &[0b010]);
    guest.write_words(STOPPCBS + PCB + 0x20, &[1, 2, 3, BASE + TEXT]);
    guest.write_words(DUMPPCB + 0x20, &[5, BASE + STACK + 0xa00, 6, BASE + TEXT + 0x50]);
    guest.write_words(DUMPTID, &[10_0000]);
    let shown = Shown::of(&guest, false, Some(0));
    assert_eq!(shown.word(DUMPPCB + 0x38), BASE + TEXT + 0x50);
    assert_eq!(shown.word(STOPPCBS + PCB + 0x38), BASE + TEXT);
    assert!(shown.holds(STOPPCBS + 2 * PCB, &registers(2)), "CPU 2 did not stop");
    assert_eq!(shown.word(STOPPED), 0b110);
}

#[test]
fn pcb_of_an_earlier_dump_is_replaced() {
    for (tid, rsp, rip) in [
        (10_0001, BASE + STACK + 0xa00, BASE + TEXT),
        (10_0000, BASE + STACK + 0x4_0000, BASE + TEXT),
        (10_0000, BASE + STACK + 0xa00, 0),
    ] {
        let mut guest = guest((0..2).map(registers).collect());
        guest.write_words(DUMPPCB + 0x20, &[5, rsp, 6, rip]);
        guest.write_words(DUMPTID, &[tid]);
        let shown = Shown::of(&guest, false, Some(0));
        assert!(shown.holds(DUMPPCB, &registers(0)));
        assert_eq!(shown.tid(), 10_0000);
    }
}

#[test]
fn panicked_cpu_is_the_one_that_the_kernel_did_not_stop() {
    let mut guest = guest((0..4).map(registers).collect());
    guest.write_words(STOPPED, &[0b0111]);
    let shown = Shown::of(&guest, false, None);
    assert_eq!((shown.tid(), shown.word(STOPPED)), (10_0003, 0b0111));
}

#[test]
fn panicked_cpu_is_known_by_its_call_chain() {
    let mut cpus: Vec<_> = (0..3).map(registers).collect();
    // Two frames above the code that runs now lies one that returns into vpanic.
    let frame = BASE + STACK + 0x1000 + 0x900;
    cpus[1].rbp = frame;
    let mut guest = guest(cpus.clone());
    guest.write_words(frame - BASE, &[frame + 0x40, BASE + TEXT]);
    guest.write_words(frame + 0x40 - BASE, &[0, BASE + VPANIC + 0x20]);
    let shown = Shown::of(&guest, false, None);
    assert_eq!(shown.tid(), 10_0001);
    assert!(shown.1.is_empty(), "{:?}", shown.1);

    // Without it the first stands in, and it is said.
    guest.write_words(frame + 0x48 - BASE, &[BASE + TEXT]);
    let shown = Shown::of(&guest, false, None);
    assert_eq!(shown.tid(), 10_0000);
    assert!(shown.1.iter().any(|remark| remark.contains("which CPU panicked")), "{:?}", shown.1);
}

#[test]
fn frames_that_lead_in_circles_end() {
    let mut cpus: Vec<_> = (0..2).map(registers).collect();
    cpus[0].rbp = BASE + STACK;
    let mut guest = guest(cpus);
    guest.write_words(STACK, &[BASE + STACK, BASE + TEXT]);
    assert_eq!(Shown::of(&guest, false, None).tid(), 10_0000);
}

#[test]
fn cpu_in_user_mode_is_found_and_shown_there() {
    let guest = guest(vec![registers(0), in_user_mode(1)]);
    let shown = Shown::of(&guest, false, Some(0));
    assert!(shown.1.is_empty(), "{:?}", shown.1);
    assert!(shown.holds(STOPPCBS + PCB, &in_user_mode(1)));
    assert_eq!(shown.word(STOPPCBS + PCB + 0x48), BASE + PCPU + 0x1000, "the kernel's GS base");
    assert_eq!(shown.word(STOPPCBS + PCB + 0x50), 0x7fff_0000, "the user's");
    assert_eq!(shown.word(STOPPED), 0b10);
}

#[test]
fn cpu_without_the_kernels_data_is_named_and_does_not_become_the_dumper() {
    let reset = Registers { rip: 0xfff0, ..Registers::default() };
    let shown = Shown::of(&guest(vec![registers(0), reset]), false, Some(1));
    assert!(shown.1.iter().any(|remark| remark.contains("virtual CPU 1")), "{:?}", shown.1);
    assert_eq!((shown.tid(), shown.word(STOPPED)), (0, 0b01));
}

#[test]
fn cpus_beyond_the_kernels_arrays_are_named() {
    let mut guest = guest((0..4).map(registers).collect());
    // mp_maxid says two CPUs.
    guest.write_words(0x18, &[1]);
    let shown = Shown::of(&guest, true, Some(0));
    assert_eq!(shown.word(STOPPED), 0b0010);
    assert!(shown.1.iter().any(|remark| remark.contains("CPU 2, 3")), "{:?}", shown.1);
}
