//! The memory that is dumped: as a VMM has it, in a memfd, but without a guest.

use std::ops::Range;

use harness::simnet::rng::Rng;
use netdump::vmcore::cpu::CpuState;
use netdump::vmcore::raw::Raw;
use netdump::vmcore::{
    CoreNotes, DumpFormat, DumpImage, MemoryError, MemoryRange, PhysicalMemory, StoppedGuest,
};
use vm_memory::{Bytes, GuestAddress};
use vmm::memory::{GuestMemory, MemorySize, next_touched, touched_from};

const BLOCK: usize = 1 << 20;
/// What a sparse guest touches in one piece.
const PATCH: u64 = 64 << 10;

/// A stopped guest's memory, its content incompressible.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) memory: GuestMemory,
    ranges: Vec<MemoryRange>,
    touched: u64,
}

impl Guest {
    /// A guest that has used all of its memory.
    pub(crate) fn dense(size: MemorySize) -> Self {
        Self::new(size, size.ranges().iter().map(|range| range.start..range.end()))
    }

    /// A guest that has used so many bytes of its memory, in pieces of 64 KiB evenly over all of it.
    pub(crate) fn sparse(size: MemorySize, touched: u64) -> Self {
        let (pieces, patches) = (touched / PATCH, size.bytes() / PATCH);
        let ranges = size.ranges();
        // The patch of that number, counted through all ranges.
        let place = move |patch: u64| {
            let mut offset = patch * PATCH;
            let range = ranges.iter().find(|range| {
                let inside = offset < range.len;
                if !inside {
                    offset -= range.len;
                }
                inside
            });
            let start = range.expect("patches lie in RAM").start + offset;
            start..start + PATCH
        };
        Self::new(size, (0..pieces).map(|piece| place(piece * patches / pieces)))
    }

    fn new(size: MemorySize, touched: impl Iterator<Item = Range<u64>>) -> Self {
        let memory = vmm::memory::create(size).expect("there is memory for a guest");
        let mut rng = Rng::new(size.bytes());
        let mut block = vec![0; BLOCK];
        let mut total = 0;
        for range in touched {
            total += range.end - range.start;
            for start in range.clone().step_by(BLOCK) {
                let len = usize::try_from(range.end - start).map_or(BLOCK, |rest| rest.min(BLOCK));
                for word in block[..len].as_chunks_mut::<8>().0 {
                    *word = rng.number().to_le_bytes();
                }
                memory.write_slice(&block[..len], GuestAddress(start)).expect("touched is RAM");
            }
        }
        Self { memory, ranges: size.ranges(), touched: total }
    }

    /// Bytes that it has used.
    pub(crate) fn touched(&self) -> u64 {
        self.touched
    }

    /// Bytes of RAM from address 0 on, without a hole.
    pub(crate) fn in_a_row(&self) -> u64 {
        self.ranges.first().map_or(0, |range| range.len)
    }

    /// Its memory as a core: the offset is the guest-physical address.
    pub(crate) fn image(&self) -> DumpImage<'_> {
        let notes = CoreNotes::default();
        let guest = StoppedGuest { memory: self, symbols: None, notes: &notes };
        Raw.plan(&guest).expect("raw memory is always planned").image
    }
}

impl PhysicalMemory for Guest {
    fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        self.memory.read_slice(buf, GuestAddress(address)).map_err(|_| MemoryError::NotInRam { address, len })
    }

    fn next_touched(&self, address: u64) -> Option<Range<u64>> {
        next_touched(&self.memory, address)
    }

    fn touched_from(&self, address: u64) -> Option<u64> {
        touched_from(&self.memory, address)
    }

    fn cpus(&self) -> &[CpuState] {
        &[]
    }
}
