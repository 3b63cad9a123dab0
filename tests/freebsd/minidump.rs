//! Minidumps of every flavour, however the kernel was started: header, messages, page set, translation, threads.

use guest_images::freebsd::Reach;
use harness::readers::freebsd::VirtualMemory;

use crate::needs;
use crate::specimen::{Specimen, assert_pattern};

const VM_MIN_KERNEL_ADDRESS: u64 = 0xffff_fe00_0000_0000;
const GIB: u64 = 1 << 30;
/// What the guest maps with one leaf of a GiB.
const GIGANTIC_LEAF: u64 = VM_MIN_KERNEL_ADDRESS + 2 * GIB;
/// A page that is mapped alone, far above.
const LONE_PAGE: u64 = VM_MIN_KERNEL_ADDRESS + 512 * GIB;

#[test]
fn every_flavour_gets_the_minidump_that_its_kernel_would_write() {
    needs!(Kvm);
    for (flavour, boot, has_4_cpus) in [
        ("freebsd-abi", "native", true),
        ("freebsd-abi", "pvh", false),
        ("freebsd-abi-13", "pvh", true),
        ("freebsd-abi-12", "native", true),
    ] {
        let options = ["--boot", boot];
        let specimen = match has_4_cpus {
            true => Specimen::dumped_with_4_cpus(flavour, &[], &options),
            false => Specimen::dumped(flavour, &[], &options),
        };
        let core = specimen.minidump();
        assert_eq!(specimen.remarks(), [""; 0], "{flavour}");
        specimen.check_minidump(&core);
        for page in specimen.pattern_pages(&core) {
            let is_in = core.pages().contains_key(&page.physical_address);
            assert_eq!(is_in, page.reach.is_dumped(), "{flavour}: {page:x?}");
        }
        // Readers find the GiB without its tables, and nothing where nothing is mapped.
        assert_eq!(core.translate(GIGANTIC_LEAF + 0x1234_5678).unwrap(), GIB + 0x1234_5678);
        assert!(core.translate(VM_MIN_KERNEL_ADDRESS + GIB).is_err());
        assert!(core.translate(GIGANTIC_LEAF + GIB).is_err());
        let lone = core.translate(LONE_PAGE).unwrap();
        assert!(core.pages().contains_key(&lone), "{lone:#x}");
    }
}

#[test]
fn a_leaf_of_a_gib_brings_in_all_memory_behind_it() {
    needs!(Kvm);
    let specimen = Specimen::dumped("freebsd-abi", &["abi.gigantic=0", "abi.dmap=2M"], &[]);
    let core = specimen.minidump();
    specimen.check_minidump(&core);
    let ranges = core.dump_avail().iter().map(|(start, end)| (end - start) / 4096);
    assert_eq!(core.pages().len() as u64, ranges.sum::<u64>());
    let pages = specimen.pattern_pages(&core);
    assert!(pages.iter().any(|page| page.reach == Reach::Free));
    for page in pages {
        let pa = page.physical_address;
        assert_eq!(core.translate(GIGANTIC_LEAF + pa).unwrap(), pa);
        assert_pattern(pa, &core.read_pa(pa, 4096).unwrap());
    }
}

#[test]
fn memory_above_4_gib_is_numbered_behind_that_below() {
    needs!(Kvm);
    for flavour in ["freebsd-abi", "freebsd-abi-12"] {
        let specimen = Specimen::dumped(flavour, &[], &["--memory=5G"]);
        let core = specimen.minidump();
        specimen.check_minidump(&core);
        let high = |page: &&u64| **page >= 4 * GIB;
        assert!(core.pages().keys().any(|page| high(&page)), "{flavour}: no page is above 4 GiB");
        let above = specimen.pattern_pages(&core).into_iter();
        assert!(above.filter(|page| page.physical_address >= 4 * GIB).count() > 0, "{flavour}");
    }
}
