//! Where the image of a kernel lies that may be running: told from its memory and its symbols, without asking a CPU.
//!
//! Address randomisation moves a kernel twice: in physical memory, and in the window of virtual addresses that its image
//! has. Both moves are multiples of 2 MiB. At every such place the kernel's own words are looked at: its banner and
//! `init_uts_ns` must name the same release, and `phys_base`, which the kernel's first instructions set (`arch/x86/
//! kernel/head64.c`, `__startup_64`), must fit to where it lies. So neither the unpacked kernel before it has been
//! moved to its place counts, nor what is left of an earlier one that was moved elsewhere.

use crate::vmcore::{KernelSymbols, PhysicalMemory};

/// The image begins at a multiple of this (`CONFIG_PHYSICAL_ALIGN` at its least).
const ALIGNMENT: u64 = 2 << 20;
/// The image is moved by less in virtual memory (`KERNEL_IMAGE_SIZE`).
const MAX_SLIDE: u64 = 1 << 30;
/// What every kernel says first of itself; its release follows (`init/version-timestamp.c`).
const BANNER: &[u8] = b"Linux version ";
/// Size of each text of `struct new_utsname`, and which of them is the release.
const UTS_TEXT: usize = 65;
const RELEASE: usize = 2 * UTS_TEXT;
/// Where `struct uts_namespace` has the texts: at its start, before 5.11 behind a counter.
const UTS_NAME: [usize; 2] = [0, 4];
/// Places that one step of a search looks at.
const STEP: u32 = 512;
/// Most steps that a search rests after it has looked everywhere in vain.
const LONGEST_REST: u32 = 200;

/// Symbols that tell the place.
pub(super) const SYMBOLS: [&str; 7] =
    ["_text", "linux_banner", "init_uts_ns", "phys_base", "prb", "printk_rb_static", "printk_rb_dynamic"];

/// Where a kernel lies, against where it was linked and asks to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// How much higher in physical memory, modulo 2^64.
    pub moved: u64,
    /// How much higher in virtual memory: what VMCOREINFO calls `KERNELOFFSET`.
    pub slide: u64,
}

/// What tells the place of one kernel.
#[derive(Debug, Clone)]
pub struct Landmarks {
    symbols: KernelSymbols,
    /// Where the image asks to be loaded, and how far behind that the banner lies.
    start: u64,
    banner: u64,
}

/// A search for the place, in steps.
#[derive(Debug, Clone, Default)]
pub struct Search {
    next: u64,
    /// Times that it has looked everywhere.
    sweeps: u32,
    rest: u32,
}

impl Landmarks {
    /// Those of the kernel with these symbols; `None` when they do not name what is needed (which kernels have since
    /// 5.10, with `CONFIG_KALLSYMS_ALL`).
    pub fn of(symbols: &KernelSymbols) -> Option<Self> {
        let optional = "printk_rb_dynamic";
        let has = |name: &&str| *name == optional || symbols.address(name).is_some();
        if !SYMBOLS.iter().all(has) {
            return None;
        }
        let physical = |name| symbols.physical(symbols.address(name)?);
        let start = physical("_text")?;
        let banner = physical("linux_banner")?.checked_sub(start)?;
        Some(Self { symbols: symbols.only(&SYMBOLS), start, banner })
    }

    /// The place, if the kernel runs there that was moved by so much.
    pub fn check(&self, memory: &dyn PhysicalMemory, moved: u64) -> Option<Place> {
        let read = |name, buf: &mut [u8]| {
            let physical = self.symbols.physical(self.symbols.address(name)?)?;
            memory.read(physical.wrapping_add(moved), buf).ok()
        };
        let mut banner = [0; BANNER.len() + UTS_TEXT];
        read("linux_banner", &mut banner)?;
        let release = banner.strip_prefix(BANNER)?;
        let release = &release[..release.iter().position(|&byte| byte == b' ').filter(|&end| end > 0)?];
        let mut uts = [0; 4 + RELEASE + UTS_TEXT];
        read("init_uts_ns", &mut uts)?;
        let names_it = |at: &usize| {
            let name = &uts[*at..];
            name.starts_with(b"Linux\0")
                && name[RELEASE..].strip_prefix(release).is_some_and(|rest| rest.first() == Some(&0))
        };
        UTS_NAME.iter().find(|at| names_it(at))?;
        let word = |name| {
            let mut bytes = [0; 8];
            read(name, &mut bytes)?;
            Some(u64::from_le_bytes(bytes))
        };
        // The one pointer that points into the image from the first instruction on.
        let ring = word("prb")?;
        let rings = ["printk_rb_static", "printk_rb_dynamic"].map(|name| self.symbols.address(name));
        let slides = rings.into_iter().flatten().map(|linked| ring.wrapping_sub(linked));
        let slide = { slides }.find(|slide| *slide < MAX_SLIDE && slide.is_multiple_of(ALIGNMENT))?;
        (word("phys_base")?.wrapping_add(slide) == moved).then_some(Place { moved, slide })
    }

    /// Where the image would begin that was moved by so much.
    fn moved_to(&self, start: u64) -> u64 {
        start.wrapping_sub(self.start)
    }
}

impl Search {
    /// Looks at some more places, and each time at where the kernel asks to be.
    pub fn step(&mut self, memory: &dyn PhysicalMemory, landmarks: &Landmarks) -> Option<Place> {
        if let Some(place) = landmarks.check(memory, 0) {
            return Some(place);
        }
        if self.rest > 0 {
            self.rest -= 1;
            return None;
        }
        let found = self.places(memory, landmarks, STEP);
        if found.is_some() {
            *self = Self::default();
        }
        found
    }

    /// Looks everywhere.
    pub fn everywhere(memory: &dyn PhysicalMemory, landmarks: &Landmarks) -> Option<Place> {
        landmarks.check(memory, 0).or_else(|| Self::default().places(memory, landmarks, u32::MAX))
    }

    fn places(&mut self, memory: &dyn PhysicalMemory, landmarks: &Landmarks, most: u32) -> Option<Place> {
        for _ in 0..most {
            let start = self.next;
            let banner = start.saturating_add(landmarks.banner);
            let Some(range) = memory.ranges().iter().find(|range| range.end() > banner) else {
                self.sweeps = (self.sweeps + 1).min(LONGEST_REST);
                (self.next, self.rest) = (0, self.sweeps);
                return None;
            };
            // Memory that was never touched is not to be touched by looking at it.
            let touched = memory.touched_from(banner.max(range.start)).unwrap_or_else(|| range.end());
            let nearest = touched.saturating_sub(landmarks.banner).next_multiple_of(ALIGNMENT).max(start);
            self.next = nearest;
            if nearest == start {
                self.next = start + ALIGNMENT;
                let place = landmarks.check(memory, landmarks.moved_to(start));
                if place.is_some() {
                    return place;
                }
            }
        }
        None
    }
}
