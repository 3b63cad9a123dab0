//! A stopped guest that never ran: memory whose content follows from a seed, with parts that were never touched, parts
//! that cannot be read, and CPUs with made-up registers.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use netdump::vmcore::cpu::{Activity, CpuState, Msr, Registers, Segment};
use netdump::vmcore::memory::{MemoryError, MemoryRange, PhysicalMemory};

const PAGE: u64 = 4096;

/// A fake guest. All addresses are guest-physical, ranges in bytes; those given here are widened to whole pages.
#[derive(Debug, Default)]
pub struct FakeGuest {
    seed: u64,
    ranges: Vec<MemoryRange>,
    /// Ascending, not overlapping; what is outside reads as zeros.
    touched: Vec<Range<u64>>,
    unreadable: Vec<Range<u64>>,
    /// Pages with content of their own.
    written: BTreeMap<u64, Vec<u8>>,
    cpus: Vec<CpuState>,
    untouched_reads: AtomicU64,
}

impl FakeGuest {
    /// A guest without RAM and CPUs, whose touched pages will hold what `seed` makes.
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Adds RAM behind what is there, all of it touched.
    pub fn ram(self, start: u64, len: u64) -> Self {
        self.untouched_ram(start, len).touched(start..start + len)
    }

    /// Adds RAM behind what is there that the guest never touched.
    pub fn untouched_ram(mut self, start: u64, len: u64) -> Self {
        self.ranges.push(MemoryRange { start, len });
        self
    }

    /// Touches pages behind those touched so far.
    pub fn touched(mut self, range: Range<u64>) -> Self {
        let range = pages(range);
        match self.touched.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.touched.push(range),
        }
        self
    }

    /// Makes pages unreadable.
    pub fn unreadable(mut self, range: Range<u64>) -> Self {
        self.unreadable.push(pages(range));
        self
    }

    /// Puts bytes into touched memory.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let (mut address, mut rest) = (address, bytes);
        while !rest.is_empty() {
            let inside = usize::try_from(address % PAGE).expect("small");
            let (piece, behind) = rest.split_at(rest.len().min(4096 - inside));
            let start = address - address % PAGE;
            if piece.len() == 4096 {
                self.written.insert(start, piece.to_vec());
            } else if !self.written.contains_key(&start) {
                let content = (start..start + PAGE).map(|address| self.byte(address)).collect();
                self.written.insert(start, content);
            }
            let page = self.written.get_mut(&start).expect("it was just made");
            page[inside..inside + piece.len()].copy_from_slice(piece);
            address += piece.len() as u64;
            rest = behind;
        }
    }

    /// Puts little-endian words into touched memory.
    pub fn write_words(&mut self, address: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(address, &bytes);
    }

    /// Adds a CPU whose registers all differ, from each other and from those of other CPUs.
    pub fn cpu(mut self, activity: Activity) -> Self {
        let index = u32::try_from(self.cpus.len()).expect("few CPUs");
        let registers = (activity != Activity::NotStopped).then(|| Box::new(registers(self.seed, index)));
        self.cpus.push(CpuState { index, activity, registers });
        self
    }

    /// Adds a CPU with these registers.
    pub fn cpu_with(mut self, registers: Registers) -> Self {
        let index = u32::try_from(self.cpus.len()).expect("few CPUs");
        self.cpus.push(CpuState { index, activity: Activity::Running, registers: Some(Box::new(registers)) });
        self
    }

    /// The byte at an address, whether it can be read or not; 0 where nothing was touched.
    pub fn byte(&self, address: u64) -> u8 {
        if let Some(page) = self.written.get(&(address / PAGE * PAGE)) {
            return page[usize::try_from(address % PAGE).expect("small")];
        }
        if self.is_touched(address) { content(self.seed, address) } else { 0 }
    }

    /// [`Self::byte`] for many bytes, page by page.
    fn fill(&self, address: u64, buf: &mut [u8]) {
        let mut address = address;
        let mut rest = buf;
        while !rest.is_empty() {
            let inside = usize::try_from(address % PAGE).expect("small");
            let (piece, behind) = rest.split_at_mut(rest.len().min(4096 - inside));
            if let Some(page) = self.written.get(&(address / PAGE * PAGE)) {
                piece.copy_from_slice(&page[inside..inside + piece.len()]);
            } else if self.is_touched(address) {
                piece
                    .iter_mut()
                    .zip(address..)
                    .for_each(|(byte, address)| *byte = content(self.seed, address));
            } else {
                piece.fill(0);
            }
            address += piece.len() as u64;
            rest = behind;
        }
    }

    /// What a core must hold for an address: the byte, or 0 where it cannot be read.
    pub fn byte_in_core(&self, address: u64) -> u8 {
        if self.unreadable.iter().any(|range| range.contains(&address)) { 0 } else { self.byte(address) }
    }

    /// Whether the guest touched an address.
    pub fn is_touched(&self, address: u64) -> bool {
        let index = self.touched.partition_point(|range| range.end <= address);
        self.touched.get(index).is_some_and(|range| range.start <= address)
    }

    /// How many reads began in memory that the guest never touched.
    pub fn untouched_reads(&self) -> u64 {
        self.untouched_reads.load(Ordering::Relaxed)
    }
}

impl PhysicalMemory for FakeGuest {
    fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        let end = address.checked_add(len as u64).ok_or(MemoryError::NotInRam { address, len })?;
        if !self.ranges.iter().any(|range| range.start <= address && end <= range.start + range.len) {
            return Err(MemoryError::NotInRam { address, len });
        }
        if self.unreadable.iter().any(|range| address < range.end && range.start < end) {
            let source = io::Error::other("made unreadable");
            return Err(MemoryError::Unreadable { address, len, source });
        }
        if !self.is_touched(address) {
            self.untouched_reads.fetch_add(1, Ordering::Relaxed);
        }
        self.fill(address, buf);
        Ok(())
    }

    fn next_touched(&self, address: u64) -> Option<Range<u64>> {
        let range = self.range_at(address)?;
        let index = self.touched.partition_point(|touched| touched.end <= address);
        let touched = self.touched.get(index)?;
        let run = touched.start.max(address)..touched.end.min(range.end());
        (!run.is_empty()).then_some(run)
    }

    fn cpus(&self) -> &[CpuState] {
        &self.cpus
    }
}

fn pages(range: Range<u64>) -> Range<u64> {
    range.start / PAGE * PAGE..range.end.div_ceil(PAGE) * PAGE
}

/// Any byte may be anything, also zero.
fn content(seed: u64, address: u64) -> u8 {
    word(seed ^ (address / 8)).to_le_bytes()[usize::try_from(address % 8).expect("small")]
}

/// A well-mixed word (the finalizer of splitmix64).
fn word(state: u64) -> u64 {
    let z = state.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Registers with a value of its own in each.
fn registers(seed: u64, cpu: u32) -> Registers {
    let mut count = u64::from(cpu) << 32;
    let mut next = || {
        count += 1;
        word(seed ^ count)
    };
    let mut registers = Registers::default();
    let r = &mut registers;
    for register in [
        &mut r.rax,
        &mut r.rbx,
        &mut r.rcx,
        &mut r.rdx,
        &mut r.rsi,
        &mut r.rdi,
        &mut r.rbp,
        &mut r.rsp,
        &mut r.r8,
        &mut r.r9,
        &mut r.r10,
        &mut r.r11,
        &mut r.r12,
        &mut r.r13,
        &mut r.r14,
        &mut r.r15,
        &mut r.rip,
        &mut r.rflags,
        &mut r.cr0,
        &mut r.cr2,
        &mut r.cr3,
        &mut r.cr4,
        &mut r.cr8,
        &mut r.efer,
        &mut r.apic_base,
        &mut r.dr6,
        &mut r.dr7,
    ] {
        *register = next();
    }
    r.dr = [next(), next(), next(), next()];
    for segment in [
        &mut r.cs, &mut r.ds, &mut r.es, &mut r.fs, &mut r.gs, &mut r.ss, &mut r.ldt, &mut r.tr, &mut r.gdt,
        &mut r.idt,
    ] {
        let [a, b, c, d, ..] = next().to_le_bytes();
        *segment = Segment {
            selector: u16::from_le_bytes([a, b]),
            base: next(),
            limit: u32::from_le_bytes([b, c, d, a]),
            flags: u32::from_le_bytes([d, c, b, a]),
        };
    }
    r.msrs = [0x10, 0x1b, 0xc000_0080, 0xc000_0102].map(|index| Msr { index, value: next() }).to_vec();
    r.xsave = (0..832).map(|address| content(seed ^ u64::from(cpu), address)).collect();
    // A header that a processor could have written: x87, SSE and AVX in use, nothing compacted.
    r.xsave[464..512].fill(0);
    r.xsave[464] = 7;
    r.xsave[512..576].fill(0);
    r.xsave[512] = 7;
    registers
}
