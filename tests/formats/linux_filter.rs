//! What a filtered dump of a Linux guest leaves out, by the guest's array of `struct page`.

use harness::fake_guest::FakeGuest;
use harness::fake_linux::{self, DIRECT_MAP, IMAGE, PAGE_STRUCT, PAGES, info};
use netdump::ReadAt;
use netdump::linux::Vmcoreinfo;
use netdump::linux::filter::{DumpFilter, FilterCounts, FilterError, filtered};
use netdump::vmcore::{CoreNotes, PhysicalMemory, StoppedGuest};

const LRU: u64 = 1 << 4;
const SLAB: u64 = 1 << 9;
const SWAP_CACHE: u64 = 1 << 10;
const PRIVATE: u64 = 1 << 13;
const HEAD: u64 = 1 << 16;
const SWAP_BACKED: u64 = 1 << 19;
const FREE: u32 = 129_u32.wrapping_neg();
const OFFLINE: u32 = 257_u32.wrapping_neg();
const NOTHING: u32 = u32::MAX;

/// Writes a page's structure: flags, compound_head or what stands there, mapping, private, _mapcount.
fn page(guest: &mut FakeGuest, number: u64, flags: u64, mapping: u64, mapcount: u32) {
    compound(guest, number, [flags, 0, 0, mapping], mapcount, 0);
}

fn compound(guest: &mut FakeGuest, number: u64, words: [u64; 4], mapcount: u32, private: u64) {
    let at = PAGES + number * PAGE_STRUCT;
    let counts = u64::from(mapcount) | 1 << 32;
    guest.write_words(at, &words);
    guest.write_words(at + 32, &[0, private, counts, 0]);
}

/// RAM from 1 to 2 MiB, which is touched, with a page of each kind.
fn guest() -> FakeGuest {
    let mut guest = fake_linux::guest_with_pages();
    for number in 0..fake_linux::RAM / 4096 {
        page(&mut guest, number, 0, 0, NOTHING);
    }
    compound(&mut guest, 0x100, [0; 4], FREE, 3);
    page(&mut guest, 0x110, LRU, DIRECT_MAP, NOTHING);
    page(&mut guest, 0x111, LRU | PRIVATE, DIRECT_MAP, NOTHING);
    page(&mut guest, 0x112, SWAP_BACKED | SWAP_CACHE, DIRECT_MAP, NOTHING);
    page(&mut guest, 0x113, LRU | SWAP_BACKED, DIRECT_MAP + 1, 0);
    page(&mut guest, 0x114, SLAB, DIRECT_MAP + 1, FREE);
    page(&mut guest, 0x115, 0, 0, OFFLINE);
    page(&mut guest, 0x116, SWAP_CACHE, DIRECT_MAP, NOTHING);
    // A huge page of four, anonymous, and one of hugetlbfs of two: the second structure has order and destructor.
    page(&mut guest, 0x120, LRU | HEAD, DIRECT_MAP + 1, NOTHING);
    for tail in 0x121..0x124 {
        compound(&mut guest, tail, [0, 1, u64::from(tail == 0x121) * 0x200, 1], NOTHING, 0);
    }
    page(&mut guest, 0x124, HEAD, 0, NOTHING);
    compound(&mut guest, 0x125, [0, 1, 0x102, 0], NOTHING, 0);
    guest
}

fn level(text: &str) -> DumpFilter {
    text.parse().unwrap()
}

#[test]
fn every_kind_of_page_is_told_and_counted() {
    let guest = guest();
    let counts = |text| filtered(&guest, &info(), level(text)).unwrap().counts();
    let all = FilterCounts {
        level: 31,
        total: 8192,
        free: 8,
        cache: 2,
        private_cache: 1,
        user: 7,
        poisoned: 0,
        offline: 1,
        kept: 8192 - 19,
    };
    assert_eq!(counts("31"), all);
    assert_eq!(counts("zero,free,cache,user"), all);
    let only = counts("free");
    assert_eq!((only.level, only.free, only.cache, only.user, only.offline), (16, 8, 0, 0, 1));
    assert_eq!(counts("2").private_cache, 0);
    assert_eq!(counts("cache").private_cache, 1);
    assert_eq!(counts("0").kept, 8192, "nothing is asked for");
}

#[test]
fn what_is_left_out_reads_as_zeros_and_is_never_sent() {
    let guest = guest();
    let memory = filtered(&guest, &info(), level("31")).unwrap();
    let mut bytes = vec![0xaa; 0x4000];
    memory.read(0x10_f000, &mut bytes).unwrap();
    for (page, bytes) in (0x10f_u64..).zip(bytes.chunks(4096)) {
        let is_out = (0x110..0x113).contains(&page);
        let expected: Vec<u8> =
            (0..4096).map(|i| if is_out { 0 } else { guest.byte(page * 4096 + i) }).collect();
        assert_eq!(bytes, expected, "{page:#x}");
    }
    assert_eq!(memory.next_touched(0x10_0000), Some(0x10_8000..0x11_0000));
    assert_eq!(memory.next_touched(0x11_0000), Some(0x11_4000..0x11_5000));
    assert_eq!(memory.next_touched(0x12_0000), Some(0x12_6000..0x20_0000));

    let notes = CoreNotes::default();
    let stopped = StoppedGuest { memory: &memory, symbols: None, notes: &notes };
    let image = netdump::vmcore::format("elf").unwrap().plan(&stopped).unwrap().image;
    let data = image.length() - fake_linux::RAM;
    assert_eq!(image.next_data(data + 0x11_0000), Some(data + 0x11_4000..data + 0x11_5000));
    assert_eq!(image.locate(data + 0x11_4000, 4096), Some(0x11_4000));
    for (offset, len) in [(0x11_3000, 4096), (0x10_f000, 8192), (0x11_4800, 4096)] {
        assert_eq!(
            image.locate(data + offset, len),
            None,
            "{offset:#x}: it is not the guest's memory that is shown"
        );
    }
}

#[test]
fn an_array_that_would_cost_the_kernel_is_not_trusted() {
    let refused = |guest: &FakeGuest, info: &Vmcoreinfo| filtered(guest, info, level("31")).unwrap_err();
    for needed in [IMAGE, IMAGE + 0x10_0000, fake_linux::TABLES] {
        let mut guest = guest();
        compound(&mut guest, needed / 4096, [0; 4], FREE, 0);
        assert_eq!(refused(&guest, &info()), FilterError::Untrusted(needed));
    }
    let without = |line: &str| {
        let text: String = fake_linux::text()
            .lines()
            .filter(|known| !known.starts_with(line))
            .fold(String::new(), |text, line| text + line + "\n");
        Vmcoreinfo::parse(text.as_bytes()).unwrap()
    };
    for line in ["SIZE(page)", "OFFSET(page._mapcount)", "NUMBER(PG_lru)", "SYMBOL(mem_section)"] {
        assert!(matches!(refused(&guest(), &without(line)), FilterError::UnknownLayout(_)), "{line}");
    }
    // Orders that no allocator has, of pages that end behind all memory.
    let mut guest = guest();
    compound(&mut guest, 0x1ff, [0; 4], FREE, u64::MAX);
    page(&mut guest, 0x1f0, LRU | HEAD, DIRECT_MAP, NOTHING);
    compound(&mut guest, 0x1f1, [u64::MAX, 1, u64::MAX, 0], NOTHING, 0);
    assert_eq!(filtered(&guest, &info(), level("31")).unwrap().counts().cache, 3);
}

#[test]
fn levels_are_names_or_numbers() {
    assert_eq!(level("zero,free,cache,user").level(), 31);
    assert_eq!((level("zero").level(), level("free").level(), level("cache").level()), (1, 16, 6));
    assert!(level("zero").keeps_all() && level("0").keeps_all() && !level("9").keeps_all());
    for bad in ["", "32", "-1", "free,", "slab", "free,1"] {
        assert!(bad.parse::<DumpFilter>().is_err(), "{bad}");
    }
}

/// Numbers that no kernel says are refused or bounded, not computed with.
#[test]
fn numbers_of_a_lying_kernel_cost_nothing() {
    let mut guest = guest();
    let said = |key: &str, value: &str| {
        Vmcoreinfo::parse(fake_linux::with_line(&fake_linux::text(), key, value).as_bytes()).unwrap()
    };
    let most = u64::MAX.to_string();
    for key in ["OFFSET(mem_section.section_mem_map)", "OFFSET(page.flags)", "OFFSET(page._mapcount)"] {
        let error = filtered(&guest, &said(key, &most), level("31")).unwrap_err();
        assert!(matches!(error, FilterError::UnknownLayout(_)), "{key}: {error}");
    }
    // A free block of 2^63 pages, where the kernel says that there are such.
    compound(&mut guest, 0x130, [0; 4], FREE, 63);
    let counts = filtered(&guest, &said("LENGTH(zone.free_area)", &most), level("31")).unwrap().counts();
    assert_eq!(counts.free, 8);
}

/// A core may claim more memory than there is.
#[test]
fn more_memory_than_any_machine_has_is_not_filtered() {
    let guest = guest().untouched_ram(1 << 33, 1 << 50);
    let error = filtered(&guest, &info(), level("31")).unwrap_err();
    assert!(matches!(error, FilterError::TooMuchMemory(_) | FilterError::NoArray), "{error}");
    let guest = self::guest().untouched_ram(1 << 33, 1 << 45);
    let error = filtered(&guest, &info(), level("31")).unwrap_err();
    assert!(matches!(error, FilterError::TooMuchMemory(pages) if pages > 1 << 33), "{error}");
}
