//! What the readers of a Linux kernel's core want to know of its memory: where the image lies and where the direct map
//! of all memory begins.

use super::image::{ALIGNMENT, WINDOW, WINDOW_LEN};
use super::{LinuxMemory, Vmcoreinfo, early};
use crate::freebsd;
use crate::vmcore::{MemoryRange, StoppedGuest};

/// The direct map, whatever randomisation chose, begins on 1 GiB (`arch/x86/mm/kaslr.c`: `PUD_SIZE`).
pub(super) const DIRECT_MAP_ALIGNMENT: u64 = 1 << 30;

/// Where a Linux kernel has its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinuxLayout {
    /// What the kernel says of itself, or would if it had come so far.
    pub info: Vmcoreinfo,
    /// The kernel's image.
    pub image: Option<MappedImage>,
    /// Kernel address of guest-physical address 0 in the direct map (`page_offset_base`).
    pub direct_map: Option<u64>,
}

/// A kernel's image, which lies in one piece in virtual and in physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedImage {
    /// Virtual address of its first byte.
    pub virtual_start: u64,
    /// Its guest-physical memory.
    pub physical: MemoryRange,
}

impl LinuxLayout {
    /// Of a guest that runs Linux.
    pub fn of(guest: &StoppedGuest<'_, '_>) -> Option<Self> {
        if guest.symbols.is_some_and(freebsd::is_freebsd) {
            return None;
        }
        let (info, early) = match Vmcoreinfo::locate(guest.memory, guest.symbols) {
            Some(info) => (info, None),
            None => early::find(guest.memory).map(|early| (early.info.clone(), early.direct_map))?,
        };
        let Some(memory) = LinuxMemory::new(guest.memory, &info) else {
            return Some(Self { info, image: None, direct_map: None });
        };
        let (image, direct_map) = (image(&memory, &info), direct_map(&memory, &info).or(early));
        Some(Self { info, image, direct_map })
    }

    /// What a person should know of a core of such a guest.
    pub fn remark(&self) -> Option<String> {
        self.info.is_put_together().then(|| {
            "the kernel panicked before it had VMCOREINFO: the core's was put together from the kernel's image".to_owned()
        })
    }
}

/// From the start of the image as far as large pages of the window show it. Gaps are memory that the kernel gave back.
fn image(memory: &LinuxMemory<'_>, info: &Vmcoreinfo) -> Option<MappedImage> {
    let stext = info.symbol("_stext")?;
    let virtual_start = stext - stext % ALIGNMENT;
    let start = info.image_address(virtual_start)?;
    let room = memory.physical().range_at(start)?.end() - start;
    let is_mapped = |inside: &u64| memory.walk(virtual_start + inside) == Some(start + inside);
    let places = (0..(WINDOW + WINDOW_LEN - virtual_start).min(room)).step_by(2 << 20);
    let last = places.filter(is_mapped).last()?;
    let len = (last + ALIGNMENT).min(room);
    Some(MappedImage { virtual_start, physical: MemoryRange { start, len } })
}

/// By a variable that the kernel took from the direct map early: the array of memory sections.
fn direct_map(memory: &LinuxMemory<'_>, info: &Vmcoreinfo) -> Option<u64> {
    let sections = info.symbol("mem_section").filter(|&address| address < WINDOW)?;
    let base = sections.checked_sub(memory.walk(sections)?)?;
    (base.is_multiple_of(DIRECT_MAP_ALIGNMENT) && base >> 63 == 1).then_some(base)
}
