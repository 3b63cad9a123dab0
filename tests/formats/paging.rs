//! Page-table walks, on tables made here.

use harness::fake_guest::FakeGuest;
use netdump::vmcore::Registers;
use netdump::vmcore::VirtualMemory;
use netdump::vmcore::paging::{AddressSpace, Mapping};
use proptest::prelude::*;

const PRESENT: u64 = 1;
const LARGE: u64 = 0x80;
/// Accessed, dirty, user, writable, PAT of a large page, and no-execute: none of them is part of an address.
const NOISE: u64 = 1 << 63 | 0x1000 | 0x66;

/// Tables at 0x1000 (PML5), 0x2000 (PML4), 0x3000, 0x4000, 0x5000; RAM of 64 KiB and 16 KiB at 4 GiB.
fn guest() -> FakeGuest {
    let mut guest = FakeGuest::new(5).ram(0, 0x1_0000).ram(1 << 32, 0x4000);
    for table in (0x1000..0x6000).step_by(0x1000) {
        guest.write(table, &[0; 4096]);
    }
    guest.write_words(0x1000 + 8 * 511, &[0x2000 | PRESENT]);
    guest.write_words(0x2000 + 8 * 511, &[0x3000 | PRESENT | 1 << 63]);
    // 0xffffff8000000000: a page of 1 GiB at 4 GiB, then a table of 2 MiB pages.
    guest.write_words(0x3000, &[1 << 32 | NOISE | LARGE | PRESENT, 0x4000 | PRESENT]);
    // 0xffffff8040000000: a page of 2 MiB at 0, then a table of 4 KiB pages, then nothing.
    guest.write_words(0x4000, &[NOISE | LARGE | PRESENT, 0x5000 | PRESENT, 0x5000]);
    // 0xffffff8040200000: pages at 0x7000 and, out of order, 0x6000; then one outside RAM.
    guest.write_words(0x5000, &[0x7000 | 1 << 63 | PRESENT, 0x6000 | PRESENT, 0x8000_0000 | PRESENT]);
    guest
}

#[test]
fn pages_of_every_size_are_found() {
    let guest = guest();
    for mapping in [Mapping::FourLevel(0x2000), Mapping::FourLevel(0x2fff), Mapping::FiveLevel(0x1000)] {
        let space = AddressSpace::new(&guest, mapping);
        assert_eq!(space.translate(0xffff_ff80_0000_2345), Some((1 << 32) + 0x2345));
        assert_eq!(space.translate(0xffff_ff80_3fff_ffff), Some((1 << 32) + 0x3fff_ffff));
        assert_eq!(space.translate(0xffff_ff80_4000_9876), Some(0x9876));
        assert_eq!(space.translate(0xffff_ff80_4020_0001), Some(0x7001));
        assert_eq!(space.translate(0xffff_ff80_4020_1fff), Some(0x6fff));
    }
}

#[test]
fn absent_and_non_canonical_addresses_are_not_mapped() {
    let guest = guest();
    let space = AddressSpace::new(&guest, Mapping::FourLevel(0x2000));
    for address in
        [0, 0xffff_ff80_8000_0000, 0xffff_ff80_4040_0000, 0x0000_ff80_0000_0000, 0x7fff_ff80_0000_0000]
    {
        assert_eq!(space.translate(address), None, "{address:#x}");
    }
    let space = AddressSpace::new(&guest, Mapping::FiveLevel(0x1000));
    assert_eq!(space.translate(0x00ff_ff80_0000_0000), None);
}

#[test]
fn reads_cross_pages_that_are_not_neighbours() {
    let guest = guest();
    let space = AddressSpace::new(&guest, Mapping::FourLevel(0x2000));
    let mut bytes = [0; 16];
    space.read(0xffff_ff80_4020_0ff8, &mut bytes).unwrap();
    let expected: Vec<u8> = (0x7ff8..0x8000).chain(0x6000..0x6008).map(|at| guest.byte(at)).collect();
    assert_eq!(bytes[..], expected);
    assert!(space.read(0xffff_ff80_4020_1ff8, &mut bytes).is_none(), "the third page is outside RAM");
    assert!(space.read(u64::MAX - 3, &mut bytes).is_none());
}

#[test]
fn registers_tell_the_kind_of_tables() {
    let long = Registers { cr0: 1 << 31, efer: 1 << 10, cr3: 0x8000_0000_0000_2123, ..Registers::default() };
    assert_eq!(Mapping::of(&long), Some(Mapping::FourLevel(0x2000)));
    let five = Registers { cr4: 1 << 12, ..long.clone() };
    assert_eq!(Mapping::of(&five), Some(Mapping::FiveLevel(0x2000)));
    assert_eq!(Mapping::of(&Registers { efer: 0, ..long }), None, "32-bit paging");
    assert_eq!(Mapping::of(&Registers::default()), Some(Mapping::Identity));
}

proptest! {
    /// Tables of noise, which point at themselves and everywhere: every walk ends.
    #[test]
    fn noise_for_tables_does_no_harm(seed: u64, entries in prop::collection::vec(0_u64..16, 512), root: u64, address: u64) {
        let mut guest = FakeGuest::new(seed).ram(0, 0x1_0000);
        let looping: Vec<u64> = entries.iter().map(|page| page << 12 | PRESENT).collect();
        guest.write_words(0x1000, &looping);
        for mapping in [Mapping::FourLevel(root), Mapping::FiveLevel(root), Mapping::FourLevel(0x1000), Mapping::Identity] {
            let space = AddressSpace::new(&guest, mapping);
            space.translate(address);
            let _ = space.read(address, &mut [0; 9000]);
        }
    }
}
