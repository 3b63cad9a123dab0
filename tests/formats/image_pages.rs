//! Images with sets of pages and patches, against a plain list of what each byte of the core is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use harness::fake_guest::FakeGuest;
use netdump::ReadAt;
use netdump::vmcore::minidump::page_set::{PageNumbers, PageSet, PageSetBuilder};
use netdump::vmcore::{DumpImage, MemoryRange, PhysicalMemory};
use proptest::prelude::*;

const PAGE: u64 = 4096;

/// One byte of the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Byte {
    Own(u8),
    Zero,
    Guest(u64),
}

/// A guest with holes between and untouched pages in its RAM.
fn guest(
    seed: u64,
    parts: &[(u64, u64)],
    untouched: &BTreeSet<u64>,
    unreadable: &BTreeSet<u64>,
) -> FakeGuest {
    let mut guest = FakeGuest::new(seed);
    let mut start = 0;
    for &(gap, pages) in parts {
        start += gap * PAGE;
        guest = guest.untouched_ram(start, pages * PAGE);
        for page in (start..start + pages * PAGE).step_by(4096) {
            if !untouched.contains(&(page / PAGE)) {
                guest = guest.touched(page..page + PAGE);
            }
        }
        start += pages * PAGE;
    }
    for page in unreadable {
        guest = guest.unreadable(page * PAGE..(page + 1) * PAGE);
    }
    guest
}

/// The pages of `wanted` that are in RAM.
fn set_of(guest: &FakeGuest, wanted: &BTreeSet<u64>) -> PageSet {
    let ranges: Vec<_> = guest.ranges().iter().map(|range| range.start..range.end()).collect();
    let mut set = PageSetBuilder::new(PageNumbers::of_ranges(&ranges).unwrap());
    wanted.iter().for_each(|page| set.insert(page * PAGE));
    set.finish()
}

fn pages(most: usize) -> impl Strategy<Value = BTreeSet<u64>> {
    prop::collection::btree_set(0_u64..60, 0..most)
}

fn runs_of(image: &DumpImage<'_>) -> BTreeSet<u64> {
    let mut listed = BTreeSet::new();
    let mut at = 0;
    while let Some(run) = image.next_data(at) {
        assert!(
            at <= run.start && run.start < run.end && run.end <= image.length(),
            "{run:x?} after {at:#x}"
        );
        assert_eq!(image.data_from(at), Some(run.start));
        assert_eq!(image.data_from(run.end - 1), Some(run.end - 1));
        listed.extend(run.clone());
        at = run.end;
    }
    assert_eq!(image.data_from(at), None);
    listed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_image_is_what_a_plain_list_of_its_bytes_is(
        seed: u64,
        parts in prop::collection::vec((0_u64..4, 1_u64..14), 1..5),
        (untouched, unreadable) in (pages(40), pages(6)),
        (one, other) in (pages(60), pages(20)),
        patches in prop::collection::vec((0_u64..60 * PAGE, 1_usize..6000), 0..6),
        questions in prop::collection::vec((0_u64..100 * PAGE, 0_usize..9000), 40),
    ) {
        let guest = guest(seed, &parts, &untouched, &unreadable);
        let first = guest.ranges()[0];
        let mut image = DumpImage::new(&guest);
        let mut model = Vec::new();
        image.push_bytes(vec![7; 100]);
        model.extend([Byte::Own(7); 100]);
        for wanted in [&one, &other] {
            image.push_pages(set_of(&guest, wanted));
            for page in wanted.iter().map(|page| page * PAGE) {
                if guest.ranges().iter().any(|range| range.start <= page && page < range.end()) {
                    model.extend((page..page + PAGE).map(Byte::Guest));
                }
            }
            image.push_zeros(3000);
            model.extend([Byte::Zero; 3000]);
            image.push_guest(MemoryRange { start: first.start, len: PAGE });
            model.extend((first.start..first.start + PAGE).map(Byte::Guest));
            // Extents that show neighbours in memory are located apart: keep them apart here.
            image.push_zeros(5);
            model.extend([Byte::Zero; 5]);
        }
        let mut patched = std::collections::BTreeMap::new();
        for (number, &(address, len)) in (1_u8..).zip(&patches) {
            image.patch(address, &vec![number; len]);
            patched.extend((address..address + len as u64).map(|at| (at, number)));
        }
        let patched_pages: BTreeSet<u64> = patched.keys().map(|at| at / PAGE).collect();

        let value = |byte: &Byte| match *byte {
            Byte::Own(value) => value,
            Byte::Zero => 0,
            Byte::Guest(at) => patched.get(&at).copied().unwrap_or_else(|| guest.byte_in_core(at)),
        };
        prop_assert_eq!(image.length(), model.len() as u64);
        for (offset, len) in questions {
            let offset = usize::try_from(offset).unwrap().min(model.len());
            let len = len.min(model.len() - offset);
            let mut bytes = vec![0xaa; len];
            image.read_at(offset as u64, &mut bytes).unwrap();
            let asked = &model[offset..offset + len];
            prop_assert_eq!(bytes, asked.iter().map(value).collect::<Vec<_>>());

            let in_ram = |start, end| guest.ranges().iter().any(|range| range.start <= start && end <= range.end());
            let expected = match asked.first() {
                Some(&Byte::Guest(start)) => {
                    let follows = |(at, byte): (u64, &Byte)| {
                        *byte == Byte::Guest(at) && !patched_pages.contains(&(at / PAGE))
                    };
                    ((start..).zip(asked).all(follows) && in_ram(start, start + len as u64)).then_some(start)
                }
                _ => None,
            };
            let located = image.locate(offset as u64, len);
            prop_assert!(len == 0 || located == expected, "{located:x?} {expected:x?}");
        }

        let may_hold = |byte: &Byte| match *byte {
            Byte::Own(_) => true,
            Byte::Zero => false,
            Byte::Guest(at) => guest.is_touched(at) || patched_pages.contains(&(at / PAGE)),
        };
        let expected: BTreeSet<u64> =
            (0..).zip(&model).filter(|(_, byte)| may_hold(byte)).map(|(at, _)| at).collect();
        prop_assert_eq!(runs_of(&image), expected);
    }
}

/// A guest of which nothing is stored: pages answer with their number.
struct Numbered(Vec<MemoryRange>);

impl PhysicalMemory for Numbered {
    fn ranges(&self) -> &[MemoryRange] {
        &self.0
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), netdump::vmcore::MemoryError> {
        for (at, byte) in (address..).zip(buf) {
            *byte = (at / PAGE).to_le_bytes()[usize::try_from(at % 8).unwrap()];
        }
        Ok(())
    }

    fn cpus(&self) -> &[netdump::vmcore::CpuState] {
        &[]
    }
}

#[test]
fn every_second_page_of_sixteen_gigabytes_is_listed_and_read_fast() {
    let guest = Numbered(vec![MemoryRange { start: 0, len: 16 << 30 }]);
    let numbers = PageNumbers::from_zero((16 << 30) / PAGE);
    let set = PageSet::from_bitmap(numbers, &vec![0xaa; (16 << 30) / 4096 / 8]);
    let mut image = DumpImage::new(&guest);
    image.push_pages(set);
    assert_eq!(image.length(), 8 << 30);
    let start = Instant::now();
    let (mut at, mut answers) = (0, 0);
    while let Some(run) = image.next_data(at) {
        assert_eq!(run.start, at);
        at = run.end;
        answers += 1;
    }
    assert_eq!(at, image.length());
    assert!(answers < 1000, "{answers} answers");
    for rank in (0..image.length() / PAGE).step_by(9973) {
        let mut word = [0; 8];
        image.read_at(rank * PAGE, &mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), 2 * rank + 1);
        assert_eq!(image.locate(rank * PAGE, 4096), Some((2 * rank + 1) * PAGE));
        assert_eq!(image.locate(rank * PAGE, 4097), None);
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}
