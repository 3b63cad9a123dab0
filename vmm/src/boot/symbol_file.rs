//! Symbols from another file than the one that is booted: the unstripped twin of a stripped kernel, or the `.debug` file
//! that `objcopy --only-keep-debug` makes of it.
//!
//! Symbols of another build are worse than none: they name wrong addresses. The entry point and the load map, where the
//! file has one, tell builds apart.

use std::path::Path;

use netdump::vmcore::symbols::{KernelSymbols, SymbolsError};
use object::elf::FileHeader64;
use object::endian::Endianness;
use object::read::elf::FileHeader;
use thiserror::Error;

use super::kernel_image::{ImageError, read_bounded};

/// Why symbols cannot be taken from a file.
#[derive(Debug, Error)]
pub enum SymbolFileError {
    /// It cannot be read.
    #[error("--symbols")]
    Read(#[source] ImageError),
    /// It is no ELF file, or a damaged one.
    #[error("--symbols {path}")]
    NotAKernel {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: SymbolsError,
    },
    /// It is stripped.
    #[error("--symbols {path}: the file has no symbols (it is stripped)")]
    NoSymbols {
        /// The file.
        path: String,
    },
    /// It belongs to another kernel.
    #[error("--symbols {path}: not of the kernel {image}: its {what} differs")]
    OtherKernel {
        /// The file.
        path: String,
        /// The kernel that is booted.
        image: String,
        /// How one can tell.
        what: &'static str,
    },
}

/// The symbols in `path` for the kernel whose file is `image`, in `bytes`, and whose load map is that of `own`.
pub(super) fn read(
    path: &Path,
    image: &Path,
    bytes: &[u8],
    own: &KernelSymbols,
) -> Result<KernelSymbols, SymbolFileError> {
    let name = || path.display().to_string();
    let file = read_bounded(path).map_err(SymbolFileError::Read)?;
    let symbols =
        KernelSymbols::parse(&file).map_err(|source| SymbolFileError::NotAKernel { path: name(), source })?;
    if symbols.is_empty() {
        return Err(SymbolFileError::NoSymbols { path: name() });
    }
    let what = if entry(&file) != entry(bytes) {
        "entry point"
    } else if symbols.has_load_map() && !symbols.has_load_map_of(own) {
        "load map"
    } else {
        return Ok(symbols.with_load_map_of(own));
    };
    Err(SymbolFileError::OtherKernel { path: name(), image: image.display().to_string(), what })
}

fn entry(bytes: &[u8]) -> Option<u64> {
    let header = FileHeader64::<Endianness>::parse(bytes).ok()?;
    Some(header.e_entry(header.endian().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::KernelImage;

    fn guest(name: &str) -> Vec<u8> {
        guest_images::find(name).unwrap().elf.to_vec()
    }

    /// The ELF file without its section headers, and so without symbols.
    fn stripped(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes[0x28..0x30].fill(0);
        bytes[0x3c..0x40].fill(0);
        bytes
    }

    fn take(file: &[u8]) -> Result<KernelImage, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("symbols");
        std::fs::write(&path, file).unwrap();
        let mut image = KernelImage::from_bytes(Path::new("kernel"), stripped(guest("panic"))).unwrap();
        assert!(image.symbols().is_empty());
        image
            .take_symbols_from(&path)
            .map(|()| image)
            .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    #[test]
    fn a_stripped_kernel_gets_its_twins_symbols() {
        let image = take(&guest("panic")).unwrap();
        let symbol = image.symbols().address("panicstr").unwrap();
        assert_eq!(image.symbols().physical(symbol), Some(symbol), "by the booted image's load map");
    }

    #[test]
    fn a_file_without_a_load_map_is_told_by_its_entry() {
        let mut bytes = guest("panic");
        // No program headers, as some tools leave of a `.debug` file.
        bytes[0x20..0x28].fill(0);
        bytes[0x38..0x3a].fill(0);
        assert!(take(&bytes).unwrap().symbols().physical(0x20_0000).is_some());
        bytes[0x18] ^= 1;
        assert!(take(&bytes).unwrap_err().contains("entry point"));
    }

    #[test]
    fn what_cannot_be_the_kernels_is_refused_in_a_sentence() {
        assert!(take(&stripped(guest("panic"))).unwrap_err().contains("no symbols"));
        assert!(take(b"#!/bin/sh\n").unwrap_err().contains("not a little-endian ELF64 file"));
        let other = take(&guest("hang")).unwrap_err();
        assert!(other.contains("not of the kernel kernel"), "{other}");
        let mut elsewhere = guest("panic");
        // p_paddr of the first program header.
        elsewhere[64 + 0x18 + 2] ^= 0x40;
        assert!(take(&elsewhere).unwrap_err().contains("load map"));
        let mut image = KernelImage::from_bytes(Path::new("kernel"), guest("panic")).unwrap();
        assert!(image.take_symbols_from(Path::new("/nowhere/at/all")).is_err());
    }
}
