//! What every format and every kind of guest owes, whatever it is.

use std::collections::BTreeSet;

use harness::fake_guest::FakeGuest;
use harness::fake_kernel::FakeKernel;
use netdump::ReadAt;
use netdump::facts;
use netdump::vmcore::{
    ALL, CoreNotes, FormatChoice, KernelSymbols, PhysicalMemory, PlanError, Registers, StoppedGuest,
};

use super::{guest, notes};

#[test]
fn every_format_is_found_by_its_name() {
    for format in ALL {
        assert_eq!(netdump::vmcore::format(format.name()).map(|found| found.name()), Some(format.name()));
    }
    assert!(netdump::vmcore::format("no such format").is_none());
}

/// A guest whose kernel FreeBSD's formats find their way in: tables in the first pages, which map all variables to one
/// page, and everything else missing.
fn freebsd_guest() -> (FakeGuest, KernelSymbols) {
    let mut guest = guest().unreadable(0x2000..0x3000);
    for (table, index, entry) in [(0x4000, 511, 0x5003), (0x5000, 510, 0x6003), (0x6000, 1, 0x83)] {
        guest.write(table, &[0; 4096]);
        guest.write_words(table + 8 * index, &[entry]);
    }
    guest.write(0x3000, &[0; 4096]);
    guest.write_words(0x3000, &[0x4000]);
    let start = 0xffff_ffff_8020_0000;
    let kernel = FakeKernel::default().segment(start, 0, 0x10_0000);
    let kernel = kernel.symbol("KPML4phys", start + 0x3000, 8).symbol("kenvp", start + 0x3100, 8);
    (guest, KernelSymbols::parse(&kernel.image()).unwrap())
}

#[test]
fn every_format_plans_without_copying_memory_and_reads_its_own_cores() {
    for format in ALL {
        let (guest, symbols) = freebsd_guest();
        let notes = notes();
        let stopped = StoppedGuest { memory: &guest, symbols: Some(&symbols), notes: &notes };
        let image = format.plan(&stopped).unwrap().image;
        // A kdump core is compressed while it is planned, to know where its pages will lie.
        let is_kdump = format.name().starts_with("kdump");
        assert_eq!(image.bad_pages(), u64::from(is_kdump), "{}", format.name());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("core");
        if image.length() > 1 << 31 {
            // Raw memory up to 4 GiB: nothing reads it back.
            assert_eq!(format.name(), "raw");
            continue;
        }
        super::store(&image, &path);
        assert_eq!(image.bad_pages(), 1, "{}", format.name());

        let mut head = vec![0; 4096];
        image.read_at(0, &mut head).unwrap();
        assert!(format.recognise(&head), "{}", format.name());
        for other in ALL.iter().filter(|other| other.name() != format.name()) {
            // An ELF core is told by its magic, a full dump is one with another mark and is asked first.
            assert!(!other.recognise(&head) || other.name() == "elf", "{} {}", format.name(), other.name());
        }
        let core = netdump::vmcore::open(&path).unwrap();
        assert_eq!(core.format(), format.name());
        // FreeBSD's own formats have no place for notes.
        let expected = if is_kdump || format.name() == "elf" { notes.clone() } else { CoreNotes::default() };
        assert_eq!(core.notes(), &expected);
        assert_eq!(core.problems(), []);
        assert_eq!(core.expected_length(), image.length());
        let mut page = [0; 4096];
        for address in [0x1000, 0x2000, 0x10_0000, 0x12_0000, 1 << 32] {
            core.read(address, &mut page).unwrap();
            let expected: Vec<u8> = (address..address + 4096).map(|at| guest.byte_in_core(at)).collect();
            assert_eq!(page[..], expected, "{} {address:#x}", format.name());
        }
    }
}

#[test]
fn formats_that_need_symbols_refuse_in_words_and_auto_goes_on() {
    let (guest, notes) = (guest(), notes());
    for format in ALL {
        let stopped = StoppedGuest { memory: &guest, symbols: None, notes: &notes };
        match format.plan(&stopped) {
            Ok(_) => assert_ne!(format.name(), "minidump"),
            Err(error) => assert_eq!((format.name(), error), ("minidump", PlanError::NoSymbols)),
        }
    }
    let (guest, symbols) = freebsd_guest();
    let auto = |guest: &FakeGuest, symbols, notes: &CoreNotes| {
        let stopped = StoppedGuest { memory: guest, symbols, notes };
        let core = FormatChoice::Auto.plan(&stopped).unwrap();
        (core.format, core.remarks)
    };
    assert_eq!(auto(&guest, Some(&symbols), &notes).0, "minidump");
    assert_eq!(auto(&guest, None, &notes), ("elf", vec![]));
    let mut declined = notes.clone();
    declined.facts.environment = Some(vec![("debug.minidump".into(), "0".into())]);
    assert_eq!(auto(&guest, Some(&symbols), &declined).0, "full");
    declined.facts.environment = Some(vec![("debug.minidump".into(), "1".into())]);
    assert_eq!(auto(&guest, Some(&symbols), &declined).0, "minidump");
    let mut broken = freebsd_guest().0;
    broken.write_words(0x3000, &[0]);
    let (format, remarks) = auto(&broken, Some(&symbols), &notes);
    assert_eq!(format, "full");
    assert!(remarks[0].starts_with("no minidump core: ") && remarks[0].contains("KPML4phys"), "{remarks:?}");
    let kernel = FakeKernel::default().symbol("kenvp", 0x1000, 8).image();
    let keeps_conventions_only = KernelSymbols::parse(&kernel).unwrap();
    assert_eq!(auto(&guest, Some(&keeps_conventions_only), &notes).0, "elf");
}

#[test]
fn a_format_that_cannot_be_had_is_replaced_and_a_remark_says_so() {
    let (guest, notes) = (guest(), notes());
    let stopped = StoppedGuest { memory: &guest, symbols: None, notes: &notes };
    let core = FormatChoice::by_name("minidump").unwrap().plan(&stopped).unwrap();
    assert_eq!((core.format, core.remarks.len()), ("elf", 1));
    assert!(core.remarks[0].starts_with("no minidump core: "), "{:?}", core.remarks);
    let nowhere = FakeGuest::new(1).untouched_ram(0x800, 0x1000);
    let stopped = StoppedGuest { memory: &nowhere, ..stopped };
    let refused = FormatChoice::by_name("raw").unwrap().plan(&stopped).unwrap_err();
    assert!(matches!(refused, PlanError::Range { .. }), "{refused}");
}

#[test]
fn every_kind_of_guest_bears_memory_full_of_noise() {
    let names =
        "kenvp md_envp kern_envp dynamic_kenv KPML4phys panicstr version ostype osrelease prison0 hostname";
    let kernel = FakeKernel::default().segment(0, 0, 0x10_0000);
    let kernel = (0..).zip(names.split_whitespace()).fold(kernel, |kernel, (index, name)| {
        let address = 0x1000 * (1 + index);
        kernel.symbol(name, address, 1000)
    });
    let symbols = KernelSymbols::parse(&kernel.image()).unwrap();
    for seed in 0..20 {
        let paged = Registers { cr0: 1 << 31, efer: 1 << 10, cr3: seed << 12, ..Registers::default() };
        let guest = FakeGuest::new(seed).ram(0, 0x10_0000).unreadable(0x8000..0x9000).cpu_with(paged);
        for os in facts::ALL {
            for symbols in [None, Some(&symbols), Some(&KernelSymbols::default())] {
                os.recognise(&guest, symbols);
                os.facts(&guest, symbols);
            }
        }
    }
}

#[test]
fn kinds_of_guest_have_names_and_the_last_takes_everything() {
    let names: BTreeSet<_> = facts::ALL.iter().map(|os| os.name()).collect();
    assert_eq!(names.len(), facts::ALL.len());
    assert!(facts::ALL.last().unwrap().recognise(&FakeGuest::new(0), None));
}
