//! Reads an amd64 minidump as FreeBSD's `minidump_machdep.c`, `minidump.h` and `vm_dumpset.h` describe it: header,
//! message buffer, dump_avail, bitmap, page directories, pages. Every page's place is written down one by one.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::freebsd::VirtualMemory;

/// The first 4096 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's own names")]
pub struct MiniHeader {
    pub version: u32,
    pub msgbufsize: u32,
    pub bitmapsize: u32,
    /// Before version 2 this is ptesize.
    pub pmapsize: u32,
    pub kernbase: u64,
    pub dmapbase: u64,
    pub dmapend: u64,
    pub dumpavailsize: u32,
}

/// A minidump on disk.
#[derive(Debug)]
pub struct MiniCore {
    file: File,
    length: u64,
    header: MiniHeader,
    dump_avail: Vec<(u64, u64)>,
    /// Offset in the file by physical address, of each page whose bit is set.
    pages: BTreeMap<u64, u64>,
    pmap: u64,
    expected: u64,
}

impl MiniCore {
    /// Reads everything before the pages.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let head = bytes(&file, 0, 4096)?;
        ensure!(head[..24] == *b"minidump FreeBSD/amd64\0\0", "another magic");
        let header = MiniHeader {
            version: u32_at(&head, 24),
            msgbufsize: u32_at(&head, 28),
            bitmapsize: u32_at(&head, 32),
            pmapsize: u32_at(&head, 36),
            kernbase: u64_at(&head, 40),
            dmapbase: u64_at(&head, 48),
            dmapend: u64_at(&head, 56),
            dumpavailsize: u32_at(&head, 64),
        };
        ensure!((1..=3).contains(&header.version), "version {}", header.version);
        ensure!(header.version == 3 || header.dumpavailsize == 0, "dump_avail before version 3");
        ensure!(head[68..].iter().all(|&byte| byte == 0), "bytes behind the header's fields");
        ensure!(header.bitmapsize.is_multiple_of(4096), "a bitmap of {} bytes", header.bitmapsize);
        ensure!(header.pmapsize.is_multiple_of(4096), "page directories of {} bytes", header.pmapsize);
        let avail_at = 4096 + u64::from(header.msgbufsize).div_ceil(4096) * 4096;
        let bitmap_at = avail_at + u64::from(header.dumpavailsize);
        let pmap = bitmap_at + u64::from(header.bitmapsize);
        let pages_at = pmap + u64::from(header.pmapsize);
        let bitmap = bytes(&file, bitmap_at, header.bitmapsize as usize)?;
        let dump_avail = if header.version == 3 {
            ensure!(header.dumpavailsize.is_multiple_of(4096), "dump_avail of {}", header.dumpavailsize);
            pairs(&bytes(&file, avail_at, header.dumpavailsize as usize)?)?
        } else {
            vec![(0, bitmap.len() as u64 * 8 * 4096)]
        };
        let mut pages = BTreeMap::new();
        let (mut bit, mut offset) = (0_usize, pages_at);
        for &(start, end) in &dump_avail {
            for page in start / 4096..end.div_ceil(4096) {
                let byte = *bitmap.get(bit / 8).context("the bitmap is too short for dump_avail")?;
                if byte >> (bit % 8) & 1 == 1 {
                    pages.insert(page * 4096, offset);
                    offset += 4096;
                }
                bit += 1;
            }
        }
        let set: usize = bitmap.iter().map(|byte| byte.count_ones() as usize).sum();
        ensure!(set == pages.len(), "{set} bits are set, {} of them stand for pages", pages.len());
        Ok(Self { file, length, header, dump_avail, pages, pmap, expected: offset })
    }

    /// The header.
    pub fn header(&self) -> MiniHeader {
        self.header
    }

    /// Pairs of start and end, without the end mark.
    pub fn dump_avail(&self) -> &[(u64, u64)] {
        &self.dump_avail
    }

    /// Offset in the file by physical address, of each page that is in the dump.
    pub fn pages(&self) -> &BTreeMap<u64, u64> {
        &self.pages
    }

    /// Length that header and bitmap ask for.
    pub fn expected_length(&self) -> u64 {
        self.expected
    }

    /// Length of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The message buffer as it lies, without what the rounding brought along.
    pub fn message_buffer(&self) -> Result<Vec<u8>> {
        bytes(&self.file, 4096, self.header.msgbufsize as usize)
    }

    /// The page directories' entries, or page tables' in version 1.
    pub fn pmap(&self) -> Result<Vec<u64>> {
        let bytes = bytes(&self.file, self.pmap, self.header.pmapsize as usize)?;
        Ok(bytes.chunks_exact(8).map(|entry| u64_at(entry, 0)).collect())
    }
}

impl VirtualMemory for MiniCore {
    fn read_pa(&self, address: u64, len: usize) -> Result<Vec<u8>> {
        ensure!(address % 4096 + len as u64 <= 4096, "across a page");
        let page = self.pages.get(&(address & !0xfff));
        let page = page.with_context(|| format!("physical {address:#x} is not in the dump"))?;
        bytes(&self.file, page + address % 4096, len)
    }

    fn translate(&self, va: u64) -> Result<u64> {
        let header = &self.header;
        if va >= header.kernbase {
            let index = (va - header.kernbase) >> if header.version == 1 { 12 } else { 21 };
            ensure!(index * 8 < u64::from(header.pmapsize), "{va:#x} lies behind the page map");
            let entry = u64_at(&bytes(&self.file, self.pmap + index * 8, 8)?, 0);
            ensure!(entry & 1 == 1, "{va:#x} is not mapped");
            if header.version == 1 {
                return Ok(entry & 0x000f_ffff_ffff_f000 | va & 0xfff);
            }
            if entry & 0x80 != 0 {
                return Ok(entry & 0x000f_ffff_ffe0_0000 | va & 0x1f_ffff);
            }
            let place = (entry & 0x000f_ffff_ffff_f000) + (va >> 12 & 0x1ff) * 8;
            let page = u64_at(&self.read_pa(place, 8)?, 0);
            ensure!(page & 1 == 1, "{va:#x} is not mapped by its page table");
            return Ok(page & 0x000f_ffff_ffff_f000 | va & 0xfff);
        }
        if (header.dmapbase..header.dmapend).contains(&va) {
            return Ok(va - header.dmapbase);
        }
        bail!("{va:#x} is no kernel address")
    }
}

fn pairs(bytes: &[u8]) -> Result<Vec<(u64, u64)>> {
    let mut pairs = Vec::new();
    for pair in bytes.chunks_exact(16) {
        let (start, end) = (u64_at(pair, 0), u64_at(pair, 8));
        if end == 0 {
            return Ok(pairs);
        }
        ensure!(start < end, "dump_avail has {start:#x} to {end:#x}");
        ensure!(pairs.last().is_none_or(|&(_, before)| before <= start), "dump_avail is out of order");
        pairs.push((start, end));
    }
    bail!("dump_avail has no end")
}

pub(super) fn bytes(file: &File, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).with_context(|| format!("{len} bytes at {offset:#x}"))?;
    Ok(bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
