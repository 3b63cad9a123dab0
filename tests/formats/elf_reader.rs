//! Opening cores: what the independent reader finds in ours, and what ours finds in cores of other makers.

use std::path::Path;

use harness::fake_guest::FakeGuest;
use harness::readers::elf::{ElfCore, Load};
use netdump::facts::GuestFacts;
use netdump::vmcore::cpu::Msr;
use netdump::vmcore::{
    Activity, CoreNotes, CpuState, MemoryError, MemoryRange, OpenError, PhysicalMemory, PieceContent, open,
};
use proptest::prelude::*;

use super::{all_bytes, guest, notes, plan, stored};

#[test]
fn independent_reader_finds_memory_and_registers() {
    let (path, _directory) = stored();
    let core = ElfCore::open(&path).unwrap();
    let guest = guest();
    let expected: Vec<(u64, u64)> = guest.ranges().iter().map(|range| (range.start, range.len)).collect();
    let found: Vec<(u64, u64)> = core.loads.iter().map(|load| (load.paddr, load.memsz)).collect();
    assert_eq!(found, expected);
    for Load { flags, offset, vaddr, paddr, filesz, memsz, align } in core.loads.clone() {
        // Without an alignment, as in `/proc/vmcore`: crash takes a core with one for an old netdump.
        assert_eq!((flags, align, offset % 4096), (7, 0, 0));
        assert_eq!((vaddr, filesz), (paddr, memsz));
    }
    assert_eq!(
        core.memory((1 << 32) + 77, 5).unwrap(),
        ((1 << 32) + 77..(1 << 32) + 82).map(|at| guest.byte(at)).collect::<Vec<_>>()
    );
    let status = core.prstatus().unwrap();
    assert_eq!(status.iter().map(|cpu| cpu.pid).collect::<Vec<_>>(), [1, 2, 3]);
    let registers = guest.cpus()[1].registers.as_deref().unwrap();
    assert_eq!(status[1].registers["rip"], registers.rip);
    assert_eq!(status[1].registers["gs_base"], registers.gs.base);
    assert!(status[2].registers.values().all(|&value| value == 0), "it did not stop");
    let qemu = core.qemu().unwrap();
    assert_eq!(qemu[1].registers["cr3"], registers.cr3);
    assert_eq!(qemu[1].registers["idt.limit"], u64::from(registers.idt.limit));
    assert_eq!(qemu[1].registers["kernel_gs_base"], registers.msr(0xc000_0102).unwrap());
}

#[test]
fn own_note_is_text_that_a_human_can_read() {
    let (path, _directory) = stored();
    let text = ElfCore::open(&path).unwrap().text().unwrap();
    for (key, value) in [
        ("format", "1"),
        ("panic.cpu", "1"),
        ("panic.source", "pvpanic"),
        ("panic.text", "panic: bad=trap \\x5c here\\x0a\\x1b[2J"),
        ("panic.time", "1767225600"),
        ("guest.os", "FreeBSD"),
        ("guest.hostname", "vm1"),
        ("guest.panic", "bad trap"),
        ("kenv.net.dump.server", "10.0.0.9"),
        ("kenv.odd\\x3dname\\x0a", "größe=\"1\""),
        ("kenv.empty", ""),
        ("cpu.0.activity", "running"),
        ("cpu.1.activity", "halted"),
        ("cpu.2.activity", "not_stopped"),
    ] {
        assert_eq!(text.get(key).map(String::as_str), Some(value), "{key}");
    }
    let registers = guest().cpus()[0].registers.clone().unwrap();
    assert_eq!(text["cpu.0.efer"], format!("{:#x}", registers.efer));
    assert_eq!(text["cpu.0.dr3"], format!("{:#x}", registers.dr[3]));
    assert_eq!(text["cpu.0.msr.0x10"], format!("{:#x}", registers.msr(0x10).unwrap()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_survives_the_note(
        text: String,
        source: Option<String>,
        environment: Option<Vec<(String, String)>>,
        lines in "[\\PC\\n\\r\\\\=\\x00\\x7f\\u{85}]{0,40}",
    ) {
        let facts = GuestFacts { version: Some(lines), environment, ..GuestFacts::default() };
        let notes = CoreNotes { panic_text: Some(text), panic_source: source, facts, ..CoreNotes::default() };
        let guest = FakeGuest::new(1).ram(0, 0x1000);
        let core = open_bytes(&all_bytes(&plan(&guest, &notes))).unwrap();
        prop_assert_eq!(core.problems(), []);
        prop_assert_eq!(core.notes(), &notes);
    }
}

#[test]
fn overlong_text_is_cut_between_characters() {
    let notes = CoreNotes { panic_text: Some("x".to_owned() + &"ü".repeat(5000)), ..CoreNotes::default() };
    let guest = FakeGuest::new(1).ram(0, 0x1000);
    let core = open_bytes(&all_bytes(&plan(&guest, &notes))).unwrap();
    assert_eq!(core.notes().panic_text, Some("x".to_owned() + &"ü".repeat(4095)));
}

#[test]
fn holes_of_a_sparse_core_are_untouched_memory() {
    let (path, directory) = stored();
    let sparse = directory.path().join("sparse");
    let image_bytes = std::fs::read(&path).unwrap();
    write_sparse(&sparse, &image_bytes);
    let core = open(&sparse).unwrap();
    assert_eq!(core.next_touched(0x10_1000), Some(0x10_1000..0x11_0000));
    assert_eq!(core.next_touched(0x11_0000), Some(0x13_0000..0x14_0000));
    assert_eq!(core.next_touched(0x14_0000), None, "not RAM");
    let mut bytes = [0xaa; 64];
    core.read(0x12_0000, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 64]);
}

/// As a receiver stores it: blocks of zeros are left out.
fn write_sparse(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (offset, block) in (0..).step_by(4096).zip(bytes.chunks(4096)) {
        if block.iter().any(|&byte| byte != 0) {
            file.write_all_at(block, offset).unwrap();
        }
    }
}

#[test]
fn cut_core_opens_and_lacks_what_it_lacks() {
    let bytes = all_bytes(&plan(&guest(), &notes()));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    std::fs::write(&path, &bytes[..bytes.len() - 0x3000]).unwrap();
    let core = open(&path).unwrap();
    let high = 1 << 32;
    assert_eq!(core.expected_length(), bytes.len() as u64);
    let mut page = [0; 4096];
    core.read(high, &mut page).unwrap();
    assert_eq!(page[..], (high..high + 4096).map(|at| guest().byte(at)).collect::<Vec<_>>());
    assert!(matches!(core.read(high + 0x1000, &mut page), Err(MemoryError::Unreadable { .. })));
    assert_eq!(
        core.next_touched(high + 0x1000),
        Some(high + 0x1000..high + 0x4000),
        "it must not pass for zeros"
    );
}

#[test]
fn reads_outside_ram_are_refused() {
    let (path, _directory) = stored();
    let core = open(&path).unwrap();
    for (address, len) in [(0x9_f000, 1), (0x9_eff0, 17), (u64::MAX, 2), (0x14_0000, 1)] {
        let result = core.read(address, &mut vec![0; len]);
        assert!(matches!(result, Err(MemoryError::NotInRam { .. })), "{address:#x}");
    }
}

/// An ELF core by hand: segments are (physical, virtual, offset, length in the file, length in memory).
fn foreign(abi: u8, version: u8, segments: &[[u64; 5]], notes: &[u8]) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\x3e\0".to_vec();
    out[7] = abi;
    out.extend([version, 0, 0, 0]);
    out.extend([0; 8]);
    out.extend(64_u64.to_le_bytes());
    out.extend([0; 12]);
    let headers = segments.len() + usize::from(!notes.is_empty());
    out.extend([64, 0, 56, 0, u8::try_from(headers).unwrap(), 0, 64, 0, 0, 0, 0, 0]);
    for [physical, virtual_start, offset, file_len, memory_len] in segments {
        out.extend([1, 0, 0, 0, 4, 0, 0, 0]);
        let words = [offset, virtual_start, physical, file_len, memory_len, &4096];
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    if !notes.is_empty() {
        out.extend([4, 0, 0, 0, 0, 0, 0, 0]);
        let words = [0x800, 0, 0, notes.len() as u64, 0, 0];
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    out.resize(0x800, 0);
    out.extend(notes);
    out.resize(0x1000, 0);
    out.extend((0..0x3000_u32).map(|at| u8::try_from(at >> 8).unwrap()));
    out
}

fn open_bytes(bytes: &[u8]) -> Result<netdump::vmcore::Core, OpenError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    std::fs::write(&path, bytes).unwrap();
    open(&path)
}

#[test]
fn full_dump_of_freebsd_opens() {
    let bytes = foreign(
        0xff,
        0,
        &[[0, 0, 0x1000, 0x1000, 0x1000], [0x10_4000, 0x10_4000, 0x2000, 0x2000, 0x2000]],
        &[],
    );
    let core = open_bytes(&bytes).unwrap();
    assert!(core.kind().starts_with("FreeBSD full dump"), "{}", core.kind());
    let range = |start, len| MemoryRange { start, len };
    assert_eq!(core.ranges(), [range(0, 0x1000), range(0x10_4000, 0x2000)]);
    let mut bytes = [0; 2];
    core.read(0x10_50ff, &mut bytes).unwrap();
    assert_eq!(bytes, [0x20, 0x21]);
    assert!(core.cpus().is_empty());
}

#[test]
fn kernel_image_listed_beside_the_ram_that_holds_it_is_not_counted_twice() {
    let image = [0x1000, 0xffff_ffff_8000_0000, 0x2000, 0x1000, 0x1000];
    let ram = [0, 0xffff_8880_0000_0000, 0x1000, 0x3000, 0x3000];
    let core = open_bytes(&foreign(0, 1, &[image, ram], &[])).unwrap();
    assert_eq!(core.ranges(), [MemoryRange { start: 0, len: 0x3000 }]);
}

#[test]
fn segments_that_overlap_in_part_are_joined_in_order() {
    let low = [0, 0, 0x1000, 0x2000, 0x2000];
    let high = [0x1000, 0x1000, 0x2000, 0x2000, 0x2000];
    let core = open_bytes(&foreign(0, 1, &[high, low], &[])).unwrap();
    let range = |start, len| MemoryRange { start, len };
    assert_eq!(core.ranges(), [range(0, 0x2000), range(0x2000, 0x1000)]);
    let mut byte = [0];
    core.read(0x2100, &mut byte).unwrap();
    assert_eq!(byte, [0x21]);
}

/// A small file must not become much memory to search.
#[test]
fn segments_that_show_the_same_bytes_over_and_over_are_refused() {
    let segments = |count: u64| {
        let segment = |number: u64| [number << 20, 0, 0, 0x4000, 0x4000];
        open_bytes(&foreign(0, 1, &(0..count).map(segment).collect::<Vec<_>>(), &[]))
    };
    assert_eq!(segments(16).unwrap().ranges().len(), 16);
    let error = segments(17).unwrap_err().to_string();
    assert!(error.contains("many times over"), "{error}");
}

#[test]
fn what_a_segment_leaves_out_reads_as_zeros() {
    let core = open_bytes(&foreign(0, 1, &[[0, 0, 0x1000, 0x1000, 0x3000]], &[])).unwrap();
    let mut bytes = [0xaa; 4];
    core.read(0xffe, &mut bytes).unwrap();
    assert_eq!(bytes, [0x0f, 0x0f, 0, 0]);
    assert_eq!(core.next_touched(0x800), Some(0x800..0x1000));
    assert_eq!(core.next_touched(0x1000), None);
}

#[test]
fn core_of_a_process_is_refused() {
    let segments = [[0, 0x40_0000, 0x1000, 0x1000, 0x1000], [0, 0x7fff_0000, 0x2000, 0x1000, 0x1000]];
    let error = open_bytes(&foreign(0, 1, &segments, &[])).unwrap_err();
    assert!(error.to_string().contains("core of a process"), "{error}");
}

#[test]
fn notes_of_other_makers_give_their_registers() {
    let (path, _directory) = stored();
    let whole = ElfCore::open(&path).unwrap();
    // PRSTATUS and XSAVE of CPU 0 alone, as a core without QEMU's notes has them, and a note of somebody else.
    let mut bytes = whole.file_bytes(whole.notes_place.0, 12 + 8 + 336 + 12 + 8 + 832).unwrap();
    bytes.extend(b"\x04\0\0\0\x03\0\0\0\x07\0\0\0ABC\0xyz\0");
    let core = open_bytes(&foreign(0, 1, &[[0, 0, 0x1000, 0x1000, 0x1000]], &bytes)).unwrap();
    assert_eq!(core.problems(), []);
    let guest = guest();
    let all = guest.cpus()[0].registers.as_deref().unwrap();
    let [CpuState { index: 0, activity: Activity::Running, registers: Some(registers) }] = core.cpus() else {
        panic!("{:?}", core.cpus());
    };
    assert_eq!((registers.rip, registers.r15, registers.fs.base), (all.rip, all.r15, all.fs.base));
    assert_eq!(registers.xsave, all.xsave);
    assert_eq!((registers.cr3, registers.msrs.as_slice()), (0, &[] as &[Msr]));
}

#[test]
fn pieces_tell_the_layout_of_the_file() {
    let (path, _directory) = stored();
    let core = open(&path).unwrap();
    let contents: Vec<_> = core.pieces().iter().map(|piece| (piece.content, piece.offset)).collect();
    let memory = |start, len| PieceContent::Memory(MemoryRange { start, len });
    assert_eq!(contents[..2], [(PieceContent::Header, 0), (PieceContent::Table, 64)]);
    assert_eq!(contents[2], (PieceContent::Notes, 64 + 4 * 56));
    assert_eq!(contents[3].0, memory(0, 0x9_f000));
    assert_eq!(contents[4], (memory(0x10_0000, 0x4_0000), contents[3].1 + 0x9_f000));
}
