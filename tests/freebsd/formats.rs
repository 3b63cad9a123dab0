//! The other formats of the same guest, what `auto` makes of what it finds, and what it says when that is not enough.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use guest_images::freebsd::Reach;
use harness::guests::{Bench, assert_code, verify};
use harness::programs::{arg, program, run};
use harness::readers::elf::ElfCore;
use harness::readers::freebsd::VirtualMemory;
use harness::readers::full::FullCore;

use crate::needs;
use crate::specimen::{Specimen, assert_pattern, settled};

/// Dumps a guest whose image was changed.
fn dumped_after(change: impl FnOnce(&Bench), options: &[&str]) -> Specimen {
    let bench = Bench::new("freebsd-abi");
    change(&bench);
    let ended = bench.run(&settled(&[], options));
    assert_code(&ended, 10);
    Specimen::of("freebsd-abi", bench, ended)
}

/// Takes the section headers away: no symbols.
fn strip(bench: &Bench) {
    let mut image = std::fs::read(bench.image()).unwrap();
    image[0x28..0x30].fill(0);
    image[0x3c..0x40].fill(0);
    std::fs::write(bench.image(), image).unwrap();
}

#[test]
fn a_full_dump_has_all_memory_and_the_same_threads() {
    needs!(Kvm);
    for (flavour, options) in [
        ("freebsd-abi", &["--dump-format", "full"][..]),
        ("freebsd-abi-13", &["--dump-format", "full", "--boot", "pvh"]),
        // What the kernel itself was told; the guest may still change its mind at run time.
        ("freebsd-abi-12", &["--kenv", "abi.kenv.set=debug.minidump=0"]),
    ] {
        let specimen = Specimen::dumped_with_4_cpus(flavour, &["abi.stop=no"], options);
        assert_eq!(specimen.report["core_format"], "full", "{flavour}");
        specimen.verify();
        let core = FullCore::open(&specimen.core_path(), &specimen.symbols).unwrap();
        let segments: Vec<_> =
            core.segments().iter().map(|&(_, start, length)| (start, start + length)).collect();
        assert_eq!(segments, specimen.dump_avail(&core), "{flavour}");
        for page in specimen.pattern_pages(&core) {
            let (va, pa) = (page.virtual_address, page.physical_address);
            assert_eq!(core.translate(va).unwrap(), pa);
            assert_pattern(pa, &core.read_va(va, 4096).unwrap());
        }
        specimen.check_threads(&core);
        assert_eq!(specimen.stopped_cpus(&core), 0b1011);
    }
}

#[test]
fn raw_and_elf_cores_have_all_memory() {
    needs!(Kvm);
    let check = |specimen: &Specimen, read: &dyn Fn(u64) -> Vec<u8>| {
        // The list of pages lies in the image, which is where it was loaded.
        let list = specimen.symbols.address("pattern_pages").unwrap() - guest_images::freebsd::KERNBASE;
        let mut bytes = read(list);
        bytes.truncate(guest_images::PatternPage::LIST_SIZE);
        let pages = guest_images::PatternPage::parse_list(&bytes).unwrap();
        assert!(pages.iter().any(|page| page.reach == Reach::Free));
        pages.iter().for_each(|page| {
            assert_pattern(page.physical_address, &read(page.physical_address));
        });
    };
    let specimen = Specimen::dumped("freebsd-abi", &[], &["--dump-format", "raw"]);
    assert_eq!(specimen.report["core_format"], "raw");
    let file = File::open(specimen.core_path()).unwrap();
    check(&specimen, &|address| {
        let mut bytes = vec![0; 4096];
        file.read_exact_at(&mut bytes, address).unwrap();
        bytes
    });
    let specimen = Specimen::dumped("freebsd-abi", &[], &["--dump-format", "elf"]);
    assert_eq!(specimen.report["core_format"], "elf");
    specimen.verify();
    let core = ElfCore::open(&specimen.core_path()).unwrap();
    check(&specimen, &|address| core.memory(address, 4096).unwrap());
}

#[test]
fn the_hosts_choice_of_format_beats_the_guests() {
    needs!(Kvm);
    let own = ["--kenv", "debug.minidump=0"];
    let specimen = Specimen::dumped("freebsd-abi", &[], &[&own[..], &["--dump-format", "minidump"]].concat());
    specimen.check_minidump(&specimen.minidump());
    let specimen = Specimen::dumped("freebsd-abi", &[], &["--kenv", "debug.minidump=1"]);
    assert_eq!(specimen.report["core_format"], "minidump");
}

#[test]
fn a_stripped_kernel_has_no_minidump_and_its_twin_brings_it_back() {
    needs!(Kvm);
    let specimen = dumped_after(strip, &[]);
    assert_eq!(specimen.report["core_format"], "elf");
    specimen.verify();
    specimen.assert_remark("symbols");

    let bench = Bench::new("freebsd-abi");
    let twin = bench.folder().join("kernel.debug");
    std::fs::copy(bench.image(), &twin).unwrap();
    strip(&bench);
    let ended = bench.run(&settled(&[], &["--symbols", arg(&twin)]));
    assert_code(&ended, 10);
    let specimen = Specimen::of("freebsd-abi", bench, ended);
    assert_eq!(specimen.remarks(), [""; 0]);
    specimen.check_minidump(&specimen.minidump());
}

/// Gives a symbol another name, of the same length.
fn rename(bench: &Bench, from: &str, to: &str) {
    let mut image = std::fs::read(bench.image()).unwrap();
    let name = [b"\0", from.as_bytes(), b"\0"].concat();
    let places: Vec<usize> =
        (0..image.len() - name.len()).filter(|&at| image[at..at + name.len()] == name).collect();
    assert_eq!(places.len(), 1, "{from} is once in the table of names");
    image[places[0] + 1..][..to.len()].copy_from_slice(to.as_bytes());
    std::fs::write(bench.image(), image).unwrap();
}

#[test]
fn a_kernel_whose_bitmap_cannot_be_found_gets_every_page() {
    needs!(Kvm);
    let specimen = dumped_after(|bench| rename(bench, "vm_page_dump", "vm_page_dumq"), &[]);
    let core = specimen.minidump();
    specimen.assert_remark("every page");
    specimen.check_threads(&core);
    let all: u64 = core.dump_avail().iter().map(|(start, end)| (end - start) / 4096).sum();
    assert_eq!(core.pages().len() as u64, all);
    for page in specimen.pattern_pages(&core) {
        assert_pattern(page.physical_address, &core.read_va(page.virtual_address, 4096).unwrap());
    }
}

#[test]
fn inspect_shows_each_format_as_debuggers_do() {
    needs!(Kvm);
    for format in ["minidump", "full"] {
        let specimen = Specimen::dumped_with_4_cpus("freebsd-abi", &[], &["--dump-format", format]);
        assert_inspected(&specimen, &specimen.core_path());
    }
}

/// Asserts that `netdump inspect` finds the panic and the threads.
#[track_caller]
pub(crate) fn assert_inspected(specimen: &Specimen, core: &Path) {
    let kernel = specimen.bench.image();
    let ended = run(program("netdump"), &["inspect", "--json", "--kernel", arg(&kernel), arg(core)]);
    assert_code(&ended, 0);
    let seen: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(seen["panic"]["text"], guest_images::freebsd::PANIC_TEXT);
    assert_eq!(seen["guest"]["host_name"], guest_images::freebsd::HOST_NAME);
    let threads = seen["kernel"]["threads"].as_array().unwrap();
    assert_eq!(threads.len() as u64, 5 + u64::from(specimen.cpus), "{}", ended.stdout);
    let crashed: Vec<_> = threads.iter().filter(|thread| thread["tid"] == 100_101).collect();
    assert_eq!(crashed.len(), 1);
    let chain = crashed[0]["backtrace"].to_string();
    for name in guest_images::freebsd::PANIC_BACKTRACE {
        assert!(chain.contains(name), "no {name} in {chain}");
    }
}

/// `netdump verify` and `inspect` of a core that may be packed; what the first said.
#[track_caller]
pub(crate) fn assert_read_as_it_is(specimen: &Specimen, core: &Path) -> String {
    assert_inspected(specimen, core);
    verify(core, &specimen.bench.report_path()).stdout
}
