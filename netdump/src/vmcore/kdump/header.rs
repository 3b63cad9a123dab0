//! The two headers: `disk_dump_header` version 6 in block 0, `kdump_sub_header` and the notes behind it.

use super::super::notes::CoreNotes;
use super::super::{PhysicalMemory, StoppedGuest};
use super::{BLOCK, Method, SIGNATURE, SUB_HEADER_LEN};
use crate::linux::Vmcoreinfo;

const VERSION: u32 = 6;
/// The six texts of `struct new_utsname`: sysname, nodename, release, version, machine, domainname.
const NAMES: u64 = 6 * 65;
const NAME_LEN: usize = 65;

/// What both say.
pub(super) struct Header {
    names: Vec<u8>,
    time: u64,
    method: Method,
    bitmap_len: u64,
    current_cpu: u32,
    cpus: u32,
    phys_base: u64,
    level: u8,
    /// Place of VMCOREINFO's text in the notes, and its length.
    info: Option<(u64, u64)>,
    sub_header_blocks: u64,
}

impl Header {
    /// Of a file with these notes, whose bitmaps have `bitmap_len` bytes each.
    pub(super) fn new(
        guest: &StoppedGuest<'_, '_>,
        info: Option<&Vmcoreinfo>,
        method: Method,
        notes: &[u8],
        bitmap_len: u64,
    ) -> Self {
        let CoreNotes { panic_cpu, panic_time, .. } = guest.notes;
        let text = info.and_then(|info| {
            let text = info.text().as_bytes();
            let at = notes.windows(text.len()).position(|window| window == text)?;
            Some((at as u64, text.len() as u64))
        });
        Self {
            names: info.and_then(|info| names(guest.memory, info)).unwrap_or_else(no_names),
            time: panic_time.unwrap_or(0),
            method,
            bitmap_len,
            current_cpu: panic_cpu.unwrap_or(0),
            cpus: u32::try_from(guest.memory.cpus().len()).unwrap_or(u32::MAX),
            phys_base: info.map_or(0, Vmcoreinfo::phys_base),
            level: guest.memory.kept().map_or(0, |kept| kept.level),
            info: text,
            sub_header_blocks: (SUB_HEADER_LEN + notes.len() as u64).div_ceil(BLOCK),
        }
    }

    /// Both blocks and the notes, in whole blocks. `pages` is the number of the last page of RAM plus 1.
    pub(super) fn emit(&self, notes: &[u8], pages: u64) -> Vec<u8> {
        let blocks = |len: u64| u32::try_from(len / BLOCK).expect("bitmaps have at most 128 MiB");
        let mut out = SIGNATURE.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend(&self.names);
        // The names end on 402; timeval lies on 8.
        out.resize(408, 0);
        out.extend([self.time, 0].iter().flat_map(|word| word.to_le_bytes()));
        let sub_header = u32::try_from(self.sub_header_blocks).expect("notes are bounded far below 4 GiB");
        #[expect(clippy::cast_possible_truncation, reason = "the low half; the sub-header has all of it")]
        let low = pages as u32;
        let page_len = u32::try_from(BLOCK).expect("a block is small");
        let words = [self.method.flag(), page_len, sub_header, 2 * blocks(self.bitmap_len), low];
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        // Blocks in all, of the device, and written: of diskdump's own partition, which there is none of.
        let words = [0, 0, 0, self.current_cpu, self.cpus];
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        out.resize(4096, 0);

        let notes_at = BLOCK + SUB_HEADER_LEN;
        let (info_at, info_len) = self.info.map_or((0, 0), |(at, len)| (notes_at + at, len));
        out.extend(self.phys_base.to_le_bytes());
        // Dump level, and no split file.
        out.extend([u32::from(self.level), 0].iter().flat_map(|word| word.to_le_bytes()));
        // Pages of a split file; place and length of VMCOREINFO, notes, erased data; pages of a split file in 64 bits.
        let words = [0, 0, info_at, info_len, notes_at, notes.len() as u64, 0, 0, 0, 0, pages];
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        out.extend(notes);
        out.resize(out.len().next_multiple_of(4096), 0);
        out
    }
}

/// The kernel's own names. libkdumpfile wants release, version and machine.
fn names(memory: &dyn PhysicalMemory, info: &Vmcoreinfo) -> Option<Vec<u8>> {
    let address = info.symbol("init_uts_ns")?.checked_add(info.offset("uts_namespace.name")?)?;
    let mut names = vec![0; usize::try_from(NAMES).ok()?];
    memory.read(info.image_address(address)?, &mut names).ok()?;
    for name in names.chunks_mut(NAME_LEN) {
        name[NAME_LEN - 1] = 0;
    }
    Some(names)
}

fn no_names() -> Vec<u8> {
    let names = ["", "", "unknown", "unknown", "x86_64", ""];
    names
        .iter()
        .flat_map(|name| {
            let mut field = name.as_bytes().to_vec();
            field.resize(NAME_LEN, 0);
            field
        })
        .collect()
}
