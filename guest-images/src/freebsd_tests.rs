//! What every image of [`FREEBSD_ABI`] must be before it is booted: FreeBSD's ELF marks, both entries, and the symbols
//! with the sizes and bindings that a host relies on.

use std::collections::HashSet;

use object::elf::{FileHeader64, NoteType, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, Object, ObjectSymbol};

use crate::freebsd::{KERNBASE, MESSAGE_LINES, Reach, message_line};
use crate::{FREEBSD_ABI, Guest, PatternPage, find};

/// Symbols of all flavours: name, size, whether it is global.
const SYMBOLS: &[(&str, u64, bool)] = &[
    ("kernbase", 0, true),
    ("kernload", 0, true),
    ("dmapbase", 0, true),
    ("dmapend", 0, true),
    ("KPML4phys", 8, true),
    ("kernel_vm_end", 8, true),
    ("nkpt", 4, true),
    ("dmaplimit", 8, true),
    ("kernphys", 8, true),
    ("dump_avail", 1024, true),
    ("vm_page_dump", 8, true),
    ("msgbufp", 8, true),
    ("kern_envp", 8, true),
    ("md_envp", 8, false),
    ("kenvp", 8, true),
    ("panicstr", 8, true),
    ("dumping", 4, true),
    ("rebooting", 4, true),
    ("cold", 4, true),
    ("dumppcb", 0x140, false),
    ("dumptid", 4, false),
    ("mp_maxid", 4, true),
    ("time_second", 8, true),
    ("allproc", 8, true),
    ("osreldate", 4, true),
    ("hz", 4, true),
    ("pcb_size", 4, true),
    ("proc_off_p_pid", 4, true),
    ("thread_off_td_plist", 4, true),
    ("ostype", 8, true),
    ("osrelease", 9, true),
    ("kern_ident", 12, true),
    ("pattern_pages", PatternPage::LIST_SIZE as u64, true),
    ("oracle_bitmap", 8, true),
    ("oracle_pages", 8, true),
];

fn guest(name: &str) -> &'static Guest {
    find(name).unwrap()
}

fn size(name: &str, symbol: &str) -> Option<u64> {
    guest(name).symbol(symbol).map(|symbol| symbol.size)
}

#[test]
fn every_flavour_is_marked_as_freebsd_and_has_both_entries() {
    for guest in FREEBSD_ABI {
        let header = FileHeader64::<LittleEndian>::parse(guest.elf).unwrap();
        assert_eq!(header.e_ident.os_abi, object::elf::ELFOSABI_FREEBSD, "{}", guest.name);
        assert_eq!(header.e_entry(LittleEndian), guest.symbol("btext").unwrap().address, "{}", guest.name);
        let note = |name: &[u8], kind| {
            let programs = header.program_headers(LittleEndian, guest.elf).unwrap();
            let notes = programs.iter().filter(|program| program.p_type(LittleEndian) == PT_NOTE);
            let mut notes = notes
                .flat_map(|program| program.notes(LittleEndian, guest.elf).unwrap().unwrap())
                .map(Result::unwrap);
            let note =
                notes.find(|note| note.name() == name && note.n_type(LittleEndian) == NoteType(kind))?;
            Some(u32::from_le_bytes(note.desc().try_into().unwrap()))
        };
        let entry = guest.symbol("xen_start32").unwrap().address - KERNBASE;
        assert_eq!(note(b"Xen", 18).map(u64::from), Some(entry), "{}", guest.name);
        assert!(note(b"FreeBSD", 1).is_some_and(|version| version > 1_200_000), "{}", guest.name);
    }
}

#[test]
fn every_flavour_is_linked_at_kernbase_and_loads_at_2_mib() {
    for guest in FREEBSD_ABI {
        let header = FileHeader64::<LittleEndian>::parse(guest.elf).unwrap();
        let programs = header.program_headers(LittleEndian, guest.elf).unwrap();
        let loads: Vec<_> =
            programs.iter().filter(|program| program.p_type(LittleEndian) == PT_LOAD).collect();
        assert_eq!(loads.len(), 2, "{}", guest.name);
        assert_eq!(loads[0].p_paddr(LittleEndian), 2 << 20, "{}", guest.name);
        for load in loads {
            let start = load.p_paddr(LittleEndian);
            assert_eq!(load.p_vaddr(LittleEndian), start + KERNBASE, "{}", guest.name);
            assert!(start + load.p_memsz(LittleEndian) <= 4 << 20, "{}", guest.name);
        }
        assert!(guest.elf.len() <= 160 * 1024, "{} has {} bytes", guest.name, guest.elf.len());
    }
}

#[test]
fn every_flavour_has_the_symbols_of_a_kernel() {
    for guest in FREEBSD_ABI {
        let file = object::File::parse(guest.elf).unwrap();
        for &(name, size, is_global) in SYMBOLS {
            let mut symbols = file.symbols().filter(|symbol| symbol.name() == Ok(name));
            let symbol = symbols.next().unwrap_or_else(|| panic!("{} has no {name}", guest.name));
            assert_eq!(symbol.size(), size, "{} {name}", guest.name);
            assert_eq!(symbol.is_global(), is_global, "{} {name}", guest.name);
            assert_eq!(symbols.count(), 0, "{} {name}", guest.name);
        }
        assert_eq!(guest.symbol("kernbase").unwrap().address, KERNBASE);
    }
}

#[test]
fn flavours_differ_where_the_releases_do() {
    let flavours = ["freebsd-abi", "freebsd-abi-13", "freebsd-abi-12"];
    let sizes = |symbol: &str| flavours.map(|name| size(name, symbol));
    assert_eq!(sizes("stoppcbs"), [Some(8), Some(256 * 0x140), Some(256 * 0x140)]);
    assert_eq!(sizes("vm_page_dump_pages"), [Some(8), Some(8), None]);
    assert_eq!(sizes("vm_page_dump_size"), [None, None, Some(4)]);
    assert_eq!(sizes("panicked"), [Some(1), Some(1), Some(4)]);
    assert_eq!(sizes("dynamic_kenv"), [Some(1), Some(1), Some(4)]);
    assert_eq!(sizes("stopped_cpus"), [Some(128), Some(32), Some(32)]);
    assert_eq!(sizes("__pcpu"), [Some(8), Some(8), Some(256 * 4096)]);
    assert_eq!(sizes("zombproc"), [None, None, Some(8)]);
    assert_eq!(sizes("dumper_configs"), [Some(16), Some(16), None]);
    assert_eq!(HashSet::from(sizes("prison0")).len(), 3);
}

#[test]
fn message_lines_count_up() {
    assert_eq!(&message_line(0), b"message 0000 of a buffer that wraps around, oldest lines first.\n");
    assert!(message_line(MESSAGE_LINES - 1).starts_with(b"message 1999 of"));
}

#[test]
fn what_only_the_direct_map_or_a_user_reaches_is_dumped_when_the_kernel_says_so() {
    let dumped: Vec<_> = Reach::ALL.into_iter().filter(|reach| reach.is_dumped()).collect();
    assert_eq!(dumped, [Reach::Direct, Reach::Small, Reach::Large]);
}
