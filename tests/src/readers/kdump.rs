//! Reads a kdump-compressed core as makedumpfile's `IMPLEMENTATION` and `diskdump_mod.h` describe it, version 6.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Bytes of a block, and of a page.
const BLOCK: usize = 4096;

/// A kdump-compressed core, all of it in memory.
#[derive(Debug)]
pub struct KdumpCore {
    file: Vec<u8>,
    /// `utsname`: sysname, nodename, release, version, machine, domainname.
    pub names: [String; 6],
    /// `phys_base`, in two's complement.
    pub phys_base: u64,
    /// makedumpfile's dump level.
    pub level: u32,
    /// How pages are compressed: 1 zlib, 0x20 zstd.
    pub status: u32,
    /// The number of the last page plus 1.
    pub max_mapnr: u64,
    /// VMCOREINFO's text.
    pub vmcoreinfo: String,
    /// The ELF notes.
    pub notes: Vec<u8>,
    /// Offset of the first bitmap, and bytes of each.
    bitmaps: (usize, usize),
}

impl KdumpCore {
    /// Reads the headers.
    pub fn open(path: &Path) -> Result<Self> {
        let file = fs::read(path)?;
        ensure!(file.starts_with(b"KDUMP   "), "no signature");
        ensure!(u32_at(&file, 8)? == 6, "not version 6");
        ensure!(u32_at(&file, 428)? == 4096, "blocks of another size");
        let name = |index: usize| -> Result<String> {
            let field = part(&file, 12 + 65 * index, 65)?;
            let end = field.iter().position(|byte| *byte == 0).context("a name without NUL")?;
            Ok(std::str::from_utf8(&field[..end])?.to_owned())
        };
        let names = [name(0)?, name(1)?, name(2)?, name(3)?, name(4)?, name(5)?];
        let field = |at: usize| u64_at(&file, BLOCK + at);
        let placed = |at: usize| -> Result<&[u8]> {
            part(&file, usize::try_from(field(at)?)?, usize::try_from(field(at + 8)?)?)
        };
        ensure!((field(64)?, field(72)?) == (0, 0), "erased data");
        ensure!(u32_at(&file, BLOCK + 12)? == 0, "a split file");
        let start = BLOCK * (1 + u32_at(&file, 432)? as usize);
        let len = BLOCK * u32_at(&file, 436)? as usize / 2;
        let core = Self {
            names,
            phys_base: field(0)?,
            level: u32_at(&file, BLOCK + 8)?,
            status: u32_at(&file, 424)?,
            max_mapnr: field(96)?,
            vmcoreinfo: String::from_utf8(placed(32)?.to_vec())?,
            notes: placed(48)?.to_vec(),
            bitmaps: (start, len),
            file,
        };
        let low = u64::from(u32_at(&core.file, 440)?);
        ensure!(low == core.max_mapnr & 0xffff_ffff, "two numbers of pages");
        ensure!(core.max_mapnr.div_ceil(8) <= len as u64, "the bitmaps are too short");
        Ok(core)
    }

    /// Numbers of the pages that are RAM.
    pub fn ram(&self) -> Vec<u64> {
        self.bits(0)
    }

    /// Numbers of the pages that are in the file.
    pub fn stored(&self) -> Vec<u64> {
        self.bits(1)
    }

    fn bits(&self, bitmap: usize) -> Vec<u64> {
        let (start, len) = self.bitmaps;
        let bytes = &self.file[start + bitmap * len..][..len];
        let bits = (0_u64..).zip(bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1)));
        bits.filter(|(_, bit)| *bit == 1).map(|(number, _)| number).collect()
    }

    /// Content and place in the file of every page that is stored, by its number.
    pub fn pages(&self) -> Result<Vec<Page>> {
        let (start, len) = self.bitmaps;
        let page = |(rank, number): (usize, u64)| {
            let at = start + 2 * len + 24 * rank;
            let offset = u64_at(&self.file, at)?;
            let (size, flags) = (u32_at(&self.file, at + 8)? as usize, u32_at(&self.file, at + 12)?);
            ensure!(u64_at(&self.file, at + 16)? == 0, "page flags");
            let content = unpacked(flags, part(&self.file, usize::try_from(offset)?, size)?)?;
            ensure!(content.len() == BLOCK, "it unpacks to {} bytes", content.len());
            Ok(Page { number, offset, size, content })
        };
        let numbered = self.stored().into_iter().enumerate();
        numbered.map(|all| page(all).with_context(|| format!("page {:#x}", all.1))).collect()
    }

    /// Length of the file.
    pub fn length(&self) -> u64 {
        self.file.len() as u64
    }
}

/// A page that is in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Its number.
    pub number: u64,
    /// Where it lies in the file, compressed.
    pub offset: u64,
    /// How many bytes it has there.
    pub size: usize,
    /// What it holds.
    pub content: Vec<u8>,
}

fn unpacked(flags: u32, packed: &[u8]) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    match flags {
        0 => page.extend_from_slice(packed),
        1 => {
            flate2::read::ZlibDecoder::new(packed).take(1 << 16).read_to_end(&mut page)?;
        }
        0x20 => page = zstd::stream::decode_all(packed)?,
        other => bail!("flags {other:#x}"),
    }
    Ok(page)
}

fn part(file: &[u8], at: usize, len: usize) -> Result<&[u8]> {
    file.get(at..).and_then(|rest| rest.get(..len)).with_context(|| format!("{len} bytes at {at:#x}"))
}

fn u32_at(file: &[u8], at: usize) -> Result<u32> {
    Ok(part(file, at, 4)?.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)))
}

fn u64_at(file: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from(u32_at(file, at)?) | u64::from(u32_at(file, at + 4)?) << 32)
}
