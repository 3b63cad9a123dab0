//! The ELF planner against a naive writer that makes the whole file in one piece, byte by byte.

use harness::fake_guest::FakeGuest;
use harness::readers::elf::ElfCore;
use netdump::ReadAt;
use netdump::vmcore::{Activity, CoreNotes, MemoryRange, PhysicalMemory, PlanError, Registers, StoppedGuest};
use proptest::prelude::*;

use super::{all_bytes, notes, plan, store};

/// The file that a core of `guest` must be; `text` is what its own note says.
fn naive(guest: &FakeGuest, text: &[u8]) -> Vec<u8> {
    let mut notes = Vec::new();
    for cpu in guest.cpus() {
        let mut status = vec![0; 336];
        status[32] = u8::try_from(cpu.index).unwrap() + 1;
        if let Some(r) = cpu.registers.as_deref() {
            put(&mut status, 112, &general(r));
        }
        note(&mut notes, b"CORE\0\0\0\0", 5, 1, &status);
        if let Some(r) = cpu.registers.as_deref() {
            note(&mut notes, b"LINUX\0\0\0", 6, 0x202, &r.xsave);
        }
    }
    for cpu in guest.cpus() {
        let mut state = vec![0; 440];
        state[..8].copy_from_slice(&[1, 0, 0, 0, 0xb8, 1, 0, 0]);
        if let Some(r) = cpu.registers.as_deref() {
            put_qemu(&mut state, r);
        }
        note(&mut notes, b"QEMU\0\0\0\0", 5, 0, &state);
    }
    note(&mut notes, b"NETDUMP\0", 8, 0x4e45_5444, text);

    let count = guest.ranges().len() + 1;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([0; 8]);
    file.extend(64_u64.to_le_bytes());
    file.extend([0; 12]);
    file.extend([64, 0, 56, 0]);
    file.extend(u16::try_from(count).unwrap().to_le_bytes());
    file.extend([0; 6]);
    let notes_at = 64 + 56 * count;
    let data_at = (notes_at + notes.len()).div_ceil(4096) * 4096;
    segment(&mut file, 4, 0, [notes_at as u64, 0, 0, notes.len() as u64, 0, 4]);
    let mut offset = data_at as u64;
    for MemoryRange { start, len } in guest.ranges() {
        segment(&mut file, 1, 7, [offset, *start, *start, *len, *len, 0]);
        offset += len;
    }
    file.extend(notes);
    file.resize(data_at, 0);
    for MemoryRange { start, len } in guest.ranges() {
        file.extend((*start..start + len).map(|address| guest.byte_in_core(address)));
    }
    file
}

fn general(r: &Registers) -> [u64; 27] {
    [
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.rbp,
        r.rbx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.rax,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        u64::MAX,
        r.rip,
        r.cs.selector.into(),
        r.rflags,
        r.rsp,
        r.ss.selector.into(),
        r.fs.base,
        r.gs.base,
        r.ds.selector.into(),
        r.es.selector.into(),
        r.fs.selector.into(),
        r.gs.selector.into(),
    ]
}

fn put_qemu(state: &mut [u8], r: &Registers) {
    put(state, 8, &[r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11]);
    put(state, 104, &[r.r12, r.r13, r.r14, r.r15, r.rip, r.rflags]);
    for (index, segment) in [r.cs, r.ds, r.es, r.fs, r.gs, r.ss, r.ldt, r.tr, r.gdt, r.idt].iter().enumerate()
    {
        let first = u64::from(segment.limit) << 32 | u64::from(segment.selector);
        put(state, 152 + 24 * index, &[first, segment.flags.into(), segment.base]);
    }
    put(state, 392, &[r.cr0, 0, r.cr2, r.cr3, r.cr4, r.msr(0xc000_0102).unwrap()]);
}

fn put(out: &mut [u8], at: usize, words: &[u64]) {
    for (index, word) in words.iter().enumerate() {
        out[at + 8 * index..at + 8 * index + 8].copy_from_slice(&word.to_le_bytes());
    }
}

fn note(out: &mut Vec<u8>, padded_name: &[u8], name_len: u8, kind: u32, descriptor: &[u8]) {
    out.extend([name_len, 0, 0, 0]);
    out.extend(u32::try_from(descriptor.len()).unwrap().to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend(padded_name);
    out.extend(descriptor);
    while !out.len().is_multiple_of(4) {
        out.push(0);
    }
}

fn segment(out: &mut Vec<u8>, kind: u32, flags: u32, words: [u64; 6]) {
    out.extend(kind.to_le_bytes());
    out.extend(flags.to_le_bytes());
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

/// The text of the product's own note, found by the independent reader.
fn own_text(core: &[u8]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    std::fs::write(&path, core).unwrap();
    ElfCore::open(&path).unwrap().descriptors("NETDUMP", 0x4e45_5444)[0].to_vec()
}

/// Guests with odd RAM maps: one range is (gap before it, pages, pages touched, whether one page is unreadable), gaps in
/// pages; some lie above 4 GiB.
fn guests() -> impl Strategy<Value = FakeGuest> {
    let range = (0_u64..4, 1_u64..5, 0_u64..5, any::<bool>());
    (any::<u64>(), prop::collection::vec(range, 0..12), 0_usize..12, 0_usize..4).prop_map(
        |(seed, ranges, first_high, cpus)| {
            let mut guest = FakeGuest::new(seed);
            let mut at = 0;
            for (index, (gap, pages, touched, hole)) in ranges.into_iter().enumerate() {
                if index == first_high {
                    at = at.max(1 << 32);
                }
                at += gap << 12;
                let end = at + (pages << 12);
                guest = guest.untouched_ram(at, pages << 12).touched(at..(at + (touched << 12)).min(end));
                if hole {
                    guest = guest.unreadable(at..at + 4096);
                }
                at = end;
            }
            let activities =
                [Activity::Running, Activity::Halted, Activity::NotStarted, Activity::NotStopped];
            activities[..cpus].iter().fold(guest, |guest, &activity| guest.cpu(activity))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn core_equals_the_naive_writers(guest in guests(), spots in prop::collection::vec((any::<u64>(), 0_usize..9000), 20)) {
        let image = plan(&guest, &notes());
        let core = all_bytes(&image);
        let expected = naive(&guest, &own_text(&core));
        prop_assert!(core == expected, "the files differ");
        for (spot, len) in spots {
            let offset = spot % (image.length() + 1);
            let len = len.min(usize::try_from(image.length() - offset).unwrap());
            let mut piece = vec![0xaa; len];
            image.read_at(offset, &mut piece).unwrap();
            let offset = usize::try_from(offset).unwrap();
            prop_assert!(piece == expected[offset..offset + len], "{len} bytes at {offset:#x} differ");
        }
    }

    #[test]
    fn core_opens_as_the_memory_it_was_made_from(guest in guests()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("core");
        store(&plan(&guest, &notes()), &path);
        if guest.ranges().is_empty() {
            prop_assert!(netdump::vmcore::open(&path).is_err());
            return Ok(());
        }
        let core = netdump::vmcore::open(&path).unwrap();
        prop_assert_eq!(core.ranges(), guest.ranges());
        prop_assert_eq!(core.cpus(), guest.cpus());
        prop_assert_eq!(core.notes(), &notes());
        for range in guest.ranges() {
            let mut bytes = vec![0; usize::try_from(range.len).unwrap()];
            core.read(range.start, &mut bytes).unwrap();
            let same = bytes.iter().zip(range.start..).all(|(byte, address)| *byte == guest.byte_in_core(address));
            prop_assert!(same, "{range:?}");
        }
    }
}

#[test]
fn guest_without_ram_has_a_core_of_headers() {
    let guest = FakeGuest::new(1).cpu(Activity::Running);
    let core = all_bytes(&plan(&guest, &CoreNotes::default()));
    assert_eq!(core, naive(&guest, &own_text(&core)));
}

#[test]
fn thousands_of_ranges_are_planned_and_read() {
    let mut guest = FakeGuest::new(3);
    for index in 0..5000 {
        guest = guest.untouched_ram(index * 0x2000, 0x1000);
    }
    let guest = guest.touched(4999 * 0x2000..4999 * 0x2000 + 0x1000);
    let image = plan(&guest, &CoreNotes::default());
    let mut last = [0; 4096];
    image.read_at(image.length() - 4096, &mut last).unwrap();
    assert_eq!(last[..], (0..4096).map(|at| guest.byte(4999 * 0x2000 + at)).collect::<Vec<_>>());
    assert_eq!(image.next_data(image.length() - 4 * 4096), Some(image.length() - 4096..image.length()));
}

#[test]
fn more_ranges_than_program_headers_are_refused() {
    let elf = netdump::vmcore::format("elf").unwrap();
    let guest = |count: u64| (0..count).fold(FakeGuest::new(3), |g, i| g.untouched_ram(i * 0x2000, 0x1000));
    let plan = |guest: &FakeGuest| {
        let notes = CoreNotes::default();
        elf.plan(&StoppedGuest { memory: guest, symbols: None, notes: &notes })
            .map(|core| core.image.length())
    };
    assert!(plan(&guest(65_533)).is_ok());
    assert_eq!(plan(&guest(65_534)).unwrap_err(), PlanError::TooManyRanges { count: 65_534, most: 65_533 });
}

#[test]
fn ranges_that_break_their_promise_are_refused() {
    let refused = |guest: FakeGuest| {
        let elf = netdump::vmcore::format("elf").unwrap();
        let notes = CoreNotes::default();
        let stopped = StoppedGuest { memory: &guest, symbols: None, notes: &notes };
        matches!(elf.plan(&stopped), Err(PlanError::Range { .. }))
    };
    let guest = || FakeGuest::new(1);
    assert!(refused(guest().untouched_ram(0x800, 0x1000)));
    assert!(refused(guest().untouched_ram(0x1000, 0x800)));
    assert!(refused(guest().untouched_ram(0x1000, 0)));
    assert!(refused(guest().untouched_ram(0x1000, 0x2000).untouched_ram(0x2000, 0x1000)));
    assert!(refused(guest().untouched_ram(u64::MAX - 0xfff, 0x1000)));
}
