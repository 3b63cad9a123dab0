//! Tiny guest kernels that panic, hang, reset or power off in every way a monitor must understand. They are built from
//! the sources in `guests/` when this crate is built, by the same compiler, and are part of the library as ELF images
//! that boot by PVH.
//!
//! One file is one guest, and the folder `freebsd-abi` one that plays a FreeBSD kernel in three flavours: what it does,
//! what it takes from its kernel environment and what its memory must hold is written there. What guest and host have
//! to agree on is in [`pattern`] and its neighbours and in [`freebsd`], source files that both are compiled from. To
//! add a guest, add its file.

mod contract;
mod fill_map;
pub mod freebsd;
#[cfg(test)]
mod freebsd_tests;
mod pattern_pages;

use std::path::{Path, PathBuf};
use std::{fs, io};

use object::{Object, ObjectSymbol};
use thiserror::Error;

pub use contract::*;
pub use fill_map::{FillMap, FillMapError, first_mismatch};
pub use pattern_pages::{PatternPage, PatternPagesError};

/// A guest kernel.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// Its name, which is that of its source file.
    pub name: &'static str,
    /// What it does, in a sentence or two.
    pub about: &'static str,
    /// The image: a static ELF64 with a PVH note and a symbol table, which loads between 2 MiB and 16 MiB; those of
    /// [`ALL`] at virtual addresses that are the physical ones.
    pub elf: &'static [u8],
}

/// Every guest, in order of name.
pub const ALL: &[Guest] = include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// The flavours of the guest that plays a FreeBSD kernel, in order of name. Unlike those of [`ALL`] they are linked at
/// the end of the address space, as FreeBSD is, and boot by its native hand-off too; see [`freebsd`].
pub const FREEBSD_ABI: &[Guest] = include!(concat!(env!("OUT_DIR"), "/freebsd_abi.rs"));

/// The guest of that name, in either table.
pub fn find(name: &str) -> Option<&'static Guest> {
    every().find(|guest| guest.name == name)
}

/// The guests of both tables.
pub fn every() -> impl Iterator<Item = &'static Guest> {
    ALL.iter().chain(FREEBSD_ABI)
}

/// Where a variable or a function of a guest lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol {
    /// Its address; virtual and, but for [`FREEBSD_ABI`], physical.
    pub address: u64,
    /// Its size in bytes; 0 for a mere label.
    pub size: u64,
}

impl Guest {
    /// Name of the file that [`write_all`] makes of it.
    pub fn file_name(&self) -> String {
        format!("{}.elf", self.name)
    }

    /// A symbol of the image.
    pub fn symbol(&self, name: &str) -> Option<Symbol> {
        let file = object::File::parse(self.elf).ok()?;
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name))?;
        Some(Symbol { address: symbol.address(), size: symbol.size() })
    }
}

/// Why the images could not be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The folder is not there and cannot be made.
    #[error("cannot make the folder {}", folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes every image to a folder, which is made when it is not there; returns the files in the order of [`every`].
///
/// # Errors
/// The folder cannot be made, or a file cannot be written.
pub fn write_all(folder: &Path) -> Result<Vec<PathBuf>, WriteError> {
    fs::create_dir_all(folder).map_err(|source| WriteError::Folder { folder: folder.into(), source })?;
    every()
        .map(|guest| {
            let file = folder.join(guest.file_name());
            match fs::write(&file, guest.elf) {
                Ok(()) => Ok(file),
                Err(source) => Err(WriteError::File { file, source }),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::elf::{FileHeader64, NoteType, PT_LOAD, PT_NOTE};
    use object::read::elf::{FileHeader, ProgramHeader};
    use object::{LittleEndian, ObjectSegment};

    /// Type of the Xen note that holds the 32-bit entry.
    const PHYS32_ENTRY: NoteType = NoteType(18);
    /// Symbols that every guest has, with the size that a reader relies on (`None`: any but 0).
    const SYMBOLS: &[(&str, Option<u64>)] = &[
        ("kern_envp", Some(8)),
        ("md_envp", Some(8)),
        ("md_env_len", Some(4)),
        ("md_env_pos", Some(4)),
        ("kenvp", Some(8)),
        ("dynamic_kenv", Some(4)),
        ("panicstr", Some(8)),
        ("msgbufp", Some(8)),
        ("version", None),
        ("ostype", None),
        ("osrelease", None),
        ("kern_ident", None),
        ("hostname", Some(256)),
        ("fill_map", Some(FillMap::SIZE as u64)),
        ("cpu_stacks", None),
    ];

    #[test]
    fn every_image_has_a_pvh_entry_inside_its_text() {
        for guest in ALL {
            let header = FileHeader64::<LittleEndian>::parse(guest.elf).unwrap();
            let programs = header.program_headers(LittleEndian, guest.elf).unwrap();
            let entry = programs
                .iter()
                .filter(|program| program.p_type(LittleEndian) == PT_NOTE)
                .flat_map(|program| program.notes(LittleEndian, guest.elf).unwrap().unwrap())
                .map(Result::unwrap)
                .find(|note| note.name() == b"Xen" && note.n_type(LittleEndian) == PHYS32_ENTRY)
                .map(|note| u32::from_le_bytes(note.desc().try_into().unwrap()));
            assert_eq!(
                entry.map(u64::from),
                guest.symbol("pvh_start").map(|symbol| symbol.address),
                "{}",
                guest.name
            );
            assert_ne!(entry, None, "{}", guest.name);
        }
    }

    #[test]
    fn every_image_loads_between_2_and_16_mib_where_it_is_linked() {
        for guest in ALL {
            let header = FileHeader64::<LittleEndian>::parse(guest.elf).unwrap();
            let programs = header.program_headers(LittleEndian, guest.elf).unwrap();
            let loads: Vec<_> =
                programs.iter().filter(|program| program.p_type(LittleEndian) == PT_LOAD).collect();
            assert_eq!(loads.len(), 2, "{}", guest.name);
            for load in loads {
                assert_eq!(load.p_vaddr(LittleEndian), load.p_paddr(LittleEndian), "{}", guest.name);
                assert!(load.p_paddr(LittleEndian) >= 2 << 20, "{}", guest.name);
                assert!(
                    load.p_paddr(LittleEndian) + load.p_memsz(LittleEndian) <= FILL_START,
                    "{}",
                    guest.name
                );
            }
        }
    }

    #[test]
    fn every_image_has_its_symbols_in_loaded_memory() {
        for guest in ALL {
            let file = object::File::parse(guest.elf).unwrap();
            for &(name, size) in SYMBOLS {
                let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
                let symbol = symbol.unwrap_or_else(|| panic!("{} has no {name}", guest.name));
                assert!(size.is_none_or(|size| symbol.size() == size), "{} {name}", guest.name);
                assert_ne!(symbol.size(), 0, "{} {name}", guest.name);
                let end = symbol.address() + symbol.size();
                assert!(
                    file.segments().any(|s| s.address() <= symbol.address() && end <= s.address() + s.size()),
                    "{} {name}",
                    guest.name
                );
            }
        }
    }

    #[test]
    fn every_image_is_small_and_described() {
        for guest in ALL {
            assert!(guest.elf.len() <= 100 * 1024, "{} has {} bytes", guest.name, guest.elf.len());
            assert!(guest.about.len() > 20, "{}: {:?}", guest.name, guest.about);
            assert_eq!(find(guest.name).map(|found| found.elf), Some(guest.elf));
        }
        assert!(find("no such guest").is_none());
    }

    #[test]
    fn only_guests_that_are_made_for_it_can_print_what_a_console_watcher_looks_for() {
        let holds =
            |guest: &Guest, text: &str| guest.elf.windows(text.len()).any(|bytes| bytes == text.as_bytes());
        for guest in ALL {
            for (text, makers) in [
                ("panic: ", &["console-panic"][..]),
                ("Kernel panic - not syncing", &["console-panic", "linux-abi"]),
            ] {
                assert_eq!(holds(guest, text), makers.contains(&guest.name), "{} {text:?}", guest.name);
            }
        }
    }

    #[test]
    fn images_are_written_to_a_folder_that_is_made() {
        let parent = tempfile::tempdir().unwrap();
        let files = write_all(&parent.path().join("made/here")).unwrap();
        assert_eq!(files.len(), every().count());
        for (file, guest) in files.iter().zip(every()) {
            assert_eq!(fs::read(file).unwrap(), guest.elf);
            assert_eq!(file.file_name().unwrap().to_str().unwrap(), guest.file_name());
        }
    }

    #[test]
    fn a_folder_that_is_a_file_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = write_all(file.path()).unwrap_err();
        assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
    }
}
