//! The minidump planner against a naive one, which goes through every table entry and every page and makes the whole
//! file in one piece. It knows where the kernel's variables lie because it put them there.

use std::collections::BTreeSet;

use harness::fake_guest::FakeGuest;
use harness::fake_kernel::FakeKernel;
use netdump::ReadAt;
use netdump::vmcore::{CoreNotes, KernelSymbols, PhysicalMemory, PlannedCore, StoppedGuest};
use proptest::prelude::*;

use super::all_bytes;

const PAGE: u64 = 4096;
const KERNBASE: u64 = 0xffff_ffff_8000_0000;
const FIRST: u64 = 0xffff_fe00_0000_0000;
const DMAP: u64 = 0xffff_f800_0000_0000;
const PRESENT: u64 = 1;
const LARGE: u64 = 0x80;
/// Writable, accessed, dirty, global, no-execute.
const NOISE: u64 = 1 << 63 | 0x163;

/// Where the kernel's image lies: two pages of variables.
const VARIABLES: u64 = 0x2000;
const PML4: u64 = 0x4000;
/// Tables of slots 508 and 511, and of the direct map.
const LOW: u64 = 0x5000;
const HIGH: u64 = 0x6000;
const DIRECT: u64 = 0x9000;
/// The directory and the table that map the variables.
const IMAGE_DIRECTORY: u64 = 0x7000;
const IMAGE_TABLE: u64 = 0x8000;
/// Pages that are tables of either kind.
const TABLES: std::ops::Range<u64> = 10..20;
const BITMAP: u64 = 30 * PAGE;
const MESSAGES: u64 = 40 * PAGE;
/// RAM that every guest has from address 0.
const LEAST_PAGES: u64 = 64;

/// What a kernel says of itself.
#[derive(Debug, Clone)]
struct Kernel {
    /// RAM behind the first: gap and length in pages.
    more_ram: Vec<(u64, u64)>,
    untouched: BTreeSet<u64>,
    unreadable: Option<u64>,
    /// Pairs of pages.
    dump_avail: Vec<(u64, u64)>,
    /// Words at the place of vm_page_dump.
    bitmap: Vec<u64>,
    /// Slot, kind and page of entries in the third level, the second and the first.
    upper: Vec<(u64, u8, u64)>,
    middle: Vec<(u64, u64, u8, u64)>,
    lower: Vec<(u64, u64, u64)>,
    message_len: u32,
    heap_end: u64,
    nkpt: u32,
    dmaplimit: u64,
    old: bool,
}

impl Kernel {
    fn guest(&self) -> FakeGuest {
        let mut guest = FakeGuest::new(3).ram(0, LEAST_PAGES * PAGE);
        let mut start = LEAST_PAGES * PAGE;
        for &(gap, pages) in &self.more_ram {
            start += gap * PAGE;
            guest = guest.untouched_ram(start, pages * PAGE);
            for page in start / PAGE..start / PAGE + pages {
                if !self.untouched.contains(&page) {
                    guest = guest.touched(page * PAGE..(page + 1) * PAGE);
                }
            }
            start += pages * PAGE;
        }
        if let Some(page) = self.unreadable {
            guest = guest.unreadable(page * PAGE..(page + 1) * PAGE);
        }
        self.write_tables(&mut guest);
        self.write_variables(&mut guest);
        guest
    }

    fn write_tables(&self, guest: &mut FakeGuest) {
        for page in [PML4, LOW, HIGH, DIRECT, IMAGE_DIRECTORY, IMAGE_TABLE] {
            guest.write(page, &[0; 4096]);
        }
        for page in TABLES {
            guest.write(page * PAGE, &[0; 4096]);
        }
        for &(table, index, page) in &self.lower {
            guest.write_words(table * PAGE + 8 * index, &[(page * PAGE) | NOISE]);
        }
        for &(table, index, kind, page) in &self.middle {
            guest.write_words(table * PAGE + 8 * index, &[entry(kind, page, 2 << 20)]);
        }
        for &(slot, kind, page) in &self.upper {
            guest.write_words(LOW + 8 * slot, &[entry(kind, page, 1 << 30)]);
        }
        guest.write_words(PML4 + 8 * 508, &[LOW | NOISE]);
        guest.write_words(PML4 + 8 * 511, &[HIGH | NOISE]);
        guest.write_words(PML4 + 8 * 496, &[DIRECT | NOISE]);
        guest.write_words(DIRECT, &[LARGE | NOISE]);
        guest.write_words(HIGH + 8 * 510, &[IMAGE_DIRECTORY | NOISE]);
        guest.write_words(IMAGE_DIRECTORY + 8, &[IMAGE_TABLE | NOISE]);
        guest.write_words(IMAGE_TABLE, &[VARIABLES | NOISE, (VARIABLES + PAGE) | NOISE]);
    }

    fn write_variables(&self, guest: &mut FakeGuest) {
        let mut set = |at: u64, words: &[u64]| guest.write_words(VARIABLES + at, words);
        set(0, &[PML4, self.heap_end, u64::from(self.nkpt), self.dmaplimit]);
        let length = if self.old { self.bitmap.len() as u64 * 8 } else { self.bits() };
        set(0x20, &[DMAP + BITMAP, length, KERNBASE + 0x20_0000 + 0x100]);
        // struct msgbuf: text, magic, size.
        set(0x100, &[DMAP + MESSAGES, 0x06_3062 | u64::from(self.message_len) << 32]);
        let mut list: Vec<u64> =
            self.dump_avail.iter().flat_map(|&(from, to)| [from * PAGE, to * PAGE]).collect();
        list.extend([0, 0]);
        set(0x200, &list);
        guest.write_words(BITMAP, &self.bitmap);
    }

    fn symbols(&self) -> KernelSymbols {
        let at = |offset: u64| KERNBASE + 0x20_0000 + offset;
        let kernel = FakeKernel::default()
            .segment(at(0), VARIABLES, 2 * PAGE)
            .symbol("kenvp", at(0x1800), 8)
            .symbol("KPML4phys", at(0), 8)
            .symbol("kernel_vm_end", at(8), 8)
            .symbol("nkpt", at(16), 4)
            .symbol("dmaplimit", at(24), 8)
            .symbol("vm_page_dump", at(32), 8)
            .symbol("msgbufp", at(48), 8)
            .symbol("dump_avail", at(0x200), 1024);
        let length = if self.old { "vm_page_dump_size" } else { "vm_page_dump_pages" };
        KernelSymbols::parse(&kernel.symbol(length, at(40), 8).image()).unwrap()
    }

    /// Pages in dump_avail.
    fn bits(&self) -> u64 {
        self.dump_avail.iter().map(|(from, to)| to - from).sum()
    }

    /// Pages of dump_avail in the order of their bits.
    fn numbered(&self) -> Vec<u64> {
        if self.old {
            return (0..self.bitmap.len() as u64 * 64).collect();
        }
        self.dump_avail.iter().flat_map(|&(from, to)| from..to).collect()
    }

    /// The file.
    fn naive(&self, guest: &FakeGuest) -> Vec<u8> {
        let numbered = self.numbered();
        let is_set = |bit: usize| self.bitmap.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1);
        let mut pages: BTreeSet<u64> =
            numbered.iter().enumerate().filter(|(bit, _)| is_set(*bit)).map(|(_, page)| *page).collect();
        let word = |at: u64| {
            let mut bytes = [0; 8];
            guest.read(at, &mut bytes).map_or(0, |()| u64::from_le_bytes(bytes))
        };
        let frame = |entry: u64| entry & 0x000f_ffff_ffff_f000;
        let dumpable = |page: &u64| {
            let in_ram =
                guest.ranges().iter().any(|range| range.start <= page * PAGE && page * PAGE < range.end());
            let listed = self.dump_avail.iter().any(|(from, to)| from <= page && page < to);
            in_ram && listed && (self.dmaplimit == 0 || page * PAGE < self.dmaplimit)
        };
        let end = self.heap_end.max(KERNBASE + u64::from(self.nkpt) * (2 << 20));
        let mut map = Vec::new();
        let mut va = FIRST;
        while va < end {
            let upper = word(PML4 + 8 * (va >> 39 & 511));
            let entry = if upper & 1 == 0 { 0 } else { word(frame(upper) + 8 * (va >> 30 & 511)) };
            if entry & PRESENT == 0 {
                map.resize(map.len() + 4096, 0);
            } else if entry & LARGE != 0 {
                let first = (entry & 0x000f_ffff_c000_0000) / PAGE;
                pages.extend(first..first + (1 << 18));
                map.extend((0..512).flat_map(|index| (entry + (index << 21)).to_le_bytes()));
            } else {
                let directory = frame(entry);
                for index in 0..512 {
                    let entry = word(directory + 8 * index);
                    if entry & (PRESENT | LARGE) == PRESENT | LARGE {
                        let first = (entry & 0x000f_ffff_ffe0_0000) / PAGE;
                        pages.extend(first..first + 512);
                    } else if entry & PRESENT != 0 {
                        pages.insert(frame(entry) / PAGE);
                        let mapped = (0..512).map(|index| word(frame(entry) + 8 * index));
                        pages.extend(mapped.filter(|entry| entry & 1 == 1).map(|entry| frame(entry) / PAGE));
                    }
                }
                if dumpable(&(directory / PAGE)) {
                    map.extend((directory..directory + PAGE).map(|at| guest.byte_in_core(at)));
                } else {
                    map.resize(map.len() + 4096, 0);
                }
            }
            va = va.saturating_add(1 << 30);
            if va == u64::MAX {
                break;
            }
        }
        pages.retain(dumpable);

        let round = |len: usize| len.div_ceil(4096) * 4096;
        let mut bitmap = vec![0; round(numbered.len().div_ceil(8))];
        for (bit, _) in numbered.iter().enumerate().filter(|(_, page)| pages.contains(page)) {
            bitmap[bit / 8] |= 1 << (bit % 8);
        }
        let mut file = b"minidump FreeBSD/amd64\0\0".to_vec();
        let lengths = [if self.old { 2 } else { 3 }, self.message_len];
        file.extend(lengths.into_iter().flat_map(u32::to_le_bytes));
        file.extend(
            [bitmap.len(), map.len()].into_iter().flat_map(|len| u32::try_from(len).unwrap().to_le_bytes()),
        );
        file.extend([FIRST, DMAP, 0xffff_fc00_0000_0000].into_iter().flat_map(u64::to_le_bytes));
        if !self.old {
            file.extend(4096_u32.to_le_bytes());
        }
        file.resize(4096, 0);
        let messages = round(usize::try_from(self.message_len).unwrap()) as u64;
        file.extend((MESSAGES..MESSAGES + messages).map(|at| guest.byte_in_core(at)));
        if !self.old {
            let from = file.len();
            file.extend(
                self.dump_avail
                    .iter()
                    .flat_map(|&(from, to)| [from * PAGE, to * PAGE])
                    .flat_map(u64::to_le_bytes),
            );
            file.resize(from + 4096, 0);
        }
        file.extend(bitmap);
        file.extend(map);
        for page in pages {
            file.extend((page * PAGE..(page + 1) * PAGE).map(|at| guest.byte_in_core(at)));
        }
        file
    }
}

fn entry(kind: u8, page: u64, size: u64) -> u64 {
    match kind % 4 {
        0 => page * PAGE,
        1 => (page * PAGE / size * size) | LARGE | NOISE,
        _ => (page * PAGE) | NOISE,
    }
}

fn plan<'m>(guest: &'m FakeGuest, symbols: &KernelSymbols) -> PlannedCore<'m> {
    let guest = StoppedGuest { memory: guest, symbols: Some(symbols), notes: &CoreNotes::default() };
    netdump::vmcore::format("minidump").unwrap().plan(&guest).unwrap()
}

/// A page in or beside RAM, now and then far off; of tables, mostly one of those that are kept for it.
fn page() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0_u64..200, 3 => TABLES, 1 => 0_u64..1 << 40]
}

fn table() -> impl Strategy<Value = u64> {
    prop_oneof![20 => TABLES, 1 => 0_u64..250]
}

fn kernels() -> impl Strategy<Value = Kernel> {
    let memory = (
        prop::collection::vec((0_u64..10, 1_u64..60), 0..4),
        prop::collection::btree_set(64_u64..250, 0..60),
        prop::option::of(44_u64..64),
        prop::collection::vec((0_u64..12, 1_u64..120), 1..6),
        prop::collection::vec(any::<u64>(), 512),
    );
    let tables = (
        prop::collection::vec((0_u64..6, any::<u8>(), table()), 0..6),
        prop::collection::vec((TABLES, prop_oneof![0_u64..6, 0_u64..512], any::<u8>(), table()), 0..40),
        prop::collection::vec((TABLES, 0_u64..512, page()), 0..60),
    );
    let variables = (
        0_u32..16384,
        prop_oneof![Just(FIRST), FIRST..KERNBASE],
        0_u32..1024,
        prop_oneof![Just(0), 150 * PAGE..300 * PAGE],
        any::<bool>(),
    );
    (memory, tables, variables).prop_map(|(memory, (upper, middle, lower), variables)| {
        let (more_ram, untouched, unreadable, parts, mut bitmap) = memory;
        let (message_len, heap_end, nkpt, dmaplimit, old) = variables;
        let mut end = 0;
        let dump_avail: Vec<_> = parts
            .into_iter()
            .map(|(gap, pages)| {
                let start = end + gap;
                end = start + pages;
                (start, end)
            })
            .collect();
        if !old {
            bitmap.truncate(32);
        }
        Kernel {
            more_ram,
            untouched,
            unreadable,
            dump_avail,
            bitmap,
            upper,
            middle,
            lower,
            message_len,
            heap_end,
            nkpt,
            dmaplimit,
            old,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn minidump_is_what_a_naive_kernel_would_write(kernel in kernels()) {
        let guest = kernel.guest();
        let planned = plan(&guest, &kernel.symbols());
        let expected = kernel.naive(&guest);
        prop_assert_eq!(planned.image.length(), expected.len() as u64);
        let bytes = all_bytes(&planned.image);
        let wrong = bytes.chunks(4096).zip(expected.chunks(4096)).position(|(is, should)| is != should);
        prop_assert_eq!(wrong, None, "page of the file");
    }
}
