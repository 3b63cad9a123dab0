//! A small Linux guest for tests: an image in physical memory, mapped as the kernel's tables map it, and a VMCOREINFO
//! that says where. What a test puts into it lies in the image's window, so that every pointer is a plain address.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{LinuxMemory, Vmcoreinfo};
use crate::vmcore::{CpuState, MemoryError, MemoryRange, PhysicalMemory};

/// Where the image begins.
pub(crate) const TEXT: u64 = 0xffff_ffff_8560_0000;
/// How far that is from where it was linked.
const MOVED: u64 = 0x460_0000;
const PHYSICAL: u64 = 0x20_0000;
const LEN: u64 = 0xc0_0000;
/// Where the page tables lie in the image, and where free space begins.
const TABLES: u64 = TEXT + 0x1000;
const FREE: u64 = TEXT + 0x10_0000;

/// The guest.
#[derive(Clone)]
pub(crate) struct FakeGuest {
    ranges: [MemoryRange; 1],
    ram: Vec<u8>,
    free: u64,
    info: BTreeMap<String, String>,
    pub(crate) cpus: Vec<CpuState>,
}

impl PhysicalMemory for FakeGuest {
    fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let at = usize::try_from(address).unwrap();
        let Some(bytes) = self.ram.get(at..).and_then(|rest| rest.get(..buf.len())) else {
            return Err(MemoryError::NotInRam { address, len: buf.len() });
        };
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn cpus(&self) -> &[CpuState] {
        &self.cpus
    }
}

impl FakeGuest {
    pub(crate) fn new() -> Self {
        let len = PHYSICAL + LEN;
        let mut guest = Self {
            ranges: [MemoryRange { start: 0, len }],
            ram: vec![0; usize::try_from(len).unwrap()],
            free: FREE,
            info: BTreeMap::new(),
            cpus: Vec::new(),
        };
        // PML4, then the table of 1 GiB entries, then that of large pages.
        let table = |level: u64| TABLES + level * 0x1000;
        let physical = |address: u64| address - TEXT + PHYSICAL;
        guest.put_u64(table(0) + 8 * 511, physical(table(1)) | 3);
        guest.put_u64(table(1) + 8 * 510, physical(table(2)) | 3);
        for page in 0..LEN >> 21 {
            let entry = (TEXT - 0xffff_ffff_8000_0000 + (page << 21)) >> 21;
            guest.put_u64(table(2) + 8 * entry, (PHYSICAL + (page << 21)) | 0x83);
        }
        guest.say("SYMBOL(_stext)", format!("{TEXT:x}"));
        guest.say("SYMBOL(swapper_pg_dir)", format!("{TABLES:x}"));
        guest.say("KERNELOFFSET", format!("{MOVED:x}"));
        guest.say(
            "NUMBER(phys_base)",
            (PHYSICAL.cast_signed() - (TEXT - 0xffff_ffff_8000_0000).cast_signed()).to_string(),
        );
        let names = guest.reserve(6 * 65);
        guest.say("SYMBOL(init_uts_ns)", format!("{names:x}"));
        guest.say("OFFSET(uts_namespace.name)", "0".to_owned());
        for (field, text) in
            ["Linux", "guest", "6.1.0-fake", "#1 SMP Fake 6.1.0", "x86_64"].iter().enumerate()
        {
            guest.put(names + 65 * field as u64, text.as_bytes());
        }
        guest
    }

    /// A line of VMCOREINFO.
    pub(crate) fn say(&mut self, key: &str, value: String) {
        self.info.insert(key.to_owned(), value);
    }

    pub(crate) fn say_all(&mut self, keys: &[(&str, u64)]) {
        for (key, value) in keys {
            self.say(key, value.to_string());
        }
    }

    pub(crate) fn vmcoreinfo(&self) -> Vmcoreinfo {
        let mut text = "OSRELEASE=6.1.0-fake\nPAGESIZE=4096\n".to_owned();
        for (key, value) in &self.info {
            writeln!(text, "{key}={value}").unwrap();
        }
        Vmcoreinfo::parse(text.as_bytes()).unwrap()
    }

    pub(crate) fn memory(&self) -> LinuxMemory<'_> {
        LinuxMemory::new(self, &self.vmcoreinfo()).unwrap()
    }

    /// An address of `len` bytes that nothing else uses, on 16 bytes.
    pub(crate) fn reserve(&mut self, len: usize) -> u64 {
        let address = self.free;
        self.free = (address + len as u64).next_multiple_of(16);
        address
    }

    /// What is reserved next begins on a multiple of `alignment`.
    pub(crate) fn align(&mut self, alignment: u64) {
        self.free = self.free.next_multiple_of(alignment);
    }

    pub(crate) fn place(&mut self, bytes: &[u8]) -> u64 {
        let address = self.reserve(bytes.len());
        self.put(address, bytes);
        address
    }

    pub(crate) fn put(&mut self, address: u64, bytes: &[u8]) {
        let at = usize::try_from(address - TEXT + PHYSICAL).unwrap();
        self.ram[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn put_u64(&mut self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }

    pub(crate) fn put_u32(&mut self, address: u64, value: u32) {
        self.put(address, &value.to_le_bytes());
    }
}
