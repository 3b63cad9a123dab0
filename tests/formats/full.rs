//! The full dump's planner against a naive one, and raw memory.

use harness::fake_guest::FakeGuest;
use harness::fake_kernel::FakeKernel;
use netdump::ReadAt;
use netdump::vmcore::{CoreNotes, DumpImage, KernelSymbols, MemoryRange, PhysicalMemory, StoppedGuest};
use proptest::prelude::*;

use super::{all_bytes, guest, notes, store};

const PAGE: u64 = 4096;
/// dump_avail, in the second page of RAM.
const LIST: u64 = 0x1000;

fn plan<'m>(
    guest: &'m FakeGuest,
    symbols: Option<&KernelSymbols>,
    format: &str,
) -> (DumpImage<'m>, Vec<String>) {
    let guest = StoppedGuest { memory: guest, symbols, notes: &CoreNotes::default() };
    let planned = netdump::vmcore::format(format).unwrap().plan(&guest).unwrap();
    assert_eq!(planned.format, format);
    (planned.image, planned.remarks)
}

fn symbols() -> KernelSymbols {
    let kernel = FakeKernel::default().segment(0xffff_ffff_8020_0000, 0, 0x4000);
    let kernel =
        kernel.symbol("kenvp", 0xffff_ffff_8020_0800, 8).symbol("dump_avail", 0xffff_ffff_8020_1000, 1024);
    KernelSymbols::parse(&kernel.image()).unwrap()
}

/// The file whose segments are these ranges of memory.
fn naive(guest: &FakeGuest, ranges: &[(u64, u64)]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\xff\0\0\0\0\0\0\0\0\x04\0\x3e\0\0\0\0\0".to_vec();
    file.extend([0; 8]);
    file.extend(64_u64.to_le_bytes());
    file.extend([0; 12]);
    file.extend([64, 0, 56, 0, u8::try_from(ranges.len()).unwrap(), 0, 64, 0, 0, 0, 0, 0]);
    let mut offset = (64 + 56 * ranges.len() as u64).div_ceil(PAGE) * PAGE;
    for (start, end) in ranges {
        file.extend([1, 0, 0, 0, 4, 0, 0, 0]);
        file.extend(
            [offset, *start, *start, end - start, end - start, PAGE].into_iter().flat_map(u64::to_le_bytes),
        );
        offset += end - start;
    }
    file.resize(file.len().div_ceil(4096) * 4096, 0);
    for (start, end) in ranges {
        file.extend((*start..*end).map(|at| guest.byte_in_core(at)));
    }
    file
}

fn write_list(guest: &mut FakeGuest, pairs: &[(u64, u64)]) {
    let mut words: Vec<u64> = pairs.iter().flat_map(|&(start, end)| [start, end]).collect();
    words.extend([0, 0]);
    guest.write_words(LIST, &words);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn full_dump_is_what_a_naive_kernel_would_write(
        ram in prop::collection::vec((0_u64..4, 1_u64..12), 0..4),
        avail in prop::collection::vec((0_u64..5, 1_u64..9), 1..8),
        unreadable in 2_u64..30,
    ) {
        let mut guest = FakeGuest::new(8).ram(0, 4 * PAGE);
        let mut at = 4 * PAGE;
        for (gap, pages) in ram {
            guest = guest.ram(at + gap * PAGE, pages * PAGE);
            at += (gap + pages) * PAGE;
        }
        guest = guest.unreadable(unreadable * PAGE..(unreadable + 1) * PAGE);
        let mut at = 0;
        let mut pairs = Vec::new();
        for (gap, pages) in avail {
            pairs.push((at + gap * PAGE, at + (gap + pages) * PAGE));
            at += (gap + pages) * PAGE;
        }
        write_list(&mut guest, &pairs);
        let (image, remarks) = plan(&guest, Some(&symbols()), "full");
        let mut expected = Vec::new();
        for (start, end) in pairs {
            for range in guest.ranges() {
                let (start, end) = (start.max(range.start), end.min(range.end()));
                if start < end {
                    expected.push((start, end));
                }
            }
        }
        prop_assert!(all_bytes(&image) == naive(&guest, &expected));
        prop_assert!(remarks.iter().all(|remark| !remark.contains("dump_avail")), "{remarks:?}");
    }

    #[test]
    fn raw_memory_lies_at_its_own_addresses(ram in prop::collection::vec((0_u64..4, 1_u64..12), 1..5)) {
        let (mut guest, mut at) = (FakeGuest::new(4), 0);
        for (gap, pages) in ram {
            guest = guest.ram(at + gap * PAGE, pages * PAGE);
            at += (gap + pages) * PAGE;
        }
        let (image, _) = plan(&guest, None, "raw");
        prop_assert!(all_bytes(&image) == (0..at).map(|at| guest.byte(at)).collect::<Vec<_>>());
    }
}

#[test]
fn without_a_sound_list_all_ram_is_dumped_and_a_remark_says_why() {
    let far = 1 << 50;
    let bad: [&[(u64, u64)]; 6] = [
        &[],
        &[(0x1000, 0x1000)],
        &[(0x2000, 0x4000), (0, 0x1000)],
        &[(0, 0x2000), (0x1000, 0x3000)],
        &[(0x10, 0x1000)],
        &[(0, far)],
    ];
    for pairs in bad {
        let mut guest = guest();
        write_list(&mut guest, pairs);
        let (image, remarks) = plan(&guest, Some(&symbols()), "full");
        assert!(remarks.iter().any(|remark| remark.contains("dump_avail")), "{pairs:x?}: {remarks:?}");
        let all = [(0, 0x9_f000), (0x10_0000, 0x14_0000), (1 << 32, (1 << 32) + 0x4000)];
        assert!(all_bytes(&image) == naive(&guest, &all), "{pairs:x?}");
    }
    let mut guest = guest();
    guest.write_words(LIST, &(0..256).map(|index| 0x1000 * index + 0x1000).collect::<Vec<_>>());
    let (_, remarks) = plan(&guest, Some(&symbols()), "full");
    assert!(remarks.iter().any(|remark| remark.contains("no end")), "{remarks:?}");
}

#[test]
fn full_dumps_need_no_symbols_and_are_read_as_such() {
    let guest = guest();
    let (image, _) = plan(&guest, None, "full");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmcore.vm1.0");
    store(&image, &path);
    let core = netdump::vmcore::open(&path).unwrap();
    assert_eq!((core.format(), core.kind()), ("full", "FreeBSD full dump (ELF64 core, x86-64)"));
    assert_eq!(core.ranges(), guest.ranges());
    // An ELF core of the other kind is not taken for one.
    store(&super::plan(&guest, &notes()), &path);
    assert_eq!(netdump::vmcore::open(&path).unwrap().format(), "elf");
}

#[test]
fn more_ranges_than_the_kernel_would_dump_fit() {
    let mut guest = FakeGuest::new(1);
    for index in 0..2000 {
        guest = guest.ram(2 * index * PAGE, PAGE);
    }
    let (image, _) = plan(&guest, None, "full");
    assert_eq!(image.length(), (64_u64 + 56 * 2000).div_ceil(PAGE) * PAGE + 2000 * PAGE);
    let ranges: Vec<MemoryRange> = guest.ranges().to_vec();
    let mut word = [0; 8];
    image.read_at(64 + 56 * 1999 + 24, &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), ranges[1999].start);
}
