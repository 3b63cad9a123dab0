//! The file that the user wants booted: what it is, told by its content, and the kernel's symbols.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use netdump::vmcore::symbols::{KernelSymbols, SymbolsError};
use object::elf::{self, ELFOSABI_FREEBSD, FileHeader64, PT_LOAD, PT_NOTE};
use object::endian::Endianness;
use object::read::elf::{FileHeader, ProgramHeader};
use thiserror::Error;

use super::bzimage::{Packed, Setup, SetupError};
use super::linux::kept_symbols;
use super::symbol_file::{self, SymbolFileError};
use super::unpack::{UnpackError, unpack};

/// Largest kernel file: far above any real one, debug information included, far below what would hurt the host.
const MAX_LEN: u64 = 1 << 30;
/// Note type of the 32-bit entry of the PVH boot protocol (Xen `public/elfnote.h`, `XEN_ELFNOTE_PHYS32_ENTRY`).
const XEN_ELFNOTE_PHYS32_ENTRY: elf::NoteType = elf::NoteType(18);

/// Kernels are linked into the upper half of the address space, programs into the lower.
const KERNEL_HALF: u64 = 1 << 63;
/// A kernel that can perhaps be booted: a 64-bit x86 ELF file, or a Linux bzImage with such a file packed in it.
#[derive(Debug)]
pub struct KernelImage {
    path: PathBuf,
    /// The ELF file; empty when that in a bzImage cannot be unpacked.
    bytes: Vec<u8>,
    packed: Option<Packed>,
    payload_problem: Option<PayloadError>,
    /// Whether it can be read again, from its path or by whoever made it.
    is_file: bool,
    symbols: KernelSymbols,
    /// The other file that they are from.
    symbol_file: Option<PathBuf>,
    headers: Headers,
}

/// A part of the file that goes into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Guest-physical start.
    pub(crate) start: u64,
    /// Guest-physical end, zero-filled part included.
    pub(crate) end: u64,
    /// Virtual start.
    pub(crate) virtual_start: u64,
    /// Where its bytes begin in the file.
    pub(crate) offset: usize,
    /// How many there are; the rest is zeroes.
    pub(crate) file_len: usize,
}

/// Why a file cannot be booted.
#[derive(Debug, Error)]
pub enum ImageError {
    /// It cannot be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a socket, ...
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The file.
        path: String,
    },
    /// It is empty.
    #[error("{path} is empty")]
    Empty {
        /// The file.
        path: String,
    },
    /// It is larger than any kernel.
    #[error("{path} has {len} bytes, too many for a kernel (at most 1 GiB)")]
    Large {
        /// The file.
        path: String,
        /// Its size.
        len: u64,
    },
    /// It is something that is not booted.
    #[error("{path} is {what}; this version boots 64-bit x86 ELF kernels and Linux bzImages")]
    Kind {
        /// The file.
        path: String,
        /// What its content says that it is.
        what: &'static str,
    },
    /// It begins like an ELF kernel, and then does not go on like one.
    #[error("{path} is a damaged ELF file: {problem}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// It is a bzImage that nothing here can enter.
    #[error("{path} is a Linux bzImage that cannot be booted")]
    Bzimage {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: SetupError,
    },
    /// Its symbols cannot be read.
    #[error("reading the symbols of {path}")]
    Symbols {
        /// The file.
        path: String,
        /// What is wrong with them.
        #[source]
        source: SymbolsError,
    },
}

/// Why a kernel cannot be read again when its guest boots again.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Its file.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The file with its symbols.
    #[error(transparent)]
    Symbols(#[from] SymbolFileError),
}

/// Why the kernel inside a bzImage cannot be looked at. The bzImage boots nevertheless, as it unpacks itself.
#[derive(Debug, Error)]
pub enum PayloadError {
    /// It cannot be unpacked.
    #[error("unpacking the kernel in the bzImage")]
    Unpack(#[from] UnpackError),
    /// What was unpacked is no ELF kernel.
    #[error("reading the kernel that was unpacked")]
    Elf(#[from] ImageError),
}

impl KernelImage {
    /// Reads a file and looks at what it is.
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let bytes = read_bounded(path)?;
        Ok(Self { is_file: true, ..Self::from_bytes(path, bytes)? })
    }

    /// Says that whoever made it from bytes has those again for the next boot.
    pub(crate) fn held_elsewhere(self) -> Self {
        Self { is_file: true, ..self }
    }

    /// Whether a file begins like a kernel that is booted: a 64-bit x86 ELF file or a bzImage.
    pub fn is_kernel(head: &[u8]) -> bool {
        Setup::is_in(head) || not_bootable(head).is_none()
    }

    /// Gives back the memory that holds the file: a guest that has been loaded needs it no more.
    pub(crate) fn release(&mut self) {
        if self.is_file {
            self.bytes = Vec::new();
            self.packed = None;
        }
    }

    /// Reads the file again, for a guest that boots again: as it is by now, and with its symbols.
    pub(crate) fn restore(&mut self) -> Result<(), RestoreError> {
        if self.is_file && self.bytes.is_empty() && self.packed.is_none() {
            let symbol_file = self.symbol_file.take();
            *self = Self::read(&self.path)?;
            if let Some(path) = symbol_file {
                self.take_symbols_from(&path)?;
            }
        }
        Ok(())
    }

    /// Looks at an image that is in memory; `path` is for messages.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, ImageError> {
        if Setup::is_in(&bytes) {
            Self::from_bzimage(path, bytes)
        } else {
            Self::from_elf(path, bytes, false)
        }
    }

    fn from_bzimage(path: &Path, bytes: Vec<u8>) -> Result<Self, ImageError> {
        let setup = Setup::parse(&bytes)
            .map_err(|source| ImageError::Bzimage { path: path.display().to_string(), source })?;
        let payload = bytes.get(setup.payload.clone()).expect("the header was checked");
        let inside = unpack(payload).map_err(PayloadError::from).and_then(|elf| {
            let image = Self::from_elf(path, elf, true)?;
            Ok(image)
        });
        let image = inside.unwrap_or_else(|problem| Self {
            path: path.to_owned(),
            bytes: Vec::new(),
            packed: None,
            payload_problem: Some(problem),
            is_file: false,
            symbols: KernelSymbols::default(),
            symbol_file: None,
            headers: Headers::default(),
        });
        Ok(Self { packed: Some(Packed { setup, bytes }), ..image })
    }

    /// `is_linux`: it is known to be Linux, though its notes may not say so (before 5.0 it had none of its own).
    fn from_elf(path: &Path, bytes: Vec<u8>, is_linux: bool) -> Result<Self, ImageError> {
        let name = || path.display().to_string();
        if let Some(what) = not_bootable(&bytes) {
            return Err(ImageError::Kind { path: name(), what });
        }
        let damaged = |problem: String| ImageError::Damaged { path: name(), problem };
        let headers = Headers::read(&bytes).map_err(|error| damaged(error.to_string()))?;
        if let Some(end) = headers.file_end.filter(|&end| end > bytes.len() as u64) {
            return Err(damaged(format!("it is cut off at {} of {end} bytes", bytes.len())));
        }
        if headers.segments.is_empty() {
            return Err(damaged("it has nothing to load".into()));
        }
        // Else a small file could make loading endless.
        let loaded =
            headers.segments.iter().fold(0, |sum: usize, segment| sum.saturating_add(segment.file_len));
        if loaded > bytes.len() {
            let len = bytes.len();
            return Err(damaged(format!("its segments have {loaded} bytes, more than the file's {len}")));
        }
        if headers.notes_len > bytes.len() as u64 {
            let (notes, len) = (headers.notes_len, bytes.len());
            return Err(damaged(format!("its notes have {notes} bytes, more than the file's {len}")));
        }
        let symbols =
            KernelSymbols::parse(&bytes).map_err(|source| ImageError::Symbols { path: name(), source })?;
        let symbols = if headers.is_linux || is_linux { kept_symbols(&bytes, symbols) } else { symbols };
        Ok(Self {
            path: path.to_owned(),
            bytes,
            packed: None,
            payload_problem: None,
            is_file: false,
            symbols,
            symbol_file: None,
            headers,
        })
    }

    /// Where it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's symbol table; empty when the file is stripped.
    pub fn symbols(&self) -> &KernelSymbols {
        &self.symbols
    }

    /// Takes the symbols from another file, which must be of this kernel.
    pub fn take_symbols_from(&mut self, path: &Path) -> Result<(), SymbolFileError> {
        self.symbols = symbol_file::read(path, &self.path, &self.bytes, &self.symbols)?;
        self.symbol_file = Some(path.to_owned());
        Ok(())
    }

    /// The file that a debugger wants for the symbols.
    pub fn file_with_symbols(&self) -> &Path {
        self.symbol_file.as_deref().unwrap_or(&self.path)
    }

    /// Whether this is a FreeBSD kernel without symbols.
    pub fn is_stripped_freebsd(&self) -> bool {
        self.symbols.is_empty() && self.is_freebsd_kernel()
    }

    /// Why nothing is known of the kernel in a bzImage but how to start it.
    pub fn payload_problem(&self) -> Option<&PayloadError> {
        self.payload_problem.as_ref()
    }

    /// Its path, for messages.
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The bzImage, when it is one.
    pub(super) fn bzimage(&self) -> Option<&Packed> {
        self.packed.as_ref()
    }

    /// Whether it is a Linux kernel, by itself or in a bzImage.
    pub fn is_linux_kernel(&self) -> bool {
        self.packed.is_some() || self.headers.is_linux
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.headers.segments
    }

    pub(crate) fn has_pvh_entry(&self) -> bool {
        self.headers.has_pvh_entry
    }

    /// Whether it says that it is FreeBSD's, and its entry is where a kernel is and no program.
    pub(crate) fn is_freebsd_kernel(&self) -> bool {
        self.headers.is_freebsd && self.headers.entry >= KERNEL_HALF
    }

    /// Virtual address of its first instruction.
    pub(crate) fn entry(&self) -> u64 {
        self.headers.entry
    }

    /// What the file has from a symbol on, up to `max` bytes and the end of its segment. `None` without such a symbol,
    /// or where it is not in the file.
    pub(crate) fn bytes_at_symbol(&self, name: &str, max: usize) -> Option<&[u8]> {
        let address = self.symbols.address(name)?;
        let (segment, at) = self.segments().iter().find_map(|segment| {
            let at = usize::try_from(address.checked_sub(segment.virtual_start)?).ok()?;
            (at < segment.file_len).then_some((segment, at))
        })?;
        let len = (segment.file_len - at).min(max);
        let start = segment.offset.checked_add(at)?;
        self.bytes.get(start..start.checked_add(len)?)
    }
}

pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, ImageError> {
    let name = || path.display().to_string();
    let read_error = |source| ImageError::Read { path: name(), source };
    let metadata = std::fs::metadata(path).map_err(read_error)?;
    if !metadata.is_file() {
        return Err(ImageError::NotAFile { path: name() });
    }
    let len = metadata.len();
    let mut file = File::open(path).map_err(read_error)?;
    // A disk image may be as large as it likes; its first bytes tell what it is.
    let mut bytes = Vec::new();
    let wanted = if len > MAX_LEN { HEAD_LEN } else { len };
    Read::by_ref(&mut file).take(wanted).read_to_end(&mut bytes).map_err(read_error)?;
    match len {
        0 => Err(ImageError::Empty { path: name() }),
        _ if len <= MAX_LEN => Ok(bytes),
        _ => Err(not_bootable(&bytes).map_or_else(
            || ImageError::Large { path: name(), len },
            |what| ImageError::Kind { path: name(), what },
        )),
    }
}

/// How much of a file tells what it is: the magic of an ISO image is the farthest.
const HEAD_LEN: u64 = 0x9000;

/// What the file is, when it is nothing that any boot protocol here takes; `None` for a 64-bit x86 ELF file.
fn not_bootable(bytes: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(0, b"\x7fELF") {
        return match bytes.get(4..20) {
            None => Some("a truncated ELF file"),
            Some([2, 1, .., 62, 0]) => None,
            Some([1, ..]) => Some("a 32-bit ELF file"),
            Some(_) => Some("an ELF file for another architecture"),
        };
    }
    Some(match () {
        () if at(0, b"\x1f\x8b") => "a gzip file: unpack it first",
        () if at(0, b"\xfd7zXZ\0") => "an xz file: unpack it first",
        () if at(0, b"\x28\xb5\x2f\xfd") => "a zstd file: unpack it first",
        () if at(0, b"QFI\xfb") => "a qcow2 disk image",
        () if at(512, b"EFI PART") => "a GPT disk image",
        () if at(0x8001, b"CD001") => "an ISO 9660 image, which cannot be booted yet",
        () if at(0x438, b"\x53\xef") => "an ext2/3/4 file system",
        () if at(510, b"\x55\xaa") => "a disk image with a boot sector",
        () if at(0, b"MZ") => "a Windows or EFI program",
        () if at(0, b"070701") => "a cpio archive, such as an initramfs",
        () if is_text(bytes) => "a text file",
        () => "of no kind known here",
    })
}

fn is_text(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(512)];
    head.iter().all(|&b| b.is_ascii_graphic() || matches!(b, b' ' | b'\t' | b'\r' | b'\n' | 0x80..))
}

/// What the ELF header and the program headers say.
#[derive(Debug, Default)]
struct Headers {
    entry: u64,
    segments: Vec<Segment>,
    has_pvh_entry: bool,
    is_freebsd: bool,
    /// Whether it has a note of the owner "Linux" (Linux `include/linux/elfnote.h`, `build-salt.h`).
    is_linux: bool,
    /// End of the last byte in the file that a segment needs.
    file_end: Option<u64>,
    /// Bytes of all notes together; they are read no further than the file has bytes.
    notes_len: u64,
}

impl Headers {
    fn read(bytes: &[u8]) -> object::Result<Self> {
        let header = FileHeader64::<Endianness>::parse(bytes)?;
        let endian = header.endian()?;
        let mut found = Self {
            entry: header.e_entry(endian),
            is_freebsd: header.e_ident().os_abi == ELFOSABI_FREEBSD,
            ..Self::default()
        };
        for program in header.program_headers(endian, bytes)? {
            let (offset, file_len) = program.file_range(endian);
            let file_end = offset.saturating_add(file_len);
            match program.p_type(endian) {
                PT_LOAD if program.p_memsz(endian).max(file_len) > 0 => {
                    let start = program.p_paddr(endian);
                    found.segments.push(Segment {
                        start,
                        end: start.saturating_add(program.p_memsz(endian).max(file_len)),
                        virtual_start: program.p_vaddr(endian),
                        offset: usize::try_from(offset).unwrap_or(usize::MAX),
                        file_len: usize::try_from(file_len).unwrap_or(usize::MAX),
                    });
                    found.file_end = found.file_end.max(Some(file_end));
                }
                PT_NOTE if file_end <= bytes.len() as u64 => {
                    found.notes_len = found.notes_len.saturating_add(file_len);
                    if found.notes_len <= bytes.len() as u64 {
                        found.read_notes(program, endian, bytes)?;
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn read_notes(
        &mut self,
        program: &elf::ProgramHeader64<Endianness>,
        endian: Endianness,
        bytes: &[u8],
    ) -> object::Result<()> {
        let Some(mut notes) = program.notes(endian, bytes)? else { return Ok(()) };
        while let Some(note) = notes.next()? {
            match note.name() {
                b"Xen" => self.has_pvh_entry |= note.n_type(endian) == XEN_ELFNOTE_PHYS32_ENTRY,
                b"FreeBSD" => self.is_freebsd = true,
                b"Linux" => self.is_linux = true,
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::test_kernel::Kernel;

    fn guest() -> Vec<u8> {
        guest_images::find("panic").unwrap().elf.to_vec()
    }

    fn refused(bytes: &[u8]) -> String {
        KernelImage::from_bytes(Path::new("image"), bytes.to_vec()).unwrap_err().to_string()
    }

    #[test]
    fn a_guest_kernel_is_recognised_with_its_symbols() {
        let image = KernelImage::from_bytes(Path::new("panic"), guest()).unwrap();
        assert!(image.has_pvh_entry());
        assert!(image.symbols().address("kern_envp").is_some());
    }

    #[test]
    fn other_files_are_named_by_their_content() {
        let file = |offset: usize, magic: &[u8]| {
            let mut bytes = vec![0; 0x9000];
            bytes[offset..offset + magic.len()].copy_from_slice(magic);
            refused(&bytes)
        };
        assert!(file(512, b"EFI PART").contains("a GPT disk image"));
        assert!(file(0, b"\x1f\x8b").contains("a gzip file"));
        assert!(file(0, b"\x7fELF\x01").contains("32-bit"));
        assert!(file(3, b"x").contains("no kind known"));
        assert!(refused(b"#!/bin/sh\necho hello\n").contains("a text file"));
    }

    /// A kernel with its second program header, the one of its notes, bent and repeated.
    fn with_programs(count: u16, bend: impl Fn(&mut [u8], u64)) -> Vec<u8> {
        let mut elf = Kernel::default().elf();
        let (text, mut program) = (elf[64..120].to_vec(), elf[120..176].to_vec());
        let len = elf.len() as u64;
        bend(&mut program, len);
        elf[32..40].copy_from_slice(&len.to_le_bytes());
        elf[56..58].copy_from_slice(&(count + 1).to_le_bytes());
        elf.extend(text);
        (0..count).for_each(|_| elf.extend(&program));
        elf
    }

    #[test]
    fn a_small_file_cannot_make_loading_endless() {
        let set = |program: &mut [u8], at: usize, value: u64| {
            program[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        // The whole file each time, and no memory for it.
        let segments = with_programs(1000, |program, len| {
            program[0] = 1;
            for (at, value) in [(8, 0), (24, 0x30_0000), (32, len), (40, 0)] {
                set(program, at, value);
            }
        });
        assert!(refused(&segments).contains("its segments have"), "{}", refused(&segments));
        let notes = with_programs(60_000, |_, _| {});
        assert!(
            KernelImage::from_bytes(Path::new("image"), notes).is_ok(),
            "20 bytes each, of 56 for the header"
        );
        let mut notes = with_programs(60_000, |program, _| set(program, 32, 200));
        // The note's descriptor fills that.
        let note = 64 + 2 * 56 + 0x400;
        notes[note + 4..note + 8].copy_from_slice(&184_u32.to_le_bytes());
        assert!(refused(&notes).contains("its notes have"), "{}", refused(&notes));
    }

    #[test]
    fn every_truncation_of_a_kernel_is_refused_or_still_whole() {
        let whole = guest();
        let image = KernelImage::from_bytes(Path::new("panic"), whole.clone()).unwrap();
        for len in (1..whole.len()).step_by(61) {
            if let Ok(cut) = KernelImage::from_bytes(Path::new("cut"), whole[..len].to_vec()) {
                assert_eq!(cut.segments(), image.segments(), "only symbols may be missing at {len}");
            }
        }
        assert!(refused(&whole[..100]).contains("damaged ELF file"));
    }

    #[test]
    fn a_released_kernel_is_read_again_as_it_is_by_then() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        std::fs::write(&path, guest()).unwrap();
        let mut image = KernelImage::read(&path).unwrap();
        image.release();
        assert!(image.bytes().is_empty() && image.symbols().address("kern_envp").is_some());
        std::fs::write(&path, crate::boot::test_bzimage::bzimage()).unwrap();
        image.restore().unwrap();
        assert!(image.bzimage().is_some() && !image.bytes().is_empty());
        // What is there already is not read again.
        std::fs::remove_file(&path).unwrap();
        image.restore().unwrap();
        image.release();
        assert!(image.restore().unwrap_err().to_string().starts_with("reading "));
        // What came from no file stays.
        let mut image = KernelImage::from_bytes(Path::new("panic"), guest()).unwrap();
        image.release();
        assert_eq!(image.bytes(), guest());
    }
}
