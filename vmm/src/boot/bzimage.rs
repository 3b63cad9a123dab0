//! The 64-bit Linux boot protocol: a bzImage, entered behind its real-mode part, unpacks and relocates itself, to a
//! random place if it was built so (Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`; field names and offsets
//! are theirs). All fields are little-endian.
//!
//! ```text
//! 0x8000     zero page: the setup header of the file, completed, and the memory map
//! 0x9000     page tables: the first GiB, mapped to itself in large pages
//! 0x20000    command line
//! 0x100000   the protected-mode part; it runs from pref_address on, in init_size bytes that nothing else may be in
//! ...        initrd, as high as it goes
//! ```

use std::ops::Range;

use kvm_bindings::kvm_sregs;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::linux::{Placed, command_line, write_command_line};
use super::long_mode::{self, ENTRIES, LARGE_PAGE, PG_PS, PG_RW, PG_V, Tables, bytes_of};
use super::space::low_ram_end;
use super::{BootError, BootProtocol, BootState, EntryMode, Handover, KernelImage};
use crate::memory::GuestMemory;
use crate::x86_64::firmware::{Hardware, memory_map};
use crate::x86_64::layout;

/// Where the setup header is, in the file and in the zero page, and where the zero page has something else again.
const HEADER: usize = 0x1f1;
const HEADER_END: usize = 0x290;
const MAGIC: (usize, &[u8; 4]) = (0x202, b"HdrS");
/// The first version with a 64-bit entry.
const VERSION_64BIT: u16 = 0x020c;
/// `loadflags`: the protected-mode part goes above 1 MiB.
const LOADED_HIGH: u8 = 1 << 0;
/// `loadflags`: the kernel's own note that it randomised its place.
const KASLR_FLAG: u8 = 1 << 1;
/// `xloadflags`: there is a 64-bit entry; initrd and command line may lie above what `initrd_addr_max` says.
const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// `type_of_loader`: one without a number of its own. Zero would make the kernel ignore the initrd.
const UNDEFINED_LOADER: u8 = 0xff;
/// `vid_mode`: normal.
const NORMAL_VIDEO: u16 = 0xffff;
/// The 64-bit entry, from the start of the protected-mode part.
const ENTRY_64: u64 = 0x200;
/// What the first page tables map.
const MAPPED: u64 = 1 << 30;
/// Most entries of the zero page's memory map.
const E820_MAX: usize = 128;
/// Descriptors of the boot protocol: `__BOOT_CS` is 0x10, `__BOOT_DS` is 0x18.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE_INDEX: u16 = 2;
const DATA_INDEX: u16 = 3;

/// The protocol.
#[derive(Debug)]
pub(super) struct Bzimage;

impl BootProtocol for Bzimage {
    fn name(&self) -> &'static str {
        "bzimage"
    }

    fn takes(&self) -> &'static str {
        "a Linux bzImage, which unpacks itself, to a random address (KASLR)"
    }

    fn recognises(&self, image: &KernelImage) -> bool {
        image.bzimage().is_some()
    }

    fn load(
        &self,
        image: &KernelImage,
        with: &Handover,
        _: &Hardware,
        memory: &GuestMemory,
    ) -> Result<BootState, BootError> {
        let bzimage = image.bzimage().ok_or_else(|| BootError::NoProtocol { image: image.name() })?;
        if !with.modules.is_empty() {
            return Err(BootError::NoModules { image: image.name(), protocol: self.name() });
        }
        let setup = &bzimage.setup;
        let line = command_line(with, setup.cmdline_size.saturating_add(1))?;
        write_command_line(memory, &line)?;
        let end = place_kernel(bzimage, image, memory)?;
        let initrd = with.initrd.as_ref().map(|initrd| initrd.load(memory, end, setup.initrd_end));
        let page = zero_page(bzimage, initrd.transpose()?, memory);
        write(memory, layout::ZERO_PAGE, "the zero page", &page)?;
        write_page_tables(memory)?;
        write(memory, layout::GDT, "the descriptor table", &bytes_of(GDT))?;
        Ok(BootState {
            entry: layout::HIMEM + ENTRY_64,
            rbx: 0,
            rsi: layout::ZERO_PAGE,
            rsp: 0,
            mode: EntryMode::LinuxLong,
        })
    }
}

/// Control registers and segments at the entry.
pub(super) fn apply_long_mode(sregs: &mut kvm_sregs) {
    let tables = Tables {
        gdt: layout::GDT,
        descriptors: u16::try_from(GDT.len()).expect("four descriptors"),
        code: CODE_INDEX,
        data: DATA_INDEX,
        page_tables: layout::LINUX_PML4,
    };
    long_mode::apply(&tables, sregs);
}

/// Why a bzImage cannot be booted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SetupError {
    /// The file ends too early.
    #[error("it is cut off at {len} of {needed} bytes")]
    CutOff {
        /// Its length.
        len: usize,
        /// What its header asks for.
        needed: usize,
    },
    /// Before 2012.
    #[error("its boot protocol is {}.{:02}; a 64-bit entry begins with 2.12", .version >> 8, .version & 0xff)]
    Old {
        /// The protocol's version.
        version: u16,
    },
    /// No 64-bit kernel.
    #[error("it has no 64-bit entry (a 32-bit kernel)")]
    Not64Bit,
    /// A zImage.
    #[error("it is to be loaded below 1 MiB (a zImage)")]
    LoadedLow,
}

/// The setup header, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Where the protected-mode part begins in the file.
    protected: usize,
    /// Longest command line without the NUL.
    pub(super) cmdline_size: usize,
    /// Where the initrd has to end.
    initrd_end: u64,
    /// Where the kernel runs, unless it is loaded higher or places itself at random.
    pref_address: u64,
    /// How many bytes it needs there until it has its memory map.
    init_size: u64,
    /// Where the packed kernel is in the file.
    pub(super) payload: Range<usize>,
}

/// A bzImage and its header.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(super) setup: Setup,
    pub(super) bytes: Vec<u8>,
}

impl Setup {
    /// Whether the file says that it is a Linux kernel with a setup header.
    pub(super) fn is_in(bytes: &[u8]) -> bool {
        bytes.get(MAGIC.0..).is_some_and(|rest| rest.starts_with(MAGIC.1))
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, SetupError> {
        let at = |offset: usize, len: usize| {
            let needed = offset + len;
            bytes.get(offset..needed).ok_or(SetupError::CutOff { len: bytes.len(), needed })
        };
        let u8_at = |offset| at(offset, 1).map(|b| b.first().copied().unwrap_or(0));
        let u16_at = |offset| at(offset, 2).map(|b| u16::from_le_bytes(b.try_into().expect("two bytes")));
        let u32_at = |offset| at(offset, 4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")));
        let u64_at = |offset| at(offset, 8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
        let version = u16_at(0x206)?;
        if version < VERSION_64BIT {
            return Err(SetupError::Old { version });
        }
        if u8_at(0x211)? & LOADED_HIGH == 0 {
            return Err(SetupError::LoadedLow);
        }
        let xloadflags = u16_at(0x236)?;
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(SetupError::Not64Bit);
        }
        let setup_sects = match u8_at(HEADER)? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let protected = (setup_sects + 1) * 512;
        let size = |offset| u32_at(offset).map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        let payload = protected.saturating_add(size(0x248)?);
        let payload = payload..payload.saturating_add(size(0x24c)?);
        // In units of 16 bytes; the checksum behind it counts, but a signature may follow.
        let end = protected.saturating_add(size(0x1f4)?.saturating_mul(16)).max(payload.end);
        if end > bytes.len() {
            return Err(SetupError::CutOff { len: bytes.len(), needed: end });
        }
        let anywhere = xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0;
        Ok(Self {
            protected,
            cmdline_size: size(0x238)?,
            initrd_end: if anywhere { layout::HOLE_END } else { u64::from(u32_at(0x22c)?) + 1 },
            pref_address: u64_at(0x258)?,
            init_size: u32_at(0x260)?.into(),
            payload,
        })
    }
}

/// Loads the protected-mode part; where the memory ends that the kernel runs in.
fn place_kernel(bzimage: &Packed, image: &KernelImage, memory: &GuestMemory) -> Result<u64, BootError> {
    let Packed { setup, bytes } = bzimage;
    let code = bytes.get(setup.protected..).unwrap_or_default();
    // It moves itself up to where it runs before it unpacks.
    let run = layout::HIMEM.next_multiple_of(LARGE_PAGE).max(setup.pref_address);
    let end = run.saturating_add(setup.init_size).max(layout::HIMEM + code.len() as u64);
    if end > MAPPED {
        return Err(BootError::BeyondMap { image: image.name(), system: "Linux", needed: end });
    }
    let available = low_ram_end(memory);
    if end > available {
        return Err(BootError::TooLarge { image: image.name(), needed: end, available });
    }
    write(memory, layout::HIMEM, "the kernel", code)?;
    Ok(end)
}

/// The zero page (`struct boot_params`). What is not set here is zero, or as the file has it.
fn zero_page(bzimage: &Packed, initrd: Option<Placed>, memory: &GuestMemory) -> Vec<u8> {
    let file = &bzimage.bytes;
    let mut page = ZeroPage(vec![0; 4096]);
    // The byte before the magic number is how far the header goes behind it.
    let len = file.get(0x201).copied().map_or(0, usize::from);
    let header = HEADER..(MAGIC.0 + len).min(HEADER_END).min(file.len());
    page.put(HEADER, &file[header]);
    let loadflags = file.get(0x211).copied().unwrap_or(0);
    page.put(0x070, &layout::ACPI.to_le_bytes());
    page.put(0x1fa, &NORMAL_VIDEO.to_le_bytes());
    page.put(0x210, &[UNDEFINED_LOADER, loadflags & !KASLR_FLAG]);
    page.put(0x214, &low(layout::HIMEM));
    let initrd = initrd.unwrap_or(Placed { start: 0, len: 0 });
    page.put(0x218, &low(initrd.start));
    page.put(0x21c, &low(initrd.len));
    page.put(0x228, &low(layout::CMDLINE));
    // No list of further data.
    page.put(0x250, &[0; 8]);
    let map = memory_map(memory);
    debug_assert!(map.len() <= E820_MAX);
    page.put(0x1e8, &[u8::try_from(map.len()).expect("a handful of entries")]);
    for (at, entry) in (0x2d0..).step_by(20).zip(&map) {
        page.put(at, &bytes_of([entry.start, entry.end - entry.start]));
        page.put(at + 16, &(entry.kind as u32).to_le_bytes());
    }
    page.0
}

/// The zero page while it is filled.
struct ZeroPage(Vec<u8>);

impl ZeroPage {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A field of 32 bits: everything that is placed lies below 4 GiB.
fn low(value: u64) -> [u8; 4] {
    u32::try_from(value).expect("below 4 GiB").to_le_bytes()
}

/// Maps the first GiB to itself.
fn write_page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    let directory = (0..ENTRIES).map(|index| (index * LARGE_PAGE) | PG_V | PG_RW | PG_PS);
    let tables = [
        (layout::LINUX_PML4, bytes_of([layout::LINUX_PDPT | PG_V | PG_RW])),
        (layout::LINUX_PDPT, bytes_of([layout::LINUX_PD | PG_V | PG_RW])),
        (layout::LINUX_PD, bytes_of(directory)),
    ];
    tables.iter().try_for_each(|(at, table)| write(memory, *at, "the page tables", table))
}

fn write(memory: &GuestMemory, at: u64, what: &'static str, bytes: &[u8]) -> Result<(), BootError> {
    memory.write_slice(bytes, GuestAddress(at)).map_err(|source| BootError::Write { what, source })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::boot::test_bzimage::{INIT_SIZE, PROTECTED, RUN, bzimage, image, with_payload};
    use crate::boot::{Initrd, Module, PayloadError};
    use crate::memory::{MemorySize, create};

    fn memory(mib: u64) -> GuestMemory {
        create(MemorySize::new(mib << 20).unwrap()).unwrap()
    }

    fn load(with: &Handover, mib: u64) -> Result<(GuestMemory, BootState), BootError> {
        let memory = memory(mib);
        let state = Bzimage.load(&image(), with, &Hardware::default(), &memory)?;
        Ok((memory, state))
    }

    fn bytes(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn initrd(len: usize) -> (tempfile::NamedTempFile, Handover) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), (0..=255).cycle().take(len).collect::<Vec<u8>>()).unwrap();
        let initrd = Some(Initrd::new(file.path()).unwrap());
        (file, Handover { initrd, cmdline: "console=ttyS0".into(), ..Handover::default() })
    }

    fn refused(change: impl FnOnce(&mut Vec<u8>)) -> SetupError {
        let mut file = bzimage();
        change(&mut file);
        Setup::parse(&file).unwrap_err()
    }

    #[test]
    fn the_zero_page_is_the_files_header_completed() {
        let (_file, with) = initrd(5000);
        let (memory, state) = load(&with, 4096).unwrap();
        assert_eq!((state.entry, state.rsi, state.mode), (0x10_0200, 0x8000, EntryMode::LinuxLong));
        let word = |at: u64| memory.read_obj::<u32>(GuestAddress(0x8000 + at)).unwrap();
        let long = |at: u64| memory.read_obj::<u64>(GuestAddress(0x8000 + at)).unwrap();
        assert_eq!(bytes(&memory, 0x8202, 6), b"HdrS\x0f\x02");
        assert_eq!((word(0x1fc) >> 16, word(0x258), word(0x260)), (0xaa55, 0x100_0000, INIT_SIZE));
        assert_eq!(bytes(&memory, 0x81ef, 1), [0], "the sentinel");
        assert_eq!(bytes(&memory, 0x8210, 2), [0xff, 1], "a loader, no KASLR_FLAG");
        assert_eq!((long(0x070), word(0x214), word(0x228)), (0xe_0000, 0x10_0000, 0x2_0000));
        assert_eq!(bytes(&memory, 0x2_0000, 14), b"console=ttyS0\0");
        // 5000 bytes are two pages, below the end of low RAM.
        assert_eq!((word(0x218), word(0x21c)), (0xc000_0000 - 0x2000, 5000));
        assert_eq!(bytes(&memory, word(0x218).into(), 4), [0, 1, 2, 3]);
        let entries = bytes(&memory, 0x81e8, 1)[0];
        let map: Vec<_> = (0..u64::from(entries))
            .map(|i| (long(0x2d0 + i * 20), long(0x2d8 + i * 20), word(0x2e0 + i * 20)))
            .collect();
        assert_eq!(map.last(), Some(&(1 << 32, 1 << 30, 1)));
        assert_eq!(map[0], (0, 0x9_fc00, 1));
    }

    #[test]
    fn the_protected_mode_part_lies_at_1_mib_and_its_map_is_itself() {
        let (memory, _) = load(&Handover::default(), 64).unwrap();
        let code = &bzimage()[PROTECTED..];
        assert_eq!(bytes(&memory, 0x10_0000, code.len()), code);
        let entry = |table: u64, index: u64| memory.read_obj::<u64>(GuestAddress(table + index * 8)).unwrap();
        for address in [0_u64, 0x8000, 0x10_0200, RUN, 0x3fff_f000] {
            let pdpt = entry(layout::LINUX_PML4, address >> 39);
            let pd = entry(pdpt & !0xfff, (address >> 30) & 511);
            let page = entry(pd & !0xfff, (address >> 21) & 511);
            assert_eq!((pdpt & 0xfff, pd & 0xfff, page & 0xfff), (3, 3, 0x83));
            assert_eq!((page & !0xfff) + (address & 0x1f_ffff), address);
        }
        let mut sregs = kvm_sregs::default();
        EntryMode::LinuxLong.apply(&mut sregs);
        assert_eq!((sregs.cs.selector, sregs.ds.selector, sregs.cr3), (0x10, 0x18, layout::LINUX_PML4));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.efer, sregs.gdt.limit), (1, 0, 0x500, 31));
        assert_eq!(entry(layout::GDT, 2), 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn nothing_is_put_where_the_kernel_runs() {
        let (memory, _) = load(&Handover::default(), 18).unwrap();
        assert!(bytes(&memory, RUN, INIT_SIZE as usize).iter().all(|byte| *byte == 0));
        let (_file, with) = initrd(1);
        let refused = load(&with, 18).unwrap_err().to_string();
        assert!(refused.contains("has 1 bytes, and the kernel leaves 0 of low memory"), "{refused}");
        let refused = load(&Handover::default(), 17).unwrap_err().to_string();
        let expected = "vmlinuz needs guest memory up to 0x1200000 (18 MiB), the guest has 0x1100000: give it more \
                        with --memory";
        assert_eq!(refused, expected);
    }

    #[test]
    fn an_initrd_stays_below_what_an_old_kernel_can_reach() {
        let mut file = bzimage();
        file[0x236] = 1;
        file[0x22c..0x230].copy_from_slice(&0x37f_ffff_u32.to_le_bytes());
        let old = KernelImage::from_bytes(Path::new("old"), file).unwrap();
        let (_file, with) = initrd(4096);
        let memory = memory(128);
        Bzimage.load(&old, &with, &Hardware::default(), &memory).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x8218)).unwrap(), 0x37f_f000);
    }

    #[test]
    fn command_lines_that_would_be_cut_and_modules_are_refused() {
        let line = |len| Handover { cmdline: "x".repeat(len), ..Handover::default() };
        assert!(load(&line(0x7ff), 64).is_ok());
        let refused = load(&line(0x800), 64).unwrap_err();
        assert!(matches!(refused, BootError::CmdlineTooLong { len: 0x801, max: 0x800 }), "{refused}");
        let module = Module::from_bytes(Path::new("m"), Some("t".into()), vec![]).unwrap();
        let with = Handover { modules: vec![module], ..Handover::default() };
        assert!(matches!(load(&with, 64), Err(BootError::NoModules { protocol: "bzimage", .. })));
    }

    #[test]
    fn the_environment_is_words_of_the_command_line() {
        let with = |value: &str| Handover {
            cmdline: "quiet".into(),
            environment: vec![("net.dump.server".into(), value.into())],
            ..Handover::default()
        };
        let (memory, _) = load(&with("10.0.0.9,x"), 64).unwrap();
        assert_eq!(bytes(&memory, 0x2_0000, 33), b"quiet net.dump.server=10.0.0.9,x\0");
        for value in ["a b", "a\"b", "a\tb", "a\0b"] {
            assert!(matches!(load(&with(value), 64), Err(BootError::Variable { .. })), "{value:?}");
        }
    }

    #[test]
    fn what_has_no_64_bit_entry_is_refused_in_a_sentence() {
        let told = |change: fn(&mut Vec<u8>)| refused(change).to_string();
        let old = told(|file| file[0x206] = 0x0a);
        assert_eq!(old, "its boot protocol is 2.10; a 64-bit entry begins with 2.12");
        assert_eq!(told(|file| file[0x211] = 0), "it is to be loaded below 1 MiB (a zImage)");
        assert_eq!(told(|file| file[0x236] = 2), "it has no 64-bit entry (a 32-bit kernel)");
        let len = bzimage().len();
        let short = refused(|file| file.truncate(len - 1));
        assert_eq!(short, SetupError::CutOff { len: len - 1, needed: len });
        for len in 0x206..0x264 {
            assert!(matches!(refused(|file| file.truncate(len)), SetupError::CutOff { .. }));
        }
    }

    #[test]
    fn a_kernel_beyond_the_first_map_is_refused() {
        for (at, value) in [(0x258, u64::MAX), (0x258, 1 << 30), (0x25c, 0xffff_ffff_0000_0000)] {
            let mut file = bzimage();
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
            let image = KernelImage::from_bytes(Path::new("x"), file).unwrap();
            let refused = Bzimage.load(&image, &Handover::default(), &Hardware::default(), &memory(64));
            assert!(matches!(refused, Err(BootError::BeyondMap { system: "Linux", .. })), "{refused:?}");
        }
    }

    #[test]
    fn a_payload_that_is_not_understood_boots_nevertheless() {
        let image = KernelImage::from_bytes(Path::new("x"), with_payload(b"\x89LZO and so on")).unwrap();
        assert!(matches!(image.payload_problem(), Some(PayloadError::Unpack(_))));
        assert!(!image.has_pvh_entry() && image.symbols().is_empty());
        assert!(Bzimage.load(&image, &Handover::default(), &Hardware::default(), &memory(64)).is_ok());
    }
}
