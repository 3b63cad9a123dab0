//! Reads a FreeBSD/amd64 full dump as `sys/kern/kern_dump.c` and `sys/amd64/include/dump.h` describe it: an ELF header
//! that says little, a segment for each range of dump_avail, the ranges one behind the other.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::freebsd::{Symbols, VirtualMemory};
use super::minidump::{bytes, u32_at, u64_at};

/// A full dump on disk, with the symbols that reading it needs.
#[derive(Debug)]
pub struct FullCore {
    file: File,
    /// Offset in the file, physical start, length.
    segments: Vec<(u64, u64, u64)>,
    /// Physical address of the kernel's PML4.
    pml4: u64,
}

impl FullCore {
    /// Reads the headers, which must be as the kernel writes them, and finds the kernel's page tables by `kernbase` and
    /// `KPML4phys`.
    pub fn open(path: &Path, symbols: &Symbols) -> Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let head = bytes(&file, 0, 64)?;
        ensure!(head[..16] == *b"\x7fELF\x02\x01\x01\xff\0\0\0\0\0\0\0\0", "another e_ident");
        ensure!(head[16..20] == [4, 0, 62, 0], "not a core of x86-64");
        ensure!(u32_at(&head, 20) == 0, "e_version is set");
        ensure!([u64_at(&head, 24), u64_at(&head, 32), u64_at(&head, 40)] == [0, 64, 0], "odd places");
        ensure!(u32_at(&head, 48) == 0, "flags");
        ensure!(head[52..56] == [64, 0, 56, 0], "odd sizes");
        ensure!(head[58..64] == [64, 0, 0, 0, 0, 0], "odd section headers");
        let count = u64::from(u32_at(&head, 56) & 0xffff);
        let mut end = (64 + 56 * count).div_ceil(4096) * 4096;
        let mut segments = Vec::new();
        for index in 0..count {
            let header = bytes(&file, 64 + 56 * index, 56)?;
            ensure!((u32_at(&header, 0), u32_at(&header, 4)) == (1, 4), "type or flags of {index}");
            let [offset, vaddr, paddr, filesz, memsz, align] =
                std::array::from_fn(|word| u64_at(&header, 8 + 8 * word));
            ensure!(vaddr == paddr && filesz == memsz && align == 0x1000, "segment {index} is odd");
            ensure!(offset == end && filesz.is_multiple_of(4096), "segment {index} does not follow");
            end += filesz;
            segments.push((offset, paddr, filesz));
        }
        ensure!(end == length, "the segments end at {end:#x}, the file at {length:#x}");
        let mut core = Self { file, segments, pml4: 0 };
        let place = symbols.address("KPML4phys")? - symbols.address("kernbase")?;
        core.pml4 = u64_at(&core.read_pa(place, 8)?, 0);
        Ok(core)
    }

    /// Offset in the file, physical start and length of each range.
    pub fn segments(&self) -> &[(u64, u64, u64)] {
        &self.segments
    }
}

impl VirtualMemory for FullCore {
    fn read_pa(&self, address: u64, len: usize) -> Result<Vec<u8>> {
        let holds = |start: u64, size: u64| start <= address && address + len as u64 <= start + size;
        let (offset, start, _) = self
            .segments
            .iter()
            .find(|(_, start, size)| holds(*start, *size))
            .with_context(|| format!("physical {address:#x} + {len:#x} is in no segment"))?;
        bytes(&self.file, offset + (address - start), len)
    }

    fn translate(&self, va: u64) -> Result<u64> {
        let mut table = self.pml4;
        for shift in [39, 30, 21, 12] {
            let entry =
                u64_at(&self.read_pa((table & 0x000f_ffff_ffff_f000) + (va >> shift & 0x1ff) * 8, 8)?, 0);
            ensure!(entry & 1 == 1, "{va:#x} is not mapped");
            if shift == 12 || (shift < 39 && entry & 0x80 != 0) {
                let inside = (1 << shift) - 1;
                return Ok(entry & 0x000f_ffff_ffff_f000 & !inside | va & inside);
            }
            table = entry;
        }
        unreachable!("the last level ends the walk")
    }
}
