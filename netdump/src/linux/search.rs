//! Finds a running kernel's VMCOREINFO in memory that may hold others': of earlier boots, in copies of dumps, planted.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::image::{self, ALIGNMENT, KernelImage};
use super::layout::DIRECT_MAP_ALIGNMENT;
use super::vmcoreinfo::{MAX_TEXT, MIN_TEXT, Vmcoreinfo};
use crate::vmcore::VirtualMemory;
use crate::vmcore::paging::{AddressSpace, PAGE_SIZE};
use crate::vmcore::{KernelSymbols, MemoryRange, PhysicalMemory};

/// The head of the note: lengths of name and text, type, name.
const HEADER_LEN: usize = 24;
const NAME_LEN: u32 = 11;
const NAME: &[u8; 12] = b"VMCOREINFO\0\0";
/// Most pages with the head of a note that are looked into. A running kernel has one.
const MAX_CANDIDATES: usize = 4096;
/// Most bytes of a kernel's image that are searched for its pointer to the note; images have 40 to 80 MiB.
const MAX_IMAGE: u64 = 128 << 20;
/// Most places that candidates say the kernel lies at whose images are searched, and most words of these that are looked up in
/// page tables: a hostile guest may plant candidates, and fill an image with what could point at them.
const MAX_STARTS: usize = 4;
const MAX_LOOKUPS: u32 = 1 << 16;
/// Most steps of a search that find nothing to read: a damaged core may claim memory that its file does not have.
const MAX_UNREADABLE: u32 = 1024;
const STEP: usize = 64 << 10;
const PAGE_LEN: usize = 4096;

/// A text that could be the running kernel's, and where its note lies.
struct Candidate {
    note: u64,
    info: Vmcoreinfo,
}

/// See [`Vmcoreinfo::locate`].
pub(super) fn locate(memory: &dyn PhysicalMemory, symbols: Option<&KernelSymbols>) -> Option<Vmcoreinfo> {
    let image = KernelImage::find(memory);
    if let Some(info) = by_symbol(memory, symbols, image) {
        return Some(info);
    }
    match memory.findings() {
        Some(findings) => findings.vmcoreinfo.get_or_init(|| by_page(memory, image)).clone(),
        None => by_page(memory, image),
    }
}

/// By the head of the note, of which there may be several.
fn by_page(memory: &dyn PhysicalMemory, image: Option<KernelImage>) -> Option<Vmcoreinfo> {
    let mut candidates = candidates(memory, image);
    let first = candidates.first()?.info.clone();
    if candidates.iter().all(|candidate| candidate.info == first) {
        return Some(first);
    }
    let named = named_by_kernel(memory, &candidates);
    candidates.retain(|candidate| named.contains(&candidate.note));
    match candidates.as_slice() {
        [only] => Some(only.info.clone()),
        // Nothing tells which kernel ran last.
        _ => None,
    }
}

/// Through the kernel's own pointer to the note.
fn by_symbol(
    memory: &dyn PhysicalMemory,
    symbols: Option<&KernelSymbols>,
    image: Option<KernelImage>,
) -> Option<Vmcoreinfo> {
    let (symbols, image) = (symbols?, image?);
    let moved = image.virtual_start.wrapping_sub(symbols.address("_text")?);
    let space = AddressSpace::new(memory, image.mapping);
    let mut pointer = [0; 8];
    space.read(symbols.address("vmcoreinfo_note")?.wrapping_add(moved), &mut pointer)?;
    let note = space.translate(u64::from_le_bytes(pointer))?;
    note_at(memory, note).filter(|info| fits(memory, info, Some(image)))
}

/// All that lie at the start of a page and are of the kernel whose image is known.
fn candidates(memory: &dyn PhysicalMemory, image: Option<KernelImage>) -> Vec<Candidate> {
    let (mut notes, mut unreadable) = (Vec::new(), 0);
    for range in memory.ranges() {
        look_at_pages(memory, *range, &mut notes, &mut unreadable);
        if notes.len() >= MAX_CANDIDATES || unreadable >= MAX_UNREADABLE {
            break;
        }
    }
    notes
        .into_iter()
        .filter_map(|note| Some(Candidate { note, info: note_at(memory, note)? }))
        .filter(|candidate| fits(memory, &candidate.info, image))
        .collect()
}

/// Adds the pages of a range that begin with the head of a note. What the guest never touched is not read.
fn look_at_pages(
    memory: &dyn PhysicalMemory,
    range: MemoryRange,
    notes: &mut Vec<u64>,
    unreadable: &mut u32,
) {
    let step = memory.search_step().next_multiple_of(PAGE_LEN);
    let mut buf = vec![0; step];
    let mut next = range.start;
    while let Some(run) = (next < range.end()).then(|| memory.next_touched(next)).flatten() {
        next = next.max(run.start - run.start % PAGE_SIZE);
        let end = run.end.min(range.end());
        let end = end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(end);
        while next < end {
            let len = usize::try_from(end - next).map_or(step, |left| left.min(step));
            *unreadable += u32::from(!look_at_some_pages(memory, next, &mut buf[..len], notes));
            next += len as u64;
            if notes.len() >= MAX_CANDIDATES || *unreadable >= MAX_UNREADABLE {
                return;
            }
        }
    }
}

/// The same of as many pages as `buf` holds. Whether any could be read.
fn look_at_some_pages(memory: &dyn PhysicalMemory, start: u64, buf: &mut [u8], notes: &mut Vec<u64>) -> bool {
    // Of memory at hand only the head of each page is read.
    let at_once = buf.len() > PAGE_LEN && memory.read(start, buf).is_ok();
    let mut is_readable = at_once;
    for (address, page) in (start..).step_by(PAGE_LEN).zip(buf.chunks_mut(PAGE_LEN)) {
        // Ranges of a damaged core end anywhere.
        let Some(head) = page.get_mut(..HEADER_LEN) else { continue };
        let is_read = at_once || memory.read(address, head).is_ok();
        is_readable |= is_read;
        if is_read && text_len(head).is_some() {
            notes.push(address);
        }
    }
    is_readable
}

/// Length of the text of a note that begins like this.
fn text_len(page: &[u8]) -> Option<usize> {
    let header = page.first_chunk::<HEADER_LEN>()?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let len = usize::try_from(word(4)).ok()?;
    let is_note = word(0) == NAME_LEN && word(8) == 0 && header.ends_with(NAME);
    (is_note && (MIN_TEXT..=MAX_TEXT).contains(&len)).then_some(len)
}

fn note_at(memory: &dyn PhysicalMemory, note: u64) -> Option<Vmcoreinfo> {
    let mut header = [0; HEADER_LEN];
    memory.read(note, &mut header).ok()?;
    let mut text = vec![0; text_len(&header)?];
    memory.read(note.checked_add(HEADER_LEN as u64)?, &mut text).ok()?;
    Vmcoreinfo::parse(&text)
}

/// Whether this is of a kernel that lies where it says, and, where the CPUs tell, of the one that they ran.
fn fits(memory: &dyn PhysicalMemory, info: &Vmcoreinfo, image: Option<KernelImage>) -> bool {
    let is_of = |image: KernelImage| {
        let inside = info.symbol("_stext").and_then(|stext| stext.checked_sub(image.virtual_start));
        info.phys_base() == image.phys_base() && inside.is_some_and(|inside| inside < ALIGNMENT)
    };
    image.is_none_or(is_of) && info.names_release_of(memory)
}

/// The notes that a pointer in the kernel's image points at, as its variable `vmcoreinfo_note` does. Who can only plant pages
/// has no hand in the image.
fn named_by_kernel(memory: &dyn PhysicalMemory, candidates: &[Candidate]) -> HashSet<u64> {
    let mut by_start: BTreeMap<u64, Notes> = BTreeMap::new();
    for Candidate { note, info } in candidates {
        if let Some(start) = info.symbol("_stext").and_then(|stext| info.image_address(stext)) {
            by_start.entry(start).or_default().entry(note % DIRECT_MAP_ALIGNMENT).or_default().push(*note);
        }
    }
    let mut pointers = Pointers::new(memory);
    by_start
        .iter()
        .take(MAX_STARTS)
        .flat_map(|(start, notes)| pointers.notes_pointed_at(*start, notes))
        .collect()
}

/// Places of notes, by what is left of their addresses when the start of the direct map is not known.
type Notes = HashMap<u64, Vec<u64>>;

/// Looks for pointers in images.
struct Pointers<'m> {
    memory: &'m dyn PhysicalMemory,
    spaces: Vec<AddressSpace<'m>>,
    lookups: u32,
}

impl<'m> Pointers<'m> {
    fn new(memory: &'m dyn PhysicalMemory) -> Self {
        let spaces = image::roots(memory).map(|root| AddressSpace::new(memory, root)).collect();
        Self { memory, spaces, lookups: MAX_LOOKUPS }
    }

    /// The notes that the image at `start` points at.
    fn notes_pointed_at(&mut self, start: u64, notes: &Notes) -> HashSet<u64> {
        let mut found = HashSet::new();
        let Some(range) = self.memory.range_at(start) else { return found };
        let end = range.end().min(start.saturating_add(MAX_IMAGE));
        let mut buf = vec![0; STEP];
        let mut at = start - start % 8;
        while at < end && self.lookups > 0 {
            let len = usize::try_from(end - at).map_or(STEP, |left| left.min(STEP));
            if self.memory.read(at, &mut buf[..len]).is_ok() {
                let words = buf[..len].chunks_exact(8).filter_map(|bytes| bytes.first_chunk());
                words.for_each(|bytes| found.extend(self.notes_at(u64::from_le_bytes(*bytes), notes)));
            }
            at += len as u64;
        }
        found
    }

    /// The notes that a word of the image points at in the direct map: without page tables all that it may.
    fn notes_at<'n>(&mut self, word: u64, notes: &'n Notes) -> impl Iterator<Item = u64> + use<'n> {
        let notes = notes.get(&(word % DIRECT_MAP_ALIGNMENT)).filter(|_| word >> 63 == 1 && self.lookups > 0);
        let mut places = Vec::new();
        if notes.is_some() {
            self.lookups -= 1;
            places.extend(self.spaces.iter().filter_map(|space| space.translate(word)));
        }
        let is_flat = self.spaces.is_empty();
        notes.into_iter().flatten().copied().filter(move |note| is_flat || places.contains(note))
    }
}
