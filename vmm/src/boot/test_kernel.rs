//! ELF files for tests, assembled field by field: a FreeBSD kernel of one segment (with a PVH entry too), modules, and
//! damage to them.

use std::path::Path;

use proptest::prelude::*;

use super::KernelImage;

const BASE: u64 = 0xffff_ffff_8020_0000;
/// Where in the segment the compiled-in environment is.
const ENV: usize = 0x200;

/// A kernel; what the default leaves whole, a test may bend.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    pub(super) os_abi: u8,
    pub(super) entry: u64,
    pub(super) virtual_start: u64,
    pub(super) physical: u64,
    pub(super) memory_len: u64,
    pub(super) text: Vec<u8>,
    /// What `static_env` holds.
    pub(super) static_env: Vec<u8>,
    /// One symbol more.
    pub(super) symbol: &'static str,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            os_abi: 9,
            entry: BASE + 0x40,
            virtual_start: BASE,
            physical: 0x20_0000,
            memory_len: 0x3000,
            text: (0..0x400_u32).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect(),
            static_env: vec![0],
            symbol: "hammer_time",
        }
    }
}

impl Kernel {
    pub(super) fn elf(&self) -> Vec<u8> {
        let mut text = self.text.clone();
        text[ENV..ENV + self.static_env.len()].copy_from_slice(&self.static_env);
        let mut strings = vec![0];
        let mut symbols = vec![0; 24];
        let env = self.virtual_start.wrapping_add(ENV as u64);
        for (name, value) in [("btext", self.entry), ("static_env", env), (self.symbol, self.entry)] {
            symbols.extend(symbol(strings.len(), value));
            strings.extend_from_slice(name.as_bytes());
            strings.push(0);
        }
        // Owner "Xen", type 18: where the 32-bit entry is.
        let mut note = [4, 4, 18].map(u32::to_le_bytes).concat();
        note.extend(b"Xen\0");
        note.extend(0x20_0040_u32.to_le_bytes());
        // Header, two program headers, text, note, symbols, strings, three section headers.
        let text_at = 64 + 2 * 56;
        let note_at = text_at + text.len();
        let symbols_at = (note_at + note.len()).next_multiple_of(8);
        let strings_at = symbols_at + symbols.len();
        let sections_at = (strings_at + strings.len()).next_multiple_of(8);
        let mut elf = header(2, self.os_abi, self.entry, (64, 2), (sections_at, 3, 2));
        elf.extend(program(1, text_at, [self.virtual_start, self.physical], text.len(), self.memory_len));
        elf.extend(program(4, note_at, [0, 0], note.len(), note.len() as u64));
        elf.extend(&text);
        elf.extend(&note);
        elf.resize(symbols_at, 0);
        elf.extend(&symbols);
        elf.extend(&strings);
        elf.resize(sections_at, 0);
        elf.extend([0; 64]);
        elf.extend(section(Section {
            kind: 2,
            at: symbols_at,
            len: symbols.len(),
            link: 2,
            ..Section::default()
        }));
        elf.extend(section(Section { kind: 3, at: strings_at, len: strings.len(), ..Section::default() }));
        elf
    }

    pub(super) fn image(&self) -> KernelImage {
        KernelImage::from_bytes(Path::new("/somewhere/test"), self.elf()).unwrap()
    }
}

/// A relocatable module: .text, .bss, .rela.text, .symtab, .strtab, .shstrtab, and a comment that is not loaded.
pub(super) fn module() -> Vec<u8> {
    let mut elf = header(1, 9, 0, (0, 0), (0x400, 8, 6));
    elf.resize(0x400, 0);
    elf[0x40..0x80].fill(0xc3);
    elf[0x100..0x148].fill(0x11);
    elf[0x200..0x208].copy_from_slice(b"\0symbol\0");
    elf[0x240..0x248].copy_from_slice(b"\0.text\0\0");
    let alloc = 2;
    elf.extend([0; 64]);
    for one in [
        Section { kind: 1, flags: alloc | 4, at: 0x40, len: 0x3d, align: 16, ..Section::default() },
        Section { kind: 8, flags: alloc | 1, at: 0x80, len: 0x1234, align: 64, ..Section::default() },
        Section { kind: 4, at: 0x180, len: 48, link: 4, info: 1, align: 8, ..Section::default() },
        Section { kind: 2, at: 0x100, len: 0x48, link: 5, align: 8, ..Section::default() },
        Section { kind: 3, at: 0x200, len: 8, align: 1, ..Section::default() },
        Section { kind: 3, at: 0x240, len: 8, align: 1, ..Section::default() },
        Section { kind: 1, at: 0x260, len: 8, align: 1, ..Section::default() },
    ] {
        elf.extend(section(one));
    }
    elf
}

/// A shared object: one segment that holds the file, and a dynamic section in it.
pub(super) fn shared_module() -> Vec<u8> {
    let mut elf = header(3, 9, 0, (64, 2), (0, 0, 0));
    elf.extend(program(1, 0, [0, 0], 0x180, 0x2000));
    elf.extend(program(2, 0x100, [0x100, 0x100], 0x20, 0x20));
    elf.resize(0x180, 0x5a);
    elf
}

fn header(kind: u16, os_abi: u8, entry: u64, programs: (u64, u16), sections: (usize, u16, u16)) -> Vec<u8> {
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, os_abi, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend(kind.to_le_bytes());
    elf.extend(62_u16.to_le_bytes());
    elf.extend(1_u32.to_le_bytes());
    elf.extend([entry, programs.0, sections.0 as u64].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(0_u32.to_le_bytes());
    let shorts = [64, 56, programs.1, 64, sections.1, sections.2];
    elf.extend(shorts.iter().flat_map(|short| short.to_le_bytes()));
    elf
}

fn program(kind: u32, offset: usize, addresses: [u64; 2], len: usize, memory_len: u64) -> Vec<u8> {
    let words = [offset as u64, addresses[0], addresses[1], len as u64, memory_len, 4];
    let mut bytes = [kind, 7].map(u32::to_le_bytes).concat();
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

#[derive(Default)]
struct Section {
    kind: u32,
    flags: u64,
    at: usize,
    len: usize,
    link: u32,
    info: u32,
    align: u64,
}

fn section(s: Section) -> Vec<u8> {
    let mut bytes = [1, s.kind].map(u32::to_le_bytes).concat();
    bytes.extend([s.flags, 0, s.at as u64, s.len as u64].iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend([s.link, s.info].map(u32::to_le_bytes).concat());
    bytes.extend([s.align, 24].iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

fn symbol(name: usize, value: u64) -> Vec<u8> {
    let mut bytes = u32::try_from(name).unwrap().to_le_bytes().to_vec();
    // Global function, in section 1.
    bytes.extend([0x12, 0, 1, 0]);
    bytes.extend([value, 0].iter().flat_map(|word: &u64| word.to_le_bytes()));
    bytes
}

/// Damage: bytes, or aligned words, of a file overwritten, and its end cut off.
#[derive(Debug, Clone)]
pub(super) struct Damage {
    words: Vec<(prop::sample::Index, u64)>,
    bytes: Vec<(prop::sample::Index, u8)>,
    keep: prop::sample::Index,
    cut: bool,
}

impl Damage {
    pub(super) fn apply(&self, mut file: Vec<u8>) -> Vec<u8> {
        for (at, value) in &self.words {
            let at = at.index(file.len() / 8) * 8;
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in &self.bytes {
            let at = at.index(file.len());
            file[at] = *value;
        }
        if self.cut {
            file.truncate(self.keep.index(file.len()));
        }
        file
    }
}

/// Any damage, with a liking for values at the edges.
pub(super) fn mutate() -> impl Strategy<Value = Damage> {
    let edge = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(u64::MAX - 0xfff),
        Just(1 << 63),
        Just(BASE),
        0..0x1000_u64,
        any::<u64>(),
    ];
    let words = prop::collection::vec((any::<prop::sample::Index>(), edge), 0..3);
    let bytes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (words, bytes, any::<prop::sample::Index>(), prop::bool::weighted(0.1))
        .prop_map(|(words, bytes, keep, cut)| Damage { words, bytes, keep, cut })
}

mod seeds {
    use super::{Kernel, module, shared_module};

    fn seed(name: &str) -> Vec<u8> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        std::fs::read(path).unwrap()
    }

    #[test]
    fn the_seeds_of_the_fuzz_targets_are_these_files() {
        assert_eq!(seed("kernel_image/freebsd"), Kernel::default().elf());
        let with = |module: Vec<u8>| [&b"-v a=b\0name\0value\0"[..], &module].concat();
        assert_eq!(seed("modinfo/relocatable"), with(module()));
        assert_eq!(seed("modinfo/shared"), with(shared_module()));
    }
}
