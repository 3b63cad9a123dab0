//! Guests whose tables and variables are made to cost a dumper its time or memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::fake_kernel::FakeKernel;
use netdump::ReadAt;
use netdump::vmcore::{
    CoreNotes, CpuState, KernelSymbols, MemoryError, MemoryRange, PhysicalMemory, StoppedGuest,
};

const PAGE: u64 = 4096;
const START: u64 = 0xffff_ffff_8020_0000;
const GIB: u64 = 1 << 30;

/// What stands at an address.
type Entry = fn(u64) -> u64;

/// RAM in which every word is a table entry that `entry` makes of its address.
struct Maze {
    ranges: [MemoryRange; 1],
    entry: Entry,
    reads: AtomicU64,
}

impl Maze {
    fn new(entry: Entry) -> Self {
        Self { ranges: [MemoryRange { start: 0, len: GIB }], entry, reads: AtomicU64::new(0) }
    }
}

impl PhysicalMemory for Maze {
    fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let len = buf.len();
        if address.checked_add(len as u64).is_none_or(|end| end > GIB) {
            return Err(MemoryError::NotInRam { address, len });
        }
        let mut at = address;
        let mut rest = buf;
        while !rest.is_empty() {
            let word = (self.entry)(at / 8 * 8).to_le_bytes();
            let inside = usize::try_from(at % 8).unwrap();
            let (piece, behind) = rest.split_at_mut(rest.len().min(8 - inside));
            piece.copy_from_slice(&word[inside..inside + piece.len()]);
            at += piece.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    fn cpus(&self) -> &[CpuState] {
        &[]
    }
}

/// Every variable that a planner asks for, at an address of its own.
fn symbols() -> KernelSymbols {
    let names = "KPML4phys kenvp kernel_vm_end nkpt dmaplimit vm_page_dump vm_page_dump_pages dump_avail msgbufp \
                 dumppcb dumptid stoppcbs stopped_cpus cpuid_to_pcpu pcb_size mp_maxid thread_off_td_tid";
    let kernel = FakeKernel::default().segment(START, 0, GIB);
    let kernel = (1..)
        .zip(names.split_whitespace())
        .fold(kernel, |kernel, (index, name)| kernel.symbol(name, START + 0x1000 * index, 8));
    KernelSymbols::parse(&kernel.image()).unwrap()
}

/// A page anywhere in RAM.
fn scattered(address: u64) -> u64 {
    (address / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & (GIB / PAGE - 1)
}

#[test]
fn tables_that_lead_everywhere_cost_little() {
    let mazes: [(&str, Entry); 5] = [
        ("one table", |_| 0x7000 | 3),
        ("its own page", |address| (address / PAGE * PAGE) | 3),
        ("all pages are tables", |address| (scattered(address) * PAGE) | 3),
        ("large pages everywhere", |address| (scattered(address) * PAGE) | 0x83),
        ("outside RAM", |address| if address % PAGE >= 511 * 8 { 0x3 } else { (1 << 45) | 3 }),
    ];
    for (what, entry) in mazes {
        let memory = Maze::new(entry);
        let symbols = symbols();
        let stopped = StoppedGuest { memory: &memory, symbols: Some(&symbols), notes: &CoreNotes::default() };
        let start = Instant::now();
        if let Ok(core) = netdump::vmcore::format("minidump").unwrap().plan(&stopped) {
            assert!(core.image.length() <= 2 * GIB, "{what}: {:#x}", core.image.length());
            // A budget of page tables, and the directories of 2 TiB with what leads to them.
            let reads = memory.reads.load(Ordering::Relaxed);
            assert!(reads < (1 << 14) + GIB / PAGE / 32 + 5000, "{what}: {reads} reads");
            assert!(core.remarks.len() < 20, "{what}: {:?}", core.remarks);
            for offset in (0..core.image.length() - PAGE).step_by(0x50_0123) {
                core.image.read_at(offset, &mut [0; 4096]).unwrap();
            }
        }
        // Less than half a second when optimised.
        assert!(start.elapsed() < Duration::from_secs(100), "{what}: {:?}", start.elapsed());
    }
}
