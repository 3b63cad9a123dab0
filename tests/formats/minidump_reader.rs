//! FreeBSD minidumps, read: a real kernel's, and some of every version that were laid out by the harness.

use std::path::{Path, PathBuf};

use harness::fake_minidump::{DIRECT_MAP, FakeMinidump, KERNEL_BASE};
use harness::readers::freebsd::VirtualMemory;
use harness::readers::minidump::MiniCore;
use netdump::vmcore::{KernelMap, MemoryError, MemoryRange, PhysicalMemory, inspect, open, verify};

use super::fixture::fixture;

/// What the real core holds: virtual address, physical address, offset in the file.
const KNOWN_PLACES: [(u64, u64, u64); 7] = [
    (0xffff_ffff_81ca_6868, 0x1ca_6868, 0x240_5868),
    (0xffff_ffff_81ca_69a8, 0x1ca_69a8, 0x240_59a8),
    (0xffff_ffff_81cd_4c0c, 0x1cd_4c0c, 0x243_3c0c),
    (0xffff_ffff_81c9_a2f0, 0x1c9_a2f0, 0x23f_92f0),
    (0xffff_ffff_815c_a590, 0x15c_a590, 0x1d2_9590),
    (0xffff_f800_02c3_b528, 0x2c3_b528, 0x330_9528),
    (0xffff_fe00_798c_4748, 0x54c_4748, 0x530_5748),
];

fn map(core: &netdump::vmcore::Core) -> &dyn KernelMap {
    core.kernel_map().expect("a minidump translates")
}

#[test]
fn real_minidump_translates_as_the_kernel_meant_it() {
    let Some(fixture) = fixture() else { return };
    let core = open(&fixture.core).unwrap();
    let naive = MiniCore::open(&fixture.core).unwrap();
    for (virtual_address, physical, offset) in KNOWN_PLACES {
        assert_eq!(naive.translate(virtual_address).unwrap(), physical);
        assert_eq!(naive.pages()[&(physical & !0xfff)] + physical % 4096, offset);
        assert_eq!(map(&core).translate(virtual_address), Some(physical), "{virtual_address:#x}");
        assert_eq!(core.address_at(offset), Some(physical));
        let mut bytes = [0; 8];
        core.read(physical, &mut bytes).unwrap();
        assert_eq!(bytes[..], naive.read_va(virtual_address, 8).unwrap());
    }
    for nowhere in [0, 0x7fff_ffff_ffff, 0xffff_8080_0000_0000, DIRECT_MAP + (1 << 42), u64::MAX] {
        assert_eq!(map(&core).translate(nowhere), None, "{nowhere:#x}");
    }
}

#[test]
fn every_page_of_the_real_minidump_is_where_a_naive_reader_finds_it() {
    let Some(fixture) = fixture() else { return };
    let core = open(&fixture.core).unwrap();
    let naive = MiniCore::open(&fixture.core).unwrap();
    assert_eq!((naive.header().version, naive.pages().len()), (3, 24144));
    assert_eq!(naive.dump_avail(), [(0, 0x9_f000), (0x10_4000, 0x7fd_f000)]);
    assert_eq!(naive.expected_length(), 107_388_928);
    assert_eq!(core.expected_length(), naive.expected_length());
    let (mut page, mut whole) = ([0; 4096], 0);
    for address in naive.dump_avail().iter().flat_map(|&(start, end)| (start..end).step_by(4096)) {
        let read = core.read(address, &mut page);
        match naive.pages().get(&address) {
            None => assert!(matches!(read, Err(MemoryError::NotInDump { .. })), "{address:#x}: {read:?}"),
            Some(offset) if offset + 4096 > naive.length() => {
                assert!(matches!(read, Err(MemoryError::Unreadable { .. })), "{address:#x}: {read:?}");
            }
            Some(offset) => {
                read.unwrap();
                assert_eq!(core.address_at(*offset), Some(address));
                // Most pages were zeroed; a naive read of each would only take long.
                if page != [0; 4096] || address % 0x10_0000 == 0 {
                    assert_eq!(page[..], naive.read_pa(address, 4096).unwrap(), "{address:#x}");
                }
                whole += 1;
            }
        }
    }
    assert_eq!(core.minidump().unwrap().pages_in(naive.length()), whole);
    let touched: u64 = core.ranges().iter().map(|range| touched_bytes(&core, *range)).sum();
    assert_eq!(touched, 24144 * 4096);
}

fn touched_bytes(core: &dyn PhysicalMemory, range: MemoryRange) -> u64 {
    let (mut at, mut sum) = (range.start, 0);
    while let Some(run) = core.next_touched(at) {
        assert!(at <= run.start && run.start < run.end && run.end <= range.end());
        sum += run.end - run.start;
        at = run.end;
    }
    sum
}

#[test]
fn verify_says_what_the_real_minidump_lacks() {
    let Some(fixture) = fixture() else { return };
    let text = verify(&fixture.core, None, &mut |_, _| {}).to_string();
    assert!(text.contains("version 3, 24144 of 32634 pages of 127.5 MiB of memory in 2 ranges"), "{text}");
    assert!(text.contains("1393 of the 24144 pages are missing, the first of guest-physical 0x"), "{text}");
    assert!(text.ends_with("The core is NOT whole."), "{text}");
}

fn content(address: u64) -> u8 {
    (address >> 12 ^ address).to_le_bytes()[0]
}

/// Kernel addresses: 2 MiB from 0x20_0000 on as one page, then a page table at 0x3000 whose entry 5 is page 0x40_1000.
fn fake(version: u32) -> FakeMinidump {
    let mut fake = FakeMinidump { version, ..FakeMinidump::new(&[(0, 0x4000), (0x10_0000, 0x50_0000)]) };
    for address in [0, 0x2000, 0x3000, 0x10_0000, 0x20_0000, 0x20_1000, 0x3f_f000, 0x40_1000, 0x4f_f000] {
        fake = fake.page(address, content);
    }
    let table: Vec<u64> = (0..512).map(|index| if index == 5 { 0x40_1003 } else { 0 }).collect();
    if version == 1 {
        fake.page_map = (0..512).map(|page| 0x20_0003 + (page << 12)).chain(table).collect();
    } else {
        let bytes = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        fake.pages.insert(0x3000, bytes);
        // No execution, global, and so on: bits that are no part of the address.
        fake.page_map = vec![1 << 63 | 0x20_01e3, 0x3063, 0, 0x9000_0003];
    }
    fake
}

fn stored(fake: &FakeMinidump) -> (PathBuf, tempfile::TempDir) {
    stored_bytes(&fake.image())
}

fn stored_bytes(bytes: &[u8]) -> (PathBuf, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmcore.0");
    std::fs::write(&path, bytes).unwrap();
    (path, directory)
}

#[test]
fn minidumps_of_every_version_are_read() {
    for version in 1..=3 {
        let fake = fake(version);
        let (path, _directory) = stored(&fake);
        let core = open(&path).unwrap();
        let naive = MiniCore::open(&path).unwrap();
        assert_eq!(core.format(), "minidump");
        assert_eq!(core.kind(), format!("FreeBSD/amd64 minidump, version {version}"));
        assert_eq!(core.expected_length(), std::fs::metadata(&path).unwrap().len());
        for (address, page) in &fake.pages {
            let mut read = [0; 4096];
            core.read(*address, &mut read).unwrap();
            assert_eq!(read[..], page[..], "version {version}, {address:#x}");
            assert_eq!(naive.read_pa(*address, 4096).unwrap(), page[..]);
        }
        let places = [
            (KERNEL_BASE + 0x1234, Some(0x20_1234)),
            (KERNEL_BASE + 0x1f_ffff, Some(0x3f_ffff)),
            (KERNEL_BASE + 0x20_5678, Some(0x40_1678)),
            (KERNEL_BASE + 0x20_6000, None),
            (KERNEL_BASE + 0x40_0000, None),
            // A page table that is not in the dump.
            (KERNEL_BASE + 0x60_0000, None),
            (KERNEL_BASE + 0x4000_0000, None),
            (u64::MAX, None),
            (DIRECT_MAP + 0x2001, Some(0x2001)),
            (DIRECT_MAP - 1, None),
        ];
        for (virtual_address, physical) in places {
            assert_eq!(map(&core).translate(virtual_address), physical, "{version}, {virtual_address:#x}");
            assert_eq!(naive.translate(virtual_address).ok(), physical, "{version}, {virtual_address:#x}");
        }
        assert!(verify(&path, None, &mut |_, _| {}).whole());
    }
}

#[test]
fn what_is_not_in_a_minidump_is_told_apart() {
    let (path, _directory) = stored(&fake(3));
    let core = open(&path).unwrap();
    let mut byte = [0];
    let mut two_pages = [0; 8192];
    assert_eq!(core.ranges()[1], MemoryRange { start: 0x10_0000, len: 0x40_0000 });
    assert!(matches!(core.read(0x1000, &mut byte), Err(MemoryError::NotInDump { address: 0x1000 })));
    assert!(matches!(core.read(0x2000, &mut two_pages), Ok(())));
    assert!(matches!(
        core.read(0x10_0800, &mut two_pages),
        Err(MemoryError::NotInDump { address: 0x10_1000 })
    ));
    assert!(matches!(core.read(0x4000, &mut byte), Err(MemoryError::NotInRam { .. })));
    assert!(matches!(core.read(0x3fff, &mut two_pages), Err(MemoryError::NotInRam { .. })));
    assert_eq!(core.next_touched(0x800), Some(0x800..0x1000));
    assert_eq!(core.next_touched(0x1000), Some(0x2000..0x4000));
    assert_eq!(core.next_touched(0x10_1000), Some(0x20_0000..0x20_2000));
    assert_eq!(core.next_touched(0x4f_f001), Some(0x4f_f001..0x50_0000));
    assert_eq!(core.next_touched(0x5000), None);
    let stored: Vec<u64> = core.stored().map(|(_, stored)| stored).collect();
    assert_eq!(stored, [3 * 4096, 6 * 4096]);
}

#[test]
fn ram_of_old_versions_ends_with_the_last_page() {
    let (path, _directory) = stored(&fake(2));
    assert_eq!(open(&path).unwrap().ranges(), [MemoryRange { start: 0, len: 0x50_0000 }]);
    let (path, _directory) = stored(&FakeMinidump { version: 2, ..FakeMinidump::new(&[(0, 0x4000)]) });
    assert_eq!(open(&path).unwrap().ranges(), []);
}

fn changed(at: usize, value: u32) -> Vec<u8> {
    let mut bytes = fake(3).image();
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    bytes
}

fn refusal(bytes: &[u8]) -> String {
    let (path, _directory) = stored_bytes(bytes);
    let mut error: &dyn std::error::Error = &open(&path).unwrap_err();
    let mut text = error.to_string();
    while let Some(cause) = error.source() {
        text = format!("{text}: {cause}");
        error = cause;
    }
    text
}

#[test]
fn headers_that_lie_are_refused_with_a_reason() {
    let whole = fake(3).image();
    // dump_avail follows the header as there is no message buffer; then the bitmap and the page map.
    for (bytes, expected) in [
        (whole[..30].to_vec(), "ends inside its header, at byte 30"),
        (whole[..0x1000].to_vec(), "ends inside dump_avail, at byte 4096 of the 16384 before its pages"),
        (whole[..0x2fff].to_vec(), "ends inside the bitmap, at byte 12287"),
        (whole[..0x3fff].to_vec(), "ends inside the page map, at byte 16383"),
        (changed(24, 4), "version 4"),
        (changed(24, 0), "version 0"),
        (changed(28, u32::MAX), "ends inside the message buffer"),
        (changed(32, 0), "bitmap has 0 bytes, 4096 are needed"),
        (changed(36, u32::MAX), "ends inside the page map"),
        (changed(60, 0), "direct map ends at"),
        (changed(0x1008, 0x50_0000), "the range 0x100000 to 0x500000 is empty, out of order"),
        (changed(0x100c, 0x7fff_ffff), "beyond 52-bit addresses"),
    ] {
        let text = refusal(&bytes);
        assert!(text.contains(expected), "'{expected}' is not in '{text}'");
    }
}

#[test]
fn bitmap_for_more_memory_than_there_can_be_is_refused() {
    let mut bytes = fake(2).image();
    bytes[32..36].copy_from_slice(&0xffff_f000_u32.to_le_bytes());
    let (path, _directory) = stored_bytes(&bytes);
    // A hole is as long as one likes.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8 << 30).unwrap();
    assert!(open(&path).unwrap_err().to_string().contains("more than the 134217728"));
}

#[test]
fn minidumps_of_other_machines_are_named() {
    for (name, expected) in [("arm64", "arm64"), ("i386", "i386"), ("riscv", "riscv"), ("powerpc", "powerpc")]
    {
        let text = refusal(format!("minidump FreeBSD/{name}\0\0\0\0\x02\0\0\0").as_bytes());
        assert!(text.contains(&format!("of an {expected} kernel, which is not read here")), "{text}");
    }
    assert!(refusal(b"minidump FreeBSD/\x1b[2J").contains("of an unknown kernel"));
    assert!(refusal(b"minidump FreeBSD/").contains("of an unknown kernel"));
}

fn failure(path: &Path) -> String {
    let verdict = verify(path, None, &mut |_, _| {});
    assert!(!verdict.whole(), "{verdict}");
    verdict.to_string()
}

#[test]
fn verify_counts_pages_against_the_bitmap() {
    let image = fake(3).image();
    let (path, _directory) = stored_bytes(&image[..image.len() - 1]);
    assert!(failure(&path).contains("1 of the 9 pages are missing, the first of guest-physical 0x4ff000"));
    let (path, _directory) = stored_bytes(&[&image[..], &[0; 4096]].concat());
    assert!(failure(&path).contains("4096 bytes too many"));
    // A bit more than there are pages in the file; a bit that stands for no page.
    let mut more = image.clone();
    more[0x2000] |= 2;
    let (path, _directory) = stored_bytes(&more);
    assert!(failure(&path).contains("1 of the 10 pages are missing"));
    let mut stray = image;
    stray[0x2fff] = 0xc0;
    let (path, _directory) = stored_bytes(&stray);
    assert!(failure(&path).contains("2 bits of the bitmap, behind the 1028 that stand for pages, are set"));
}

#[test]
fn messages_are_told_without_symbols() {
    let mut fake = fake(3);
    let newest = "FreeBSD 14.1-RELEASE-p3 #4 releng/14.1: Tue\n    root@builder:/usr/obj\n<118>Starting\x1b[2J\n\
                  panic: page fault\ncpuid = 1\n";
    let oldest = "Copyright (c) 1992-2024 The FreeBSD Project.\n";
    fake.messages = [newest, oldest].concat().into_bytes();
    let (len, written) = (u32::try_from(fake.messages.len()).unwrap(), u32::try_from(newest.len()).unwrap());
    fake.behind_messages = [0, 0x1234, 0x06_3062, len, len * 7 + written].map(u32::to_le_bytes).concat();
    fake.behind_messages.resize(72, 0);
    let (path, _directory) = stored(&fake);
    let inspection = inspect(&path, None).unwrap();
    let messages = inspection.kernel.message_buffer.as_deref().unwrap();
    assert!(messages.starts_with("Copyright") && messages.ends_with("cpuid = 1\n"), "{messages}");
    assert_eq!(inspection.guest.os.as_deref(), Some("FreeBSD"));
    assert_eq!(inspection.guest.release.as_deref(), Some("14.1-RELEASE-p3"));
    assert_eq!(inspection.panic.text.as_deref(), Some("page fault"));
    let text = inspection.to_string();
    for expected in [
        "Panic     page fault",
        "FreeBSD 14.1-RELEASE-p3",
        "Messages  6 lines",
        "Starting\\u{1b}[2J",
        "kgdb ",
    ] {
        assert!(text.contains(expected), "'{expected}' is not in:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[test]
fn of_many_messages_the_last_are_shown() {
    let lines: Vec<String> = (0..100).map(|line| format!("line {line}\n")).collect();
    let fake = FakeMinidump { messages: lines.concat().into_bytes(), ..fake(3) };
    let (path, _directory) = stored(&fake);
    let text = inspect(&path, None).unwrap().to_string();
    assert!(text.contains("Messages  the last 40 of 100 lines"), "{text}");
    assert!(
        text.contains("line 60\n") && text.contains("line 99\n") && !text.contains("line 59\n"),
        "{text}"
    );
}
