//! What every format and every kind of guest owes, whatever it is.

use std::collections::BTreeSet;

use harness::fake_guest::FakeGuest;
use harness::fake_kernel::FakeKernel;
use netdump::ReadAt;
use netdump::facts;
use netdump::vmcore::{ALL, KernelSymbols, PhysicalMemory, Registers, StoppedGuest};

use super::{guest, notes};

#[test]
fn every_format_is_found_by_its_name() {
    for format in ALL {
        assert_eq!(netdump::vmcore::format(format.name()).map(|found| found.name()), Some(format.name()));
    }
    assert!(netdump::vmcore::format("no such format").is_none());
}

#[test]
fn every_format_plans_without_reading_memory_and_reads_its_own_cores() {
    for format in ALL {
        let guest = guest().unreadable(0x2000..0x3000);
        let notes = notes();
        let stopped = StoppedGuest { memory: &guest, symbols: None, notes: &notes };
        let image = format.plan(&stopped).unwrap().image;
        assert_eq!(image.bad_pages(), 0, "{}", format.name());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("core");
        super::store(&image, &path);
        assert_eq!(image.bad_pages(), 1, "{}", format.name());

        let mut head = vec![0; 4096];
        image.read_at(0, &mut head).unwrap();
        assert!(format.recognise(&head), "{}", format.name());
        let core = netdump::vmcore::open(&path).unwrap();
        assert_eq!(core.format(), format.name());
        assert_eq!(core.notes(), &notes);
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
