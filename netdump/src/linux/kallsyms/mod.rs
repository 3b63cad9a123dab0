//! A Linux kernel's own table of its symbols, kallsyms: in the kernel's file, which has no other when a distribution
//! ships it, and in the memory of a guest that runs it.
//!
//! The table stays packed, as the kernel has it: 3 MB for 158,000 symbols, which as a [`KernelSymbols`] are 30 MB. It is
//! hostile: counts and lengths are bounded, and no entry of it is an index that is not checked.
//!
//! Reference: `scripts/kallsyms.c`, `kernel/kallsyms.c`.

mod search;
mod tables;

use std::sync::Arc;

use super::{LinuxMemory, Vmcoreinfo};
use crate::vmcore::KernelSymbols;
use crate::vmcore::VirtualMemory;
use crate::vmcore::symbols::ListedSymbol;
use tables::{Base, LongNames, MARKER_STEP, MAX_SYMBOLS, NameWalk, TOKENS, Tokens, u64_at};

/// Where x86-64's kernel image may lie, KASLR included.
const IMAGE_START: u64 = 0xffff_ffff_8000_0000;
/// Most bytes of packed names and of tokens; 6.12 has 2.2 MB and 900 bytes.
const MAX_NAMES: usize = 32 << 20;
const MAX_TOKENS: usize = 1 << 16;
/// How much of an image is searched: text and read-only data, which have some 30 to 50 MB.
const MAX_IMAGE: usize = 64 << 20;
/// Most symbols of one address that are looked at: aliases come in twos and threes.
const MAX_ALIASES: usize = 64;

/// The symbols of a Linux kernel.
#[derive(Debug, Clone)]
pub struct Kallsyms {
    names: Vec<u8>,
    long: LongNames,
    /// Where the name of every 256th symbol begins.
    markers: Vec<u32>,
    tokens: Tokens,
    offsets: Vec<u32>,
    base: Base,
}

/// A place in the kernel's code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The function.
    pub function: String,
    /// Bytes from its start.
    pub offset: u64,
    /// Its length in bytes, up to whatever the table has next.
    pub size: u64,
}

/// The symbols of an unpacked `vmlinux` without `.symtab`, at the addresses that it was linked for, with its load map.
/// `None` where it has no kallsyms, or one of an unknown form.
pub fn from_image(elf: &[u8]) -> Option<KernelSymbols> {
    Some(Kallsyms::from_image(elf)?.symbols(KernelSymbols::parse(elf).ok()?))
}

/// The symbols of a stopped kernel at the addresses that it runs at. A guest's memory has no load map.
pub fn from_memory(memory: &LinuxMemory<'_>, info: &Vmcoreinfo) -> Option<KernelSymbols> {
    Some(Kallsyms::from_memory(memory, info)?.symbols(KernelSymbols::default()))
}

impl Kallsyms {
    /// The table of a stopped kernel, with the addresses that it runs at: through VMCOREINFO, which names it since 6.0, else
    /// by searching the kernel's image.
    pub fn from_memory(memory: &LinuxMemory<'_>, info: &Vmcoreinfo) -> Option<Self> {
        Self::named(memory, info).or_else(|| Self::from_image(&image(memory, info)?))
    }

    /// The table where VMCOREINFO says. Its names end before the tokens begin, whichever order it has.
    fn named(memory: &LinuxMemory<'_>, info: &Vmcoreinfo) -> Option<Self> {
        let address = |table: &str| info.symbol(&format!("kallsyms_{table}"));
        let read = |from: u64, len: u64, most: usize| {
            let mut bytes = vec![0; usize::try_from(len).ok().filter(|&len| len <= most)?];
            memory.read(from, &mut bytes)?;
            Some(bytes)
        };
        let (names, text, index) = (address("names")?, address("token_table")?, address("token_index")?);
        let count = memory.read_u32(address("num_syms")?).filter(|&count| count as usize <= MAX_SYMBOLS)?;
        let names = read(names, text.checked_sub(names)?, MAX_NAMES)?;
        let text = read(text, index.checked_sub(text)?, MAX_TOKENS)?;
        let index = read(index, 2 * TOKENS as u64, MAX_TOKENS)?;
        let offsets = read(address("offsets")?, 4 * u64::from(count), 4 * MAX_SYMBOLS)?;
        let base = memory.read_u64(address("relative_base")?)?;
        let tokens = Tokens::new(&text, &index)?;
        Self::new((&names, LongNames::TwoBytes), tokens.clone(), &offsets, base)
            .or_else(|| Self::new((&names, LongNames::No), tokens, &offsets, base))
    }

    /// The table in an unpacked `vmlinux`, with the addresses that it was linked for.
    pub fn from_image(elf: &[u8]) -> Option<Self> {
        let places = search::search(elf)?;
        let offsets = elf.get(places.offsets..)?.get(..4 * places.count)?;
        let base = u64_at(elf, places.relative_base)?;
        let tokens = Tokens::new(&elf[places.tokens], elf.get(places.token_index..)?)?;
        Self::new((elf.get(places.names)?, places.long), tokens, offsets, base)
    }

    /// Takes the tables together; `names` may go on behind the last name.
    fn new((names, long): (&[u8], LongNames), tokens: Tokens, offsets: &[u8], base: u64) -> Option<Self> {
        let offsets: Vec<u32> = offsets.as_chunks::<4>().0.iter().map(|o| u32::from_le_bytes(*o)).collect();
        let has_absolute = offsets.iter().any(|offset| offset.cast_signed() < 0);
        let (markers, end) = markers(names, offsets.len(), long)?;
        let (names, base) = (names[..end].to_vec(), Base { address: base, has_absolute });
        let found = Self { names, long, markers, tokens, offsets, base };
        found.is_plausible().then_some(found)
    }

    /// The kernel's text begins where its image does. Its symbol is among the first ones.
    fn is_plausible(&self) -> bool {
        let mut text = Vec::new();
        let mut names = NameWalk::new(&self.names, self.long).take(self.len()).enumerate();
        let start = names.find(|(_, packed)| {
            self.tokens.expand(packed, &mut text);
            text.get(1..) == Some(b"_stext")
        });
        start.is_some_and(|(index, _)| self.address_of(index) >= IMAGE_START)
    }

    /// The same symbols of a kernel that lies `distance` bytes behind the place that it was linked for, modulo 2^64.
    /// Per-CPU variables do not move.
    #[must_use]
    pub fn moved_by(self, distance: u64) -> Self {
        let address = self.base.address.wrapping_add(distance);
        Self { base: Base { address, ..self.base }, ..self }
    }

    /// How many symbols there are.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Virtual address of a symbol; of a per-CPU variable its offset in each CPU's area.
    pub fn address(&self, name: &str) -> Option<u64> {
        let [address] = self.addresses([name]);
        address
    }

    /// The same of several, in one pass over the table. Of several symbols of one name a global one is taken, else the
    /// first.
    pub fn addresses<const N: usize>(&self, names: [&str; N]) -> [Option<u64>; N] {
        let mut found: [Option<(u64, bool)>; N] = [None; N];
        let mut is_first = [false; 256];
        let mut is_len = [false; 1 + u8::MAX as usize];
        for name in names {
            is_first[usize::from(name.as_bytes().first().copied().unwrap_or_default())] = true;
            is_len[name.len().min(255)] = true;
        }
        self.for_each(|index, name| {
            let Some((&kind, name)) = name.split_first() else { return };
            if !name.first().is_some_and(|&byte| is_first[usize::from(byte)]) || !is_len[name.len().min(255)]
            {
                return;
            }
            let wanted = names.iter().position(|wanted| wanted.as_bytes() == name);
            let Some(place) = wanted.map(|at| &mut found[at]) else { return };
            let is_global = !is_local(kind);
            if place.is_none_or(|(_, known)| is_global && !known) {
                *place = Some((self.address_of(index), is_global));
            }
        });
        found.map(|place| place.map(|(address, _)| address))
    }

    /// The function that `address` lies in: of several names the first, as the kernel itself prints it.
    pub fn function_at(&self, address: u64) -> Option<Place> {
        let behind = self.offsets.partition_point(|&offset| self.base.address(offset) <= address);
        let start = self.address_of(behind.checked_sub(1)?);
        let before = |index: &usize| self.address_of(*index) == start;
        let aliases = (0..behind).rev().take(MAX_ALIASES).take_while(before);
        let mut name = Vec::new();
        let named = aliases.filter_map(|index| {
            self.name(index, &mut name)?;
            let (&kind, text) = name.split_first()?;
            is_function(kind).then(|| String::from_utf8_lossy(text).into_owned())
        });
        let function = named.last()?;
        // What stands last in the table ends somewhere in its page.
        let end = if behind < self.len() { self.address_of(behind) } else { start.saturating_add(4096) };
        (address < end).then(|| Place { function, offset: address - start, size: end - start })
    }

    /// All of them with the load map of `image`.
    pub fn symbols(&self, image: KernelSymbols) -> KernelSymbols {
        let mut listed: Vec<ListedSymbol> = Vec::with_capacity(self.len());
        self.for_each(|index, text| {
            let Some((&kind, name)) = text.split_first() else { return };
            let Ok(name) = std::str::from_utf8(name) else { return };
            listed.push(ListedSymbol {
                name: Arc::from(name),
                address: self.address_of(index),
                is_local: is_local(kind),
                is_function: is_function(kind),
            });
        });
        image.with_listed(listed)
    }

    /// These few with the load map of `image`, for who keeps them beside a guest.
    pub fn only<const N: usize>(&self, names: [&str; N], image: KernelSymbols) -> KernelSymbols {
        let found = names.into_iter().zip(self.addresses(names));
        let listed = found.filter_map(|(name, address)| {
            Some(ListedSymbol { name: name.into(), address: address?, is_local: false, is_function: false })
        });
        image.with_listed(listed.collect())
    }

    fn address_of(&self, index: usize) -> u64 {
        self.base.address(self.offsets[index])
    }

    /// Gives `see` the number and the text of each symbol.
    fn for_each(&self, mut see: impl FnMut(usize, &[u8])) {
        let mut text = Vec::new();
        for (index, packed) in NameWalk::new(&self.names, self.long).enumerate().take(self.len()) {
            self.tokens.expand(packed, &mut text);
            see(index, &text);
        }
    }

    fn name(&self, index: usize, out: &mut Vec<u8>) -> Option<()> {
        let marker = *self.markers.get(index / MARKER_STEP)? as usize;
        let packed = NameWalk::from(&self.names, marker, self.long).nth(index % MARKER_STEP)?;
        self.tokens.expand(packed, out);
        Some(())
    }
}

/// The kernel's image from its text on, as far as it is RAM.
fn image(memory: &LinuxMemory<'_>, info: &Vmcoreinfo) -> Option<Vec<u8>> {
    let start = info.symbol("_stext")?;
    let physical = info.image_address(start)?;
    let range = memory.physical().range_at(physical)?;
    let len = usize::try_from(range.end() - physical).map_or(MAX_IMAGE, |len| len.min(MAX_IMAGE));
    let mut bytes = vec![0; len];
    // In one piece of physical memory: pages that the kernel has unmapped are read too.
    memory.physical().read(physical, &mut bytes).ok()?;
    Some(bytes)
}

/// Where every 256th of `count` names begins, and where the last one ends.
fn markers(names: &[u8], count: usize, long: LongNames) -> Option<(Vec<u32>, usize)> {
    if count == 0 || count > MAX_SYMBOLS {
        return None;
    }
    let mut walk = NameWalk::new(names, long);
    let mut markers = Vec::with_capacity(count.div_ceil(MARKER_STEP));
    for number in 0..count {
        if number % MARKER_STEP == 0 {
            markers.push(u32::try_from(walk.position()).ok()?);
        }
        walk.next()?;
    }
    Some((markers, walk.position()))
}

/// `nm`'s letters: lower case is local, but for weak symbols and unique ones.
fn is_local(kind: u8) -> bool {
    kind.is_ascii_lowercase() && !matches!(kind, b'w' | b'v' | b'u')
}

/// Code, of a weak symbol perhaps.
fn is_function(kind: u8) -> bool {
    matches!(kind, b't' | b'T' | b'w' | b'W')
}

#[cfg(test)]
pub(super) mod tests;
