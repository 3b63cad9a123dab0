//! Reads an ELF core as the System V ABI, Linux's `struct elf_prstatus` and QEMU's `arch_dump.c` describe it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// A PT_LOAD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the ABI's own names without their p_")]
pub struct Load {
    pub flags: u32,
    pub offset: u64,
    pub vaddr: u64,
    pub paddr: u64,
    pub filesz: u64,
    pub memsz: u64,
    pub align: u64,
}

/// A note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Its name, without the NUL.
    pub name: String,
    /// Its type.
    pub kind: u32,
    /// Its descriptor.
    pub descriptor: Vec<u8>,
}

/// An ELF core on disk.
#[derive(Debug)]
pub struct ElfCore {
    file: File,
    /// Length of the file.
    pub length: u64,
    /// Memory, in the order of the program headers.
    pub loads: Vec<Load>,
    /// Notes, in file order.
    pub notes: Vec<Note>,
    /// Offset and length of the notes in the file.
    pub notes_place: (u64, u64),
}

impl ElfCore {
    /// Reads headers and notes.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let head = bytes(&file, 0, 64)?;
        ensure!(head[..7] == *b"\x7fELF\x02\x01\x01", "not ELF64, little-endian, version 1");
        ensure!((u16_at(&head, 0x10), u16_at(&head, 0x12)) == (4, 62), "not a core of x86-64");
        ensure!(u32_at(&head, 0x14) == 1, "e_version is not 1");
        ensure!(u64_at(&head, 0x20) == 64, "program headers do not follow the header");
        ensure!((u16_at(&head, 0x34), u16_at(&head, 0x36)) == (64, 56), "odd sizes of headers");
        ensure!((u64_at(&head, 0x28), u16_at(&head, 0x3c)) == (0, 0), "there are section headers");
        let count = u16_at(&head, 0x38);
        ensure!(count != 0xffff, "extended numbering");
        let mut core = Self { file, length, loads: Vec::new(), notes: Vec::new(), notes_place: (0, 0) };
        for index in 0..u64::from(count) {
            let at = 64 + 56 * index;
            core.take_header(&bytes(&core.file, at, 56)?)
                .with_context(|| format!("program header {index}"))?;
        }
        Ok(core)
    }

    fn take_header(&mut self, header: &[u8]) -> Result<()> {
        let (offset, filesz) = (u64_at(header, 8), u64_at(header, 32));
        ensure!(offset + filesz <= self.length, "ends behind the file");
        match u32_at(header, 0) {
            1 => self.loads.push(Load {
                flags: u32_at(header, 4),
                offset,
                vaddr: u64_at(header, 16),
                paddr: u64_at(header, 24),
                filesz,
                memsz: u64_at(header, 40),
                align: u64_at(header, 48),
            }),
            4 => {
                ensure!(self.notes.is_empty(), "a second PT_NOTE");
                self.notes_place = (offset, filesz);
                self.notes = notes(&bytes(&self.file, offset, usize::try_from(filesz)?)?)?;
            }
            other => anyhow::bail!("type {other}"),
        }
        Ok(())
    }

    /// Bytes of the file.
    pub fn file_bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        bytes(&self.file, offset, len)
    }

    /// Guest memory from a guest-physical address on.
    pub fn memory(&self, address: u64, len: usize) -> Result<Vec<u8>> {
        let load = self
            .loads
            .iter()
            .find(|load| load.paddr <= address && address + len as u64 <= load.paddr + load.filesz)
            .with_context(|| format!("{address:#x} + {len:#x} is in no segment"))?;
        bytes(&self.file, load.offset + (address - load.paddr), len)
    }

    /// Descriptors of all notes of a name and type, in file order.
    pub fn descriptors(&self, name: &str, kind: u32) -> Vec<&[u8]> {
        let wanted = self.notes.iter().filter(|note| note.name == name && note.kind == kind);
        wanted.map(|note| note.descriptor.as_slice()).collect()
    }

    /// PRSTATUS of each CPU.
    pub fn prstatus(&self) -> Result<Vec<Prstatus>> {
        self.descriptors("CORE", 1).into_iter().map(Prstatus::read).collect()
    }

    /// QEMU's note of each CPU.
    pub fn qemu(&self) -> Result<Vec<Qemu>> {
        self.descriptors("QEMU", 0).into_iter().map(Qemu::read).collect()
    }

    /// The lines of the NETDUMP note by key. Values keep their escapes.
    pub fn text(&self) -> Result<BTreeMap<String, String>> {
        let all = self.descriptors("NETDUMP", 0x4e45_5444);
        ensure!(all.len() == 1, "{} NETDUMP notes", all.len());
        let text = std::str::from_utf8(all[0])?;
        let line = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        text.lines().map(|l| line(l).with_context(|| format!("line '{l}'"))).collect()
    }
}

/// `struct elf_prstatus` of x86-64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prstatus {
    /// `pr_pid`.
    pub pid: u32,
    /// `pr_reg` by name.
    pub registers: BTreeMap<&'static str, u64>,
}

impl Prstatus {
    fn read(descriptor: &[u8]) -> Result<Self> {
        ensure!(descriptor.len() == 336, "PRSTATUS of {} bytes", descriptor.len());
        let names = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base \
                     gs_base ds es fs gs";
        let registers =
            names.split_whitespace().enumerate().map(|(i, name)| (name, u64_at(descriptor, 112 + 8 * i)));
        Ok(Self { pid: u32_at(descriptor, 32), registers: registers.collect() })
    }
}

/// QEMU's `QEMUCPUState`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// General registers, control registers, `kernel_gs_base`, and of each segment `NAME.selector`, `NAME.limit`,
    /// `NAME.flags`, `NAME.base`.
    pub registers: BTreeMap<String, u64>,
}

impl Qemu {
    fn read(descriptor: &[u8]) -> Result<Self> {
        ensure!(descriptor.len() == 440, "QEMU note of {} bytes", descriptor.len());
        ensure!((u32_at(descriptor, 0), u32_at(descriptor, 4)) == (1, 440), "version or size");
        let mut registers = BTreeMap::new();
        let general = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags";
        for (i, name) in general.split_whitespace().enumerate() {
            registers.insert(name.to_owned(), u64_at(descriptor, 8 + 8 * i));
        }
        for (i, name) in "cs ds es fs gs ss ldt tr gdt idt".split_whitespace().enumerate() {
            let at = 152 + 24 * i;
            registers.insert(format!("{name}.selector"), u32_at(descriptor, at).into());
            registers.insert(format!("{name}.limit"), u32_at(descriptor, at + 4).into());
            registers.insert(format!("{name}.flags"), u32_at(descriptor, at + 8).into());
            registers.insert(format!("{name}.base"), u64_at(descriptor, at + 16));
        }
        for (i, name) in "cr0 cr1 cr2 cr3 cr4 kernel_gs_base".split_whitespace().enumerate() {
            registers.insert(name.to_owned(), u64_at(descriptor, 392 + 8 * i));
        }
        Ok(Self { registers })
    }
}

fn notes(bytes: &[u8]) -> Result<Vec<Note>> {
    let mut notes = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        ensure!(rest.len() >= 12, "{} bytes behind the last note", rest.len());
        let (name_len, len) = (u32_at(rest, 0) as usize, u32_at(rest, 4) as usize);
        let from = 12 + name_len.div_ceil(4) * 4;
        let end = from + len.div_ceil(4) * 4;
        ensure!(end <= rest.len(), "a note of {end} bytes in {}", rest.len());
        let name = std::str::from_utf8(&rest[12..12 + name_len])?;
        let name = name.strip_suffix('\0').context("name without NUL")?.to_owned();
        notes.push(Note { name, kind: u32_at(rest, 8), descriptor: rest[from..from + len].to_vec() });
        rest = &rest[end..];
    }
    Ok(notes)
}

fn bytes(file: &File, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).with_context(|| format!("{len} bytes at {offset:#x}"))?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from(bytes[at]) | u16::from(bytes[at + 1]) << 8
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
