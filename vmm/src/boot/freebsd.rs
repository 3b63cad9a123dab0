//! FreeBSD's native hand-off: what its loader leaves behind when it starts an amd64 kernel at its 64-bit entry, as
//! bhyve's does it (freebsd-src `stand/userboot/userboot/elf64_freebsd.c`, `bootinfo64.c`, `sys/amd64/amd64/locore.S`).
//!
//! The kernel lies where its ELF segments say, physically at their virtual address less KERNBASE. Behind it, in this
//! order: its symbol tables, modules, the environment, the list of all that ([`super::modinfo`]). Page tables map
//! every GiB of the address space to the first of physical memory. Everything is little-endian.

use std::ops::Range;

use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress};

use super::elf_tables::{put_symbols, symbol_tables};
use super::kenv::Kenv;
use super::kernel_image::Segment;
use super::long_mode::{self, ENTRIES, LARGE_PAGE, PG_PS, PG_RW, PG_V, Tables, bytes_of};
use super::modinfo::{Metadata, Modinfo};
use super::space::{PAGE, Space};
use super::{BootError, BootProtocol, BootState, EntryMode, Handover, KernelImage, ModuleError};
use crate::memory::GuestMemory;
use crate::x86_64::firmware::{Hardware, MapEntry, memory_map};
use crate::x86_64::layout;

/// Virtual address of physical address 0 in the kernel's own map (`sys/amd64/include/vmparam.h`).
const KERNBASE: u64 = 0xffff_ffff_8000_0000;

/// What the kernel can read in its descriptor table: null, 64-bit code, data.
const GDT: [u64; 3] = [0, 0x0020_9800_0000_0000, 0x0000_9000_0000_0000];
const CODE_INDEX: u16 = 1;
const DATA_INDEX: u16 = 2;

/// The protocol.
#[derive(Debug)]
pub(super) struct Native;

impl BootProtocol for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn takes(&self) -> &'static str {
        "a FreeBSD/amd64 kernel, started as its loader does it"
    }

    fn recognises(&self, image: &KernelImage) -> bool {
        image.is_freebsd_kernel()
    }

    fn load(
        &self,
        image: &KernelImage,
        with: &Handover,
        hardware: &Hardware,
        memory: &GuestMemory,
    ) -> Result<BootState, BootError> {
        if with.initrd.is_some() {
            return Err(BootError::NoInitrd { image: image.name(), protocol: self.name() });
        }
        let mut kenv = Kenv::new(image, with, hardware)?;
        kenv.add_default("acpi.rsdp", &format!("{:#x}", layout::ACPI));
        let end = load_segments(image, memory)?;
        let mut space = Space::new(memory, image, end);
        let handed_over = place(image, with, &kenv, &mut space)?;
        let (modulep, kernend) = write_list(&handed_over, image, memory, &mut space)?;
        let stack: Vec<u8> = [0, modulep, kernend].into_iter().flat_map(u32::to_le_bytes).collect();
        write(memory, layout::NATIVE_STACK, "the entry's stack", &stack)?;
        write_page_tables(memory)?;
        write(memory, layout::NATIVE_GDT, "the descriptor table", &bytes_of(GDT))?;
        Ok(BootState {
            entry: image.entry(),
            rbx: 0,
            rsi: 0,
            rsp: layout::NATIVE_STACK,
            mode: EntryMode::FreebsdLong,
        })
    }
}

/// Control registers and segments at the entry.
pub(super) fn apply_long_mode(sregs: &mut kvm_sregs) {
    let tables = Tables {
        gdt: layout::NATIVE_GDT,
        descriptors: u16::try_from(GDT.len()).expect("three descriptors"),
        code: CODE_INDEX,
        data: DATA_INDEX,
        page_tables: layout::NATIVE_PML4,
    };
    long_mode::apply(&tables, sregs);
}

/// Loads the kernel; where it ends. Memory is fresh, so that what is to be zero is.
fn load_segments(image: &KernelImage, memory: &GuestMemory) -> Result<u64, BootError> {
    let segments = image.segments();
    for segment in segments {
        check_segment(image, segment)?;
    }
    let is_loaded = |at: u64| {
        let within =
            |s: &Segment| at.checked_sub(s.virtual_start).is_some_and(|offset| offset < s.end - s.start);
        segments.iter().any(within)
    };
    if !is_loaded(image.entry()) {
        return Err(BootError::Entry { image: image.name(), at: image.entry() });
    }
    let end = segments.iter().map(|segment| segment.end).max().unwrap_or(0);
    // Only to learn whether there is memory up to its end, in the same words as for everything that follows.
    Space::new(memory, image, 0).skip(end)?;
    for segment in segments {
        let bytes = image.bytes().get(segment.offset..segment.offset + segment.file_len);
        let bytes = bytes.expect("the image is known to hold its segments");
        write(memory, segment.start, "the kernel", bytes)?;
    }
    Ok(end)
}

/// That the kernel will find the segment where it looks for it, and nothing of ours is there.
fn check_segment(image: &KernelImage, segment: &Segment) -> Result<(), BootError> {
    let Segment { start, virtual_start, .. } = *segment;
    if virtual_start.checked_sub(KERNBASE) != Some(start) {
        return Err(BootError::Misplaced { image: image.name(), virtual_start, start });
    }
    if start < layout::HIMEM {
        return Err(BootError::TooLow { image: image.name(), at: start });
    }
    Ok(())
}

/// What was put behind the kernel, as the list has to tell it.
struct HandedOver {
    name: String,
    symbols: Option<Range<u64>>,
    modules: Modinfo,
    environment: u64,
    howto: u32,
}

fn place(
    image: &KernelImage,
    with: &Handover,
    kenv: &Kenv,
    space: &mut Space<'_>,
) -> Result<HandedOver, BootError> {
    let tables = symbol_tables(image.bytes());
    let tables = tables.map_err(|source| BootError::Symbols { image: image.name(), source })?;
    let symbols = tables.map(|tables| put_symbols(space, tables)).transpose()?;
    let mut modules = Modinfo::default();
    let mut names = vec![kenv.kernel_name()];
    for module in &with.modules {
        if names.contains(&module.name()) {
            return Err(BootError::Module(ModuleError::Twice { name: module.name() }));
        }
        names.push(module.name());
        module.place(space, &mut modules)?;
    }
    space.align(PAGE)?;
    let environment = space.put("the kernel environment", &kenv.block()?)?;
    Ok(HandedOver { name: kenv.kernel_name(), symbols, modules, environment, howto: kenv.howto() })
}

/// Writes the list; where it is, and the first page behind it.
fn write_list(
    handed_over: &HandedOver,
    image: &KernelImage,
    memory: &GuestMemory,
    space: &mut Space<'_>,
) -> Result<(u32, u32), BootError> {
    let below_1_gib = |address: u64| u32::try_from(address).expect("it fitted below 1 GiB");
    let start = space.align(PAGE)?;
    let list = |end| list(handed_over, image, memory, end);
    // The list tells its own end: its length does not depend on that.
    let end = (start + list(0).len() as u64).next_multiple_of(PAGE);
    space.put("the list of what was loaded", &list(end))?;
    let end = space.align(PAGE)?;
    Ok((below_1_gib(start), below_1_gib(end)))
}

fn list(handed_over: &HandedOver, image: &KernelImage, memory: &GuestMemory, end: u64) -> Vec<u8> {
    let mut list = Modinfo::default();
    let start = image.segments().iter().map(|segment| segment.start).min().unwrap_or(0);
    let kernel_end = image.segments().iter().map(|segment| segment.end).max().unwrap_or(0);
    let symbols = handed_over.symbols.as_ref();
    let loaded_end = symbols.map_or(kernel_end, |symbols| symbols.end);
    list.thing(&handed_over.name, "elf kernel", start, loaded_end - start);
    list.metadata(Metadata::ElfHeader, &image.bytes()[..64]);
    if let Some(symbols) = symbols {
        list.number(Metadata::SymbolsStart, symbols.start);
        list.number(Metadata::SymbolsEnd, symbols.end);
    }
    list.metadata(Metadata::Howto, &handed_over.howto.to_le_bytes());
    list.number(Metadata::Environment, handed_over.environment);
    list.number(Metadata::KernelEnd, end);
    list.metadata(Metadata::MemoryMap, &smap(memory));
    list.append(&handed_over.modules);
    list.finish()
}

/// The memory map as the BIOS tells it (`sys/x86/include/pc/bios.h`): u64 base, u64 length, u32 type, packed.
fn smap(memory: &GuestMemory) -> Vec<u8> {
    let entry = |entry: MapEntry| {
        let mut bytes = bytes_of([entry.start, entry.end - entry.start]);
        bytes.extend_from_slice(&(entry.kind as u32).to_le_bytes());
        bytes
    };
    memory_map(memory).into_iter().flat_map(entry).collect()
}

/// Every entry of the upper two levels points to the same next table: all of the address space is the first GiB.
fn write_page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    let table = |entry: &dyn Fn(u64) -> u64| bytes_of((0..ENTRIES).map(entry));
    let tables = [
        (layout::NATIVE_PML4, table(&|_| layout::NATIVE_PDP | PG_V | PG_RW)),
        (layout::NATIVE_PDP, table(&|_| layout::NATIVE_PD | PG_V | PG_RW)),
        (layout::NATIVE_PD, table(&|index| (index * LARGE_PAGE) | PG_V | PG_RW | PG_PS)),
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
    use crate::boot::modinfo::reader::records;
    use crate::boot::test_kernel::{Kernel, module};
    use crate::boot::{ALL, Module};
    use crate::memory::{MemorySize, create};

    fn memory(mib: u64) -> GuestMemory {
        create(MemorySize::new(mib << 20).unwrap()).unwrap()
    }

    fn handover(cmdline: &str, environment: &[(&str, &str)]) -> Handover {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Handover {
            cmdline: cmdline.into(),
            environment: environment.iter().map(own).collect(),
            ..Default::default()
        }
    }

    /// What a kernel reads from its memory after a start.
    struct Started(GuestMemory);

    impl Started {
        fn with(handover: &Handover) -> (Self, BootState) {
            let memory = memory(64);
            let hardware = Hardware { cpus: 2, ..Default::default() };
            let state = Native.load(&Kernel::default().image(), handover, &hardware, &memory).unwrap();
            (Self(memory), state)
        }

        fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.0.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        }

        fn u32(&self, at: u64) -> u32 {
            u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap())
        }

        fn u64(&self, at: u64) -> u64 {
            u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
        }

        fn records(&self) -> Vec<(u32, Vec<u8>)> {
            let (start, end) = (self.u32(0x1004), self.u32(0x1008));
            records(&self.bytes(start.into(), (end - start) as usize))
        }

        fn number(&self, kind: u32) -> u64 {
            let found = self.records().into_iter().find(|(k, _)| *k == kind).expect("a record of the type");
            u64::from_le_bytes(found.1.try_into().unwrap())
        }

        fn environment(&self) -> Vec<String> {
            let block = self.bytes(self.number(0x8006), 0x1000);
            let strings = block.split(|byte| *byte == 0).take_while(|string| !string.is_empty());
            strings.map(|string| String::from_utf8(string.to_vec()).unwrap()).collect()
        }
    }

    #[test]
    fn the_kernel_lies_at_its_address_less_kernbase() {
        let (guest, state) = Started::with(&Handover::default());
        let kernel = Kernel::default();
        assert_eq!((state.entry, state.rsp), (0xffff_ffff_8020_0040, 0x1000));
        assert_eq!(guest.bytes(0x20_0000, 0x200), kernel.text[..0x200]);
    }

    #[test]
    fn every_gib_of_the_address_space_is_the_first_of_memory() {
        let (guest, _) = Started::with(&Handover::default());
        for address in [0, 0x20_0000, 0xffff_ffff_8020_0123_u64, 0xffff_f800_0000_1000, 0x7fff_c000_0fff] {
            let index = |level: u32| (address >> (12 + 9 * level)) & 511;
            let pdp = guest.u64(0x2000 + index(3) * 8);
            let pd = guest.u64((pdp & !0xfff) + index(2) * 8);
            let page = guest.u64((pd & !0xfff) + index(1) * 8);
            assert_eq!((pdp & 0xfff, pd & 0xfff, page & 0xfff), (0x003, 0x003, 0x083));
            assert_eq!((page & !0xfff) + (address & 0x1f_ffff), address & 0x3fff_ffff);
        }
    }

    #[test]
    fn segments_are_flat_and_long_mode_is_on() {
        let mut sregs = kvm_sregs::default();
        apply_long_mode(&mut sregs);
        assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x8000_0021, 0x2000, 0x20, 0x500));
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db, sregs.cs.type_), (8, 1, 0, 0xb));
        assert_eq!((sregs.ss.selector, sregs.ss.type_, sregs.ss.s), (16, 3, 1));
        assert_eq!((sregs.gdt.base, sregs.gdt.limit, sregs.tr.type_), (0x5000, 23, 0xb));
    }

    #[test]
    fn symbols_environment_list_and_end_follow_the_kernel_in_order() {
        let (guest, _) = Started::with(&Handover::default());
        let (ssym, esym) = (guest.number(0x8003), guest.number(0x8004));
        let symtab_len = guest.u64(ssym);
        let strtab = ssym + 8 + symtab_len;
        let strtab_len = guest.u64(strtab);
        assert_eq!((ssym, symtab_len % 24), (0x20_3000, 0), "behind .bss");
        assert_eq!(esym, (strtab + 8 + strtab_len).next_multiple_of(8));
        assert!(guest.bytes(strtab + 8, 64).windows(6).any(|name| name == b"btext\0"));
        let (environment, list) = (guest.number(0x8006), u64::from(guest.u32(0x1004)));
        assert!(esym <= environment && environment < list);
        assert_eq!((environment % 0x1000, list % 0x1000), (0, 0));
        assert_eq!(guest.number(0x8008), u64::from(guest.u32(0x1008)));
        assert_eq!(guest.u32(0x1000), 0);
    }

    #[test]
    fn the_kernels_records_are_those_of_the_loader() {
        let (guest, _) = Started::with(&Handover::default());
        let records = guest.records();
        let kinds: Vec<_> = records.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [1, 2, 3, 4, 0x8002, 0x8003, 0x8004, 0x8007, 0x8006, 0x8008, 0x9001]);
        assert_eq!(
            (&records[0].1, &records[1].1),
            (&b"/boot/kernel/test\0".to_vec(), &b"elf kernel\0".to_vec())
        );
        assert_eq!((guest.number(3), guest.number(4)), (0x20_0000, guest.number(0x8004) - 0x20_0000));
        assert_eq!(records[4].1, Kernel::default().elf()[..64]);
    }

    #[test]
    fn the_memory_map_keeps_the_tables_out_of_ram() {
        let (guest, _) = Started::with(&Handover::default());
        let smap = guest.records().into_iter().find(|(kind, _)| *kind == 0x9001).unwrap().1;
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let entries: Vec<_> = smap
            .chunks(20)
            .map(|e| (word(&e[..8]), word(&e[8..16]), u32::from_le_bytes(e[16..].try_into().unwrap())))
            .collect();
        let low = [(0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (0xe_0000, 0x2_0000, 2)];
        assert_eq!(entries, [&low[..], &[(0x10_0000, (64 << 20) - 0x10_0000, 1)]].concat());
    }

    #[test]
    fn flags_and_variables_reach_the_kernel_and_defaults_give_way() {
        let given = handover("-sv a=1 bare", &[("a", "two words"), ("hint.uart.0.flags", "0x30")]);
        let (guest, _) = Started::with(&given);
        let howto = guest.records().into_iter().find(|(kind, _)| *kind == 0x8007).unwrap().1;
        assert_eq!(howto, 0x1802_u32.to_le_bytes());
        let expected = [
            "boot_single=YES",
            "boot_verbose=YES",
            "a=1",
            "bare=1",
            "a=two words",
            "hint.uart.0.flags=0x30",
            "console=comconsole",
            "boot_serial=YES",
            "hint.uart.0.at=isa",
            "hint.uart.0.port=0x3F8",
            "hint.uart.0.irq=4",
            "kernelname=/boot/kernel/test",
            "acpi.rsdp=0xe0000",
        ];
        assert_eq!(guest.environment(), expected);
    }

    #[test]
    fn modules_are_listed_behind_the_kernel_each_on_a_page_of_its_own() {
        let ko = Module::from_bytes(Path::new("/x/if_a.ko"), None, module()).unwrap();
        let blob = Module::from_bytes(Path::new("root.img"), Some("md_image".into()), vec![7; 5000]).unwrap();
        let (guest, _) = Started::with(&Handover { modules: vec![ko, blob], ..Default::default() });
        let records = guest.records();
        let at = |name: &[u8]| records.iter().position(|(kind, data)| *kind == 1 && data == name).unwrap();
        let number = |index: usize| u64::from_le_bytes(records[index].1.clone().try_into().unwrap());
        let (ko, blob) = (at(b"/boot/kernel/if_a.ko\0"), at(b"/boot/kernel/root.img\0"));
        let kinds: Vec<_> = records[ko..blob].iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [1, 2, 3, 4, 0x8009, 0x8002]);
        assert_eq!(records[ko + 1].1, b"elf obj module\0");
        assert_eq!((number(ko + 2) % 0x1000, number(blob + 2) % 0x1000), (0, 0));
        assert!(number(ko + 2) >= guest.number(0x8004));
        assert!(number(blob + 2) >= number(ko + 2) + number(ko + 3));
        assert_eq!((&records[blob + 1].1[..], number(blob + 3)), (&b"md_image\0"[..], 5000));
        assert_eq!(guest.bytes(number(blob + 2), 5000), vec![7; 5000]);
        assert!(guest.number(0x8006) >= number(blob + 2) + 5000);
    }

    #[test]
    fn no_two_things_that_are_handed_over_have_one_name() {
        let blob = |name: &str| Module::from_bytes(Path::new(name), Some("b".into()), vec![1]).unwrap();
        for (modules, name) in [(vec![blob("a"), blob("x/a")], "a"), (vec![blob("test")], "test")] {
            let with = Handover { modules, ..Default::default() };
            let refused = Native.load(&Kernel::default().image(), &with, &Hardware::default(), &memory(64));
            let words = format!("are named /boot/kernel/{name}");
            assert!(refused.unwrap_err().to_string().ends_with(&words), "{name}");
        }
    }

    #[test]
    fn kernels_that_do_not_fit_are_refused_with_a_sentence() {
        let refused = |kernel: Kernel, mib| {
            let refused =
                Native.load(&kernel.image(), &Handover::default(), &Hardware::default(), &memory(mib));
            refused.unwrap_err().to_string()
        };
        let kernel = Kernel::default;
        assert!(
            refused(Kernel { physical: 0x40_0000, ..kernel() }, 64).contains("physical address 0x400000")
        );
        let low = Kernel {
            physical: 0x8_0000,
            virtual_start: KERNBASE + 0x8_0000,
            entry: KERNBASE + 0x8_0040,
            ..kernel()
        };
        assert!(refused(low, 64).contains("below 1 MiB"));
        assert!(refused(Kernel { entry: KERNBASE + 0x10_0000, ..kernel() }, 64).contains("nothing to load"));
        assert!(refused(kernel(), 2).contains("--memory"));
        assert!(refused(Kernel { memory_len: 1 << 30, ..kernel() }, 2048).contains("first GiB"));
        assert!(refused(Kernel { memory_len: u64::MAX, ..kernel() }, 64).contains("first GiB"));
    }

    #[test]
    fn only_kernels_of_freebsd_are_recognised() {
        assert!(Native.recognises(&Kernel::default().image()));
        assert!(!Native.recognises(&Kernel { os_abi: 0, ..Kernel::default() }.image()));
        assert!(!Native.recognises(&Kernel { entry: 0x20_0040, ..Kernel::default() }.image()), "a program");
        assert_eq!(ALL[0].name(), "native");
    }
}
