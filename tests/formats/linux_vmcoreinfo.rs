//! A Linux kernel's VMCOREINFO among other pages of a stopped guest: the real one is found, others are not.

use harness::fake_guest::FakeGuest;
use harness::fake_kernel::FakeKernel;
use harness::fake_linux::{self, DIRECT_MAP, IMAGE, NOTE, TEXT_START, put_note, text, with_line};
use netdump::linux::image::KernelImage;
use netdump::linux::{LinuxMemory, Vmcoreinfo};
use netdump::vmcore::VirtualMemory;
use netdump::vmcore::{KernelSymbols, Registers};

fn located(guest: &FakeGuest) -> Option<String> {
    Vmcoreinfo::locate(guest, None).map(|info| info.text().to_owned())
}

/// The note taken away and memory that is not touched yet.
fn without_note() -> FakeGuest {
    let mut guest = fake_linux::guest();
    guest.write(NOTE, &[0; 24]);
    guest
}

#[test]
fn the_note_is_found_by_its_page_and_untouched_memory_is_not_read() {
    let guest = fake_linux::guest();
    assert_eq!(located(&guest), Some(text()));
    assert_eq!(guest.untouched_reads(), 0);
    assert_eq!(located(&without_note()), None);
    assert_eq!(located(&super::guest()), None, "a guest that is not Linux");
}

#[test]
fn the_image_and_its_addresses_are_those_of_the_page_tables() {
    let guest = fake_linux::guest();
    let image = KernelImage::find(&guest).unwrap();
    assert_eq!((image.virtual_start, image.physical_start), (TEXT_START, IMAGE));
    let info = fake_linux::info();
    assert_eq!(image.phys_base(), info.phys_base());
    let memory = LinuxMemory::new(&guest, &info).unwrap();
    assert_eq!(memory.translate(TEXT_START + 0x123), Some(IMAGE + 0x123));
    assert_eq!(memory.translate(DIRECT_MAP + 0x123), Some(0x123));
    assert_eq!(memory.translate(TEXT_START + (4 << 20)), Some(IMAGE + (4 << 20)), "unmapped, still in place");
    for nowhere in [0, IMAGE, DIRECT_MAP - 1, u64::MAX] {
        assert_eq!(memory.translate(nowhere), None, "{nowhere:#x}");
    }
    assert_eq!(memory.read_cut_string(info.symbol("init_uts_ns").unwrap(), 64).unwrap(), b"Linux");
}

#[test]
fn copies_of_other_kernels_are_passed_over() {
    let other_place = with_line(&text(), "SYMBOL(_stext)", "ffffffff86800000");
    let other_base = with_line(&text(), "NUMBER(phys_base)", "0");
    let other_release = with_line(&text(), "OSRELEASE", "6.1.0-55-cloud-amd64");
    for decoy in [other_place, other_base, other_release, "OSRELEASE=x\n".repeat(20)] {
        let mut guest = fake_linux::guest();
        put_note(&mut guest, 0x10_0000, &decoy);
        assert_eq!(located(&guest), Some(text()));
        let mut guest = without_note();
        put_note(&mut guest, 0x10_0000, &decoy);
        assert_eq!(located(&guest), None);
    }
}

#[test]
fn of_two_that_fit_the_kernel_has_named_one() {
    let mut guest = fake_linux::guest();
    let planted = with_line(&text(), "SYMBOL(prb)", "ffffffff86600000");
    put_note(&mut guest, 0x10_0000, &planted);
    assert_eq!(located(&guest), Some(text()));
    // A second pointer, and nothing tells any more.
    guest.write_words(IMAGE + 0x30_2000, &[DIRECT_MAP + 0x10_0000]);
    assert_eq!(located(&guest), None);
    // A true copy is no other.
    put_note(&mut guest, 0x10_0000, &text());
    assert_eq!(located(&guest), Some(text()));
}

#[test]
fn symbols_show_the_way_to_the_note() {
    let mut guest = fake_linux::guest();
    // Linked for another address, as an image is before it is moved.
    let linked = |physical: u64| 0xffff_ffff_8100_0000 + (physical - IMAGE);
    let kernel = FakeKernel::default().symbol("_text", linked(IMAGE), 0).symbol(
        "vmcoreinfo_note",
        linked(IMAGE + 0x30_1000),
        8,
    );
    let symbols = KernelSymbols::parse(&kernel.image()).unwrap();
    // By its page there is no telling.
    put_note(&mut guest, 0x10_0000, &with_line(&text(), "SYMBOL(prb)", "ffffffff86600000"));
    guest.write_words(IMAGE + 0x30_2000, &[DIRECT_MAP + 0x10_0000]);
    assert_eq!(located(&guest), None);
    assert_eq!(Vmcoreinfo::locate(&guest, Some(&symbols)).unwrap().text(), text());
}

#[test]
fn without_any_cpus_tables_the_release_must_do() {
    let mut guest = FakeGuest::new(3).ram(0, 1 << 20).cpu_with(Registers::default());
    put_note(&mut guest, 0x1000, &text());
    assert_eq!(located(&guest), None, "no kernel lies where it says");
}

/// Each would fit, and is another: one look at the image judges all of them.
#[test]
fn many_that_fit_cost_one_search_of_the_image() {
    let mut guest = fake_linux::guest();
    for page in 0..256 {
        let planted = with_line(&text(), "SYMBOL(prb)", &format!("{:x}", TEXT_START + page));
        put_note(&mut guest, 0x10_0000 + 0x1000 * page, &planted);
    }
    assert_eq!(located(&guest), Some(text()));
}

#[test]
fn many_decoys_hide_nothing() {
    let mut guest = fake_linux::guest();
    let decoy = with_line(&text(), "NUMBER(phys_base)", "0");
    for page in 0..256 {
        put_note(&mut guest, 0x10_0000 + 0x1000 * page, &decoy);
    }
    assert_eq!(located(&guest), Some(text()));
}
