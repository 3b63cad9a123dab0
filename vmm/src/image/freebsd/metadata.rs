//! What a FreeBSD kernel or module says of itself: the modules that it has, and those that it needs (freebsd-src
//! `sys/sys/module.h`, read by `stand/common/load_elf.c`). Section `set_modmetadata_set` holds pointers to
//! `struct mod_metadata`: i32 version, i32 type, pointer to data, pointer to a name. Little-endian, 64 bits.
//!
//! A kernel has addresses there; a relocatable module has zeros, and relocations that tell.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectKind, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex};

const SET: &str = "set_modmetadata_set";
/// `MDT_DEPEND`, `MDT_VERSION`.
const DEPENDS: u32 = 1;
const VERSION: u32 = 3;
/// Most entries, and the longest name (`MAXMODNAME`). GENERIC has some two thousand.
const MOST: usize = 16_384;
const MOST_NAME: usize = 64;

/// The versions of a module that will do (`struct mod_depend`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needed {
    pub(super) minimum: i32,
    pub(super) preferred: i32,
    pub(super) maximum: i32,
}

impl Needed {
    pub(super) fn range(self) -> RangeInclusive<i32> {
        self.minimum..=self.maximum
    }

    /// Whether a version will do.
    pub(super) fn takes(self, version: i32) -> bool {
        version == self.preferred || self.range().contains(&version)
    }
}

/// What a file says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    /// The modules that it has, with their versions.
    pub(super) has: Vec<(String, i32)>,
    /// The modules that it needs.
    pub(super) needs: Vec<(String, Needed)>,
}

/// Reads it, as far as it can be read: nothing from what is no ELF file.
pub(super) fn read(bytes: &[u8]) -> Metadata {
    let mut metadata = Metadata::default();
    if let Ok(file) = ElfFile64::<Endianness>::parse(bytes)
        && let Some(image) = Image::new(&file)
    {
        image.each(|entry| metadata.add(&image, entry));
    }
    metadata
}

impl Metadata {
    /// Notes an entry of the set; nothing when it leads nowhere.
    fn add(&mut self, image: &Image<'_>, entry: Place) -> Option<()> {
        let kind = image.number(entry, 4)?;
        if !matches!(kind, DEPENDS | VERSION) {
            return None;
        }
        let (data, name) = (image.pointer(entry, 8)?, image.name(image.pointer(entry, 16)?)?);
        let number = |at| image.number(data, at).map(u32::cast_signed);
        if kind == VERSION {
            self.has.push((name, number(0)?));
        } else {
            let needed = Needed { minimum: number(0)?, preferred: number(4)?, maximum: number(8)? };
            self.needs.push((name, needed));
        }
        Some(())
    }
}

/// Somewhere in a section.
type Place = (SectionIndex, u64);

/// An ELF file, as pointers in it are followed.
struct Image<'a> {
    sections: HashMap<SectionIndex, (u64, &'a [u8])>,
    /// Where relocated pointers point; `None` for an image whose pointers are addresses.
    relocated: Option<HashMap<Place, Place>>,
    set: SectionIndex,
}

impl<'a> Image<'a> {
    fn new(file: &ElfFile64<'a, Endianness>) -> Option<Self> {
        let set = file.section_by_name(SET)?.index();
        // Sections may lie over each other: their number is bounded by the file, and none is copied.
        let section = |s: object::read::elf::ElfSection64<'a, '_, Endianness>| {
            Some((s.index(), (s.address(), s.data().ok()?)))
        };
        let sections = file.sections().filter_map(section).collect();
        let relocated = (file.kind() == ObjectKind::Relocatable).then(|| relocations(file));
        Some(Self { sections, relocated, set })
    }

    /// Every entry of the set.
    fn each(&self, mut look: impl FnMut(Place) -> Option<()>) {
        let len = self.sections.get(&self.set).map_or(0, |(_, bytes)| bytes.len());
        for at in (0..len as u64).step_by(8).take(MOST) {
            if let Some(entry) = self.pointer((self.set, 0), at) {
                look(entry);
            }
        }
    }

    /// Where the pointer `at` bytes behind a place points.
    fn pointer(&self, (section, offset): Place, at: u64) -> Option<Place> {
        let offset = offset.checked_add(at)?;
        if let Some(relocated) = &self.relocated {
            return relocated.get(&(section, offset)).copied();
        }
        let bytes: [u8; 8] = *self.bytes((section, offset))?.first_chunk()?;
        let address = u64::from_le_bytes(bytes);
        self.sections.iter().find_map(|(index, (start, bytes))| {
            let inside = address.checked_sub(*start).filter(|inside| *inside < bytes.len() as u64);
            inside.filter(|_| *start != 0).map(|inside| (*index, inside))
        })
    }

    fn number(&self, (section, offset): Place, at: u64) -> Option<u32> {
        let bytes = self.bytes((section, offset.checked_add(at)?))?;
        bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn name(&self, place: Place) -> Option<String> {
        let bytes = self.bytes(place)?;
        let name = bytes.split(|&byte| byte == 0).next()?;
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        let is_sound = !name.is_empty() && name.len() <= MOST_NAME && name.iter().all(is_name);
        is_sound.then(|| String::from_utf8_lossy(name).into_owned())
    }

    /// What is from a place on, as far as a name or a structure may be long.
    fn bytes(&self, (section, offset): Place) -> Option<&'a [u8]> {
        let bytes = self.sections.get(&section)?.1.get(usize::try_from(offset).ok()?..)?;
        bytes.get(..bytes.len().min(MOST_NAME + 1))
    }
}

/// Where the relocations of all data sections point: R_X86_64_64 against symbols or sections.
fn relocations(file: &ElfFile64<'_, Endianness>) -> HashMap<Place, Place> {
    let mut relocated = HashMap::new();
    for section in file.sections().filter(|section| section.kind() != object::SectionKind::Text) {
        for (offset, relocation) in section.relocations().filter(|(_, relocation)| relocation.size() == 64) {
            let target = match relocation.target() {
                RelocationTarget::Symbol(index) => file.symbol_by_index(index).ok(),
                _ => None,
            };
            let target = target.and_then(|symbol| Some((symbol.section_index()?, symbol.address())));
            if let Some((index, value)) = target {
                let target = (index, value.wrapping_add_signed(relocation.addend()));
                relocated.insert((section.index(), offset), target);
            }
        }
    }
    relocated
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `gcc -c` from module.c beside it.
    const MODULE: &[u8] = include_bytes!("testdata/module.ko");

    #[test]
    fn a_relocatable_module_tells_what_it_has_and_needs() {
        let metadata = read(MODULE);
        assert_eq!(metadata.has, [("if_test".to_owned(), 3)]);
        let needed = |minimum, preferred, maximum| Needed { minimum, preferred, maximum };
        assert_eq!(
            metadata.needs,
            [
                ("bus_test".to_owned(), needed(1, 1, 1)),
                ("kernel".to_owned(), needed(1_400_000, 1_400_097, 1_499_999)),
            ]
        );
        assert!(metadata.needs[1].1.takes(1_400_500) && !metadata.needs[0].1.takes(2));
    }

    #[test]
    fn damaged_modules_tell_what_they_can() {
        for at in 0..MODULE.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = MODULE.to_vec();
                bytes[at] = value;
                read(&bytes);
            }
            read(&MODULE[..at]);
        }
        assert_eq!(read(b"no ELF file"), Metadata::default());
    }
}
