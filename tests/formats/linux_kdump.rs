//! kdump-compressed cores: what is written is read again, has its fields where makedumpfile has them, and damaged ones
//! cost no more than an error.

use std::path::Path;

use harness::fake_linux::{self, IMAGE};
use harness::readers::kdump::KdumpCore;
use netdump::ReadAt;
use netdump::vmcore::{CoreNotes, MemoryError, OpenError, PhysicalMemory, StoppedGuest};

use super::{all_bytes, notes};

fn packed(memory: &dyn PhysicalMemory, notes: &CoreNotes, format: &str) -> Vec<u8> {
    let guest = StoppedGuest { memory, symbols: None, notes };
    all_bytes(&netdump::vmcore::format(format).unwrap().plan(&guest).unwrap().image)
}

fn opened(bytes: &[u8], path: &Path) -> Result<netdump::vmcore::Core, OpenError> {
    std::fs::write(path, bytes).unwrap();
    netdump::vmcore::open(path)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn both_kinds_hold_every_page_of_any_guest() {
    let directory = tempfile::tempdir().unwrap();
    for format in ["kdump", "kdump-zstd"] {
        for guest in [super::guest(), fake_linux::guest()] {
            let bytes = packed(&guest, &notes(), format);
            let core = opened(&bytes, &directory.path().join("core")).unwrap();
            assert_eq!((core.format(), core.notes(), core.problems()), (format, &notes(), &[][..]));
            assert_eq!(core.expected_length(), bytes.len() as u64);
            assert_eq!((core.ranges(), core.cpus().len()), (guest.ranges(), guest.cpus().len()));
            for range in guest.ranges() {
                for page in
                    (range.start..range.end()).step_by(if range.len > 1 << 20 { 61 << 12 } else { 4096 })
                {
                    let (mut found, mut expected) = ([1; 4096], [2; 4096]);
                    core.read(page, &mut found).unwrap();
                    guest.read(page, &mut expected).unwrap();
                    assert_eq!(found, expected, "{page:#x}");
                }
            }
        }
    }
}

/// By a reader that shares nothing with the writer: every page of RAM is there once, all pages of zeros are one, and nothing of
/// the file is unaccounted for.
#[test]
fn an_independent_reader_finds_every_page() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    for (format, status) in [("kdump", 1), ("kdump-zstd", 0x20)] {
        for guest in [super::guest(), fake_linux::guest()] {
            std::fs::write(&path, packed(&guest, &notes(), format)).unwrap();
            let core = KdumpCore::open(&path).unwrap();
            assert_eq!((core.status, core.level), (status, 0));
            let ranges = guest.ranges().iter();
            let ram: Vec<_> = ranges.flat_map(|range| range.start / 4096..range.end() / 4096).collect();
            assert_eq!((core.ram(), core.stored()), (ram.clone(), ram.clone()));
            assert_eq!(core.max_mapnr, ram.last().unwrap() + 1);
            let pages = core.pages().unwrap();
            let zeros = pages.iter().find(|page| page.content == [0; 4096]).unwrap();
            let mut end = zeros.offset + zeros.size as u64;
            for page in &pages {
                let mut expected = [0; 4096];
                guest.read(page.number * 4096, &mut expected).unwrap();
                assert_eq!(page.content, expected, "page {:#x}", page.number);
                if expected == [0; 4096] {
                    assert_eq!((page.offset, page.size), (zeros.offset, zeros.size), "{:#x}", page.number);
                } else {
                    assert_eq!(page.offset, end, "page {:#x}", page.number);
                    end += page.size as u64;
                }
            }
            assert_eq!(core.length(), end);
        }
    }
    let core = KdumpCore::open(&path).unwrap();
    assert_eq!(core.names[2], "6.1.0-56-cloud-amd64");
    assert_eq!((core.phys_base, core.vmcoreinfo), (fake_linux::info().phys_base(), fake_linux::text()));
}

#[test]
fn fields_lie_where_makedumpfile_has_them() {
    let guest = fake_linux::guest();
    let core = packed(&guest, &notes(), "kdump");
    assert_eq!((&core[..8], half(&core, 8)), (&b"KDUMP   "[..], 6));
    let names: Vec<_> = (0..6)
        .map(|name| core[12 + 65 * name..][..65].split(|byte| *byte == 0).next().unwrap())
        .map(|name| std::str::from_utf8(name).unwrap())
        .collect();
    assert_eq!(names, ["Linux", "guest", "6.1.0-56-cloud-amd64", "#1 SMP Debian", "x86_64", "(none)"]);
    assert_eq!(word(&core, 408), 1_767_225_600);
    let bitmap_pages = 2;
    let sub_header_blocks = half(&core, 432);
    assert_eq!([424, 428, 436, 440].map(|at| half(&core, at)), [1, 4096, bitmap_pages, 8192]);
    assert_eq!([456, 460].map(|at| half(&core, at)), [1, 2], "the CPU that panicked, and how many there are");
    let sub = &core[4096..];
    assert_eq!((word(sub, 0), half(sub, 8), word(sub, 96)), (fake_linux::info().phys_base(), 0, 8192));
    let part = |at: usize| {
        let start = usize::try_from(word(sub, at)).unwrap();
        &core[start..start + usize::try_from(word(sub, at + 8)).unwrap()]
    };
    assert_eq!(part(32), fake_linux::text().as_bytes());
    assert_eq!(&part(48)[12..16], b"CORE");
    // All pages are RAM and are there; those that were never touched share one page of zeros.
    let bitmaps = usize::try_from(4096 * (1 + sub_header_blocks)).unwrap();
    assert!(core[bitmaps..bitmaps + 1024].iter().all(|byte| *byte == 0xff));
    assert!(core[bitmaps + 4096..bitmaps + 4096 + 1024].iter().all(|byte| *byte == 0xff));
    let descriptors = bitmaps + 8192;
    let descriptor =
        |page: usize| (word(&core, descriptors + 24 * page), half(&core, descriptors + 24 * page + 12));
    assert_eq!(descriptor(0), (u64::try_from(descriptors).unwrap() + 24 * 8192, 1));
    assert_eq!((descriptor(1), descriptor(8191)), (descriptor(0), descriptor(0)));
    // Noise does not become shorter.
    assert_eq!(descriptor(usize::try_from(IMAGE / 4096).unwrap()).1, 0);
}

#[test]
fn pages_that_are_left_out_are_not_in_the_file() {
    let guest = fake_linux::guest_with_pages();
    let mut guest = guest;
    guest.write_words(fake_linux::PAGES + 0x100 * 64, &[1 << 4, 0, 0, 0]);
    let memory =
        netdump::linux::filter::filtered(&guest, &fake_linux::info(), "31".parse().unwrap()).unwrap();
    let bytes = packed(&memory, &notes(), "kdump");
    assert_eq!(half(&bytes[4096..], 8), 31);
    let directory = tempfile::tempdir().unwrap();
    let core = opened(&bytes, &directory.path().join("core")).unwrap();
    let independent = KdumpCore::open(&directory.path().join("core")).unwrap();
    let all_but_one: Vec<_> = independent.ram().into_iter().filter(|page| *page != 0x100).collect();
    assert_eq!((independent.stored(), independent.ram().len()), (all_but_one, 8192));
    assert_eq!(independent.level, 31);
    let mut page = [0; 4096];
    let out = core.read(0x10_0000, &mut page);
    assert!(matches!(out, Err(MemoryError::NotInDump { address: 0x10_0000 })), "{out:?}");
    core.read(0x10_1000, &mut page).unwrap();
    assert!(page.iter().zip(0x10_1000..).all(|(byte, address)| *byte == guest.byte(address)));
}

/// makedumpfile looks for the second bitmap where it would be if the first ended with the kernel's last section: with a
/// longer one it reads the end of the first and fails. QEMU shows its ROM below 4 GiB as memory; `mem=` does the like.
#[test]
fn bitmaps_end_where_the_kernels_memory_does() {
    let guest = fake_linux::guest_with_pages().untouched_ram(0xfffc_0000, 0x4_0000);
    let filtered =
        netdump::linux::filter::filtered(&guest, &fake_linux::info(), "31".parse().unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for memory in [&guest as &dyn PhysicalMemory, &filtered] {
        let notes = notes();
        let stopped = StoppedGuest { memory, symbols: None, notes: &notes };
        let planned = netdump::vmcore::format("kdump").unwrap().plan(&stopped).unwrap();
        let said =
            planned.remarks.iter().filter(|remark| remark.contains("memory from 0x8000000 on")).count();
        let bytes = all_bytes(&planned.image);
        opened(&bytes, &directory.path().join("core")).unwrap();
        let core = KdumpCore::open(&directory.path().join("core")).unwrap();
        // A section has 128 MiB, of which a block of a bitmap tells.
        assert_eq!((core.max_mapnr, half(&bytes, 436), said), (32768, 2, 1));
        assert_eq!(core.ram(), (0..8192).collect::<Vec<_>>());
    }
}

#[test]
fn every_read_of_the_core_gives_the_same_bytes() {
    let guest = fake_linux::guest();
    let (notes, format) = (notes(), netdump::vmcore::format("kdump-zstd").unwrap());
    let image = format.plan(&StoppedGuest { memory: &guest, symbols: None, notes: &notes }).unwrap().image;
    let whole = all_bytes(&image);
    for (offset, len) in
        [(0, 1), (5000, 9000), (200_000, 70_001), (whole.len() - 3, 3), (whole.len() - 50_000, 1440)]
    {
        let mut piece = vec![0; len];
        image.read_at(u64::try_from(offset).unwrap(), &mut piece).unwrap();
        assert_eq!(piece, whole[offset..offset + len], "{offset}");
    }
}

#[test]
fn damaged_files_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    let good = packed(&super::guest(), &notes(), "kdump");
    let said = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        opened(&bytes, &path).unwrap_err().to_string()
    };
    assert!(said(&|core| core.truncate(4000)).contains("ends inside its tables"));
    assert!(said(&|core| core.truncate(20_000)).contains("ends inside its tables"));
    assert!(said(&|core| core[8] = 3).contains("version 3"));
    assert!(said(&|core| core[429] = 0x40).contains("blocks of 16384 bytes"));
    assert!(said(&|core| core[436..440].fill(0xff)).contains("contradicts itself"));
    assert!(said(&|core| core[4096 + 96..4096 + 104].fill(0xff)).contains("contradicts itself"));
    // Any other byte may be anything.
    let tables = good.len().min(70_000);
    for at in (4096..tables).step_by(613) {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        if let Ok(core) = opened(&bytes, &path) {
            let mut page = [0; 4096];
            for address in (0..0x14_0000).step_by(17 << 12) {
                let _ = core.read(address, &mut page);
            }
        }
    }
}
