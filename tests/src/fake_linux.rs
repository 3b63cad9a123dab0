//! A stopped Linux guest that never ran: page tables, VMCOREINFO and an array of `struct page` as a Debian kernel (12's
//! cloud kernel) has them, of a guest of 32 MiB of which the kernel uses a few.

use std::ops::Range;

use netdump::linux::Vmcoreinfo;
use netdump::vmcore::Registers;

use crate::fake_guest::FakeGuest;

/// What that kernel said in a guest of 512 MiB.
const TEXT: &str = include_str!("../../netdump/src/linux/fixtures/vmcoreinfo-6.1.0-56-cloud-amd64.txt");
/// Bytes of RAM, which begins at 0.
pub const RAM: u64 = 32 << 20;
/// The image, and where address randomisation put it.
pub const IMAGE: u64 = 16 << 20;
/// Its length: two large pages.
pub const IMAGE_LEN: u64 = 4 << 20;
/// Kernel address of the image.
pub const TEXT_START: u64 = 0xffff_ffff_8660_0000;
/// Kernel address of guest-physical address 0.
pub const DIRECT_MAP: u64 = 0xffff_88c8_0000_0000;
/// Where the note lies.
pub const NOTE: u64 = 0x180_0000;
/// Where the array of `struct page` lies, and what one has.
pub const PAGES: u64 = 0x140_0000;
/// Bytes of a `struct page`.
pub const PAGE_STRUCT: u64 = 64;
/// Where the root of the kernel's page tables lies.
pub const TABLES: u64 = IMAGE + 0x20_0000;
/// Where the names of the kernel lie (`init_uts_ns`), its pointer to the note and its memory sections.
const NAMES: u64 = IMAGE + 0x30_0000;
const POINTER: u64 = IMAGE + 0x30_1000;
const SECTIONS: u64 = 0x13f_0000;

/// Kernel address of a byte of the image.
pub fn image_address(physical: u64) -> u64 {
    TEXT_START + (physical - IMAGE)
}

/// What the kernel says of itself.
pub fn text() -> String {
    let image = |physical| format!("{:x}", image_address(physical));
    let phys_base = IMAGE.wrapping_sub(TEXT_START - 0xffff_ffff_8000_0000).cast_signed();
    [
        ("SYMBOL(init_uts_ns)", image(NAMES)),
        ("SYMBOL(swapper_pg_dir)", image(TABLES)),
        ("SYMBOL(init_top_pgt)", image(TABLES)),
        ("SYMBOL(mem_section)", format!("{:x}", DIRECT_MAP + SECTIONS)),
        ("NUMBER(phys_base)", phys_base.to_string()),
    ]
    .into_iter()
    .fold(TEXT.to_owned(), |text, (key, value)| with_line(&text, key, &value))
}

/// The text with another value in the line of `key`.
pub fn with_line(text: &str, key: &str, value: &str) -> String {
    let changed = |line: &str| match line.split_once('=') {
        Some((known, _)) if known == key => format!("{key}={value}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(changed).collect()
}

/// The same as [`Vmcoreinfo`].
pub fn info() -> Vmcoreinfo {
    Vmcoreinfo::parse(text().as_bytes()).expect("a real kernel's text")
}

/// A note at the start of a page.
pub fn put_note(guest: &mut FakeGuest, page: u64, text: &str) {
    let len = u32::try_from(text.len()).expect("a page");
    let head = [&11_u32.to_le_bytes()[..], &len.to_le_bytes(), &[0; 4], b"VMCOREINFO\0\0"].concat();
    guest.write(page, &[&head, text.as_bytes()].concat());
}

/// The same guest, whose array of `struct page` is there, all zeros.
pub fn guest_with_pages() -> FakeGuest {
    let mut guest = guest();
    let len = usize::try_from(RAM / 4096 * PAGE_STRUCT).expect("a small array");
    guest.write(PAGES, &vec![0; len]);
    guest
}

/// The guest, of which one CPU runs on the kernel's tables and one on none.
pub fn guest() -> FakeGuest {
    guest_that_touched(&[0x10_0000..0x20_0000, IMAGE..IMAGE + IMAGE_LEN, NOTE..NOTE + 0x2000])
}

/// The same kernel, of whose memory everything is zeros that is not said in this file.
pub fn bare_guest() -> FakeGuest {
    let sections = SECTIONS & !0xf_ffff;
    guest_that_touched(&[
        sections..sections + 0x10_0000,
        IMAGE + 0x20_0000..IMAGE + IMAGE_LEN,
        NOTE..NOTE + 0x2000,
    ])
}

fn guest_that_touched(ranges: &[Range<u64>]) -> FakeGuest {
    let paged = Registers { cr0: 1 << 31, cr3: TABLES, rip: TEXT_START, ..Registers::default() };
    let guest = ranges.iter().cloned().fold(FakeGuest::new(3).untouched_ram(0, RAM), FakeGuest::touched);
    let mut guest = guest.cpu_with(paged).cpu_with(Registers::default());
    let zeros = vec![0; 0x10_0000];
    for start in [SECTIONS & !0xf_ffff, IMAGE + 0x20_0000, IMAGE + 0x30_0000] {
        guest.write(start, &zeros);
    }
    guest.write(NOTE, &zeros[..0x2000]);
    // The image in two large pages, all memory in one of 1 GiB.
    let [image_upper, image_lower, all_memory] = [TABLES + 0x1000, TABLES + 0x2000, TABLES + 0x3000];
    let index = |shift: u32, address: u64| 8 * (address >> shift & 511);
    guest.write_words(TABLES + index(39, TEXT_START), &[image_upper | 3]);
    guest.write_words(image_upper + index(30, TEXT_START), &[image_lower | 3]);
    guest.write_words(image_lower + index(21, TEXT_START), &[IMAGE | 0x83, (IMAGE + (2 << 20)) | 0x83]);
    guest.write_words(TABLES + index(39, DIRECT_MAP), &[all_memory | 3]);
    guest.write_words(all_memory + index(30, DIRECT_MAP), &[0x83]);
    for (field, name) in
        (0..).zip(["Linux", "guest", "6.1.0-56-cloud-amd64", "#1 SMP Debian", "x86_64", "(none)"])
    {
        guest.write(NAMES + 65 * field, name.as_bytes());
    }
    guest.write_words(POINTER, &[DIRECT_MAP + NOTE]);
    put_sections(&mut guest);
    put_note(&mut guest, NOTE, &text());
    guest
}

/// One section, present and with an array of pages; the root of roots names it.
fn put_sections(guest: &mut FakeGuest) {
    let section = SECTIONS + 0x1000 * 8;
    guest.write_words(SECTIONS, &[DIRECT_MAP + section]);
    guest.write_words(section, &[(DIRECT_MAP + PAGES) | 3, 0]);
}
