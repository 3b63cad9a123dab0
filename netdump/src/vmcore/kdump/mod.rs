//! The kdump-compressed core of Linux, as makedumpfile writes it: each page compressed for itself, so that a reader finds
//! any of them at once, and pages that are left out take no room (makedumpfile's IMPLEMENTATION, `diskdump_mod.h`).
//!
//! ```text
//! block 0          header: signature, names of the kernel, sizes (`header.rs`)
//! block 1          sub-header, then the notes of an ELF core (see `notes`)
//! whole blocks     bitmap of the pages that are RAM, bit 0 of byte 0 first
//! whole blocks     bitmap of the pages that are in the file
//!                  a descriptor of 24 bytes for each of these: u64 offset, u32 length, u32 flags, u64 0
//!                  the compressed pages; all pages of zeros are one
//! ```
//!
//! Both bitmaps end where the memory does that a Linux kernel has a `struct page` for, and so does the core: makedumpfile,
//! when it filters one once more, finds the second bitmap by the kernel's end, not by the header's (`copy_bitmap_file`).
//!
//! Blocks have 4096 bytes, numbers are little-endian. Pages of zeros are in the bitmap: crash takes one that is not for
//! one that was left out. All readers know zlib; makedumpfile as Debian builds it does not know zstd.

mod header;
mod method;
mod pages;
mod read;

use std::sync::Arc;

use super::core_file::CoreFile;
use super::image::DumpImage;
use super::minidump::page_set::{PageNumbers, PageSet, PageSetBuilder};
use super::notes;
use super::open::{Core, OpenError};
use super::paging::PAGE_SIZE;
use super::{DumpFormat, PlanError, PlannedCore, StoppedGuest, check_ranges};
use crate::linux::{LinuxLayout, filter};
use header::Header;
pub(super) use method::Method;
use pages::{Descriptors, Pack, PageData};
pub use read::KdumpError;

const NO_VMCOREINFO: &str = "the core has no VMCOREINFO, which crash, drgn and makedumpfile need to open it";
const SIGNATURE: &[u8; 8] = b"KDUMP   ";
const BLOCK: u64 = 4096;
const SUB_HEADER_LEN: u64 = 104;
const DESCRIPTOR_LEN: u64 = 24;
/// Most pages, up to the end of RAM, that a bitmap is made of: 4 TiB.
const MAX_PAGES: u64 = 1 << 30;

/// The format "kdump", compressed in a way that all readers know.
pub static ZLIB: Kdump = Kdump { method: Method::Zlib };
/// The format "kdump-zstd": smaller and faster.
pub static ZSTD: Kdump = Kdump { method: Method::Zstd };

/// A kdump-compressed core.
#[derive(Debug)]
pub struct Kdump {
    method: Method,
}

impl DumpFormat for Kdump {
    fn name(&self) -> &'static str {
        match self.method {
            Method::Zlib => "kdump",
            Method::Zstd => "kdump-zstd",
        }
    }

    /// Nobody's: it is written when it is asked for.
    fn suits(&self, _guest: &StoppedGuest<'_, '_>) -> bool {
        false
    }

    /// Compresses all of memory once, to know where each page will lie; what is read of the core later is compressed
    /// again, so nothing but the lengths is kept. The table with the place of every page comes before the pages, and a core is sent
    /// once from its start: to compress once would mean to hold the core. Both passes cost about the same (a 512 MiB Debian
    /// guest: 45 to 55); filtering makes each a quarter of it.
    fn plan<'m>(&self, guest: &StoppedGuest<'m, '_>) -> Result<PlannedCore<'m>, PlanError> {
        let memory = guest.memory;
        check_ranges(memory.ranges())?;
        let end = memory.ranges().last().map_or(0, |range| range.end() / PAGE_SIZE);
        if end > MAX_PAGES {
            return Err(PlanError::TooMuchMemory { pages: end });
        }
        let linux = LinuxLayout::of(guest);
        let info = linux.as_ref().map(|layout| &layout.info);
        let known = info.and_then(|info| filter::known_pages(memory, info, end)).unwrap_or(end);
        let beyond = (known < end).then(|| beyond(known));
        let end = known;
        let notes = notes::emit(memory.cpus(), guest.notes, info);
        let (ram, kept) = page_sets(guest, end);
        let (ram, kept_bits) = (ram.bitmap(), kept.bitmap());
        let header = Header::new(guest, info, self.method, &notes, ram.len() as u64);
        let pack = Arc::new(Pack::new(memory, kept, self.method));

        let mut image = DumpImage::new(memory);
        let head = header.emit(&notes, end);
        let data_at = (head.len() + ram.len() + kept_bits.len()) as u64 + pack.pages() * DESCRIPTOR_LEN;
        image.add_bad_pages(pack.bad_pages());
        image.push_bytes(head);
        image.push_bytes(ram);
        image.push_bytes(kept_bits);
        image.push_made(Box::new(Descriptors::new(pack.clone(), data_at)));
        image.push_made(Box::new(PageData::new(pack)));
        let remark = match &linux {
            Some(layout) => layout.remark(),
            None => Some(NO_VMCOREINFO.to_owned()),
        };
        let remarks = remark.into_iter().chain(beyond).collect();
        Ok(PlannedCore { image, format: self.name(), remarks })
    }

    fn recognise(&self, head: &[u8]) -> bool {
        head.starts_with(SIGNATURE) && read::method(head) == self.method
    }

    fn open(&self, file: CoreFile) -> Result<Core, OpenError> {
        read::open(file, self.name()).map_err(OpenError::Kdump)
    }
}

fn beyond(known: u64) -> String {
    format!(
        "memory from {:#x} on, which the guest's kernel does not use, is not in the core",
        known * PAGE_SIZE
    )
}

/// The pages before page `end` that are RAM and those of them that are kept, numbered from address 0.
fn page_sets(guest: &StoppedGuest<'_, '_>, end: u64) -> (PageSet, PageSet) {
    let mut ram = PageSetBuilder::new(PageNumbers::from_zero(end));
    guest.memory.ranges().iter().for_each(|range| ram.insert_range(range.start..range.end()));
    let ram = ram.finish();
    let Some(kept) = guest.memory.kept() else { return (ram.clone(), ram) };
    let mut set = PageSetBuilder::new(PageNumbers::from_zero(end));
    kept.pages.runs().for_each(|run| set.insert_range(run.address..run.address + run.pages * PAGE_SIZE));
    (ram, set.finish())
}
