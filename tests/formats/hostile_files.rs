//! Files that mean harm, or met it: whatever is in a file, it is refused or read, in bounded time and memory.

use std::path::Path;
use std::sync::LazyLock;

use harness::fake_kernel::FakeKernel;
use harness::fake_minidump::FakeMinidump;
use netdump::facts::{self, Backtraces};
use netdump::vmcore::{
    InspectOptions, KernelSymbols, OpenError, PhysicalMemory, inspect, inspect_with, open, verify,
};
use proptest::prelude::*;

use super::freebsd_guest::FreeBsd;
use super::{all_bytes, guest, notes, plan};

/// Does with a file all that the tools do.
fn use_file(path: &Path) {
    let _ =
        inspect(path, None).map(|inspection| (inspection.to_string(), serde_json::to_string(&inspection)));
    let _ = verify(path, None, &mut |_, _| {}).to_string();
    let Ok(core) = open(path) else { return };
    let symbols = FakeKernel::default()
        .segment(0, 0, 1 << 32)
        .symbol("kenvp", 0x1000, 8)
        .symbol("KPML4phys", 0x2000, 8)
        .symbol("dynamic_kenv", 0x3000, 1)
        .image();
    facts::gather(&core, Some(&KernelSymbols::parse(&symbols).unwrap()));
    for range in core.ranges().iter().take(64) {
        for address in [range.start, range.start + range.len / 2, range.end() - 1] {
            let _ = core.read(address, &mut [0; 100]);
            let _ = core.next_touched(address);
        }
    }
}

fn use_bytes(bytes: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmcore.x.0");
    std::fs::write(&path, bytes).unwrap();
    use_file(&path);
}

/// A good core, made once.
static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| all_bytes(&plan(&guest(), &notes())));

/// A good minidump of a kernel with a few threads.
static GOOD_MINIDUMP: LazyLock<FakeMinidump> = LazyLock::new(|| {
    let mut guest =
        FreeBsd::new(&[(7, "sh", &[(100_007, "sh", 0, 1)]), (1, "init", &[(100_001, "init", -1, 2)])]);
    guest.dumped_by(100_007, 3);
    let mut minidump = guest.minidump();
    minidump.messages = b"FreeBSD 14.1-RELEASE #0\npanic: here\n".repeat(50);
    minidump
});

/// Does with a FreeBSD core all that the tools do, with its kernel's symbols.
fn use_freebsd_core(bytes: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmcore.x.0");
    std::fs::write(&path, bytes).unwrap();
    use_file(&path);
    static SYMBOLS: LazyLock<KernelSymbols> = LazyLock::new(super::freebsd_guest::symbols);
    let options = InspectOptions {
        symbols: Some(&SYMBOLS),
        kernel: None,
        backtraces: Backtraces::All,
        unpack_limit: None,
    };
    let _ = inspect_with(&path, &options)
        .map(|inspection| (inspection.to_string(), serde_json::to_string(&inspection)));
}

/// Bytes before the first byte of memory.
fn head_len(core: &[u8]) -> usize {
    core.len() - 0x9f000 - 0x4_0000 - 0x4000
}

#[test]
fn cores_cut_anywhere_in_their_headers_do_no_harm() {
    let core = &*GOOD;
    for len in (0..=head_len(core)).step_by(64) {
        use_bytes(&core[..len]);
    }
}

#[test]
fn every_damaged_byte_of_the_headers_does_no_harm() {
    let core = &*GOOD;
    let head = &core[..head_len(core) + 4096];
    // ELF header and program headers byte by byte; the memory behind them is cut off, which changes nothing here.
    for place in 0..64 + 4 * 56 {
        for value in [0, 0xff, head[place] ^ 0x80] {
            let mut bad = head.to_vec();
            bad[place] = value;
            use_bytes(&bad);
        }
    }
}

/// Of the good minidump: message buffer, dump_avail, bitmap, page map, pages.
const MINIDUMP_SECTIONS: [usize; 5] = [0x1000, 0x2000, 0x3000, 0x4000, 0x5000];

#[test]
fn minidumps_cut_anywhere_do_no_harm() {
    let core = GOOD_MINIDUMP.image();
    for section in MINIDUMP_SECTIONS {
        for len in [section - 1, section, section + 1, section + 0x800] {
            use_freebsd_core(&core[..len]);
        }
    }
    for len in (0..72).step_by(3) {
        use_freebsd_core(&core[..len]);
    }
}

#[test]
fn every_damaged_field_of_a_minidumps_header_does_no_harm() {
    let core = GOOD_MINIDUMP.image();
    for place in 24..68 {
        for value in [0, 0xff, core[place] ^ 0x80, core[place] ^ 1] {
            let mut bad = core.clone();
            bad[place] = value;
            use_freebsd_core(&bad);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_minidumps_do_no_harm(
        version in 1_u32..4,
        changes in prop::collection::vec((0_usize..6, 0_usize..0x200, prop_oneof![Just(0_u64), Just(u64::MAX), any::<u64>(), 0_u64..0x100_0000]), 1..12),
        cut in prop_oneof![3 => Just(usize::MAX), 1 => 0_usize..0x1_0000],
    ) {
        let mut bad = FakeMinidump { version, ..GOOD_MINIDUMP.clone() }.image();
        for (section, place, value) in changes {
            // The header's fields are few; of a section any word.
            let start = if section == 0 { 24 + place % 40 } else { MINIDUMP_SECTIONS[section - 1] + 8 * place };
            bad[start..start + 8].copy_from_slice(&value.to_le_bytes());
        }
        bad.truncate(cut);
        use_freebsd_core(&bad);
    }

    #[test]
    fn damaged_cores_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(0_u64), Just(u64::MAX), any::<u64>(), 0_u64..0x10_0000]), 1..12),
    ) {
        let head = head_len(&GOOD);
        let mut bad = GOOD[..head + 0x2000].to_vec();
        for (place, value) in changes {
            let place = place.index(head) & !3;
            let end = (place + 8).min(bad.len());
            bad[place..end].copy_from_slice(&value.to_le_bytes()[..end - place]);
        }
        use_bytes(&bad);
    }

    #[test]
    fn noise_behind_a_magic_does_no_harm(noise in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\x3e\0\x01\0\0\0\0\0\0\0\0\0\0\0\x40\0\0\0\0\0\0\0".to_vec();
        bytes.extend(noise);
        use_bytes(&bytes);
    }
}

#[test]
fn sparse_file_of_enormous_length_costs_nothing() {
    let core = &*GOOD;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    let mut head = core[..head_len(core)].to_vec();
    // The last segment (program header 3) now has 2^43 bytes, as has the file.
    let header = 64 + 3 * 56;
    head[header + 32..header + 40].copy_from_slice(&(1_u64 << 43).to_le_bytes());
    head[header + 40..header + 48].copy_from_slice(&(1_u64 << 43).to_le_bytes());
    std::fs::write(&path, &head).unwrap();
    let offset = u64::from_le_bytes(head[header + 8..header + 16].try_into().unwrap());
    let sized = std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(offset + (1 << 43));
    if let Err(error) = sized {
        println!("SKIPPED large-files: the file system takes no file of 8 TiB: {error}");
        return;
    }
    use_file(&path);
    assert!(verify(&path, None, &mut |_, _| {}).whole());
}

fn refusal(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    std::fs::write(&path, bytes).unwrap();
    open(&path).unwrap_err().to_string()
}

#[test]
fn other_files_are_told_by_their_content() {
    for (bytes, what) in [
        (&b""[..], "empty"),
        (b"minidump FreeBSD/amd64\0\0", "the minidump ends inside its header"),
        (b"minidump FreeBSD/arm64\0\0", "a FreeBSD minidump of an arm64 kernel"),
        (b"KDUMP   \x06\0\0\0", "the kdump core ends inside its tables"),
        (b"makedumpfile\0\0\0\0", "flattened"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"Dump from vm1 [10.0.0.2]\n", "info file"),
        (b"hello, world", "begins with \"hello, w\""),
        (b"\0\x01", "begins with 00 01"),
        (b"\x7fELF", "ends inside its headers"),
        (b"\x7fELF\x01\x01\x01", "ends inside its headers"),
    ] {
        let text = refusal(bytes);
        assert!(text.contains(what), "{bytes:?}: {text}");
    }
    let text = refusal(&FakeKernel::default().image());
    assert!(text.contains("no core (its type is 2"), "{text}");
}

#[test]
fn what_is_no_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path(), Path::new("/nonexistent/core"), Path::new("/dev/null")] {
        assert!(matches!(open(path), Err(OpenError::File { .. })), "{}", path.display());
    }
}
